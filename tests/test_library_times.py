"""The listening passes: where in the step a call began, what it is charged, and what happens when listening fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fake_recording import libraries, place, site, timing
from fake_recording import recording as recording_of

from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.interpose import Heard
from taxbreak_fx.library_events import Cost, LibraryEvent, enclosed, library_of, net_us
from taxbreak_fx.merge import merge
from taxbreak_fx.probes import ClockProbe
from taxbreak_fx.recorders import library
from taxbreak_fx.recorders import timing as timing_module
from taxbreak_fx.recorders.graph import GraphBench
from taxbreak_fx.recorders.library import AROUND, OUTSIDE, PASSES, _Place, time_libraries
from taxbreak_fx.recording import LibraryTimes

FREE = Cost(0.0, 0.0)
GEMM, LAUNCH, SYNC, COPY = "cublasGemmEx", "cudaLaunchKernel", "cudaStreamSynchronize", "cudaMemcpyAsync"


def call(name: str, start: float, end: float, thread: int = 1, depth: int = 0) -> LibraryEvent:
    """A call from ``start`` to ``end``, in µs."""
    kind = library_of(name)
    assert kind is not None
    return LibraryEvent(name=name, library=kind, start_us=start, end_us=end, thread=thread, depth=depth)


def probe(*edges_us: float, graphs: tuple[float, ...] = ()) -> ClockProbe:
    """A probe whose sites begin and end, by turns, at these times."""
    found = ClockProbe()
    found.stamps = [int(us * 1e3) for us in edges_us]
    found.graphs = [int(us * 1e3) for us in graphs]
    return found


def placed(*events: LibraryEvent, at: ClockProbe | None = None, cost: Cost = FREE, **idle: float) -> dict[int, _Place]:
    """Sites 100…200 and 300…400, unless ``at`` says otherwise."""
    return dict(library._placed(events, at or probe(100, 200, 300, 400), cost, idle))


# --- events ---------------------------------------------------------------------------------------------------------


def test_enclosed_looks_at_all_depths_of_the_same_thread() -> None:
    events = [
        call(GEMM, 0, 100),
        call("cublasLtMatmul", 10, 90, depth=1),
        call(LAUNCH, 20, 30, depth=2),
        call(LAUNCH, 25, 28, thread=2),
        call(LAUNCH, 110, 120),
    ]
    outer = [event.name == GEMM for event in events]
    assert enclosed(events, outer) == [False, True, True, False, False]
    assert enclosed(events, [False] * 5) == [False] * 5
    # inside 1 µs, outside 2 µs: the first holds two other calls, the second one
    assert net_us(events, (1.0, 2.0)) == [100 - 1 - 6, 80 - 1 - 3, 9, 2, 9]


# --- where a call began ---------------------------------------------------------------------------------------------


def test_calls_belong_to_the_site_in_which_they_began_or_to_none() -> None:
    found = placed(
        call(GEMM, 50, 51), call(GEMM, 110, 130), call(GEMM, 150, 155), call(GEMM, 250, 252), call(GEMM, 310, 320)
    )
    assert {number: (held.calls, held.own_us) for number, held in found.items()} == {
        0: (2, 25.0), 1: (1, 10.0), OUTSIDE: (2, 3.0),
    }  # fmt: skip


def test_beside_the_sites_inside_and_outside_the_graph_callables_are_told_apart() -> None:
    # One graph callable 90…410 around both sites.
    at = probe(100, 200, 300, 400, graphs=(90, 410))
    found = placed(call(GEMM, 80, 81), call(GEMM, 250, 252), call(GEMM, 350, 354), call(GEMM, 420, 428), at=at)
    assert {number: held.own_us for number, held in found.items()} == {AROUND: 9.0, OUTSIDE: 2.0, 1: 4.0}
    # Two callables, one site each: between them is around.
    at = probe(100, 200, 300, 400, graphs=(90, 210, 290, 410))
    assert set(placed(call(GEMM, 250, 251), at=at)) == {AROUND}


def test_launches_inside_a_library_call_are_gone_from_it_and_counted_apart() -> None:
    found = placed(call(GEMM, 110, 130), call(LAUNCH, 115, 119, depth=1), call(LAUNCH, 140, 145))[0]
    assert (found.own_us, found.calls, found.heard_inside) == (16.0, 1, 1)
    assert (found.launches, found.launch_us) == (2, 4.0 + 5.0)


def test_set_up_calls_are_library_time_but_no_calls() -> None:
    found = placed(call("cublasSetStream_v2", 110, 111), call(GEMM, 120, 130))[0]
    assert (found.own_us, found.calls) == (11.0, 1)


def test_a_launch_through_another_launch_is_one_and_charged_without_what_timing_the_inner_one_cost() -> None:
    # cudaLaunchKernel (10 µs) came back through an import table as __cudaLaunchKernel: 10 − 0.5 − (0.5 + 1).
    again = [call(LAUNCH, 110, 120), call("__cudaLaunchKernel", 112, 118, depth=1)]
    found = placed(*again, cost=Cost(0.5, 1.0))[0]
    assert (found.launches, found.launch_us) == (1, 8.0)
    # on another thread it is a launch of its own
    other = [again[0], call("__cudaLaunchKernel", 112, 118, thread=2)]
    assert placed(*other)[0].launches == 2


def test_graph_launches_are_kept_apart_from_kernel_launches() -> None:
    found = placed(call("cudaGraphLaunch", 110, 150), call(LAUNCH, 160, 164))[0]
    assert (found.graph_us, found.launches, found.launch_us) == (40.0, 1, 4.0)


def test_blocked_time_is_what_a_blocking_call_takes_beyond_an_idle_device() -> None:
    idle = {SYNC: 2.0, COPY: 5.0, "cudaMemcpy": 6.0}
    cost = Cost(0.5, 0.25)
    assert placed(call(SYNC, 110, 150), cost=cost, **idle)[0].blocked_us == 40 - 0.5 - 2
    assert placed(call("cudaMemcpy", 110, 150), cost=cost, **idle)[0].blocked_us == 40 - 0.5 - 6
    # a copy to pageable memory waits too: torch synchronises right after it; and no other copy does
    waited = placed(call(COPY, 110, 150), call(SYNC, 151, 154), cost=cost, **idle)[0]
    assert waited.blocked_us == (40 - 0.5 - 5) + (3 - 0.5 - 2)
    assert placed(call(COPY, 110, 150), call(LAUNCH, 151, 154), **idle)[0].blocked_us == 0.0
    assert placed(call(COPY, 110, 150), **idle) == {}
    assert placed(call(COPY, 110, 150), call(SYNC, 151, 154, thread=2), **idle)[0].blocked_us == 1.0
    # noise keeps its sign
    assert placed(call(SYNC, 110, 111), **idle)[0].blocked_us == -1.0


def test_one_blocking_call_inside_another_waits_once() -> None:
    found = placed(
        call("cudaMemcpy", 110, 150), call(SYNC, 111, 149, depth=1), cudaMemcpy=6.0, cudaStreamSynchronize=2.0
    )
    assert found[0].blocked_us == 34.0


def test_waiting_inside_a_library_call_is_no_library_time() -> None:
    # cuSOLVER (60 µs) synchronises for 40, of which 2 on an idle device: it waits 38 and works 22.
    found = placed(call("cusolverDnSgetrf", 110, 170), call(SYNC, 120, 160, depth=1), **{SYNC: 2.0})[0]
    assert (found.blocked_us, found.own_us, found.calls) == (38.0, 22.0, 1)


# --- several passes -------------------------------------------------------------------------------------------------


def test_a_place_is_the_middle_half_of_the_passes_at_one_speed() -> None:
    # Eight passes of 1 … 8 µs, the last two disturbed; scaled by two: the middle four are 3, 4, 5, 6 → 4.5, doubled.
    passes = [_Place(own_us=us, calls=1) for us in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0, 80.0)]
    found = library._site(3, passes, [2.0] * 8)
    assert (found.site, found.around, found.own_us, found.calls) == (3, False, 9.0, 1)
    # each pass by its own speed: 10 µs on a host half as fast is 5
    mixed = [_Place(blocked_us=10.0), _Place(blocked_us=5.0), _Place(blocked_us=10.0), _Place(blocked_us=5.0)]
    assert library._site(0, mixed, [0.5, 1.0, 0.5, 1.0]).blocked_us == 5.0


def test_a_place_beside_the_sites_says_where() -> None:
    one = _Place(own_us=1.0, calls=2, heard_inside=1, launches=3, launch_us=9.0, graph_us=7.0, blocked_us=2.0)
    around, outside = (library._site(number, [one] * 4, [1.0] * 4) for number in (AROUND, OUTSIDE))
    expected = place(
        None, around=True, own_us=1.0, calls=2, launches_inside=1, launches_beside=2, launch_us=9.0, graph_us=7.0,
        blocked_us=2.0,
    )  # fmt: skip
    assert around == expected
    assert outside == msgspec.structs.replace(expected, around=False)


@pytest.mark.parametrize("other", [None, _Place(calls=2), _Place(calls=1, launches=1), _Place(calls=1, heard_inside=1)])
def test_passes_that_make_other_calls_are_no_measurement(other: _Place | None) -> None:
    with pytest.raises(MeasurementError, match="its work depends on data"):
        library._site(0, [_Place(calls=1), _Place(calls=1), other], [1.0] * 3)


# --- the whole measurement, with a fake interposer ------------------------------------------------------------------


class FakeInterposer:
    """Hears ``calls`` working calls in each pass, of 1 µs each, wherever the step is at the time."""

    made: list[FakeInterposer] = []

    def __init__(self) -> None:
        self.closed, self.passes = False, 0
        FakeInterposer.made.append(self)

    def control(self) -> None:
        """It hears."""

    def cost_us(self) -> Cost:
        return Cost(0.1, 0.2)

    def install(self) -> int:
        return 0

    def calls(self) -> int:
        return 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[Heard]:
        heard = Heard()
        begun = time.perf_counter_ns() / 1e3
        yield heard
        self.passes += 1
        middle = FakeStep.stamp_us
        heard.events = [call(GEMM, begun - 5, begun - 4)]  # before the step: not its own
        heard.events += [call(GEMM, middle, middle + 1.1, thread=number) for number in range(self.calls())]

    def close(self) -> None:
        self.closed = True


class FakeStep:
    """A step of one site; ``stamp_us`` is a moment inside it."""

    stamp_us = 0.0

    def __init__(self, sites: int = 1) -> None:
        self._sites, self._probe = sites, ClockProbe()

    def prepare(self) -> None:
        """Nothing to prepare."""

    @contextlib.contextmanager
    def observe(self, probe: ClockProbe) -> Iterator[None]:
        self._probe = probe
        yield

    def call(self) -> None:
        for _ in range(self._sites):
            self._probe.enter()
            FakeStep.stamp_us = time.perf_counter_ns() / 1e3
            self._probe.leave()


def bench() -> Any:
    """A bench on which every plain step takes 50 µs of host time."""
    restored: list[int] = []
    snapshot = SimpleNamespace(restore=lambda: restored.append(1))
    return SimpleNamespace(
        device="cuda", snapshot=snapshot, sync=lambda: None, timed=lambda built: (60.0, 50.0), restored=restored,
        step=lambda built: built.call(),
    )  # fmt: skip


def listened(
    monkeypatch: pytest.MonkeyPatch, interposer: type[FakeInterposer] = FakeInterposer, made: int = 1, sites: int = 1
) -> LibraryTimes:
    """What ``time_libraries`` finds in a step of ``made`` sites that had ``sites`` when it was recorded."""
    FakeInterposer.made.clear()
    monkeypatch.setattr(library, "Interposer", interposer)
    monkeypatch.setattr(library, "_idle_us", lambda interposer, cost: {})
    built: Any = FakeStep(made)
    return time_libraries(bench(), built, sites)


def closed() -> bool:
    (interposer,) = FakeInterposer.made
    return interposer.closed


def test_every_call_of_the_step_is_found_in_its_site(monkeypatch: pytest.MonkeyPatch) -> None:
    found = listened(monkeypatch)
    assert found.host_us == 50.0 and found.cost_us == pytest.approx(0.3)
    (only,) = found.sites
    assert (only.site, only.calls, only.around) == (0, 1, False)
    assert only.own_us == pytest.approx(1.0, abs=1e-3)  # 1.1 as heard, 0.1 of it the timing
    assert FakeInterposer.made[0].passes == PASSES + 1 and closed()


def test_the_budget_of_a_graph_knows_how_many_steps_listening_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    where, built = bench(), FakeStep()
    plain, own = where.timed, built.call

    def timed(built: object) -> object:
        steps.append("plain")
        return plain(built)

    def call() -> None:
        steps.append("own")
        own()

    where.timed, built.call = timed, call  # type: ignore[method-assign]
    monkeypatch.setattr(library, "Interposer", FakeInterposer)
    monkeypatch.setattr(library, "_idle_us", lambda interposer, cost: {})
    time_libraries(where, built, 1)  # type: ignore[arg-type]
    assert len(steps) == library.STEPS
    on = {device: SimpleNamespace(step_s=1.0, device=device) for device in ("cpu", "cuda")}
    cost = {device: GraphBench.cost_s(graph, 5) for device, graph in on.items()}  # type: ignore[arg-type]
    assert cost["cuda"] - cost["cpu"] == library.STEPS


class Deaf(FakeInterposer):
    def control(self) -> None:
        raise MeasurementError("one known matrix product was heard as 0 cuBLAS calls")


class Overflowing(FakeInterposer):
    @contextlib.contextmanager
    def listening(self) -> Iterator[Heard]:
        with super().listening() as heard:
            yield heard
        heard.overflow = True


class Changing(FakeInterposer):
    def calls(self) -> int:
        return 2 if self.passes == 4 else 1


class Broken(FakeInterposer):
    def install(self) -> int:
        raise MeasurementError("library calls cannot be timed: the import tables cannot be made writable")


@pytest.mark.parametrize(
    ("interposer", "made", "why"),
    [
        (Deaf, 1, "one known matrix product was heard as 0 cuBLAS calls"),
        (Overflowing, 1, "the step makes more library calls than can be recorded"),
        (Changing, 1, "two passes of the step made different library calls: its work depends on data"),
        (Broken, 1, "library calls cannot be timed: the import tables cannot be made writable"),
        (FakeInterposer, 2, "the step met 2 calls in one pass and 1 in another: its work depends on data"),
    ],
)
def test_what_goes_wrong_is_one_reason_and_the_tables_are_as_they_were(
    interposer: type[FakeInterposer], made: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MeasurementError, match=f"^{why}$"):
        listened(monkeypatch, interposer, made)
    assert closed()


def fails(error: Exception) -> Callable[..., LibraryTimes]:
    def raising(*args: object) -> LibraryTimes:
        raise error

    return raising


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (MeasurementError("no symbol can be interposed"), "no symbol can be interposed"),
        (OSError("no  such\nfile"), "OSError: no such file"),
        (RuntimeError("CUDA error: out of memory"), "RuntimeError: CUDA error: out of memory"),
    ],
)
def test_a_failure_costs_the_variant_its_library_times_only(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing_module, "time_libraries", fails(error))
    where, built = bench(), FakeStep()
    assert timing_module._libraries(where, built, 1, True) == (None, why)  # type: ignore[arg-type]
    assert where.restored == [1], "the step's state is as it was"


def test_where_there_is_nothing_to_listen_to_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_module, "time_libraries", fails(AssertionError("not to be called")))
    built: Any = FakeStep()
    assert timing_module._libraries(bench(), built, 1, False) == (None, "the step's sites could not be clocked")
    where = bench()
    where.device = "cpu"
    found, why = timing_module._libraries(where, built, 1, True)
    assert found is None and why is not None and why.startswith("the CPU device")


# --- several graphs -------------------------------------------------------------------------------------------------


def graph(sites: int, heard: LibraryTimes | None, failure: str | None = None) -> Any:
    timed = timing("dynamo", sites=[site(f"op{i}") for i in range(sites)], library=heard, library_failure=failure)
    return recording_of(timed, None)


def test_places_of_several_graphs_are_renumbered_as_their_sites_are_laid_end_to_end() -> None:
    first = libraries(place(1, own_us=3.0, calls=1), place(own_us=1.0), host_us=20.0)
    second = libraries(place(0, own_us=5.0, calls=2), place(around=True, blocked_us=7.0), host_us=30.0)
    merged = merge([graph(2, first), graph(0, libraries(host_us=1.0)), graph(3, second)]).timing
    assert merged is not None and merged.library is not None
    assert merged.library == libraries(
        place(1, own_us=3.0, calls=1), place(own_us=1.0), place(2, own_us=5.0, calls=2),
        place(around=True, blocked_us=7.0), host_us=51.0,
    )  # fmt: skip
    assert merged.library_failure is None


def test_library_times_that_one_graph_lacks_are_lacking_with_its_reason() -> None:
    merged = merge([graph(2, libraries(place(1, calls=1))), graph(1, None, "no compiler")]).timing
    assert merged is not None
    assert (merged.library, merged.library_failure) == (None, "no compiler")


def test_a_blocking_call_without_an_idle_cost_is_named() -> None:
    idle = {SYNC: 2.0}
    held = placed(call(SYNC, 110, 150), call("cudaMemcpy", 160, 170), **idle)[0]
    assert held.unpriced == {"cudaMemcpy"}
    assert placed(call(SYNC, 110, 150), **idle)[0].unpriced == set()
