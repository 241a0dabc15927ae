"""The stages of a review, their results on disk, and how results become a ``Review``.  No torch: the supervisor's half.

All timing comes before the first trace, because the profiler leaves its process slower.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from taxbreak_fx import __version__
from taxbreak_fx.breakdown import decompose
from taxbreak_fx.breakdown_generate import generated
from taxbreak_fx.compare import compare_all
from taxbreak_fx.errors import FormatError, OutputError
from taxbreak_fx.findings import with_findings
from taxbreak_fx.generate_record import Generate, GenerateRaw
from taxbreak_fx.machine import SCORE_VERSION, Calibration, DevicePath, HostScore, Machine
from taxbreak_fx.model import Review, StepInfo, Variant
from taxbreak_fx.record import Percentiles, Record
from taxbreak_fx.recording import Frame, HostFacts, LaunchFloor, Recording, Timing, Trace
from taxbreak_fx.timeline import kernel_gap

Kind = Literal["host", "timing", "generate", "frame", "trace", "floor"]
INTERRUPTED = "interrupted by the user"
NOT_REACHED = "not reached"
# Traced ÷ untraced latency of null kernels: 1.1 to 1.7 in 20 reviews on H200s (2026-11-23), 57 beside another program.
MOST_TRACED = 3.0
WAITING = b"null"  # a worker's line while another process measures on its device: no reply yet
Result = HostFacts | Timing | GenerateRaw | Frame | Trace | LaunchFloor
_TYPES: dict[str, type[Record]] = {
    "host": HostFacts,
    "timing": Timing,
    "generate": GenerateRaw,
    "frame": Frame,
    "trace": Trace,
    "floor": LaunchFloor,
}


class Stage(Record, frozen=True, kw_only=True):
    """One bounded piece of work; ``variant`` is None where it serves all variants."""

    kind: Kind
    variant: str | None = None

    @property
    def title(self) -> str:
        """For progress bars and file names."""
        return f"{self.kind}-{self.variant}" if self.variant else self.kind


class Outcome(Record, frozen=True, kw_only=True):
    """What came of a stage: its result, or the reason there is none.  ``fatal``: the process cannot go on."""

    stage: Stage
    seconds: float
    failure: str | None = None
    fatal: bool = False
    result: msgspec.Raw = msgspec.Raw(b"null")

    def value(self) -> Result:
        """The decoded result.  Raises ``FormatError`` when the bytes are no such result."""
        try:
            return msgspec.json.decode(self.result, type=_TYPES[self.stage.kind])  # type: ignore[return-value]
        except msgspec.DecodeError as error:
            raise FormatError(
                f"stage {self.stage.title} holds no valid result ({error}); run the review again"
            ) from error


class Ready(Record, frozen=True, kw_only=True):
    """The worker's first reply: what it will run on, or the user's mistake."""

    device: Literal["cuda", "cpu"] | None = None
    variants: tuple[str, ...] = ()
    generates: bool = False
    error: str | None = None
    exit_code: int = 0


def plan(variants: Sequence[str], device: Literal["cuda", "cpu"], generates: bool = False) -> list[Stage]:
    """The stages of a review in order.  ``variants`` begins with eager; ``generates``: all tokens are timed too."""
    stages = [Stage(kind="host"), Stage(kind="timing", variant="eager")]
    stages += [Stage(kind="generate")] if generates else []
    compiled = [name for name in variants if name not in ("eager", "eager-graph")]
    if compiled:
        stages.append(Stage(kind="frame"))
    stages += [Stage(kind="timing", variant=name) for name in variants if name != "eager"]
    if device == "cuda":
        stages += [Stage(kind="trace", variant=name) for name in variants]
        stages.append(Stage(kind="floor"))
    return stages


def unneeded(stage: Stage, outcomes: Iterable[Outcome]) -> str | None:
    """Why a stage need not run: the machine could not be described, eager failed, or its variant was not timed."""
    for outcome in outcomes:
        if outcome.failure is not None and outcome.stage.kind == "host":
            return f"the machine was not described: {outcome.failure}"
        if outcome.failure is None or outcome.stage.kind != "timing":
            continue
        if outcome.stage.variant == "eager":
            return f"eager failed: {outcome.failure}"
        if outcome.stage.variant == stage.variant:
            return outcome.failure
    return None


def journal(outcome: Outcome, folder: Path, number: int) -> None:
    """Write an outcome to ``folder``.  Raises ``OutputError`` when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{number:02d}-{outcome.stage.title}.json"
        partial = target.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(outcome))
        partial.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error


def outcomes_in(folder: Path) -> list[Outcome]:
    """The outcomes that ``journal`` wrote to ``folder``, in their order; none where there is no such folder.

    Raises ``FormatError`` for a file that is no outcome.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Outcome))
        except msgspec.DecodeError as error:
            raise FormatError(f"{path}: {error}; not a stage's result: review again") from error
    return found


def assemble(
    outcomes: Sequence[Outcome], variants: Sequence[str], device: Literal["cuda", "cpu"], notes: Sequence[str] = ()
) -> Review:
    """The review of what was measured; what was not carries its reason.  Raises ``FormatError`` without host facts."""
    found = {(outcome.stage.kind, outcome.stage.variant): outcome for outcome in outcomes}
    host = found.get(("host", None))
    if host is None or host.failure is not None:
        raise FormatError(f"no review: the machine was not described ({host.failure if host else NOT_REACHED})")
    facts = host.value()
    assert isinstance(facts, HostFacts)
    machine = with_floor(facts.machine, found.get(("floor", None)), device)
    recordings = [recording(name, found, device, machine.calibration) for name in variants]
    eager = next((item for item in recordings if item.variant == "eager"), None)
    finished: list[Variant] = [decompose(item, eager) for item in recordings]
    timings = {item.variant: item.timing for item in recordings if item.timing is not None}
    graphs = next((timing.graphs for name, timing in timings.items() if timing.graphs), [])
    review = Review(
        tool_version=__version__,
        origin="measured",
        model=facts.model,
        step=facts.step,
        machine=with_reference(machine, timings.values()),
        variants=finished,
        comparisons=compare_all(finished, timings),
        graphs=graphs,
        generate=generation(found.get(("generate", None)), facts.step),
        notes=list(notes),
    )
    return with_findings(review)


def generation(outcome: Outcome | None, step: StepInfo) -> Generate | None:
    """What was timed of all tokens; None where the step is not one of them."""
    if step.phase != "generate":
        return None
    raw = outcome.value() if outcome is not None and outcome.failure is None else None
    assert raw is None or isinstance(raw, GenerateRaw)
    failure = outcome.failure if outcome is not None and outcome.failure else NOT_REACHED
    tokens, token = int(step.options["tokens"]), int(step.options["token"])
    return generated(raw, failure, tokens, step.seq_len or 0, step.batch or 0, token)


def recording(
    name: str, found: dict[tuple[Kind, str | None], Outcome], device: Literal["cuda", "cpu"], calibration: Calibration
) -> Recording:
    """All stage results of one variant; missing ones leave their reason in ``failures``."""
    values: dict[str, Result | None] = {}
    failures: dict[str, str] = {}
    for kind, variant in (("timing", name), ("trace", name), ("frame", None)):
        outcome = found.get((kind, variant))  # type: ignore[arg-type]
        values[kind] = outcome.value() if outcome is not None and outcome.failure is None else None
        if values[kind] is None:
            failures[kind] = outcome.failure if outcome is not None and outcome.failure else NOT_REACHED
    return Recording(variant=name, device=device, calibration=calibration, failures=failures, **values)  # type: ignore[arg-type]


def with_floor(machine: Machine, outcome: Outcome | None, device: str) -> Machine:
    """``machine`` with the traced launch floors filled in, or the reason why one is missing."""
    if device == "cpu":
        return machine
    floor = outcome.value() if outcome is not None and outcome.failure is None else None
    calibration = machine.calibration
    reasons = {name: why for name, why in calibration.unmeasured.items() if name != "t_sys_us"}
    t_sys = floor.t_sys_us if isinstance(floor, LaunchFloor) else None
    path = calibration.launch_path
    if t_sys is None:
        failure = floor.failure if isinstance(floor, LaunchFloor) else outcome.failure if outcome else NOT_REACHED
        reasons["t_sys_us"] = failure or NOT_REACHED
    elif (busy := on_busy_device(t_sys, path.t_sys_untraced_us)) is not None:
        t_sys, reasons["t_sys_us"] = None, busy
    bare = floor.bare_us if isinstance(floor, LaunchFloor) else None
    bare_reasons = {name: why for name, why in path.unmeasured.items() if name != "t_sys_bare_us"}
    if bare is None:
        failure = floor.bare_failure if isinstance(floor, LaunchFloor) else reasons["t_sys_us"]
        bare_reasons["t_sys_bare_us"] = failure or NOT_REACHED
    path = msgspec.structs.replace(path, t_sys_bare_us=bare, unmeasured=bare_reasons)
    null_us = floor.null_us if isinstance(floor, LaunchFloor) else None
    failure = floor.null_failure if isinstance(floor, LaunchFloor) else reasons["t_sys_us"]
    gaps = with_null(calibration.device_path, null_us, failure or NOT_REACHED)
    return msgspec.structs.replace(
        machine,
        calibration=msgspec.structs.replace(
            calibration, t_sys_us=t_sys, launch_path=path, device_path=gaps, unmeasured=reasons
        ),
    )


def on_busy_device(traced: Percentiles, untraced: Percentiles | None) -> str | None:
    """Why a traced launch floor is none: null kernels waited for another program on the device; None where they did
    not, or where there is nothing to tell it by."""
    if untraced is None or traced.p50 <= MOST_TRACED * untraced.p50:
        return None
    return (
        f"null kernels began {traced.p50:.0f} µs after their launch under the profiler, {untraced.p50:.1f} µs without "
        "it: another program ran on the device; review again when it has ended"
    )


def with_reference(machine: Machine, timings: Iterable[Timing]) -> Machine:
    """``machine`` with the score of its host while the variants were timed."""
    rounds = [us for timing in timings for us in timing.reference_us]
    score = HostScore(version=SCORE_VERSION, us=statistics.median(rounds)) if rounds else None
    return msgspec.structs.replace(
        machine, calibration=msgspec.structs.replace(machine.calibration, host_reference=score)
    )


def with_null(path: DevicePath, null_us: float | None, failure: str) -> DevicePath:
    """``path`` with the traced duration of a null kernel and the gaps that follow from it, or why they are missing."""
    values = {"null_us": null_us}
    reasons = {name: why for name, why in path.unmeasured.items() if name not in ("null_us", "gap_us", "graph_gap_us")}
    for gap, name in (("gap_us", "period_us"), ("graph_gap_us", "graph_period_us")):
        period: Percentiles | None = getattr(path, name)
        values[gap] = None if period is None or null_us is None else kernel_gap(period, null_us)
        if values[gap] is None:
            reasons[gap] = path.unmeasured.get(name, failure)
    if null_us is None:
        reasons["null_us"] = failure
    return msgspec.structs.replace(path, unmeasured=reasons, **values)
