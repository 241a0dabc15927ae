"""A step under Inductor, and under Inductor with CUDA graph trees, on a machine that is known by its profile only."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterator, Sequence

from taxbreak_fx import hardware_costs as costs
from taxbreak_fx.breakdown_timeline import AFTER_SHARE
from taxbreak_fx.errors import UncoveredError
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import inputs_of, parse_inputs
from taxbreak_fx.family_types import VENDOR_LIBRARIES
from taxbreak_fx.hardware import Profile
from taxbreak_fx.predict_device import Launcher, flops_of, launch_call_us, require_moved
from taxbreak_fx.predict_eager import calls_of, graph_launch
from taxbreak_fx.predict_layout import Entry, Launch, Layout, Place, Surrounding
from taxbreak_fx.predicted import DryRun, FakeOp, FakeStep, Origin, PlannedGraph, PlannedLaunch
from taxbreak_fx.record import SourceLine
from taxbreak_fx.variant_record import Classification

GUARDS, FRAME, AOT, WRAPPER = "guards", "frame", "aot_wrapper", "wrapper"
TRITON, ALLOCATIONS, EXTERN, RUNTIME = "triton_launchers", "allocations", "extern_calls", "cudagraph_runtime"
# CUDA graph trees copy all inputs of a graph by one call of this op, one kernel (torch 2.11 to 2.13).
COPY_OP = "aten._foreach_copy_.default"
# A generated kernel reads and writes each of its buffers once, rows that it reduces too: like an elementwise one, and
# unlike ATen's reductions, which profiles hold.
STREAMING = "elementwise"
BREAKS = "the step breaks into {} graphs: code and ops between them are in no plan, and not in this prediction"
GRAPHED = "that nothing keeps its graphs from being captured is assumed: `taxbreak fusion` tells what would"


def inductor(plan: DryRun, step: FakeStep, profile: Profile) -> Layout:
    """The planned launches with what each costs the host, in wrapper code between guards, frame and AOT wrapper.

    Per graph: guards_us, frame_us and aot_us around it, wrapper_us per line, allocation_us per buffer; per generated
    kernel ``triton_us`` and a launch call; per extern call extern_us, its library's ΔCT and its launch calls, or, for
    an op of ATen, its ΔFT in eager plus what the ``OpOverload`` costs.  Raises ``UncoveredError`` for what the profile
    lacks.
    """
    work = _Planned(step, profile)
    entries: list[Entry] = []
    for graph in plan.graphs:
        lines = list(_lines(graph, work, profile))
        number = profile.number
        inside: list[Entry] = []
        for line in lines:
            inside += [Surrounding(us=number("compiled.wrapper_us"), part=WRAPPER), line]
        entries += _around(graph, profile, inside)
    return Layout(name="inductor", entries=tuple(entries), notes=_notes(plan))


def reduce_overhead(plan: DryRun, step: FakeStep, profile: Profile) -> Layout:
    """The same kernels as one CUDA graph per planned graph: its inputs are copied in, and it is launched.

    Per graph: guards_us, frame_us, aot_us, ``cudagraph_us`` for its inputs (the launch call of the copy, which that
    holds, stands apart), and the replay.  Raises ``UncoveredError`` for what the profile lacks.
    """
    work = _Planned(step, profile)
    entries: list[Entry] = []
    for graph in plan.graphs:
        held = [line for line in (work.launch(planned) for planned in graph.launches) if line.launches]
        entries += _around(graph, profile, list(_graphed(graph, held, profile)))
    return Layout(name="reduce-overhead", entries=tuple(entries), notes=(*_notes(plan), GRAPHED))


def _notes(plan: DryRun) -> tuple[str, ...]:
    return (BREAKS.format(len(plan.graphs)),) if len(plan.graphs) > 1 else ()


def _around(graph: PlannedGraph, profile: Profile, inside: Sequence[Entry]) -> Iterator[Entry]:
    if graph.guards is None:
        raise UncoveredError(f"how many guards Dynamo makes for graph {graph.compile_id} is not known")
    parts = {
        GUARDS: costs.guards_us(profile, graph.guards),
        FRAME: profile.number("compiled.frame_us"),
        AOT: profile.number("compiled.aot_us"),
    }
    for part, us in parts.items():
        yield Surrounding(us=us * (1 - AFTER_SHARE), part=part, around=True)
    yield from inside
    for part, us in parts.items():
        yield Surrounding(us=us * AFTER_SHARE, part=part, around=True)


def _graphed(graph: PlannedGraph, held: Sequence[Place], profile: Profile) -> Iterator[Entry]:
    if graph.copied is None or graph.copied_bytes is None:
        raise UncoveredError(f"how many inputs are copied into graph {graph.compile_id} is not known")
    runtime = costs.cudagraph_us(profile, graph.copied)
    copies: tuple[Launch, ...] = ()
    if graph.copied:
        call_us = min(runtime, launch_call_us(profile, library=False))
        us = costs.device_us(profile, "copy", "int64", 2 * graph.copied_bytes).us
        copies = (Launch(kind="kernel", us=us, launch_us=call_us),)
        runtime -= call_us
    kind = classify_op(COPY_OP, "cuda")
    yield Place(op=COPY_OP, kind=kind, ft_us=runtime * (1 - AFTER_SHARE), launches=copies, part=RUNTIME)
    if held:
        yield graph_launch(held, profile)
    yield Surrounding(us=runtime * AFTER_SHARE, part=RUNTIME)


def _lines(graph: PlannedGraph, work: _Planned, profile: Profile) -> Iterator[Place]:
    """The wrapper's lines in order: buffers before the launch that they precede."""
    before = collections.Counter(allocation.before for allocation in graph.allocations)
    kind = classify_op("aten.empty_strided.default", "cuda")
    for index in range(len(graph.launches) + 1):
        for _ in range(before[index]):
            us = profile.number("compiled.allocation_us")
            yield Place(op="aten.empty_strided.default", kind=kind, ft_us=us, part=ALLOCATIONS)
        if index < len(graph.launches):
            yield work.launch(graph.launches[index])


class _Planned:
    """Planned launches priced by one profile; ``step``: eager's ops, which tell more of a call than its buffers do:
    the experts that a grouped product reads, and how many kernels an attention of that shape launches."""

    def __init__(self, step: FakeStep, profile: Profile) -> None:
        self._profile, self._launcher = profile, Launcher(profile)
        self._eager: dict[Hashable, FakeOp] = {}
        for _, call, ops in calls_of(step):
            self._eager |= {_like(op.op, op.inputs): op for op in self._launcher.counted(call, ops)}

    def launch(self, planned: PlannedLaunch) -> Place:
        """One line of the wrapper that launches."""
        source, module_path = _written(planned.origins)
        kind = classify_op(planned.target, "cuda", dtype=planned.dtype, inputs=planned.inputs)
        if planned.kind == "kernel":
            ft, ct, launches, part = self._generated(planned)
        else:
            ft, ct, launches, part = self._extern(planned, kind)
        return Place(
            op=planned.target, kind=kind, source=source, module_path=module_path, ft_us=ft, ct_us=ct,
            launches=launches, part=part,
        )  # fmt: skip

    def _generated(self, planned: PlannedLaunch) -> tuple[float, float, tuple[Launch, ...], str]:
        profile, moved = self._profile, require_moved(planned.target, planned.read_bytes, planned.written_bytes)
        if planned.arguments is None:
            raise UncoveredError(f"how many arguments {planned.target} takes is not known")
        device = costs.device_us(profile, STREAMING, planned.dtype or "float32", moved)
        launch = Launch(kind="kernel", us=device.us, launch_us=profile.number("launch.launch_us"))
        return costs.triton_us(profile, planned.arguments), 0.0, (launch,), TRITON

    def _extern(self, planned: PlannedLaunch, kind: Classification) -> tuple[float, float, tuple[Launch, ...], str]:
        profile, op = self._profile, self._op(planned)
        tensors = parse_inputs(op.inputs)
        call = costs.Call(
            target=planned.target,
            ops=(op.op,),
            family=kind.family,
            library=kind.library,
            tensors=len(tensors.tensors) if tensors is not None else 1,
        )
        ct = costs.library_us(profile, call).us if kind.library in VENDOR_LIBRARIES else 0.0
        if planned.target.startswith("extern:"):
            ft = profile.number("compiled.extern_us")
        else:
            ft = costs.host_us(profile, call).us + (profile.python.overload_us or 0.0)
        return ft, ct, self._launcher.of(call, [op]).launches, EXTERN

    def _op(self, planned: PlannedLaunch) -> FakeOp:
        """The leaf op that an extern call is."""
        name = planned.target
        if name.startswith("extern:"):
            name = f"aten.{name.removeprefix('extern:').removeprefix('bias_')}.default"
        inputs = planned.inputs or ""
        known = self._eager.get(_like(name, inputs))
        if known is not None:
            return known
        return FakeOp(
            op=name,
            inputs=inputs,
            outputs=planned.outputs or "",
            dtype=planned.dtype,
            site=None,
            device="cuda",
            read_bytes=require_moved(planned.target, planned.read_bytes, 0),
            written_bytes=planned.written_bytes or 0,  # several results: they are not told, and small beside the inputs
            flops=flops_of(name, inputs, planned.outputs),
            kernels=None,
            memops=0,
        )


def _like(op: str, inputs: str) -> tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """An op with the dtypes and shapes of its tensors: strides may differ between eager and Inductor."""
    parsed = parse_inputs(inputs_of(f"{op}({inputs})") or "")
    tensors = parsed.tensors if parsed is not None else ()
    return op, tuple((tensor.dtype, tensor.shape) for tensor in tensors)


def _written(origins: Sequence[Origin]) -> tuple[SourceLine | None, str | None]:
    """Where the author wrote what a launch stores: the last of its nodes that has a line."""
    known = [origin for origin in origins if origin.source is not None]
    return (known[-1].source, known[-1].module_path) if known else (None, None)
