"""What a step would save if ops that one kernel could do were one kernel: groups of ops, and why each ends (what-if).

The rules are those of a loop generator like Inductor's: pointwise ops over as many elements, a reduction or a row op
(softmax, layer norm) with what comes before and after it over the same domain, small pointwise ops into their only
reader.  A group is convex (no path leaves it and comes back), so that contracting all groups leaves the graph acyclic.

Order of the greedy search: ops in issue order, each joins the groups of its producers, the latest producer first; then
groups that read the same tensor, in issue order; then pointwise groups that only one group reads, the last one first.
Every search for a path looks at ``fusion_search.SEARCH`` groups at most, so the whole is linear in the number of ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from taxbreak_fx.fusion_search import Code, Groups, Refusal, Rules
from taxbreak_fx.record import Measured, Record, SourceLine
from taxbreak_fx.step_graph import HostCost, Op, StepGraph, producers

EndCode = Code | Literal["result", "last"]
FusionBytes = tuple[Sequence[int], int]  # the ops of a group, and the bytes that fusing them saves
Exposed = Callable[[Sequence[FusionBytes]], float | None]


class FusionGroup(Measured, frozen=True, kw_only=True):
    """Ops that one kernel could do, per step.

    ``ops``: indices into the step's ops, in issue order, views between members included.  Saved host times are the sum
    over ``ops`` minus the cost of one kernel (``fusible_groups``), in microseconds; negative where the kernel costs
    more.  ``exposed_us``: what the step's wall time would lose.  ``bytes_saved``: see ``saved_bytes``.  ``sources``:
    the lines that form the group, in issue order.  ``end`` and ``reason`` say why it ended where it did.
    """

    MEASUREMENTS = ("launches_before", "ft_saved_us", "ct_saved_us", "kt_saved_us", "exposed_us")

    ops: tuple[int, ...]
    names: tuple[str, ...]
    families: tuple[str, ...]
    module_paths: tuple[str, ...]
    sources: tuple[SourceLine, ...]
    launches_before: int | None
    launches_after: int
    ft_saved_us: float | None
    ct_saved_us: float | None
    kt_saved_us: float | None
    exposed_us: float | None
    bytes_saved: int
    end: EndCode
    reason: str

    @property
    def host_saved_us(self) -> float | None:
        """ΔFT + ΔCT + ΔKT saved, in microseconds; None where one of them is not known."""
        if self.ft_saved_us is None or self.ct_saved_us is None or self.kt_saved_us is None:
            return None
        return self.ft_saved_us + self.ct_saved_us + self.kt_saved_us


class Fusion(Record, frozen=True, kw_only=True):
    """All groups of a step, best first.  ``searches_cut``: merges refused because a path search grew too long."""

    groups: list[FusionGroup]
    searches_cut: int


def fusible_groups(
    graph: StepGraph, rules: Rules | None = None, kernel: HostCost | None = None, exposed: Exposed | None = None
) -> Fusion:
    """Groups of at least two launching ops that one kernel could do, ranked.

    A term saved = Σ over the group's ops, views included, − the fused kernel's.  ``kernel``: what a fused kernel costs
    the host (a Triton launch: its launcher in ft_us, no ct_us, one launch floor in kt_us); without it the cheapest
    launching member's ΔFT and ΔKT, and no ΔCT.  Ranked by what ``exposed`` says (µs of wall time saved by fusing all
    the groups it is given; None: not known), else by host time saved, else by launches and bytes; unknown values rank
    last, ties by issue order.
    """
    read = producers(graph)
    search = Groups(graph, read, rules or Rules())
    search.run()
    viewed = _views_between(graph, search)
    groups = []
    for root in search.roots():
        members = search.members[root]
        if sum(launching(graph.ops[m]) for m in members) < 2:
            continue
        ops = tuple(sorted([*members, *viewed.get(root, ())]))
        groups.append(_group(graph, read, search, root, ops, kernel, exposed))
    return Fusion(groups=sorted(groups, key=_rank), searches_cut=search.cut)


def launching(op: Op) -> bool:
    """Whether the op launches a kernel; one whose launches are not known counts as launching."""
    return op.role not in ("view", "alloc") and op.launches != 0


def _views_between(graph: StepGraph, search: Groups) -> dict[int, list[int]]:
    """Views of a member's result that another member reads, by group: without them the group would not be convex."""
    inside: dict[int, list[int]] = {}
    kept: set[int] = set()
    base: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        first = op.operands[0].op if op.operands else None
        if op.role == "view" and first is not None:
            base[index] = base.get(first, first)
    for index in reversed(range(len(graph.ops))):
        op = graph.ops[index]
        mine = search.find(index) if op.role != "view" else search.find(base[index]) if index in kept else None
        if mine is None:
            continue
        for operand in op.operands:
            view = operand.op
            if view in base and view not in kept and search.find(base[view]) == mine:
                kept.add(view)
                inside.setdefault(mine, []).append(view)
    return inside


def _group(
    graph: StepGraph,
    read: list[list[tuple[int, int]]],
    search: Groups,
    root: int,
    ops: tuple[int, ...],
    kernel: HostCost | None,
    exposed: Exposed | None,
) -> FusionGroup:
    members = [graph.ops[index] for index in ops]
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for term in ("ft_us", "ct_us", "kt_us"):
        name = f"{term.removesuffix('_us')}_saved_us"
        values[name], why = _saved(term, members, kernel)
        if why:
            reasons[name] = why
    launches = [member.launches for member in members]
    before = sum(known) if len(known := [n for n in launches if n is not None]) == len(launches) else None
    if before is None:
        reasons["launches_before"] = "the launches of a member are not known"
    bytes_saved = saved_bytes(graph, read, search.successors, ops)
    values["exposed_us"] = None if exposed is None else exposed([(ops, bytes_saved)])
    if values["exposed_us"] is None:
        reasons["exposed_us"] = "no timeline was given" if exposed is None else "the timeline does not tell"
    end, reason = _end(graph, search, root)
    return FusionGroup(
        ops=ops,
        names=tuple(member.op for member in members),
        families=tuple(member.family for member in members),
        module_paths=tuple(dict.fromkeys(m.module_path for m in members if m.module_path is not None)),
        sources=tuple(dict.fromkeys(m.source for m in members if m.source is not None)),
        launches_before=before,
        launches_after=1,
        bytes_saved=bytes_saved,
        end=end,
        reason=reason,
        unmeasured=reasons,
        **values,
    )


def _saved(term: str, members: Sequence[Op], kernel: HostCost | None) -> tuple[float | None, str]:
    """Σ over members − the kernel's, or why it is not known."""
    costs = [getattr(member, term) for member in members]
    for member, cost in zip(members, costs, strict=True):
        if cost is None:
            return None, f"{term.removesuffix('_us')} of {member.op} is not known"
    if kernel is not None:
        return sum(costs) - float(getattr(kernel, term)), ""
    if term == "ct_us":
        return sum(costs), ""
    return sum(costs) - min(c for c, m in zip(costs, members, strict=True) if launching(m)), ""


def saved_bytes(
    graph: StepGraph, read: Sequence[Sequence[tuple[int, int]]], successors: Sequence[Iterable[int]], ops: Sequence[int]
) -> int:
    """Bytes of memory traffic that a fused kernel need not move.

    Σ over members of the bytes that other members read of its result, and of writing the result where nobody outside
    reads it and it outlives nothing; plus, for a tensor from outside that k members read, all but the largest read.
    """
    inside = set(ops)
    saved = 0
    for index in ops:
        op = graph.ops[index]
        if op.role != "view" and not op.escapes and successors[index] and inside.issuperset(successors[index]):
            saved += op.written_bytes
    outside: dict[int | str, list[int]] = {}
    for index in ops:
        if graph.ops[index].role == "view":
            continue
        for producer, size in read[index]:
            if producer in inside:
                saved += size
            else:
                outside.setdefault(producer, []).append(size)
        for operand in graph.ops[index].operands:
            if operand.input is not None:
                outside.setdefault(operand.input, []).append(operand.bytes)
    return saved + sum(sum(sizes) - max(sizes) for sizes in outside.values())


def _end(graph: StepGraph, search: Groups, root: int) -> tuple[EndCode, str]:
    """Why the first reader of the group's results, in issue order, is not in it."""
    outside = sorted(
        {after for m in search.members[root] for after in search.successors[m] if search.find(after) != root}
    )
    if not outside:
        escapes = any(graph.ops[m].escapes for m in search.members[root])
        return (
            ("result", "its result leaves the step or its graph") if escapes else ("last", "nothing reads its result")
        )
    reader = outside[0]
    refusal = search.refusal(root, search.find(reader)) or Refusal(
        "order", "it became possible only after later merges; the search does not go back"
    )
    op = graph.ops[reader]
    where = f" ({op.source})" if op.source else ""
    return refusal.code, f"{op.op}{where} reads its result: {refusal.text}"


def _rank(group: FusionGroup) -> tuple[float, float, int, int, int]:
    unknown = float("inf")
    return (
        unknown if group.exposed_us is None else -group.exposed_us,
        unknown if (host := group.host_saved_us) is None else -host,
        -(group.launches_before or 0),
        -group.bytes_saved,
        group.ops[0],
    )


def total(groups: Iterable[FusionGroup]) -> dict[str, float | None]:
    """Sums over groups of what they save (µs, launches, bytes); None where a group's value is not known.

    Exposed savings are left out: they do not add up (docs/method.md, "Timeline").
    """
    rows = list(groups)
    sums: dict[str, float | None] = {}
    for name in ("launches_before", "launches_after", "ft_saved_us", "ct_saved_us", "kt_saved_us", "bytes_saved"):
        values = [msgspec.structs.asdict(row)[name] for row in rows]
        sums[name] = None if any(value is None for value in values) else sum(values)
    return sums
