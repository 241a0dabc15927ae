"""What follows a launch on the device: gaps between kernels and the return of a synchronisation, and their reasons."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_review import machine

from taxbreak_fx import calibrate, device_path, launch_path, native, trace
from taxbreak_fx.device_path import FEW, MANY, ROUNDS, answered_us, measure_device_path, periods
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.machine import DevicePath, LaunchPath
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import LaunchFloor
from taxbreak_fx.stages import Outcome, Stage, with_floor, with_null


def p(us: float) -> Percentiles:
    return Percentiles(p5=us - 0.5, p50=us, p95=us + 0.5, samples=30)


def path(**known: Any) -> DevicePath:
    return DevicePath(**known, unmeasured={name: f"no {name}" for name in DevicePath.MEASUREMENTS if name not in known})


class Words(dict[int, int]):
    """Memory in which the answer comes after so many looks, and the flag after so many more."""

    def __init__(self, answer: int, flag: int) -> None:
        super().__init__({0: 0, 32: 0, 64: 0})
        self.after, self.looks = {32: answer, 64: flag}, {32: 0, 64: 0}

    def __getitem__(self, word: int) -> int:
        assert self.get(0) == 1  # nothing is looked for before the question is asked
        self.looks[word] += 1
        return int(self.looks[word] > self.after[word])


def ticking(step_ns: int) -> Callable[[], int]:
    """A clock that is ``step_ns`` later at every reading."""
    count = itertools.count()
    return lambda: next(count) * step_ns


def test_the_time_is_from_the_answer_to_the_flag() -> None:
    # Readings: the limit's, 3 for the answer's failed looks, its moment (4); 5 failed looks, the flag's moment (10).
    words: Any = Words(answer=3, flag=5)
    assert answered_us(words, ticking(1_000)) == 6.0


def test_an_answer_or_a_flag_that_never_comes_ends_at_the_limit() -> None:
    for never in (Words(answer=10**9, flag=0), Words(answer=0, flag=10**9)):
        words: Any = never
        with pytest.raises(MeasurementError, match="held stream: no answer within 200 ms"):
            answered_us(words, ticking(launch_path.LIMIT_NS // 10))


def test_what_two_numbers_of_kernels_share_cancels() -> None:
    asked: list[int] = []

    def elapsed(count: int) -> float:
        asked.append(count)
        return 20.0 + 1.5 * count

    assert periods(elapsed) == [1.5] * ROUNDS
    assert asked == [MANY, FEW] * ROUNDS and MANY < 1_000  # more would not fit the launch queue


def test_a_synchronisation_is_timed_with_cold_caches_on_an_idle_device() -> None:
    done: list[str] = []
    times = device_path.idle_sync_us(lambda: done.append("sync"), ticking(2_500), lambda: done.append("chill"))
    assert times == [2.5] * device_path.COLD_SAMPLES
    assert done == ["sync", "chill", "sync"] * (launch_path.WARM + device_path.COLD_SAMPLES)
    device_path.Chill()()


class Stream:
    """A held stream whose null kernels take 2 µs each, 1.25 in a graph."""

    def __init__(self, loop: object) -> None:
        pass

    def issue(self, count: int) -> int:
        return count

    def released_us(self, issue: Callable[[], Any]) -> float:
        return 9.0 + 2.0 * float(issue())

    def returned_us(self) -> list[float]:
        return [6.0, 7.0, 8.0]


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_path, "LaunchLoop", lambda: None)
    monkeypatch.setattr(device_path, "HeldStream", Stream)
    monkeypatch.setattr(device_path, "_graph_periods", lambda stream: [1.25] * ROUNDS)
    monkeypatch.setattr(device_path, "idle_sync_us", lambda sync: [20.0] * 3)


def test_the_device_path_without_its_traced_half(faked: None) -> None:
    found = measure_device_path(machine().calibration.launch_path)
    assert found.period_us is not None and found.graph_period_us is not None
    assert (found.period_us.p50, found.graph_period_us.p50) == (2.0, 1.25)
    assert found.idle_sync_us is not None and found.idle_sync_us.p50 == 20.0
    assert found.sync_us == 7.0 + 2.0 / 2  # the round trip of that machine is 2 µs
    assert found.unmeasured == dict.fromkeys(("null_us", "gap_us", "graph_gap_us"), launch_path.NOT_TRACED)


def test_one_number_that_fails_costs_what_is_made_of_it(faked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def hung(self: Stream) -> list[float]:
        raise MeasurementError("no answer")

    monkeypatch.setattr(Stream, "returned_us", hung)
    found = measure_device_path(machine().calibration.launch_path)
    assert found.period_us is not None and (found.sync_us, found.unmeasured["sync_us"]) == (None, "no answer")
    monkeypatch.undo()


def test_without_a_round_trip_the_return_of_a_synchronisation_is_unknown(faked: None) -> None:
    found = measure_device_path(LaunchPath.unavailable("one core only"))
    assert found.returned_us is not None and found.unmeasured["sync_us"] == "one core only"


def test_no_compiler_leaves_every_number_null_with_that_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(native, "_cache", lambda: tmp_path)
    found = measure_device_path(LaunchPath.unavailable("the same"))
    assert set(found.unmeasured) == set(DevicePath.MEASUREMENTS)
    assert all("no C compiler" in why for why in found.unmeasured.values())


def test_the_cpu_device_has_no_device_path() -> None:
    assert calibrate.calibrate_host("cpu").device_path == DevicePath.unavailable(calibrate.NO_LAUNCH)


# --- the traced half ------------------------------------------------------------------------------------------------


def test_the_gaps_are_the_periods_less_the_traced_null_kernel() -> None:
    measured = path(period_us=p(1.75), graph_period_us=p(1.25), returned_us=p(7.0), idle_sync_us=p(20.0), sync_us=8.0)
    found = with_null(measured, 1.0, "not needed")
    assert (found.null_us, found.gap_us, found.graph_gap_us, found.sync_us) == (1.0, 0.75, 0.25, 8.0)
    assert found.unmeasured == {}


def test_a_gap_is_missing_with_the_reason_of_what_it_lacks() -> None:
    found = with_null(
        path(period_us=p(1.75), returned_us=p(7.0), idle_sync_us=p(20.0), sync_us=8.0), None, "the trace holds 3 of 500"
    )
    assert found.unmeasured == {
        "null_us": "the trace holds 3 of 500",
        "gap_us": "the trace holds 3 of 500",
        "graph_period_us": "no graph_period_us",
        "graph_gap_us": "no graph_period_us",
    }


def test_the_traced_null_kernel_reaches_the_machine_or_leaves_its_reason() -> None:
    base = machine()
    measured = path(period_us=p(1.75), graph_period_us=p(1.25), returned_us=p(7.0), idle_sync_us=p(20.0), sync_us=8.0)
    base = msgspec.structs.replace(base, calibration=msgspec.structs.replace(base.calibration, device_path=measured))

    def finished(floor: LaunchFloor) -> DevicePath:
        result = msgspec.Raw(msgspec.json.encode(floor))
        outcome = Outcome(stage=Stage(kind="floor"), seconds=1.0, result=result)
        return with_floor(base, outcome, "cuda").calibration.device_path

    known = finished(LaunchFloor(t_sys_us=p(4.0), failure=None, bare_us=p(4.0), null_us=1.0))
    assert known.gap_us == 0.75
    unknown = finished(LaunchFloor(t_sys_us=p(4.0), failure=None, bare_us=p(4.0), null_failure="no kernels"))
    assert unknown.unmeasured["gap_us"] == "no kernels"
    lost = Outcome(stage=Stage(kind="floor"), seconds=1.0, failure="killed")
    assert with_floor(base, lost, "cuda").calibration.device_path.unmeasured["gap_us"] == "killed"


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([1.0] * MANY + [60.0, 2.0], (1.0, None)),  # the kernel that held the stream and the flag are among them
        ([1.0] * 3, (None, f"the trace holds 3 of {MANY} null kernels")),
    ],
)
def test_the_null_kernels_duration_is_the_median_of_all_traced(
    durations: list[float], expected: tuple[float | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "held_null_kernels", lambda: (lambda: None, MANY))
    assert calibrate._null_duration(lambda run: durations) == expected


def test_a_null_kernel_that_cannot_be_held_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise MeasurementError("no C compiler")

    monkeypatch.setattr(calibrate, "held_null_kernels", refuse)
    assert calibrate._null_duration(lambda run: []) == (None, "no C compiler")


def test_durations_of_a_trace_are_those_of_its_kernels() -> None:
    events = [{"cat": "kernel", "dur": 2.5}, {"cat": "gpu_memcpy", "dur": 9.0}, {"cat": "cuda_runtime", "dur": 4.0}]
    assert trace.kernel_durations(events) == [2.5]


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_device_path_is_whole_and_a_graph_is_no_slower_than_a_stream() -> None:
    from taxbreak_fx.recorders.tracing import profiled

    found = measure_device_path(launch_path.measure_launch_path())
    assert set(found.unmeasured) == {"null_us", "gap_us", "graph_gap_us"}
    floor = calibrate.launch_floor(
        lambda run: trace.kernel_latencies(profiled(run)), lambda run: trace.kernel_durations(profiled(run))
    )
    assert floor.null_failure is None
    whole = with_null(found, floor.null_us, "")
    assert whole.unmeasured == {} and whole.sync_us is not None and whole.sync_us > 0.0
    assert whole.gap_us is not None and whole.graph_gap_us is not None
    assert whole.gap_us >= 0.0
    # Nodes of a graph may overlap, but none vanishes.
    assert whole.null_us is not None and -whole.null_us < whole.graph_gap_us <= whole.gap_us
