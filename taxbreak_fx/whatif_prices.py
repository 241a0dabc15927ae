"""Prices for the what-ifs: what each op of a step's graph costs the host, by the eager rows of a measured review.

A review's rows are calls of the author's, composite ones among them; a graph's ops are the leaf ops below.  The two
meet by source line and module path (layer numbers folded).  What does not meet stays without a price, and is counted.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from taxbreak_fx.capturable import Blocker, Capture, Way
from taxbreak_fx.errors import UsageError
from taxbreak_fx.fusion import launching
from taxbreak_fx.model import Review, StepInfo, Variant
from taxbreak_fx.nodes import folded
from taxbreak_fx.record import Record, SourceLine
from taxbreak_fx.step_graph import HostCost, Op, StepGraph
from taxbreak_fx.variant_record import Node

TERMS = ("ft_us", "ct_us", "kt_us")
Place = tuple[str, int, str]


class Coverage(Record, frozen=True, kw_only=True):
    """How much of a graph a review prices.

    ``priced``: of the ``ops``, those that met a call of the review; ``launching`` and ``launching_priced``: the same of
    those that launch a kernel.  ``unpriced``: ops by the reason that they met none; ``missing_terms``: priced ops by
    the term they still lack, and why.  ``unused_rows``: rows of the review that no op of the graph answers (calls that
    do nothing, or that the capture left out); ``unused_us``: their ΔFT + ΔCT + ΔKT in µs per step, as far as known.
    """

    ops: int
    priced: int
    launching: int
    launching_priced: int
    unpriced: dict[str, int]
    missing_terms: dict[str, int]
    rows: int
    unused_rows: int
    unused_us: float


class Priced(NamedTuple):
    """A graph with prices, and how far they reach."""

    graph: StepGraph
    coverage: Coverage


class _Row(NamedTuple):
    """The review's calls of one op at one place; times in µs per step, a None with its reason in ``why``."""

    op: str
    family: str
    calls: int
    launches: int | None
    ft_us: float | None
    ct_us: float | None
    kt_us: float | None
    why: dict[str, str]


def eager_of(review: Review, model: str, step: StepInfo) -> Variant:
    """The eager variant of ``review``.

    Raises ``UsageError`` when the review is not of this model and step, or has no eager rows.  The device may be
    another, and so may the weights' values.
    """
    differs = [] if review.model == model else [f"model {review.model} instead of {model}"]
    for name in ("phase", "batch", "seq_len", "dtype"):
        theirs, ours = getattr(review.step, name), getattr(step, name)
        if theirs != ours:
            differs.append(f"{name.replace('_', '-')} {theirs} instead of {ours}")
    for name in dict.fromkeys((*review.step.options, *step.options)):
        theirs, ours = review.step.options.get(name), step.options.get(name)
        if theirs != ours and name != "weights":
            differs.append(f"{name} {theirs} instead of {ours}")
    if differs:
        raise UsageError(f"--review is of another step ({', '.join(differs)}): give the review of this one")
    found = next((variant for variant in review.variants if variant.name == "eager"), None)
    if review.scope != "step" or found is None or not found.nodes:
        state = "" if found is None or found.reason is None else f" ({found.status}: {found.reason})"
        raise UsageError(f"--review has no rows of the eager step{state}: give a review whose eager variant ran")
    return found


def check_versions(review: Review, transformers: str | None) -> None:
    """Raise ``UsageError`` when the author's lines are transformers' and it is of another version than the review's."""
    lines = [node.source for variant in review.variants for node in variant.nodes if node.source is not None]
    if review.machine.transformers != transformers and any("/transformers/" in line.file for line in lines):
        raise UsageError(
            f"--review was made with transformers {review.machine.transformers}, and {transformers} is installed: "
            "lines have moved; review again, or install that version"
        )


def place_of(source: SourceLine | None, module_path: str | None) -> Place | None:
    """Where a call is made: the end of the file's path (folders differ between machines), line, folded module path."""
    if source is None:
        return None
    end = "/".join(source.file.replace("\\", "/").split("/")[-2:])
    return end, source.line, folded(module_path) or ""


def price_ops(graph: StepGraph, nodes: Sequence[Node]) -> Priced:
    """``graph`` with ΔFT, ΔCT, ΔKT (µs) and launches of its ops, from the rows ``nodes`` of a review's eager variant.

    A module path that is only the end of one of the review's, at the same line, is that one.  Rows and ops of one
    place meet by name: an op costs the mean of the calls of its row.  One row and ops that are left over then are a
    composite call and its leaf ops, if their families agree and each call has as many ops: ΔFT is shared equally by
    the ops of a call, ΔCT by those that call a library, ΔKT by those that launch.  Where the call launches another
    number of kernels than its ops do, these are not the ops that the review ran: no price.
    """
    rows_at: dict[Place, dict[str, _Row]] = collections.defaultdict(dict)
    for node in nodes:
        place = place_of(node.source, node.module_path)
        if place is not None:
            rows_at[place][node.op] = _added(rows_at[place].get(node.op), node)
    modules_at: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    for file, line, module in rows_at:
        modules_at[file, line].append(module)
    ops_at: dict[Place | None, list[int]] = collections.defaultdict(list)
    for index, op in enumerate(graph.ops):
        ops_at[_within(place_of(op.source, op.module_path), modules_at)].append(index)
    ops = list(graph.ops)
    unpriced: collections.Counter[str] = collections.Counter()
    missing: collections.Counter[str] = collections.Counter()
    used: set[tuple[Place, str]] = set()
    for where, indices in ops_at.items():
        if where is None:
            unpriced["no line of the author's is known for it"] += len(indices)
            continue
        for members, found in _meet(ops, indices, rows_at.get(where, {})):
            prices = found if isinstance(found, str) else _shares([graph.ops[i] for i in members], found)
            if isinstance(found, _Row):
                used.add((where, found.op))
                if not isinstance(prices, str):
                    missing.update({f"{t}: {found.why[t]}": len(members) for t in TERMS if getattr(found, t) is None})
            if isinstance(prices, str):
                unpriced[prices] += len(members)
                continue
            for index, op in zip(members, prices, strict=True):
                ops[index] = op
    rows = sum(len(found) for found in rows_at.values())
    unused = [row for where, found in rows_at.items() for name, row in found.items() if (where, name) not in used]
    known = [any(getattr(op, term) is not None for term in TERMS) for op in ops]
    coverage = Coverage(
        ops=len(ops),
        priced=sum(known),
        launching=sum(map(launching, graph.ops)),
        launching_priced=sum(priced for priced, op in zip(known, graph.ops, strict=True) if launching(op)),
        unpriced=dict(unpriced.most_common()),
        missing_terms=dict(missing.most_common()),
        rows=rows,
        unused_rows=len(unused),
        unused_us=sum(value for row in unused for term in TERMS if (value := getattr(row, term)) is not None),
    )
    return Priced(msgspec.structs.replace(graph, ops=ops), coverage)


def _within(place: Place | None, modules_at: Mapping[tuple[str, int], Sequence[str]]) -> Place | None:
    """``place`` as the review names its module: behind a graph break Dynamo's paths start at the frame's own module."""
    if place is None:
        return None
    file, line, module = place
    known = modules_at.get((file, line), ())
    if module in known:
        return place
    ending = [other for other in known if not module or other.endswith(f".{module}")]
    return (file, line, ending[0]) if len(ending) == 1 else place


def _added(row: _Row | None, node: Node) -> _Row:
    """A row with the calls of ``node`` added: one op may have rows of several libraries at one place."""
    new = _Row(
        node.op, node.family, node.count, node.launches, node.ft_us, node.ct_us, node.kt_us, dict(node.unmeasured)
    )
    if row is None:
        return new
    sums: dict[str, Any] = {
        name: None if (a := getattr(row, name)) is None or (b := getattr(new, name)) is None else a + b
        for name in ("launches", *TERMS)
    }
    return new._replace(calls=row.calls + new.calls, why={**new.why, **row.why}, **sums)


def _meet(ops: Sequence[Op], indices: Sequence[int], rows: dict[str, _Row]) -> list[tuple[list[int], _Row | str]]:
    """The ops of one place by the row that made them, or the reason that none is known to have."""
    found: list[tuple[list[int], _Row | str]] = []
    left = list(indices)
    for name, row in rows.items():
        mine = [index for index in left if ops[index].op == name]
        if mine:
            found.append((mine, row))
            left = [index for index in left if index not in mine]
    others = [row for name, row in rows.items() if not any(ops[index].op == name for index in indices)]
    families = {ops[index].family for index in left}
    fitting = [row for row in others if row.family in families]
    if not left:
        return found
    if len(fitting) == 1 and (len(others) == 1 or not any(row.launches != 0 for row in others if row not in fitting)):
        return [*found, (left, fitting[0])]
    several = "the review made several calls at its line, and which of them it belongs to is not told"
    return [*found, (left, several if len(others) > 1 else "the review made no such call at its line")]


def _shares(members: Sequence[Op], row: _Row) -> list[Op] | str:
    """``members`` with their shares of the row's cost, or why it cannot be shared out."""
    exact = members[0].op == row.op
    calls = row.calls
    if len(members) % calls and (len(members) > calls or not exact):
        return "the review made another number of calls at its line"
    each = max(1, len(members) // calls)  # ops of one call
    groups = len(members) / each  # calls that these ops are
    active = sum(map(launching, members)) / groups
    library = sum(op.i_lib for op in members) / groups
    kernels = None if row.launches is None else row.launches / calls
    alone = exact and each == 1
    if kernels is not None and not alone and kernels != active and not (active == 1 and kernels >= 1):
        return "the review's call launched another number of kernels than the ops here"

    def share(total: float | None, among: float, mine: bool) -> float | None:
        if total is None:
            return None
        return total / calls / (among or each) if mine or not among else 0.0

    priced = []
    for op in members:
        own = alone or launching(op)
        counted = op.launches
        if kernels is not None and own and (per_op := kernels if alone else kernels / active).is_integer():
            counted = int(per_op)
        priced.append(
            msgspec.structs.replace(
                op,
                ft_us=share(row.ft_us, 0, mine=True),
                ct_us=share(row.ct_us, library, op.i_lib),
                kt_us=share(row.kt_us, 0 if alone else active, own),
                launches=counted,
            )
        )
    return priced


def fused_kernel(review: Review) -> HostCost | None:
    """What one fused kernel costs the host: the mean of the review's own Triton launches; None where it has none.

    In µs: ``ft_us`` the wrapper's line around a launch, ``kt_us`` the launch floor.
    """
    rows = [
        node
        for variant in review.variants
        if variant.name == "inductor"
        for node in variant.nodes
        if node.op.startswith("triton:") and node.launches and node.ft_us is not None and node.kt_us is not None
    ]
    count = sum(node.launches or 0 for node in rows)
    if not count:
        return None
    ft, kt = (math.fsum(getattr(node, term) for node in rows) / count for term in ("ft_us", "kt_us"))
    return HostCost(ft_us=ft, ct_us=0.0, kt_us=kt, launches=1)


def measured(review: Review | None, way: Way) -> Variant | None:
    """The variant of ``review`` that was captured this way, if it was measured."""
    variants = review.variants if review is not None else []
    return next((variant for variant in variants if variant.name == way and variant.status == "ok"), None)


def price_blockers(graph: StepGraph, capture: Capture, variant: Variant | None) -> Capture:
    """``capture`` with what its blockers cost, in µs of host time (ΔFT + ΔCT + ΔKT) per step, from a priced ``graph``.

    ``keep_us``: the host time of the ops that run un-graphed because of it: the op itself where it splits, the whole
    of its Dynamo graph where that is skipped.  ``removing_us``: that, less or more the graph launches that come or go;
    ``variant``, measured in this way of capture, tells what one of those costs.  Time that the host waits in a sync is
    no host time, and is in neither.  What a blocker costs that is captured (copies, memory, new sizes) is not told.
    """
    one = None
    if variant is not None and variant.graph_launches and variant.breakdown is not None:
        one = None if variant.breakdown.kt_us is None else variant.breakdown.kt_us / variant.graph_launches
    blockers = [_priced_blocker(blocker, graph, capture, one) for blocker in capture.blockers]
    return msgspec.structs.replace(capture, blockers=blockers)


_NO_PRICE = {
    "private-pool memory": "it takes memory, not time",
    "input copies": "a review does not tell what a copy costs",
    "parameter copies": "a review does not tell what a copy costs",
    "dynamic shape": "how often its size changes is not known",
    "graph break": "what the code between two graphs costs is not known",
}
_NO_GRAPH = "no graph launch was measured in this way of capture"


def _priced_blocker(blocker: Blocker, graph: StepGraph, capture: Capture, launch_us: float | None) -> Blocker:
    keep: float | None
    removing: float | None = None
    if blocker.kind in _NO_PRICE or blocker.effect == "costs" or blocker.op is None:
        reason = _NO_PRICE.get(blocker.kind, "captured at no known price")
        return _with(blocker, None, None, reason, reason)
    if blocker.effect == "splits":
        keep, why = _host_us([graph.ops[blocker.op]])
        beside = {blocker.op - 1, blocker.op + 1}
        between = all(any(r.first <= i <= r.last and r.graph == blocker.graph for r in capture.regions) for i in beside)
        if keep is not None and not between:
            removing = keep
        elif keep is not None and launch_us is not None:
            removing = keep + launch_us  # two regions become one
        return _with(blocker, keep, removing, why, why or _NO_GRAPH)
    keep, why = _host_us([op for op in graph.ops if op.graph == blocker.graph])
    others = sum(other.graph == blocker.graph and other.effect != "costs" for other in capture.blockers) - 1
    if others:
        return _with(blocker, keep, None, why, f"{others} other blockers of its graph would still be there")
    removing = None if keep is None or launch_us is None else keep - launch_us
    return _with(blocker, keep, removing, why, why or _NO_GRAPH)


def _host_us(ops: Sequence[Op]) -> tuple[float | None, str]:
    values = [getattr(op, term) for op in ops for term in TERMS]
    if any(value is None for value in values):
        lacking = sum(any(getattr(op, term) is None for term in TERMS) for op in ops)
        return None, f"{lacking} of {len(ops)} ops that it keeps un-graphed have no price"
    return math.fsum(values), ""


def _with(blocker: Blocker, keep: float | None, removing: float | None, why: str, why_removing: str) -> Blocker:
    values = {"keep_us": (keep, why), "removing_us": (removing, why_removing)}
    return msgspec.structs.replace(
        blocker,
        keep_us=keep,
        removing_us=removing,
        unmeasured={name: reason for name, (value, reason) in values.items() if value is None},
    )
