"""Our fusible groups beside the kernels that Inductor really made, and why it missed what it missed.

Both sides name ops by the nodes of Dynamo's graph (``Op.origin``), since Inductor lowers another graph than eager runs.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Literal

from taxbreak_fx.fusion import FusionGroup, launching
from taxbreak_fx.fusion_search import FUSIBLE
from taxbreak_fx.record import Record
from taxbreak_fx.step_graph import Op, StepGraph, producers

Relation = Literal["same", "Inductor fuses more", "we fuse more", "across each other", "Inductor has none of it"]
MissReason = Literal[
    "graph break", "mutation", "extern kernel between", "dtype", "size limit", "other domain", "no shared data",
    "would be a cycle", "computed in each reader", "other", "not told",
]  # fmt: skip


class FusedKernel(Record, frozen=True, kw_only=True):
    """One kernel or extern call that Inductor made.

    ``nodes``: the nodes of Dynamo's graph whose work it does, ``stores``: those whose result it writes to memory (the
    others it computes on the way, maybe again).  ``graph``: the ordinal of that graph.  ``parts``: the scheduler's
    names of what was fused, by which ``Declined`` refers to it.
    """

    name: str
    extern: bool
    nodes: tuple[str, ...]
    stores: tuple[str, ...] = ()
    graph: int = 0
    parts: tuple[str, ...] = ()


class Declined(Record, frozen=True, kw_only=True):
    """Two parts that Inductor's scheduler looked at and did not fuse, with its words."""

    graph: int
    first: tuple[str, ...]
    second: tuple[str, ...]
    reason: str


class Kernels(Record, frozen=True, kw_only=True):
    """What Inductor made of the graphs of a step."""

    kernels: list[FusedKernel]
    declined: list[Declined] = []


class AgreementRow(Record, frozen=True, kw_only=True):
    """One of our groups beside the kernels that hold its ops.  ``group``: its rank, or None for a kernel that fuses ops
    of which we fuse none.  ``reason`` and ``detail`` are given where Inductor fuses less."""

    group: int | None
    nodes: tuple[str, ...]
    kernels: tuple[str, ...]
    relation: Relation
    reason: MissReason | None = None
    detail: str = ""


class Agreement(Record, frozen=True, kw_only=True):
    """``pairs``: pairs of nodes of which one reads the other, both of ops that could be fused and that Inductor's
    kernels name; ``agreed``: those that both sides fuse or both do not.  ``score`` = agreed ÷ pairs, None without any.
    ``overlap``: of all pairs of nodes that either side puts together, directly or not, the share that both do.
    ``unseen``: nodes of ours that no kernel names (folded into constants, or rewritten).
    """

    rows: list[AgreementRow]
    pairs: int
    agreed: int
    score: float | None
    overlap: float | None
    unseen: int


Label = tuple[int, str]


def agreement(graph: StepGraph, groups: Sequence[FusionGroup], made: Kernels) -> Agreement:
    """Compare ``groups`` of ``graph`` with the kernels that Inductor made of the same graphs.

    A node may be in several kernels, since Inductor computes cheap values again in each reader: two nodes count as
    fused when any kernel holds both.
    """
    # One node may be both (an attention call that also builds its mask): the extern call is then no home of the rest.
    left = {name for op in graph.ops if launching(op) and op.role not in FUSIBLE and (name := _label(op)) is not None}
    kernels_of: dict[Label, set[int]] = collections.defaultdict(set)
    for index, kernel in enumerate(made.kernels):
        for node in kernel.nodes:
            if not kernel.extern or (kernel.graph, node) not in left:
                kernels_of[kernel.graph, node].add(index)
    group_of: dict[Label, set[int]] = collections.defaultdict(set)
    for rank, group in enumerate(groups):
        for label in _labels(graph, group.ops):
            group_of[label].add(rank)
    own = {name for op in graph.ops if launching(op) and op.role in FUSIBLE and (name := _label(op)) is not None}
    rows = [_row(graph, rank, group, made, kernels_of, own) for rank, group in enumerate(groups)]
    rows += _inductor_only(made, group_of, own)
    pairs = _neighbours(graph, kernels_of)
    agreed = sum(bool(group_of[a] & group_of[b]) == bool(kernels_of[a] & kernels_of[b]) for a, b in pairs)
    seen = {label for label in own if kernels_of.get(label)}
    return Agreement(
        rows=rows,
        pairs=len(pairs),
        agreed=agreed,
        score=agreed / len(pairs) if pairs else None,
        overlap=_overlap(seen, group_of, kernels_of),
        unseen=len(own - seen),
    )


def _label(op: Op) -> Label | None:
    return None if op.origin is None else (op.graph, op.origin)


def _labels(graph: StepGraph, ops: Sequence[int]) -> list[Label]:
    labels = (_label(graph.ops[index]) for index in ops if launching(graph.ops[index]))
    return list(dict.fromkeys(label for label in labels if label is not None))


def _neighbours(graph: StepGraph, kernels_of: Mapping[Label, set[int]]) -> list[tuple[Label, Label]]:
    found: dict[tuple[Label, Label], None] = {}
    for index, read in enumerate(producers(graph)):
        op, label = graph.ops[index], _label(graph.ops[index])
        for producer, _ in read:
            other, before = graph.ops[producer], _label(graph.ops[producer])
            fusible = op.role in FUSIBLE and other.role in FUSIBLE
            if fusible and label and before and label != before and kernels_of.get(label) and kernels_of.get(before):
                found[before, label] = None
    return list(found)


def _overlap(
    seen: set[Label], group_of: Mapping[Label, set[int]], kernels_of: Mapping[Label, set[int]]
) -> float | None:
    ours, theirs = _together(seen, group_of), _together(seen, kernels_of)
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else None


def _together(seen: set[Label], homes: Mapping[Label, set[int]]) -> set[tuple[Label, Label]]:
    inside: dict[int, list[Label]] = collections.defaultdict(list)
    for label in sorted(seen):
        for home in homes[label]:
            inside[home].append(label)
    return {(a, b) for labels in inside.values() for i, a in enumerate(labels) for b in labels[i + 1 :]}


def _row(
    graph: StepGraph,
    rank: int,
    group: FusionGroup,
    made: Kernels,
    kernels_of: Mapping[Label, set[int]],
    own: set[Label],
) -> AgreementRow:
    labels = _labels(graph, group.ops)
    known = [label for label in labels if kernels_of.get(label)]
    homes = _homes(known, made, kernels_of)
    names = tuple(made.kernels[index].name for index in homes)
    nodes = tuple(name for _, name in labels)
    if not homes:
        reason, detail = _missed(graph, group, homes, made, kernels_of)
        return AgreementRow(
            group=rank, nodes=nodes, kernels=(), relation="Inductor has none of it", reason=reason, detail=detail
        )
    held = {(made.kernels[i].graph, node) for i in homes for node in made.kernels[i].nodes} & own
    relation: Relation
    if len(homes) == 1:
        relation = "Inductor fuses more" if held - set(labels) else "same"
        return AgreementRow(group=rank, nodes=nodes, kernels=names, relation=relation)
    relation = "across each other" if held - set(labels) else "we fuse more"
    reason, detail = _missed(graph, group, homes, made, kernels_of)
    return AgreementRow(group=rank, nodes=nodes, kernels=names, relation=relation, reason=reason, detail=detail)


def _homes(labels: Sequence[Label], made: Kernels, kernels_of: Mapping[Label, set[int]]) -> list[int]:
    """The kernels that write results of ``labels``; and the fewest, greedily, for those that are written nowhere."""
    wanted = set(labels)
    chosen = [
        index
        for index, kernel in enumerate(made.kernels)
        if any((kernel.graph, name) in wanted and index in kernels_of[kernel.graph, name] for name in kernel.stores)
    ]
    left = {label for label in wanted if not kernels_of[label].intersection(chosen)}
    while left:
        counts = collections.Counter(kernel for label in left for kernel in kernels_of[label])
        best = min(counts, key=lambda kernel: (-counts[kernel], kernel))
        chosen.append(best)
        left = {label for label in left if best not in kernels_of[label]}
    return sorted(chosen)


# Words of Inductor's scheduler (torch 2.11 to 2.13), in the order they are looked for.
_WORDS: tuple[tuple[str, MissReason], ...] = (
    ("numel", "other domain"),
    ("tiling", "other domain"),
    ("memory deps did not match", "other domain"),
    ("extern", "extern kernel between"),
    ("max fusion size", "size limit"),
    ("peak memory", "size limit"),
    ("spilling", "size limit"),
    ("no shared data", "no shared data"),
    ("score", "no shared data"),
    ("intermediate nodes", "would be a cycle"),
)


def _missed(
    graph: StepGraph,
    group: FusionGroup,
    homes: Sequence[int],
    made: Kernels,
    kernels_of: Mapping[Label, set[int]],
) -> tuple[MissReason, str]:
    """Why Inductor made several kernels of a group: what the step's own ops tell, else what its scheduler said."""
    members = [graph.ops[index] for index in group.ops]
    graphs = sorted({member.graph for member in members})
    if len(graphs) > 1:
        cut = next((found for found in graph.breaks if graphs[0] <= found.graph < graphs[-1]), None)
        return "graph break", cut.reason if cut else "its ops lie in several graphs"
    externs = [made.kernels[index].name for index in homes if made.kernels[index].extern]
    if externs:
        return "extern kernel between", f"Inductor leaves it to {', '.join(dict.fromkeys(externs))}"
    writer = next((member for member in members if member.writes_in_place), None)
    if writer is not None:
        return "mutation", f"{writer.op} writes in place"
    if not homes:
        return "not told", "no kernel names its nodes"
    said = _said(homes, made)
    for word, reason in _WORDS:
        for text in said:
            if word in text:
                return reason, text
    labels = _labels(graph, group.ops)
    written = [
        {str(m.dtype) for m in members if m.origin in made.kernels[i].stores and m.graph == made.kernels[i].graph}
        for i in homes
    ]
    if len(written) > 1 and all(written) and not set.intersection(*written):
        return "dtype", f"its kernels write {' and '.join(sorted(set.union(*written)))}"
    if any(len(kernels_of[label] & set(homes)) > 1 for label in labels if label in kernels_of):
        return "computed in each reader", "Inductor computes it again in every kernel that reads it"
    return ("other", said[0]) if said else ("not told", "the scheduler did not look at these together")


def _said(homes: Sequence[int], made: Kernels) -> list[str]:
    """What the scheduler last said of each two of these kernels, or of parts of them."""
    found: dict[tuple[int, int], str] = {}
    parts = {index: set(made.kernels[index].parts) for index in homes}
    for declined in made.declined:
        first, second = set(declined.first), set(declined.second)
        for a in homes:
            for b in homes:
                same = made.kernels[a].graph == made.kernels[b].graph == declined.graph
                if a != b and same and first <= parts[a] and second <= parts[b]:
                    found[min(a, b), max(a, b)] = declined.reason
    return list(found.values())


def _inductor_only(made: Kernels, group_of: Mapping[Label, set[int]], own: set[Label]) -> list[AgreementRow]:
    """Kernels of several of our fusible nodes, of which we fuse none."""
    rows = []
    for kernel in made.kernels:
        labels = [(kernel.graph, node) for node in kernel.nodes if (kernel.graph, node) in own]
        if len(labels) > 1 and not any(group_of.get(label) for label in labels):
            names = tuple(name for _, name in labels)
            rows.append(AgreementRow(group=None, nodes=names, kernels=(kernel.name,), relation="Inductor fuses more"))
    return rows
