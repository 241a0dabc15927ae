"""Which parts of a step a CUDA graph can hold, what stops it from holding the rest, and what capture itself costs.

The rules are those of three ways to capture (torch 2.11 to 2.13).  ``reduce-overhead``: Inductor's CUDA graph trees
with graph partition; an op that cannot be held runs between two graphs, and a mutated input whose address may change
leaves its whole Dynamo graph un-graphed.  ``cudagraphs``: the backend of that name has no partition, so that one such
op leaves its whole Dynamo graph un-graphed; it copies in weights too.  ``eager-graph``: the step as it is under
``torch.cuda.graph``, which needs one region that holds every op; written inputs must stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from taxbreak_fx.errors import UsageError
from taxbreak_fx.record import Measured, Record, SourceLine
from taxbreak_fx.step_graph import Break, Op, StepGraph, StepInput

BlockerKind = Literal[
    "host sync", "CPU tensor", "dynamic shape", "data-dependent op", "mutated input", "unsafe library call",
    "private-pool memory", "input copies", "parameter copies", "graph break",
]  # fmt: skip
Way = Literal["reduce-overhead", "cudagraphs", "eager-graph"]
# "splits": it runs outside, between two regions.  "skips": its whole graph runs un-graphed.  "costs": captured, at a
# price per replay, per new size, or in memory.
Effect = Literal["splits", "skips", "costs"]
NOT_PRICED = "not priced"
_PRICES = ("keep_us", "removing_us")


class Blocker(Measured, frozen=True, kw_only=True):
    """One thing that keeps the step from being one CUDA graph, or that a CUDA graph costs.

    ``op``: index into the step's ops, None where it is no op.  ``bytes``: copied per replay or held by the pool, where
    that applies.  ``keep_us``: what it costs per step to keep; ``removing_us``: what the step would gain without it;
    both microseconds, None until priced.
    """

    MEASUREMENTS = _PRICES

    kind: BlockerKind
    effect: Effect
    what: str
    op: int | None = None
    graph: int | None = None
    source: SourceLine | None = None
    module_path: str | None = None
    bytes: int | None = None
    keep_us: float | None = None
    removing_us: float | None = None
    unmeasured: dict[str, str] = msgspec.field(default_factory=lambda: dict.fromkeys(_PRICES, NOT_PRICED))


class Region(Record, frozen=True, kw_only=True):
    """Consecutive ops [first, last] of one captured graph that one CUDA graph can hold; it could not be longer.

    ``launches``: those it replaces by one, None where an op's are not known.  ``pool_bytes``: the most memory its own
    results take at one time, which its private pool holds between replays.
    """

    first: int
    last: int
    graph: int
    ops: int
    launches: int | None
    pool_bytes: int


class Capture(Record, frozen=True, kw_only=True):
    """``whole``: one region holds all that launches.  ``covered``: share of the step's launches that lie in regions,
    None where launches are not known or there are none."""

    regions: list[Region]
    blockers: list[Blocker]
    whole: bool
    covered: float | None


def capturable(graph: StepGraph, device: str | None = None, way: Way = "reduce-overhead") -> Capture:
    """The maximal capturable regions of a step and its blockers, in issue order, those of no op last.

    ``device``: the device to be graphed (``cuda:0``); without it the one most ops work on.  Raises ``UsageError`` when
    no op works on ``device``.
    """
    main = _main_device(graph, device)
    blockers: list[Blocker] = []
    splitting: set[int] = set()
    for index, op in enumerate(graph.ops):
        for blocker in _of_op(index, op, main, "skips" if way == "cudagraphs" else "splits"):
            blockers.append(blocker)
            if blocker.effect == "splits":
                splitting.add(index)
    by_name = {each.name: each for each in graph.inputs}
    blockers += _mutations(graph, by_name, "costs" if way == "eager-graph" else "skips")
    skipped = {blocker.graph for blocker in blockers if blocker.effect == "skips"}
    read_last = _last_readers(graph)
    regions: list[Region] = []
    pools: list[Blocker] = []
    for run in _runs(graph, splitting):
        launches = _launches(graph, run)
        if launches != 0 and graph.ops[run[0]].graph not in skipped:
            held, where = _peak(graph, run, read_last)
            regions.append(_region(graph, run, launches, held))
            pools += [_pool(graph, where, held)] if held else []
    ends = {op.graph: index for index, op in enumerate(graph.ops)}
    blockers += [_of_break(cut, ends.get(cut.graph)) for cut in graph.breaks]
    copied = {"reduce-overhead": (False,), "cudagraphs": (False, True), "eager-graph": ()}[way]
    blockers += _copies(graph, regions, by_name, main, copied)
    blockers += pools
    last = len(graph.ops)
    blockers.sort(key=lambda b: (last if b.op is None else b.op, get_args(BlockerKind).index(b.kind)))
    every = _launches(graph, range(last))
    inside = [region.launches for region in regions]
    covered = None if not every or None in inside else sum(n for n in inside if n is not None) / every
    whole = len(regions) == 1 and covered == 1.0 and not any(blocker.effect == "splits" for blocker in blockers)
    return Capture(regions=regions, blockers=blockers, whole=whole, covered=covered)


def price(blocker: Blocker, keep_us: float | None, removing_us: float | None) -> Blocker:
    """``blocker`` with its price in microseconds per step; a None keeps the reason that it is not priced."""
    prices = dict(zip(_PRICES, (keep_us, removing_us), strict=True))
    return msgspec.structs.replace(
        blocker,
        keep_us=keep_us,
        removing_us=removing_us,
        unmeasured={name: NOT_PRICED for name, value in prices.items() if value is None},
    )


def _main_device(graph: StepGraph, device: str | None) -> str | None:
    counts: dict[str, int] = {}
    for op in graph.ops:
        if op.device is not None and op.role != "view":
            counts[op.device] = counts.get(op.device, 0) + 1
    if device is not None and device not in counts:
        raise UsageError(f"no op of the step works on {device}; it uses: {', '.join(sorted(counts)) or 'no device'}")
    return device or (max(counts, key=lambda name: counts[name]) if counts else None)


def _of_op(index: int, op: Op, main: str | None, stops: Effect) -> Iterable[Blocker]:
    """What stops an op from being in a graph, and what it costs there; at most one that stops it."""

    def found(kind: BlockerKind, what: str, effect: Effect = stops) -> Blocker:
        return Blocker(
            kind=kind, effect=effect, what=f"{op.op}: {what}", op=index, graph=op.graph, source=op.source,
            module_path=op.module_path,
        )  # fmt: skip

    others = sorted(set(op.devices) - {main})
    if op.role == "sync":
        yield found("host sync", "the host waits for its value")
    elif op.data_dependent:
        yield found("data-dependent op", "the shape of its result hangs on the data, and the host waits for it")
    elif others and op.role != "view":
        yield found("CPU tensor" if others == ["cpu"] else "unsafe library call", f"it works on {' and '.join(others)}")
    elif op.unsafe is not None:
        yield found("unsafe library call", op.unsafe)
    if op.dynamic and op.role != "view" and not op.data_dependent:
        yield found("dynamic shape", "every new size is captured anew", effect="costs")


def _mutations(graph: StepGraph, inputs: dict[str, StepInput], effect: Effect) -> Iterable[Blocker]:
    """Ops that write inputs; an input that keeps its address may be written inside a graph."""
    for index, op in enumerate(graph.ops):
        for name in op.mutates:
            known = inputs.get(name)
            if known is None or known.static:
                continue
            yield Blocker(
                kind="mutated input", effect=effect, what=f"{op.op} writes {name}, whose address may change", op=index,
                graph=op.graph, source=op.source, module_path=op.module_path, bytes=known.bytes,
            )  # fmt: skip


# Dynamo's words (torch 2.11 to 2.13) for the breaks that have a kind of their own.
_BREAKS: tuple[tuple[str, BlockerKind], ...] = (
    ("tensor.item", "host sync"),
    ("_local_scalar_dense", "host sync"),
    ("data-dependent branching", "host sync"),
    ("tolist", "host sync"),
    ("dynamic shape operator", "data-dependent op"),
    ("dynamic output shape", "data-dependent op"),
    ("data dependent operator", "data-dependent op"),
)


def _of_break(cut: Break, last: int | None) -> Blocker:
    text = cut.reason.lower()
    kind: BlockerKind = next((kind for words, kind in _BREAKS if words in text), "graph break")
    return Blocker(
        kind=kind, effect="splits", what=f"capture ends here: {cut.reason}", op=last, graph=cut.graph, source=cut.source
    )


def _runs(graph: StepGraph, splitting: set[int]) -> Iterable[list[int]]:
    """Maximal runs of consecutive ops of one graph of which none splits."""
    run: list[int] = []
    for index, op in enumerate(graph.ops):
        if run and (index in splitting or op.graph != graph.ops[run[0]].graph):
            yield run
            run = []
        if index not in splitting:
            run.append(index)
    if run:
        yield run


def _launches(graph: StepGraph, run: Iterable[int]) -> int | None:
    total = 0
    for index in run:
        count = graph.ops[index].launches
        if count is None:
            return None
        total += count
    return total


def _region(graph: StepGraph, run: list[int], launches: int | None, held: int) -> Region:
    return Region(
        first=run[0], last=run[-1], graph=graph.ops[run[0]].graph, ops=len(run), launches=launches, pool_bytes=held
    )


def _last_readers(graph: StepGraph) -> dict[int, int]:
    """Per op whose result is read, itself or through views, the last op that reads it."""
    base: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        read = [operand.op for operand in op.operands if operand.op is not None]
        if op.role == "view" and read:
            base[index] = base.get(read[0], read[0])
        for each in read:
            last[base.get(each, each)] = index
    return last


def _peak(graph: StepGraph, run: list[int], read_last: dict[int, int]) -> tuple[int, int]:
    """The most bytes that results of these ops take at one time, and the op at which they do.

    A result is held until its last reader has run; to the end, if that is outside or the result escapes.
    """
    freed: dict[int, int] = {}
    held = peak = 0
    where = run[0]
    for index in run:
        op = graph.ops[index]
        size = 0 if op.role == "view" or op.writes_in_place else op.written_bytes
        held += size
        if held > peak:
            peak, where = held, index
        end = read_last.get(index, index)
        if not op.escapes and end <= run[-1]:
            freed[end] = freed.get(end, 0) + size
        held -= freed.pop(index, 0)
    return peak, where


def _pool(graph: StepGraph, where: int, held: int) -> Blocker:
    op = graph.ops[where]
    return Blocker(
        kind="private-pool memory", effect="costs", what=f"held between replays; the most is needed at {op.op}",
        op=where, graph=op.graph, source=op.source, module_path=op.module_path, bytes=held,
    )  # fmt: skip


def _copies(
    graph: StepGraph, regions: list[Region], inputs: dict[str, StepInput], main: str | None, copied: Iterable[bool]
) -> Iterable[Blocker]:
    """Per region, the inputs of the step that a replay copies in, at the line that reads the largest of them.

    ``copied``: whether to look at inputs that keep their address, for each of the kinds to be found.
    """
    for region in regions:
        for static in copied:
            kind: BlockerKind = "parameter copies" if static else "input copies"
            readers: dict[str, int] = {}
            for index in range(region.first, region.last + 1):
                for operand in graph.ops[index].operands:
                    known = inputs.get(operand.input or "")
                    if known is not None and known.static == static and known.device == main:
                        readers.setdefault(known.name, index)
            if not readers:
                continue
            largest = max(readers, key=lambda name: inputs[name].bytes)
            op = graph.ops[readers[largest]]
            yield Blocker(
                kind=kind,
                effect="costs",
                what=f"{len(readers)} copied in at each replay, the largest is {largest}",
                op=readers[largest],
                graph=region.graph,
                source=op.source,
                module_path=op.module_path,
                bytes=sum(inputs[name].bytes for name in readers),
            )
