"""Gates: how they are written, where a mistake in one is pointed at, and when they fail."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sample_review import interval, sample_review

from taxbreak_fx import schema
from taxbreak_fx.cli import main
from taxbreak_fx.diff import diff
from taxbreak_fx.diff_metrics import metric
from taxbreak_fx.diff_types import Change, Diff, Expected, VariantState
from taxbreak_fx.errors import EXIT_GATE, UsageError
from taxbreak_fx.gates import Condition, GateError, judge, parse, parse_limit
from taxbreak_fx.model import Review, Variant

replace = msgspec.structs.replace
Capture = pytest.CaptureFixture[str]


def change(
    head: float, expected: tuple[float, float, float] | None, name: str = "launches", variant: str | None = "eager"
) -> Change:
    """A change to ``head`` where (value, low, high) was expected."""
    if expected is None:
        return Change(variant=variant, metric=name, unit="count", base=1.0, head=None, reason="head: not traced")
    value, low, high = expected
    return Change(
        variant=variant, metric=name, unit="count", base=value, head=head,
        expected=Expected(value=value, low=low, high=high), delta=head - value,
        relative=(head - value) / value if value else None, real=not low <= head <= high,
    )  # fmt: skip


def found(*changes: Change, states: list[VariantState] | None = None) -> Diff:
    empty = diff(sample_review(), sample_review())
    names = dict.fromkeys(c.variant for c in changes if c.variant)
    known = [VariantState(variant=name, base="ok", head="ok") for name in names]
    return replace(empty, changes=list(changes), variants=known if states is None else states)


def states_of(gate: str, *changes: Change) -> list[str]:
    return [verdict.state for verdict in judge([parse(gate)], found(*changes))]


# --- writing ---


def test_a_gate_is_a_metric_and_conditions() -> None:
    gate = parse(" inductor : exposed.ft_us > +5% & > 50us ")
    assert gate.variant == "inductor" and gate.metric.name == "exposed.ft_us" and gate.rises
    assert gate.conditions == (Condition(0.05, True), Condition(50.0, False))
    assert parse("hdbi<-10%").rises is False
    assert parse("t_wall_us>1.5ms").conditions == (Condition(1500.0, False),)
    assert parse("peak_memory_bytes>+64MiB").conditions == (Condition(64 * 2.0**20, False),)
    assert parse("eager + graph:ft_parts.guards>+1us").variant == "eager + graph"
    assert parse("launches>0").conditions == (Condition(0.0, False),)


@pytest.mark.parametrize(
    ("text", "at", "problem"),
    [
        ("", 0, "expected a metric"),
        ("launches", 8, "expected > or <"),
        ("launchs>+2%", 0, "did you mean launches"),
        ("eager:nothing>+2%", 6, "no metric 'nothing'"),
        (":launches>+2%", 0, "expected the name of a variant"),
        ("launches>", 9, "expected a number"),
        ("launches>+x%", 10, "expected a number"),
        ("launches>-2%", 9, "write > with +"),
        ("hdbi<+2%", 5, "write > with +"),
        ("launches>+2us", 11, "launches is a bare number"),
        ("ft_us>+2", 8, "expected a unit"),
        ("ft_us>+2KiB", 8, "ft_us is in us"),
        ("launches>+2%,kernels>1", 12, "expected & or the end"),
        ("launches>+2%&", 13, "expected > or <"),
        ("launches>+2%&<-3", 13, "one direction"),
        ("launches>=2", 9, "expected a number"),
        ("eager:graph_breaks>0", 0, "of the whole review"),
        ("launches>nan", 9, "expected a number"),
    ],
)
def test_a_mistake_is_pointed_at(text: str, at: int, problem: str) -> None:
    with pytest.raises(GateError, match=problem) as error:
        parse(text)
    assert error.value.at == at


def test_limits_are_on_values() -> None:
    launches, time = metric("launches"), metric("t_wall_us")
    assert launches is not None and time is not None
    assert parse_limit("<=350", launches).value == 350
    # An interval is beyond a limit only when all of it is.
    assert parse_limit("<=1ms", time).allows(990, 1020) and not parse_limit("<=1ms", time).allows(1001, 1020)
    assert parse_limit(">1000us", time).allows(990, 1020) and not parse_limit(">1020us", time).allows(990, 1020)
    assert parse_limit("==5", launches).allows(5, 5) and not parse_limit("==5", launches).allows(6, 6)
    with pytest.raises(GateError, match="expected <="):
        parse_limit("350", launches)


# --- judging ---


@pytest.mark.parametrize(
    ("gate", "head", "state"),
    [
        ("launches>+2%", 102, "passed"),  # +2 % is not more than 2 %
        ("launches>+2%", 103, "failed"),
        ("launches>+2%", 50, "passed"),  # fewer is no regression
        ("launches<-2%", 50, "failed"),
        ("launches>2", 102, "passed"),
        ("launches>2", 103, "failed"),
        ("launches>+2%&>5", 104, "passed"),  # relative and absolute: both must be exceeded
        ("launches>+2%&>5", 106, "failed"),
        ("launches>0", 100, "passed"),
    ],
)
def test_limits_on_an_exact_count(gate: str, head: float, state: str) -> None:
    assert states_of(gate, change(head, (100, 100, 100))) == [state]


def test_inside_the_noise_nothing_fails() -> None:
    # 100 expected, 90 … 115 is noise: 114 is 14 % more, and may be nothing.
    assert states_of("launches>+2%", change(114, (100, 90, 115))) == ["passed"]
    assert states_of("launches>+2%", change(116, (100, 90, 115))) == ["failed"]
    assert states_of("launches>+20%", change(116, (100, 90, 115))) == ["passed"]


def test_from_nothing_every_rise_is_more_than_any_share() -> None:
    assert states_of("launches>+500%", change(1, (0, 0, 0))) == ["failed"]
    assert states_of("launches>+0%", change(0, (0, 0, 0))) == ["passed"]


def test_a_gate_is_for_every_variant_or_for_one() -> None:
    changes = change(110, (100, 100, 100)), change(100, (100, 100, 100), variant="inductor")
    assert states_of("launches>+2%", *changes) == ["failed", "passed"]
    assert states_of("inductor:launches>+2%", *changes) == ["passed"]
    with pytest.raises(UsageError, match="no variant 'induktor'; the reviews have eager, inductor"):
        judge([parse("induktor:launches>+2%")], found(*changes))


def test_a_part_that_no_review_has_is_a_mistake() -> None:
    parts = change(100, (100, 100, 100), name="ft_parts.guards")
    with pytest.raises(UsageError, match=r"no part ft_parts.guard; the reviews have ft_parts.guards"):
        judge([parse("ft_parts.guard>1us")], found(parts))


def test_a_gate_that_sees_nothing_fails() -> None:
    unknown = replace(change(1, (1, 1, 1)), expected=None, delta=None, reason="no clock")
    assert states_of("launches>+2%", unknown) == ["not judged", "failed"]
    # One variant that can be judged is enough.
    both = unknown, change(100, (100, 100, 100), variant="inductor")
    assert states_of("launches>+2%", *both) == ["not judged", "passed"]
    assert states_of("kernels>+2%", change(100, (100, 100, 100))) == ["failed"]


def test_a_number_that_the_head_lost_fails() -> None:
    both = change(0, None), change(100, (100, 100, 100), variant="inductor")
    verdicts = judge([parse("launches>+2%")], found(*both))
    assert [(v.variant, v.state) for v in verdicts] == [("eager", "failed"), ("inductor", "passed")]
    assert verdicts[0].why == "head: not traced"
    # Noise alone can make a remainder negative, and null with it: that is no regression.
    below = replace(change(0, None, name="hdbi"), reason="head: negative_residual: device time is below zero")
    both = below, change(100, (100, 100, 100), name="hdbi", variant="inductor")
    assert states_of("hdbi<-5%", *both) == ["not judged", "passed"]


def test_a_variant_that_is_gone_is_shown_and_fails_the_gates_that_name_it() -> None:
    states = [VariantState(variant="inductor", base="ok", head="absent"),
              VariantState(variant="eager", base="ok", head="ok")]  # fmt: skip
    for gate, expected in (
        ("launches>+2%", [("eager", "passed"), ("inductor", "not judged")]),
        ("inductor:launches>+2%", [("inductor", "failed")]),
    ):
        verdicts = judge([parse(gate)], found(change(100, (100, 100, 100)), states=states))
        assert [(v.variant, v.state) for v in verdicts] == expected


def test_why_says_how_much() -> None:
    (verdict,) = judge([parse("launches>+2%")], found(change(106, (100, 100, 100))))
    assert verdict.why == "100 → 106 (+6, +6.0 %)"
    (verdict,) = judge([parse("launches>+2%")], found(change(106, (100, 90, 115))))
    assert verdict.why == "100 → 106 (+6, +6.0 %): within its noise"
    # HDBI: an interval of 0.09 is no rounding.
    (verdict,) = judge([parse("hdbi>+2%")], found(change(0.9, (0.5, 0.45, 0.54), name="hdbi")))
    assert verdict.why == "0.5 → 0.9 (+0.4, +80.0 %), beyond its noise"
    (verdict,) = judge([parse("exposed.ft_us>+2%")], found(change(106, (100, 100, 100))))
    assert "exposed.ft_us is not in both reviews" in verdict.why and "CUDA" in verdict.why


def test_a_variant_that_no_longer_runs_fails_its_gates() -> None:
    states = [VariantState(variant="inductor", base="ok", head="failed", reason="out of memory"),
              VariantState(variant="eager", base="ok", head="ok")]  # fmt: skip
    verdicts = judge([parse("launches>+2%")], found(change(100, (100, 100, 100)), states=states))
    assert [(v.variant, v.state) for v in verdicts] == [("eager", "passed"), ("inductor", "failed")]
    assert "out of memory" in verdicts[1].why


# --- the command ---


def save(review: Review, path: Path) -> str:
    schema.save(review, path)
    return str(path)


def more_launches(review: Review) -> Review:
    def more(v: Variant) -> Variant:
        return replace(v, launches=(v.launches or 0) + 2) if v.name == "inductor" else v

    return replace(review, variants=[more(v) for v in review.variants])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """inductor: 8 launches before, 10 after."""
    base = sample_review()
    return save(base, tmp_path / "base.json"), save(more_launches(base), tmp_path / "head.json")


def test_exit_codes(files: tuple[str, str], capsys: Capture) -> None:
    base, head = files
    assert main(["diff", base, head]) == 0
    assert main(["diff", base, head, "--fail-on", "launches>+30%"]) == 0
    capsys.readouterr()
    assert main(["diff", base, head, "--fail-on", "launches>+2%", "--fail-on", "kernels>+2%"]) == EXIT_GATE == 9
    printed = capsys.readouterr()
    assert "1 of 2 gates failed" in printed.out
    assert printed.err == "taxbreak: failed: inductor: launches>+2%\n"
    assert main(["diff", head, base, "--fail-on", "launches>+2%"]) == 0  # fewer
    assert main(["diff", base, f"{head}.none"]) == 6
    assert main(["diff", base, head, "--top", "0"]) == 2


def test_a_gate_that_cannot_be_read_gets_a_caret(files: tuple[str, str], capsys: Capture) -> None:
    assert main(["diff", *files, "--fail-on", "inductor:launches>+2pct"]) == 2
    printed = capsys.readouterr()
    line, gate, caret = printed.err.splitlines()
    assert printed.out == "" and line.startswith("taxbreak: --fail-on: no unit 'pct'")
    assert gate[caret.index("^") :] == "pct"


def test_a_control_character_does_not_shift_the_caret(files: tuple[str, str], capsys: Capture) -> None:
    assert main(["diff", *files, "--fail-on", "\x1b:launches>x"]) == 2
    _, gate, caret = capsys.readouterr().err.splitlines()
    assert "\x1b" not in gate and gate[caret.index("^") :] == "x"


def test_formats(files: tuple[str, str], capsys: Capture) -> None:
    assert main(["diff", *files, "--format", "json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Diff)
    assert found.change("launches", "inductor").delta == 2
    assert main(["diff", *files, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("# TaxBreak diff: toy")
    assert main(["diff", *files, "--format", "github", "--fail-on", "launches>+2%"]) == EXIT_GATE
    assert capsys.readouterr().out == (
        "::error title=taxbreak gate::inductor: launches>+2%25: 8 → 10 (+2, +25.0 %25)\n"
    )


def test_the_baseline_is_replaced_unless_a_gate_failed(files: tuple[str, str], capsys: Capture) -> None:
    base, head = (Path(file) for file in files)
    before, after = base.read_bytes(), head.read_bytes()
    update = ["diff", *files, "--update-baseline"]
    assert main([*update, "--fail-on", "launches>+2%"]) == EXIT_GATE
    assert base.read_bytes() == before and "the baseline stays" in capsys.readouterr().err
    assert main(update) == 0
    assert base.read_bytes() == after == head.read_bytes()
    assert sorted(path.name for path in base.parent.iterdir()) == ["base.json", "head.json"]


def test_the_first_baseline(files: tuple[str, str], capsys: Capture) -> None:
    base, head = (Path(file) for file in files)
    base.unlink()
    assert main(["diff", *files]) == 6
    assert main(["diff", *files, "--update-baseline"]) == 0
    assert base.read_bytes() == head.read_bytes() and "there was no base" in capsys.readouterr().err


def test_a_baseline_that_is_a_link_stays_one(files: tuple[str, str]) -> None:
    base, head = (Path(file) for file in files)
    link = base.with_name("link.json")
    link.symlink_to(base)
    assert main(["diff", str(link), str(head), "--update-baseline"]) == 0
    assert link.is_symlink() and base.read_bytes() == head.read_bytes()


def test_another_model_ends_with_a_usage_error(tmp_path: Path, capsys: Capture) -> None:
    base = save(sample_review(), tmp_path / "base.json")
    other = save(replace(sample_review(), model="other"), tmp_path / "head.json")
    assert main(["diff", base, other]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["diff", base, other, "--force"]) == 0
    assert "allowed by an option: model toy → other" in capsys.readouterr().out


def test_a_slower_wall_time_fails_only_beyond_its_noise(tmp_path: Path) -> None:
    # inductor: 500 µs at 0.5 of eager. At 0.55 it is within the spread of two processes (1.2), at 0.75 it is not.
    base = sample_review()

    def at(ratio: float) -> str:
        wall = 1000 * ratio
        host = wall - 50
        times = {
            "t_wall_us": interval(wall, wall - 5, wall + 5),
            "t_host_us": interval(host, host - 5, host + 5),
            "issue_us": host,
        }
        variants = [replace(v, **times) if v.name == "inductor" else v for v in base.variants]
        paired = interval(ratio, ratio * 0.98, ratio * 1.02)
        comparisons = [
            replace(c, wall_ratio=paired) if (c.base, c.variant) == ("eager", "inductor") else c
            for c in base.comparisons
        ]
        return save(replace(base, variants=variants, comparisons=comparisons), tmp_path / f"{ratio}.json")

    first = at(0.5)
    assert main(["diff", first, at(0.55), "--fail-on", "t_wall_us>+2%"]) == 0
    assert main(["diff", first, at(0.75), "--fail-on", "t_wall_us>+2%"]) == EXIT_GATE
