"""``taxbreak whatif`` with a change of the step itself: what it asks, prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_predict import OPS, fake_step, op, plan, profile
from test_predict_cli import Capture, full_profile
from test_whatif_step import BATCH, as_is, changed, measured, planned_twice, twice, wall

from taxbreak_fx import dry_run, hardware, schema
from taxbreak_fx.cli import main
from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.predicted import FakeStep
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.whatif import Change
from taxbreak_fx.whatif_step import final, step_whatif


@pytest.fixture
def saved(tmp_path: Path) -> str:
    as_is().save(tmp_path / "review.json")
    return str(tmp_path / "review.json")


@pytest.fixture
def target(tmp_path: Path) -> str:
    hardware.save(profile(), tmp_path / "small.json")
    return str(tmp_path / "small.json")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ReviewRequest]]:
    """What is asked about absent steps, in place of the processes that find it out."""
    seen: list[tuple[str, ReviewRequest]] = []

    def record(request: ReviewRequest, *_: Any, capturing: bool = False) -> FakeStep:
        seen.append(("captured" if capturing else "step", request))
        if request.experts_implementation == "egaer":
            raise UsageError("unknown experts-implementation 'egaer'; did you mean eager?")
        if request.attn_implementation == "odd":
            return fake_step(["torch.fft.rfft"], [op("aten._fft_r2c.default", 0)])
        return fake_step(ops=twice() if request.batch > 1 else OPS)

    def planned(request: ReviewRequest, *_: Any) -> Any:
        seen.append(("plan", request))
        if request.batch > 4:
            raise CaptureError("too large")
        return planned_twice() if request.batch > 1 else plan()

    monkeypatch.setattr(dry_run, "record_apart", record)
    monkeypatch.setattr(dry_run, "dry_run", planned)
    return seen


def test_the_command_predicts_each_step_once(
    capsys: Capture, tmp_path: Path, saved: str, target: str, asked: list[tuple[str, ReviewRequest]]
) -> None:
    out = tmp_path / "out"
    options = ["--batch", "2", "--cpu-speed", "2", "--profile", target, "--out", str(out), "--json"]
    assert main(["whatif", saved, *options]) == 0
    printed = capsys.readouterr()
    expected = step_whatif(as_is(), as_is(), changed(), BATCH, Change(cpu_speed=2.0))
    review = schema.load(out / "review.json")
    assert schema.decode(printed.out.encode(), "stdout") == review and printed.err == ""
    assert [variant.name for variant in review.variants] == [variant.name for variant in expected.variants]
    assert wall(final(review, "inductor")) == pytest.approx(wall(final(expected, "inductor")), rel=1e-3)
    assert sorted(one.name for one in out.iterdir()) == ["report.html", "report.md", "review.json"]
    # Both steps are recorded before the first is planned.
    kinds = [(what, request.batch) for what, request in asked]
    assert kinds[:2] == [("step", 1), ("step", 2)] and sorted(kinds[2:]) == [
        ("captured", 1), ("captured", 2), ("plan", 1), ("plan", 2),
    ]  # fmt: skip


def test_several_batches_print_where_they_turn(
    capsys: Capture, tmp_path: Path, saved: str, target: str, asked: list[tuple[str, ReviewRequest]]
) -> None:
    out = tmp_path / "out"
    argv = ["whatif", saved, "--batch", "8,1,2", "--profile", target, "--out", str(out)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "eager: turns device-bound between batch 1 and 2" in text
    assert "inductor, batch 8: the changed step: not planned: too large" in text
    # The review's own batch is predicted once; compiled variants of the largest are skipped.
    assert [request.batch for what, request in asked if what == "step"] == [1, 2, 8]
    review = schema.load(out / "review.json")
    assert review.variant("eager + batch 8").status == "ok" and review.variant("inductor + batch 8").status == "skipped"
    written = (out / "sweep.json").read_bytes()
    made = msgspec.json.decode(written)
    assert [(row["variant"], row["batch"]) for row in made["rows"]][:4] == [
        ("eager", 1), ("eager", 2), ("eager", 8), ("inductor", 1),
    ]  # fmt: skip
    assert main([*argv, "--json"]) == 0
    assert capsys.readouterr().out.encode() == written
    assert main([*argv, "--cpu-speed", "2", "--variant", "eager"]) == 0
    assert "eager + cpu 2" in capsys.readouterr().out


def test_a_review_without_a_timeline_is_given_the_predicted_one(
    capsys: Capture, tmp_path: Path, saved: str, target: str, asked: list[tuple[str, ReviewRequest]]
) -> None:
    """Its own batch is nothing to change, but with another change it has one to be made to."""
    old = str(tmp_path / "old.json")
    measured(as_is("eager"), 1.0, 1.0, 82.55).save(old)
    assert main(["whatif", old, "--cuda-graph"]) == 6
    assert "has no timeline" in capsys.readouterr().err
    assert main(["whatif", old, "--cuda-graph", "--batch", "1", "--profile", target, "--json"]) == 0
    made = final(schema.decode(capsys.readouterr().out.encode(), "stdout"), "eager")
    assert (made.name, made.launches) == ("eager + batch 1 + graph", 1)
    assert [what for what, _ in asked] == ["step"]  # recorded once, and nothing to plan


@pytest.mark.parametrize(
    ("code", "options", "line"),
    [
        (2, ["--batch", "0"], "--batch must be a whole number of at least 1"),
        (2, ["--batch", "1"], "nothing to change: the step of"),
        (2, ["--batch", "2", "--cpu-speed", "-1"], "--cpu-speed must be a positive factor"),
        (2, ["--batch", "2", "--variant", "dynamo"], "has no variant 'dynamo'"),
        (2, ["--batch", "2", "--profile", "h900"], "no hardware profile 'h900'"),
        (2, ["--experts-implementation", "egaer"], "unknown experts-implementation 'egaer'; did you mean eager?"),
        (6, ["--attn-implementation", "odd"], "attn odd: profile small knows no"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: Capture, saved: str, target: str, asked: list[Any], code: int, options: list[str], line: str
) -> None:
    argv = ["whatif", saved, *([] if "--profile" in options else ["--profile", target]), *options]
    assert main(argv) == code
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert printed.err.startswith("taxbreak: ") and line in printed.err
    assert "plan" not in {what for what, _ in asked}  # told before minutes of planning


def test_a_folder_that_cannot_be_written_is_told_first(
    capsys: Capture, saved: str, target: str, asked: list[Any]
) -> None:
    assert main(["whatif", saved, "--batch", "2", "--profile", target, "--out", saved]) == 7
    assert "choose another folder" in capsys.readouterr().err and asked == []


def test_from_a_prediction_to_another_batch(tmp_path: Path, capsys: Capture) -> None:
    """The whole way on a tiny model: what is asked of a prediction at batch 1 is the prediction at batch 4."""
    path = str(tmp_path / "full.json")
    hardware.save(full_profile(), path)
    common = ["gpt2-tiny", "--seq-len", "16", "--target", path, "--variants", "eager", "--quiet"]
    for batch in ("1", "4"):
        assert main(["predict", *common, "--batch", batch, "--out", str(tmp_path / batch)]) == 0
    capsys.readouterr()
    review = str(tmp_path / "1" / "review.json")
    assert main(["whatif", review, "--batch", "4", "--profile", path, "--json"]) == 0
    made = final(schema.decode(capsys.readouterr().out.encode(), "stdout"), "eager")
    other = schema.load(tmp_path / "4" / "review.json").variant("eager")
    assert wall(made) == pytest.approx(wall(other), rel=1e-3)
    assert (made.launches, made.kernels) == (other.launches, other.kernels)
    assert made.device_active_us == pytest.approx(other.device_active_us)
    assert main(["whatif", review, "--experts-implementation", "eager", "--profile", path]) == 2
    assert "gpt2-tiny is dense: --experts-implementation eager does not apply" in capsys.readouterr().err
