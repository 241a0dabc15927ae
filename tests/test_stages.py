"""The order of stages, their results on disk, and how results become a review."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_recording import FRAME, T_SYS_US, eager_timing, eager_trace, timing
from sample_review import machine

from taxbreak_fx.errors import FormatError, OutputError
from taxbreak_fx.machine import SCORE_VERSION, HostScore
from taxbreak_fx.model import StepInfo
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import HostFacts, LaunchFloor
from taxbreak_fx.stages import (
    NOT_REACHED,
    Outcome,
    Result,
    Stage,
    assemble,
    journal,
    outcomes_in,
    plan,
    recording,
    unneeded,
    with_reference,
)

STEP = StepInfo(phase="decode", batch=1, seq_len=16, dtype="bfloat16", device="cuda")
FACTS = HostFacts(machine=machine(), model="toy", step=STEP)
FLOOR = LaunchFloor(t_sys_us=Percentiles(p5=4.0, p50=T_SYS_US, p95=6.0, samples=400), failure=None)


def done(kind: Any, result: Result, variant: str | None = None) -> Outcome:
    """A stage that succeeded."""
    encoded = msgspec.Raw(msgspec.json.encode(result))
    return Outcome(stage=Stage(kind=kind, variant=variant), seconds=1.0, result=encoded)


def lost(kind: Any, why: str, variant: str | None = None) -> Outcome:
    """A stage that failed."""
    return Outcome(stage=Stage(kind=kind, variant=variant), seconds=1.0, failure=why)


EAGER = [done("host", FACTS), done("timing", eager_timing(), "eager"), done("trace", eager_trace(), "eager")]


# --- plan -----------------------------------------------------------------------------------------------------------


def test_all_timing_comes_before_any_trace() -> None:
    names = ("eager", "dynamo", "inductor", "reduce-overhead", "cudagraphs", "eager-graph")
    stages = plan(names, "cuda")
    kinds = [stage.kind for stage in stages]
    assert kinds == ["host", "timing", "frame", *["timing"] * 5, *["trace"] * 6, "floor"]
    assert [stage.variant for stage in stages if stage.kind == "timing"] == list(names)
    assert [stage.variant for stage in stages if stage.kind == "trace"] == list(names)
    assert len({stage.title for stage in stages}) == len(stages)  # each a file name of its own


def test_the_cpu_is_not_traced() -> None:
    assert [stage.title for stage in plan(("eager", "dynamo"), "cpu")] == [
        "host",
        "timing-eager",
        "frame",
        "timing-dynamo",
    ]


@pytest.mark.parametrize("names", [("eager",), ("eager", "eager-graph")])
def test_the_frame_is_measured_only_for_compiled_variants(names: tuple[str, ...]) -> None:
    assert "frame" not in {stage.kind for stage in plan(names, "cuda")}


# --- unneeded -------------------------------------------------------------------------------------------------------


def test_what_is_not_worth_running() -> None:
    failed = [done("host", FACTS), lost("timing", "out of memory", "inductor")]
    assert unneeded(Stage(kind="trace", variant="inductor"), failed) == "out of memory"
    assert unneeded(Stage(kind="trace", variant="eager"), failed) is None
    assert unneeded(Stage(kind="timing", variant="cudagraphs"), failed) is None
    without_eager = [*failed, lost("timing", "it raised", "eager")]
    assert unneeded(Stage(kind="timing", variant="dynamo"), without_eager) == "eager failed: it raised"
    assert unneeded(Stage(kind="floor"), without_eager) == "eager failed: it raised"


def test_a_failed_frame_or_trace_stops_nothing_a_failed_host_everything() -> None:
    assert unneeded(Stage(kind="timing", variant="dynamo"), [lost("frame", "x"), lost("trace", "y", "eager")]) is None
    assert unneeded(Stage(kind="timing", variant="eager"), [lost("host", "no driver")]) == (
        "the machine was not described: no driver"
    )


# --- journal --------------------------------------------------------------------------------------------------------


def test_the_journal_holds_what_can_be_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "journal"
    assert outcomes_in(folder) == []
    journal(EAGER[1], folder, 1)
    journal(lost("frame", "timed out after 3 s"), folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["01-timing-eager.json", "02-frame.json"]
    timing, frame = outcomes_in(folder)
    assert timing.value() == eager_timing()
    assert frame.failure == "timed out after 3 s"
    (folder / "03-trace-eager.json").write_text('{"stage": ')
    with pytest.raises(FormatError, match=r"03-trace-eager.json: .*; not a stage's result: review again"):
        outcomes_in(folder)


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --out") as caught:
        journal(EAGER[0], tmp_path / "file" / "journal", 0)
    assert "\n" not in str(caught.value)


def test_the_hosts_score_is_of_the_rounds_beside_all_variants() -> None:
    machine = FACTS.machine
    assert machine.calibration.host_reference is None
    timings = [eager_timing(reference_us=[300.0, 340.0, 320.0]), eager_timing(reference_us=[400.0, 380.0])]
    found = with_reference(machine, timings).calibration.host_reference
    assert found == HostScore(version=SCORE_VERSION, us=340.0)
    assert with_reference(machine, [eager_timing()]).calibration.host_reference is None


def test_bytes_that_are_no_result_are_a_format_error() -> None:
    wrong = Outcome(stage=Stage(kind="frame"), seconds=0.0, result=msgspec.Raw(b'{"guards_us": "many"}'))
    with pytest.raises(FormatError, match="stage frame holds no valid result"):
        wrong.value()


# --- assemble -------------------------------------------------------------------------------------------------------


def test_a_review_of_stages() -> None:
    outcomes = [
        *EAGER,
        done("frame", FRAME),
        done("timing", timing("dynamo", wall_us=60.0, sites=eager_timing().sites), "dynamo"),
        lost("trace", "the profiler returned no kernel", "dynamo"),
        lost("timing", "out of memory", "inductor"),
        done("floor", FLOOR),
    ]
    review = assemble(outcomes, ("eager", "dynamo", "inductor"), "cuda", ["a note"])
    assert (review.model, review.step, review.origin, review.notes) == ("toy", STEP, "measured", ["a note"])
    assert [(v.name, v.status) for v in review.variants] == [("eager", "ok"), ("dynamo", "ok"), ("inductor", "failed")]
    assert review.variant("inductor").reason == "out of memory"
    assert review.variant("dynamo").unmeasured["kernels"] == "the trace failed: the profiler returned no kernel"
    eager = review.variant("eager").breakdown
    assert eager is not None and eager.kt_us == 2 * T_SYS_US  # the traced floor, not the one of the host's facts
    assert [(c.base, c.variant) for c in review.comparisons] == [("eager", "dynamo")]


def test_stages_not_reached_leave_their_reason() -> None:
    review = assemble(EAGER[:2], ("eager", "dynamo"), "cuda")
    assert review.variant("eager").unmeasured["kernels"] == f"the trace failed: {NOT_REACHED}"
    assert (review.variant("dynamo").status, review.variant("dynamo").reason) == ("skipped", NOT_REACHED)
    assert review.machine.calibration.unmeasured["t_sys_us"] == NOT_REACHED
    found = {(outcome.stage.kind, outcome.stage.variant): outcome for outcome in EAGER[:2]}
    record = recording("eager", found, "cuda", review.machine.calibration)
    assert record.failures == {"trace": NOT_REACHED, "frame": NOT_REACHED}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (lost("floor", "the worker was killed by SIGKILL"), "the worker was killed by SIGKILL"),
        (done("floor", LaunchFloor(t_sys_us=None, failure="3 of 400")), "3 of 400"),
    ],
)
def test_a_launch_floor_that_was_not_measured_has_its_reason(outcome: Outcome, reason: str) -> None:
    review = assemble([*EAGER, outcome], ("eager",), "cuda")
    calibration = review.machine.calibration
    assert (calibration.t_sys_us, calibration.unmeasured["t_sys_us"]) == (None, reason)
    breakdown = review.variant("eager").breakdown
    assert breakdown is not None and breakdown.unmeasured["kt_us"] == reason
    assert calibration.launch_us == 5.0


@pytest.mark.parametrize("outcomes", [[], [lost("host", "no driver")]])
def test_there_is_no_review_of_an_unknown_machine(outcomes: list[Outcome]) -> None:
    with pytest.raises(FormatError, match="the machine was not described"):
        assemble(outcomes, ("eager",), "cuda")


def test_an_interrupted_review_keeps_what_was_done() -> None:
    outcomes = [*EAGER[:2], lost("timing", "interrupted by the user", "dynamo")]
    review = assemble(outcomes, ("eager", "dynamo"), "cuda", ["interrupted by the user"])
    assert (review.variant("eager").status, review.variant("dynamo").status) == ("ok", "skipped")
