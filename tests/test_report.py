"""Reports show what the review holds, fit their space, and stay harmless whatever names a model brings."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import msgspec
import pytest
from sample_findings import full_review, with_findings
from sample_review import NO_WAIT, TOO_MANY, family, sample_review

from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import Interval, SourceLine
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.content import page, top_nodes
from taxbreak_fx.report.html import html
from taxbreak_fx.report.markdown import markdown
from taxbreak_fx.report.text import MAX_LINES, terminal
from taxbreak_fx.variant_record import Exposed

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "</script><img src=x onerror=alert(1)>|`x`\n# *h* [l](javascript:1)\x1b[31m\x9b2J\u202e\r&lt;\\|"


def hostile_review() -> Review:
    """The sample with ``HOSTILE`` as every text that a model, a library or a user can choose."""
    sample = full_review()
    eager, _, *others = sample.variants
    source = SourceLine(file=HOSTILE, line=1)
    nodes = [
        msgspec.structs.replace(node, op=HOSTILE, family=HOSTILE, library=HOSTILE, module_path=HOSTILE, source=source)
        for node in eager.nodes
    ]
    assert eager.breakdown is not None and eager.exposed is not None
    costs = [msgspec.structs.replace(row, name=HOSTILE, source=source) for row in eager.exposed.families]
    exposed = msgspec.structs.replace(eager.exposed, families=costs, lines=costs, notes=[HOSTILE])
    families = [msgspec.structs.replace(row, family=HOSTILE) for row in eager.breakdown.ct_families]
    terms = msgspec.structs.replace(eager.breakdown, ct_families=families, ct_source=f"subtractive: {HOSTILE}")
    assert eager.timeline is not None
    timeline = msgspec.structs.replace(eager.timeline, families=[HOSTILE] * 3, files=[HOSTILE] * 2)
    eager = msgspec.structs.replace(
        eager,
        timeline=timeline,
        nodes=nodes,
        notes=[HOSTILE],
        library_calls={HOSTILE: 1},
        breakdown=terms,
        exposed=exposed,
    )
    return msgspec.structs.replace(
        sample,
        model=HOSTILE,
        tool_version=HOSTILE,
        step=msgspec.structs.replace(sample.step, dtype=HOSTILE, options={HOSTILE: HOSTILE}),
        machine=msgspec.structs.replace(sample.machine, device=HOSTILE, torch=HOSTILE, date=HOSTILE),
        variants=[eager, Variant.unavailable(HOSTILE, "failed", HOSTILE), *others],
        comparisons=[
            msgspec.structs.replace(c, verdict=HOSTILE, worse=[HOSTILE], variant=HOSTILE) for c in sample.comparisons
        ],
        graphs=[
            msgspec.structs.replace(g, compile_id=HOSTILE, break_reason=HOSTILE, source=source) for g in sample.graphs
        ],
        notes=[HOSTILE],
        findings=[
            msgspec.structs.replace(
                finding, rule=HOSTILE, title=HOSTILE, variant=HOSTILE, source=source, module_path=HOSTILE, op=HOSTILE,
                evidence=[HOSTILE], fix=HOSTILE, saving_us={HOSTILE: 1.0}, fingerprint=HOSTILE,
            )
            for finding in sample.findings
        ],
    )  # fmt: skip


def test_golden_text() -> None:
    assert terminal(with_findings()) == (GOLDEN / "review.txt").read_text(encoding="utf-8")


def test_golden_markdown() -> None:
    assert markdown(with_findings()) == (GOLDEN / "review.md").read_text(encoding="utf-8")


def row(text: str, start: str, nth: int = 0) -> str:
    """The ``nth`` line that starts with the word ``start``, with single spaces."""
    return " ".join([line for line in text.splitlines() if line.split(" ")[0] == start][nth].split())


def test_text_shows_the_numbers_derived_in_the_sample() -> None:
    text = terminal(sample_review())
    # 560 + 180 + 90 = 830 µs exposed; whether outputs are equal has no room, and those that differ have a line below.
    expected = "eager 1.00 [0.99 1.02] 0.900 0.220 20 20 0.600 0.200 0.080 0.830 0.200"
    assert row(text, "eager") == expected
    assert row(terminal(sample_review(), 120), "eager") == f"{expected} yes"
    assert row(text, "inductor", 1) == "inductor 0.340 0.050 0.048 0.062 0.500 0.500 [0.490 0.510] faster"
    # 150 + 200 + 48 = 398 µs.
    assert row(text, "linear") == "linear toy/modeling_toy.py:41 model.layers.*.attention.query 12 0.398 0.150"


def test_the_wall_ratios_head_says_the_level_of_their_intervals() -> None:
    review = sample_review()
    older = [msgspec.structs.replace(c, ratio_confidence=0.95) for c in review.comparisons]
    assert "wall ratio [99.9 %]" in terminal(review)
    assert "wall ratio [95 %]" in terminal(msgspec.structs.replace(review, comparisons=older))


def test_unmeasured_shows_a_dash_and_its_reason_once() -> None:
    text = terminal(sample_review())
    assert row(text, "reduce-overhead").split()[8] == row(text, "reduce-overhead").split()[11] == fmt.MISSING
    assert terminal(sample_review(), 120).count(NO_WAIT) == 1
    assert markdown(sample_review()).count(NO_WAIT) == 1


def test_failed_and_skipped_variants_show_their_reason() -> None:
    for report in (terminal(sample_review()), markdown(sample_review()), html(sample_review())):
        assert "cudagraphs failed: CUDA out of memory: tried to allocate 32 GiB" in report
        assert "dynamo skipped: the time limit was reached" in report


def test_only_comparisons_with_eager_in_text_all_in_markdown() -> None:
    assert "relative to eager" in terminal(sample_review())
    assert "worse than inductor" not in terminal(sample_review())
    assert "worse than inductor in: device time, outputs differ" in markdown(sample_review())


def test_ops_come_from_the_first_measured_variant_when_eager_failed() -> None:
    sample = sample_review()
    eager, _, inductor = sample.variants[:3]
    with_nodes = msgspec.structs.replace(inductor, nodes=eager.nodes, launches=20, kernels=20)
    failed = Variant.unavailable("eager", "failed", "boom")
    review = msgspec.structs.replace(sample, variants=[failed, with_nodes], comparisons=[])
    variant, nodes = top_nodes(review, 2)
    assert variant is not None and variant.name == "inductor"
    assert [node.op for node in nodes] == ["aten.linear.default", "aten.layer_norm.default"]
    assert "Top ops of inductor" in terminal(review)
    assert "eager failed: boom" in terminal(review)


def cpu_review() -> Review:
    """The sample's eager as on a CPU, where launches, kernels and ΔKT do not exist."""
    sample = sample_review()
    eager = sample.variants[0]
    why = "no launches on a CPU"
    assert eager.breakdown is not None
    terms = msgspec.structs.replace(
        eager.breakdown, kt_us=None, orchestration_us=800.0, unmeasured=eager.breakdown.unmeasured | {"kt_us": why}
    )
    absent = dict.fromkeys(("launches", "kernels", "launch_us"), why)
    eager = msgspec.structs.replace(
        eager, launches=None, kernels=None, launch_us=None, nodes=[], breakdown=terms, unmeasured=absent,
        exposed=Exposed.unavailable("host and device are one thread"),
    )  # fmt: skip
    return msgspec.structs.replace(sample, variants=[eager], comparisons=[])


def test_exposed_cost_stands_beside_the_raw_terms() -> None:
    tables = {found.title: found for found in page(sample_review())[0]}
    by_term = tables["Exposed cost by term, simulated (ms per step)"]
    assert by_term.rows[0] == (
        "eager", "1.00", "0.990", "-1.0 %", "0.908", "-9.2 %", "0.770", "0", "0.560", "0.190", "0.120", "0.008",
        "0.040",
    )  # fmt: skip
    fall = tables["Waterfall: terms removed one after the other, left to right (ms per step)"]
    assert fall.rows[1] == ("inductor", "0.510", "0.240", "0.130", "0.040", "0.008", "0.092")
    assert tables["Exposed cost of eager by family, simulated (ms per step)"].rows[0] == (
        "gemm", "0.410", "0.390", "0.150", "0.020", "0.405",
    )  # fmt: skip
    assert tables["Exposed cost of eager by source, simulated (ms per step)"].rows[0][0] == "toy/modeling_toy.py:41"
    text = terminal(sample_review(), 160)
    assert "simulated wall off by eager -1.0 %, inductor +2.0 %" in text
    assert "exposed (eager-graph): no gap: not traced yet" in markdown(sample_review())


def test_a_review_without_simulation_has_no_exposed_column() -> None:
    bare = [msgspec.structs.replace(v, exposed=None) for v in sample_review().variants]
    review = msgspec.structs.replace(sample_review(), variants=bare)
    for report in (terminal(review), markdown(review)):
        assert "xposed" not in report and "imulated" not in report


def test_both_library_estimates_stand_side_by_side_with_their_disagreement() -> None:
    text = markdown(sample_review())
    cells = [
        line.replace("|", " ").split() for line in text.splitlines() if line.startswith("| eager ") and "%" in line
    ]
    # 152 / 160 − 1, 46 / 40 − 1
    assert ["eager", "gemm", "12", "160", "152", "-5", "%"] in cells
    assert ["eager", "attention", "4", "40.0", "46.0", "+15", "%"] in cells
    assert "no op recorded there is known to call a library" in text
    assert "<caption>ΔCT by family" in html(sample_review())
    assert "ΔCT by family" not in terminal(sample_review())


def test_the_terminal_says_where_library_time_is_not_direct() -> None:
    assert [line for line in terminal(sample_review()).splitlines() if line.startswith("ΔCT")] == [
        f"ΔCT of inductor: subtractive: {TOO_MANY}"
    ]
    eager = sample_review().variants[0]
    assert "subtractive" not in terminal(msgspec.structs.replace(sample_review(), variants=[eager], comparisons=[]))


def test_a_disagreement_needs_both_estimates_and_something_to_divide_by() -> None:
    sample = sample_review()
    eager = sample.variants[0]
    assert eager.breakdown is not None
    rows = [family("gemm", 1, 0.0, 3.0), family("attention", 1, -1.0, 3.0), family("copy", 1, None, 3.0, "unheard")]
    terms = msgspec.structs.replace(eager.breakdown, ct_families=rows)
    review = msgspec.structs.replace(sample, variants=[msgspec.structs.replace(eager, breakdown=terms)], comparisons=[])
    (found,) = [table for table in page(review)[0] if table.title.startswith("ΔCT by family")]
    assert [column.title for column in found.columns] == ["variant", "family", "calls", "direct", "subtractive"]
    assert found.rows[1] == ("eager", "attention", "1", "-1.00", "3.00")


def test_columns_without_any_value_are_dropped_with_their_reason() -> None:
    text = terminal(cpu_review())
    header = next(line for line in text.splitlines() if line.startswith("variant"))
    assert header.split() == ["variant", "wall", "[95", "%]", "host", "device", "ΔFT", "ΔCT", "HDBI", "equal"]
    assert "exposed (eager): host and device are one thread" in text
    assert "no launches on a CPU" in text


def test_review_without_any_measured_variant() -> None:
    failed = Variant.unavailable("eager", "failed", "boom")
    for variants in ([failed], []):
        review = msgspec.structs.replace(sample_review(), variants=variants, comparisons=[], graphs=[])
        for report in (terminal(review), markdown(review), html(review)):
            assert ("eager failed: boom" in report) == bool(variants)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_text_fits(width: int) -> None:
    crowded = crowded_review()
    advised = msgspec.structs.replace(crowded, findings=full_review().findings * 4)
    for review in (sample_review(), full_review(), hostile_review(), cpu_review(), crowded, advised):
        lines = terminal(review, width).splitlines()
        assert len(lines) <= MAX_LINES
        assert max(map(len, lines)) <= width


def crowded_review() -> Review:
    """More variants, failures, notes and ops than fit."""
    sample = sample_review()
    eager = sample.variants[0]
    silent = [msgspec.structs.replace(eager.nodes[0], op=f"op{i}", ft_us=float(i)) for i in range(50)]
    first = msgspec.structs.replace(eager, nodes=[*eager.nodes, *silent])
    more = [Variant.unavailable(f"variant-{i}", "failed", f"reason {i}") for i in range(20)]
    copies = [msgspec.structs.replace(c, variant=f"v{i}") for i, c in enumerate(sample.comparisons * 5)]
    notes = [f"note {i}" for i in range(30)]
    return msgspec.structs.replace(
        sample, variants=[first, *sample.variants[1:], *more], comparisons=copies, notes=notes
    )


def test_what_does_not_fit_is_announced() -> None:
    text = terminal(crowded_review())
    assert "… and 20 more rows: see review.json" in text  # 26 variants, 6 shown
    assert "more notes: see review.json" in text
    narrow = terminal(sample_review(), 80)
    assert "no room for: equal, host, kernels" in narrow


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_gets_no_control_characters(width: int) -> None:
    text = terminal(hostile_review(), width)
    bad = {char for char in text if unicodedata.category(char) in ("Cc", "Cf") and char != "\n"}
    assert not bad
    assert "\\x1b[31m" in text


def cells(line: str) -> int:
    """How many cells GitHub sees: an escaping backslash hides the character after it."""
    return line.replace("\\\\", "").replace("\\|", "").count("|")


def test_markdown_tables_keep_their_shape() -> None:
    hostile, tame = markdown(hostile_review()), markdown(full_review())
    blocks = [block.splitlines() for block in hostile.split("\n\n") if block.startswith("|")]
    assert len(blocks) == sum(block.startswith("|") for block in tame.split("\n\n"))
    for block in blocks:
        assert {cells(line) for line in block} == {cells(block[1])}
        assert set(block[1]) <= set("|:-")


def test_markdown_leaves_nothing_to_interpret() -> None:
    text = markdown(hostile_review())
    own = text
    for tag in ("<details><summary>", "</summary>", "</details>"):
        own = own.replace(tag, "")
    assert "<" not in own and "`" not in own
    assert text.count("<details><summary>") == text.count("</summary>\n\n") == text.count("\n\n</details>")
    assert "\\[l\\](javascript:1)" in text
    assert "&amp;lt;" in text  # an entity in a name stays what it was
    assert [line for line in text.splitlines() if line.startswith("# ")] == text.splitlines()[:1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (0.4, "<0.001"), (-0.4, ">-0.001"), (1.0, "0.001"), (999.0, "0.999"), (1234.0, "1.23"),
        (-1234.0, "-1.23"), (12_345.0, "12.3"), (123_456.0, "123"), (5_791_000.0, "5,791"),
    ],
)  # fmt: skip
def test_milliseconds(value: float | None, text: str) -> None:
    assert fmt.ms(value) == text


def test_a_negative_is_near_zero_only_within_the_noise() -> None:
    assert fmt.term(-20.0, 20.0) == fmt.NEAR_ZERO
    assert fmt.term(-21.0, 20.0) == "-0.021"
    assert fmt.term(-1.0, None) == "-0.001"
    assert fmt.term(1.0, 20.0) == "0.001"


def test_interval_never_shows_a_small_time_as_zero() -> None:
    small = Interval(median=0.2, low=0.1, high=0.3, samples=9)
    assert fmt.interval(small, 1e-3) == "0.000200 [0.000100 0.000300]"


def test_percentiles_show_all_three() -> None:
    assert fmt.percentiles(sample_review().machine.calibration.t_sys_us) == "4.00 µs (p5 3.50, p95 6.00)"
    assert fmt.percentiles(None) == fmt.MISSING


def test_source_is_shortened_to_its_folder_and_file() -> None:
    assert fmt.source(SourceLine(file="/a/b/c/d.py", line=7)) == "c/d.py:7"
    assert fmt.source(SourceLine(file="C:\\a\\b.py", line=7)) == "a/b.py:7"
    assert fmt.source(None) == fmt.MISSING
