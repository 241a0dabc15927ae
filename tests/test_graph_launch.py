"""The launch latency of a step's own graphs, untraced: the twin, the patches, the equation, the fallback."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fake_recording import ADD, activity, calibration, kernel_of, launch, parts_of, recording, site, step, timing, trace

from taxbreak_fx.breakdown import decompose
from taxbreak_fx.decompose import flag_way, graph_latency, untraced_floor
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.merge import merge_timings
from taxbreak_fx.model import StepInfo, Variant
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recorders import graph_launch, graph_span
from taxbreak_fx.recorders.graph_launch import STEPS, WARM_STEPS, flagged_captures, time_graph_launches, timed_replays
from taxbreak_fx.recorders.graph_span import time_graph_spans
from taxbreak_fx.recording import Recording, Timing

TRIP = Percentiles(p5=2.0, p50=3.0, p95=9.0, samples=500)  # so the flag's way to the host is 1.5 µs
GRAPHED = ("reduce-overhead", "cudagraphs", "eager-graph")


@pytest.fixture(autouse=True)
def torchs_own_methods_are_back() -> Iterator[None]:
    kind = torch.cuda.CUDAGraph
    before = kind.capture_begin, kind.replay
    yield
    assert torch.cuda.CUDAGraph is kind
    assert (kind.capture_begin, kind.replay) == before


# --- the patches ----------------------------------------------------------------------------------------------------


class World:
    """What happened, in order, on a clock that only launches move; ``graph`` stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.ns = 0
        self.answers: list[int] = []  # nanoseconds from the end of a replay call until its flag is seen
        world = self

        class Graph:
            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                world.log.append(f"begin {pool} {capture_error_mode}")

            def replay(self) -> None:
                world.log.append("replay")
                world.ns += 400  # the call itself takes 0.4 µs

        self.graph = Graph

    def sync(self) -> None:
        self.log.append("sync")
        self.ns += 50_000  # a drain, which must not count

    def flag(self) -> None:
        self.log.append("flag")

    def seen(self, run: Callable[[], None]) -> float:
        run()
        answer = self.answers.pop(0)
        if answer < 0:
            raise MeasurementError("no answer within 200 ms")
        return self.ns + answer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", made.graph)
    monkeypatch.setattr(graph_launch, "timed_replays", functools.partial(timed_replays, now=lambda: made.ns))
    return made


def test_the_flag_is_launched_right_after_the_capture_began(world: World) -> None:
    own = world.graph.capture_begin
    with flagged_captures(world.flag) as failures:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin("pool", capture_error_mode="thread_local")  # type: ignore[arg-type]
    torch.cuda.CUDAGraph().capture_begin()
    assert world.log == ["begin pool thread_local", "flag", "begin None global"]
    assert failures == [] and world.graph.capture_begin is own


def test_the_real_class_is_patched_and_restored_whatever_happens() -> None:
    begin, replay = torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.replay
    with pytest.raises(RuntimeError), flagged_captures(lambda: None):
        assert torch.cuda.CUDAGraph.capture_begin is not begin
        raise RuntimeError
    with pytest.raises(RuntimeError), timed_replays(lambda run: 0.0, lambda: None):
        assert torch.cuda.CUDAGraph.replay is not replay
        raise RuntimeError
    assert (torch.cuda.CUDAGraph.capture_begin, torch.cuda.CUDAGraph.replay) == (begin, replay)


def test_torchs_captures_all_begin_by_that_method() -> None:
    # What the patch rests on: whoever captures does it through torch.cuda.graph.
    folder = Path(torch.__file__).parent
    text = (folder / "cuda" / "graphs.py").read_text(encoding="utf-8")
    assert "self.cuda_graph.capture_begin(" in text and "self.stream_ctx.__enter__()" in text
    assert text.index("self.stream_ctx.__enter__()") < text.index("self.cuda_graph.capture_begin(")
    trees = (folder / "_inductor" / "cudagraph_trees.py").read_text(encoding="utf-8")
    assert "torch.cuda.graph(" in trees and "capture_begin(" not in trees
    backend = (folder / "_dynamo" / "backends" / "cudagraphs.py").read_text(encoding="utf-8")
    assert "cudagraphify_impl" in backend and "capture_begin(" not in backend


def test_a_launch_that_fails_does_not_break_the_capture_off(world: World) -> None:
    def refused() -> None:
        raise MeasurementError("launch loop, issue: CUDA error 900")

    with flagged_captures(refused) as failures:
        torch.cuda.CUDAGraph().capture_begin()
    assert [str(error) for error in failures] == ["launch loop, issue: CUDA error 900"]


def test_each_replay_is_timed_from_its_entry_on_a_drained_stream(world: World) -> None:
    world.answers = [600, 1_600]
    with timed_replays(world.seen, world.sync, lambda: world.ns) as row:
        for _ in range(2):
            torch.cuda.CUDAGraph().replay()
    # 0.4 µs inside the call and then 0.6, or 1.6, until the flag is seen; the drains lie outside
    assert row == [1.0, 2.0]
    assert world.log == ["sync", "replay"] * 2


# --- the twin -------------------------------------------------------------------------------------------------------


class FakeBench:
    """A bench whose variants capture so many graphs when they are built, and replay so many in each step."""

    def __init__(self, world: World, captured: int = 2, replayed: Callable[[int], int] = lambda number: 2) -> None:
        self.world, self.captured, self.replayed = world, captured, replayed
        self.steps = self.released = self.restored = 0
        self.snapshot = types.SimpleNamespace(restore=self._restore)
        self.sync = world.sync

    def _restore(self) -> None:
        self.restored += 1

    def build(self, name: str) -> tuple[Any, float]:
        graphs = [torch.cuda.CUDAGraph() for _ in range(self.captured)]
        for graph in graphs:
            graph.capture_begin()

        def call() -> None:
            for graph in graphs[: self.replayed(self.steps)]:
                graph.replay()

        def release() -> None:
            self.released += 1

        return types.SimpleNamespace(name=name, call=call, release=release), 0.5

    def step(self, built: Any) -> None:
        built.call()
        self.steps += 1


class FakeFlag:
    def __init__(self, world: World) -> None:
        self.world, self.launch = world, world.flag

    @contextlib.contextmanager
    def watch(self) -> Iterator[Any]:
        self.world.log.append("watch")
        try:
            yield self.world.seen
        finally:
            self.world.log.append("unwatch")


def graphed(**fields: Any) -> Timing:
    """A timed variant with two graph launches in its step."""
    sites = [site("cudaGraphLaunch", graph=number) for number in range(2)]
    return timing("eager-graph", sites=sites, graph_launch_us=20.0, **fields)


@pytest.fixture
def flag(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_launch, "FlagKernel", lambda: FakeFlag(world))


@pytest.mark.usefixtures("flag")
def test_every_graph_of_the_twin_begins_with_the_flag_and_the_medians_stand_in_step_order(world: World) -> None:
    bench = FakeBench(world)
    # Steps 0 and 1 are warm-up.  Of 11 steps the first graph takes 5, 6, … 15 µs, the second 20 but for one of 900.
    first = [600] * WARM_STEPS + [4_600 + 1_000 * number for number in range(STEPS)]
    second = [600] * WARM_STEPS + [19_600] * (STEPS - 1) + [899_600]
    world.answers = [answer for pair in zip(first, second, strict=True) for answer in pair]
    found = time_graph_launches(bench, graphed())  # type: ignore[arg-type]
    assert (found.graph_first_node_us, found.graph_first_node_failure) == ([10.0, 20.0], None)
    assert STEPS >= 7 and bench.steps == WARM_STEPS + STEPS
    assert (bench.released, bench.restored) == (1, 1)
    # Nobody watches while the twin is built: a watching thread takes a core.
    assert world.log[:5] == ["begin None global", "flag"] * 2 + ["watch"]
    assert world.log[-2:] == ["unwatch", "sync"]  # the twin is released on an idle device
    assert msgspec.structs.replace(found, graph_first_node_us=None) == graphed()  # nothing else is changed


@pytest.mark.usefixtures("flag")
def test_a_flag_that_never_comes_costs_the_number_and_releases_the_twin(world: World) -> None:
    bench = FakeBench(world)
    world.answers = [600, 600, 600, -1]
    found = time_graph_launches(bench, graphed())  # type: ignore[arg-type]
    assert (found.graph_first_node_us, found.graph_first_node_failure) == (None, "no answer within 200 ms")
    assert bench.released == 1 and "unwatch" in world.log


@pytest.mark.usefixtures("flag")
def test_steps_that_launch_different_numbers_of_graphs_have_no_latency(world: World) -> None:
    bench = FakeBench(world, replayed=lambda number: 1 if number == 3 else 2)
    world.answers = [600] * 100
    found = time_graph_launches(bench, graphed())  # type: ignore[arg-type]
    assert found.graph_first_node_us is None and found.graph_first_node_failure is not None
    assert found.graph_first_node_failure.startswith("steps of the twin launched 2, 2, 2, 1, 2")
    assert bench.released == 1


def test_a_flag_that_could_not_be_launched_is_the_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise MeasurementError("launch loop, issue: CUDA error 900")

    fake = FakeFlag(world)
    fake.launch = refused
    monkeypatch.setattr(graph_launch, "FlagKernel", lambda: fake)
    bench = FakeBench(world)
    found = time_graph_launches(bench, graphed())  # type: ignore[arg-type]
    assert found.graph_first_node_failure == "launch loop, issue: CUDA error 900"
    assert (bench.steps, bench.released) == (0, 1)


def test_without_a_compiler_or_a_graph_no_twin_is_built(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> None:
        raise MeasurementError("no C compiler (cc, gcc, clang) to build launch_loop.c; install one")

    monkeypatch.setattr(graph_launch, "FlagKernel", none_here)
    bench = FakeBench(world)
    found = time_graph_launches(bench, graphed())  # type: ignore[arg-type]
    assert found.graph_first_node_failure == "no C compiler (cc, gcc, clang) to build launch_loop.c; install one"
    empty = time_graph_launches(bench, timing("eager-graph"))  # type: ignore[arg-type]
    assert empty.graph_first_node_failure == "no graph launch was met in the step"
    assert world.log == []


@pytest.mark.usefixtures("flag")
def test_no_memory_for_the_twin_costs_the_number_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FakeBench(world)

    def out_of_memory(name: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "build", out_of_memory)
    found = time_graph_launches(bench, graphed())  # type: ignore[arg-type]
    assert found.graph_first_node_failure == "OutOfMemoryError: CUDA out of memory"


# --- time on the device ----------------------------------------------------------------------------------------------


class FakeHeld:
    """A held stream on which nothing takes 3 µs, and each graph that is replayed what is next in ``graphs``."""

    def __init__(self, world: World, graphs: list[float]) -> None:
        self.world, self.graphs = world, graphs

    def released_us(self, issue: Callable[[], None]) -> float:
        before = self.world.log.count("replay")
        issue()
        return 3.0 + sum(self.graphs.pop(0) for _ in range(self.world.log.count("replay") - before))


@pytest.fixture
def held(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeHeld:
    made = FakeHeld(world, [])
    monkeypatch.setattr(graph_span, "LaunchLoop", lambda: None)
    monkeypatch.setattr(graph_span, "HeldStream", lambda loop: made)
    return made


def test_a_graphs_time_on_the_device_is_what_lies_between_release_and_flag(world: World, held: FakeHeld) -> None:
    bench = FakeBench(world)
    built, _ = bench.build("eager-graph")
    # The warm-up is not counted; of the steps behind it the first graph takes 100 to 110, the second 20 but for once.
    first = [900.0] * graph_span.WARM_STEPS + [100.0 + number for number in range(graph_span.STEPS)]
    second = [900.0] * graph_span.WARM_STEPS + [20.0] * (graph_span.STEPS - 1) + [700.0]
    held.graphs = [us for pair in zip(first, second, strict=True) for us in pair]
    assert time_graph_spans(bench, built) == ([105.0, 20.0], None)  # type: ignore[arg-type]
    assert bench.steps == graph_span.WARM_STEPS + graph_span.STEPS and bench.restored == 0


def test_steps_that_launch_different_numbers_of_graphs_have_no_time_on_the_device(world: World, held: FakeHeld) -> None:
    bench = FakeBench(world, replayed=lambda number: 1 if number == 3 else 2)
    held.graphs = [1.0] * 100
    spans, failure = time_graph_spans(bench, bench.build("eager-graph")[0])  # type: ignore[arg-type]
    assert spans is None and failure is not None and failure.startswith("steps launched 2, 2, 2, 1, 2")
    assert bench.restored == 1


def test_a_stream_that_cannot_be_held_costs_that_time_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> None:
        raise MeasurementError("no C compiler (cc, gcc, clang) to build launch_loop.c; install one")

    monkeypatch.setattr(graph_span, "LaunchLoop", none_here)
    bench = FakeBench(world)
    found = time_graph_spans(bench, None)  # type: ignore[arg-type]
    assert found == (None, "no C compiler (cc, gcc, clang) to build launch_loop.c; install one")


# --- the equation and the fallback ----------------------------------------------------------------------------------


def test_the_flags_way_is_taken_off_as_for_the_untraced_floor() -> None:
    assert flag_way(TRIP) == 1.5
    assert graph_latency([9.5, 12.5, 1.0], TRIP) == [8.0, 11.0, -0.5]  # signs are kept
    assert untraced_floor(Percentiles(p5=4.0, p50=5.0, p95=6.0, samples=9), TRIP).p50 == 3.5


def two_graphs(seen: list[float] | None, trip: Percentiles | None = TRIP, **fields: Any) -> Recording:
    """A kernel and two graphs launched, traced at 100 and 200 µs; T_wall 220, device 20: 200 µs are left beside it."""
    kernels = [
        activity(kernel_of(ADD), start, us, launch=at) for at, (start, us) in enumerate([(0, 4), (9, 8), (20, 8)])
    ]
    traced = step(kernels, [launch(), launch("graph"), launch("graph")])
    floors = calibration()
    if trip is not None:
        path = floors.launch_path
        why = {name: reason for name, reason in path.unmeasured.items() if name != "round_trip_us"}
        path = msgspec.structs.replace(path, round_trip_us=trip, unmeasured=why)
        floors = msgspec.structs.replace(floors, launch_path=path)
    timed = graphed(wall_us=fields.pop("wall_us", 220.0), graph_first_node_us=seen, **fields)
    heard = {"cublas": 0, "cublaslt": 0, "cudnn": 0}
    traces = trace(traced, "eager-graph", graph_latency_us=[100.0, 200.0], library_calls=heard)
    return recording(timed, traces, floors=floors)


def latency_notes(variant: Variant) -> list[str]:
    return [note for note in variant.notes if note.startswith("graph launch latency")]


def test_delta_kt_takes_the_untraced_latency_of_each_graph_launch() -> None:
    found = decompose(two_graphs([9.5, 12.5]), None)
    parts = parts_of(found)
    # one kernel at T_sys 5; graphs 9.5 − 1.5 and 12.5 − 1.5
    assert (parts.kt_us, parts.kt_source) == (5.0 + 8.0 + 11.0, "untraced")
    assert latency_notes(found) == []
    rows = [node.kt_us for node in found.nodes if node.op == "cudaGraphLaunch"]
    assert sum(us for us in rows if us is not None) == 19.0
    # ΔFT = 100 − (4 + 20) = 76, device 20; the untraced T_sys is 3
    assert parts.hdbi == pytest.approx(20 / (20 + 76 + 24))
    assert parts.hdbi_untraced == pytest.approx(20 / (20 + 76 + 22))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (two_graphs(None), "no twin of the variant was built"),
        (two_graphs(None, graph_first_node_failure="no C compiler"), "no C compiler"),
        (two_graphs([9.5]), "the twin launched 1 graphs, the step 2"),
        (two_graphs([9.5, 12.5, 8.0]), "the twin launched 3 graphs, the step 2"),
        (two_graphs([9.5, 12.5], trip=None), "no untraced T_sys"),
    ],
)
def test_without_one_latency_per_launch_the_traced_ones_stand_in_bounded(record: Recording, why: str) -> None:
    found = decompose(record, None)
    # traced 300, bounded to 220 − 20 = 200; and the kernel's 5
    assert (parts_of(found).kt_us, parts_of(found).kt_source) == (205.0, "traced, bounded")
    (note,) = latency_notes(found)
    assert note.startswith("graph launch latency traced 300 µs, bounded to the 200 µs")
    assert note.endswith(f"not measured untraced: {why}")


def test_traced_latencies_that_fit_the_wall_time_are_said_to_be_traced() -> None:
    found = decompose(two_graphs(None, wall_us=321.0), None)
    assert (parts_of(found).kt_us, parts_of(found).kt_source) == (305.0, "traced")
    assert latency_notes(found) == [
        "graph launch latency 300 µs as traced, which delays a graph's first node; "
        "not measured untraced: no twin of the variant was built"
    ]


def test_no_graph_no_source() -> None:
    record = two_graphs(None)
    assert record.trace is not None
    alone = trace(step([activity(kernel_of(ADD), 0, 4)], [launch()]), library_calls=record.trace.library_calls)
    found = decompose(msgspec.structs.replace(record, trace=alone), None)
    assert parts_of(found).kt_source is None and latency_notes(found) == []


def test_captured_graphs_are_laid_end_to_end_and_one_without_latencies_leaves_none() -> None:
    known, other = graphed(graph_first_node_us=[9.0, 8.0]), graphed(graph_first_node_us=[7.0])
    lost = graphed(graph_first_node_failure="no C compiler")
    assert merge_timings([known, other]).graph_first_node_us == [9.0, 8.0, 7.0]
    merged = merge_timings([known, lost])
    assert (merged.graph_first_node_us, merged.graph_first_node_failure) == (None, "no C compiler")
    known, lost = graphed(graph_span_us=[50.0, 40.0]), graphed(graph_span_failure="no driver")
    assert merge_timings([known, known]).graph_span_us == [50.0, 40.0] * 2
    merged = merge_timings([known, lost])
    assert (merged.graph_span_us, merged.graph_span_failure) == (None, "no driver")


# --- on a GPU -------------------------------------------------------------------------------------------------------


def chain(layers: int = 8) -> tuple[Any, torch.Tensor]:
    """Products and additions, with a graph break in the middle: two graphs under torch.compile."""
    torch.manual_seed(0)
    blocks = [torch.nn.Linear(64, 64, device="cuda") for _ in range(layers)]
    halves = [torch.nn.Sequential(*blocks[: layers // 2]), torch.nn.Sequential(*blocks[layers // 2 :])]

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = halves

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            torch._dynamo.graph_break()
            return self.second(y) + x

    return Chain().eval(), torch.randn(4, 64, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "graphs"), [("reduce-overhead", 2), ("cudagraphs", 2), ("eager-graph", 1)])
def test_one_latency_per_graph_launch_each_within_the_wall_time(name: str, graphs: int) -> None:
    from taxbreak_fx.recorders.bench import Bench
    from taxbreak_fx.recorders.outputs import OutputReference
    from taxbreak_fx.recorders.timing import time_variant
    from taxbreak_fx.workload import Workload

    net, x = chain()
    info = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device="cuda")
    bench = Bench(Workload(call=net, model="chain", step=info, args=(x,)), "cuda", budget_s=0.1)
    found = time_variant(bench, name, OutputReference(bench))
    assert found.graph_first_node_failure is None
    assert found.graph_first_node_us is not None
    assert len(found.graph_first_node_us) == len(found.sites) == graphs
    assert all(0.0 < us <= max(found.wall_us) for us in found.graph_first_node_us)
    assert found.graph_span_failure is None
    assert found.graph_span_us is not None and len(found.graph_span_us) == graphs
    assert 0.0 < sum(found.graph_span_us) <= max(found.wall_us)
    # The flag was no part of what was timed, nor of what runs from now on.
    assert found.output_check is not None and found.output_failure is None
    built, _ = bench.build(name)
    try:
        with torch.no_grad():
            assert torch.allclose(bench.step(built), net(x), atol=1e-5)
    finally:
        built.release()


@pytest.mark.gpu
def test_a_flag_stands_at_the_head_of_the_graph_it_was_captured_into() -> None:
    flag = graph_launch.FlagKernel()
    x = torch.zeros(8, device="cuda")
    x.add_(1).zero_()  # its kernels are loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with flagged_captures(flag.launch) as failures, torch.cuda.graph(graph):
        x.add_(1)
    with flag.watch() as seen, timed_replays(seen, torch.cuda.synchronize) as row:
        graph.replay()
        graph.replay()
    torch.cuda.synchronize()
    assert failures == [] and len(row) == 2 and min(row) > 0.0
    assert x.tolist() == [2.0] * 8
    plain = torch.cuda.CUDAGraph()
    with torch.cuda.graph(plain):
        x.add_(1)
    # The next graph has no flag: nobody answers.
    with flag.watch() as seen, timed_replays(seen, torch.cuda.synchronize), pytest.raises(MeasurementError):
        plain.replay()
    torch.cuda.synchronize()
