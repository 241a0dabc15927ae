"""The search behind ``fusion``: which groups of ops may be merged, and why two may not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from taxbreak_fx.record import Record
from taxbreak_fx.step_graph import Op, StepGraph

SEARCH = 128
# Inductor's own limit on the nodes of one kernel (torch._inductor.config.max_fusion_size, torch 2.11 to 2.13).
MAX_OPS = 64
FUSIBLE = ("pointwise", "reduction", "row")

Code = Literal[
    "extern", "host-sync", "graph-break", "mutation", "device", "dtype", "domain", "reduction", "cycle", "search",
    "size", "order",
]  # fmt: skip
Row = tuple[tuple[bool, int], ...]


class Rules(Record, frozen=True, kw_only=True):
    """What may not be in one group.  ``max_ops``: the most ops in it, views aside.  ``siblings``: also groups that only
    read the same tensor.  ``same_dtype``: refuse a group whose ops write different dtypes.  ``across_graphs`` and
    ``across_syncs``: fuse as if the graph breaks or host syncs were not there."""

    max_ops: int = MAX_OPS
    siblings: bool = True
    same_dtype: bool = False
    across_graphs: bool = False
    across_syncs: bool = False


class Refusal(NamedTuple):
    """Why two groups are not merged."""

    code: Code
    text: str


def row_of(op: Op) -> Row | None:
    """The loop nest of an op that reduces: (reduced?, size) per run of dimensions, those of size 1 dropped.

    None for other ops, and for reductions over nothing.
    """
    if op.role not in ("reduction", "row"):
        return None
    runs: list[tuple[bool, int]] = []
    for position, size in enumerate(op.domain):
        reduced = position in op.reduced
        if size == 1:
            continue
        if runs and runs[-1][0] == reduced:
            runs[-1] = (reduced, runs[-1][1] * size)
        else:
            runs.append((reduced, size))
    return tuple(runs) if any(reduced for reduced, _ in runs) else None


def _kept(row: Row) -> int:
    return math.prod(size for reduced, size in row if not reduced)


def _full(row: Row) -> int:
    return math.prod(size for _, size in row)


def _inner(row: Row) -> bool:
    """Whether the reduced dimensions are the innermost, so that a loop over rows can write the row out again."""
    return len(row) == 1 or (len(row) == 2 and row[1][0])


class Groups:
    """A partition of the ops, by union of groups; views belong to no group and are looked through.

    ``read``: per op, the ops it reads (``step_graph.producers``).  ``members``, ``successors``: per group, per op.
    """

    def __init__(self, graph: StepGraph, read: list[list[tuple[int, int]]], rules: Rules) -> None:
        self.ops, self.rules, self._read = graph.ops, rules, read
        count = len(graph.ops)
        self._parent = list(range(count))
        self.members = [[index] for index in range(count)]
        # A topological order of the groups: every edge between two leads to a greater place.  Tuples, so that there is
        # always room just before a group: places that begin with that of a group which was merged belong to it alone.
        self._place: list[tuple[int, ...]] = [(index,) for index in range(count)]
        self._before: list[set[int]] = [set() for _ in range(count)]
        self._after_order: list[set[int]] = [set() for _ in range(count)]
        self.successors: list[list[int]] = [[] for _ in range(count)]
        self._rows = [row_of(op) for op in graph.ops]
        # Element counts of the pointwise ops of a group, and the dtypes it writes.
        self._sizes = [
            {math.prod(op.domain)} if op.role in FUSIBLE and self._rows[i] is None else set()
            for i, op in enumerate(graph.ops)
        ]
        self._dtypes = [{op.dtype} for op in graph.ops]
        self._segment = _segments(graph.ops)
        self.cut = 0
        for index, op in enumerate(graph.ops):
            if op.role == "view":
                continue
            data = {producer for producer, _ in read[index]}
            ordered = {base for before in op.after for base in self._through(before)}
            self._before[index] = data | ordered
            self._after_order[index] = ordered
            for before in sorted(self._before[index]):
                self.successors[before].append(index)

    def _through(self, index: int) -> list[int]:
        return [base for base, _ in self._read[index]] if self.ops[index].role == "view" else [index]

    def find(self, index: int) -> int:
        """The group an op is in, named by one of its members."""
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def roots(self) -> Iterator[int]:
        """Every group that holds an op which may be fused."""
        return (i for i, op in enumerate(self.ops) if self._parent[i] == i and op.role in FUSIBLE)

    def run(self) -> None:
        """Merge what may be merged, in the order that ``fusion`` states."""
        for index, op in enumerate(self.ops):
            if op.role in FUSIBLE:
                for producer in sorted({p for p, _ in self._read[index]}, reverse=True):
                    self._try(self.find(producer), self.find(index))
        if self.rules.siblings:
            for readers in self._readers():
                for one, other in itertools.pairwise(readers):
                    a, b = self.find(one), self.find(other)
                    if a != b and self._unlike(b, a) is None:
                        self._try(a, b)
        tried: set[int] = set()
        for index in reversed(range(len(self.ops))):
            root = self.find(index)
            if self.ops[index].role in FUSIBLE and root not in tried:
                tried.add(root)
                self._inline(root)

    def _readers(self) -> Iterator[list[int]]:
        """Per tensor, the fusible ops that read it, in issue order."""
        by_tensor: dict[int | str, list[int]] = {}
        for index, op in enumerate(self.ops):
            if op.role not in FUSIBLE:
                continue
            for producer, _ in self._read[index]:
                by_tensor.setdefault(producer, []).append(index)
            for operand in op.operands:
                if operand.input is not None:
                    by_tensor.setdefault(operand.input, []).append(index)
        return (list(dict.fromkeys(readers)) for readers in by_tensor.values())

    def _inline(self, root: int) -> None:
        """Merge a pointwise group into the only group that reads it, whatever its size: its values are computed there.

        Everything that follows it lies in that group, so no path can leave and come back.
        """
        if self._rows[root] is not None or any(self.ops[m].escapes for m in self.members[root]):
            return
        readers = {self.find(after) for m in self.members[root] for after in self.successors[m]} - {root}
        if len(readers) == 1:
            reader = readers.pop()
            if self._forbidden(root, reader) is None and isinstance(between := self._between(root, reader), list):
                self._merge(root, reader, between, inlined=True)

    def _try(self, a: int, b: int) -> None:
        if a == b or self._forbidden(a, b) or self._unlike(a, b):
            return
        between = self._between(a, b)
        if isinstance(between, list):
            self._merge(a, b, between)
        elif between.code == "search":
            self.cut += 1

    def refusal(self, a: int, b: int) -> Refusal | None:
        """Why group ``b``, which reads ``a`` or the same tensor, cannot be one kernel with it; None: it can."""
        refusal = self._forbidden(a, b) or self._unlike(a, b)
        if refusal is None and isinstance(between := self._between(a, b), Refusal):
            return between
        return refusal

    def _forbidden(self, a: int, b: int) -> Refusal | None:
        """What no shape can heal."""
        one, other = self.ops[a], self.ops[b]
        for op in (other, one):
            if op.role == "sync":
                return Refusal("host-sync", "the host waits for its value there")
            if op.role not in FUSIBLE:
                done = f"{op.library} does it" if op.i_lib else f"{op.family} is a kernel of its own"
                return Refusal("extern", done)
        if one.graph != other.graph and not self.rules.across_graphs:
            return Refusal("graph-break", "it lies in another graph")
        if self._segment[a] != self._segment[b] and not self.rules.across_syncs:
            return Refusal("host-sync", "the host waits for the device in between")
        if one.device != other.device:
            return Refusal("device", f"it works on {other.device}, not on {one.device}")
        if self.rules.same_dtype and self._dtypes[a] != self._dtypes[b]:
            return Refusal("dtype", f"it writes {self._names(b)}, the group {self._names(a)}")
        if len(self.members[a]) + len(self.members[b]) > self.rules.max_ops:
            return Refusal("size", f"a kernel of more than {self.rules.max_ops} ops")
        if self._overwrites(a, b) or self._overwrites(b, a):
            return Refusal("mutation", "it overwrites a tensor that the group reads or writes otherwise")
        return None

    def _names(self, root: int) -> str:
        return " and ".join(sorted(str(dtype) for dtype in self._dtypes[root]))

    def _overwrites(self, a: int, b: int) -> bool:
        """Whether an op of ``b`` must wait for one of ``a`` that it does not read: as one kernel it would not wait."""
        return any(self.find(before) == a for before in self._after_order[b])

    def _unlike(self, a: int, b: int) -> Refusal | None:
        """Whether the two iterate over different domains; ``a`` comes before ``b`` or beside it."""
        first, second = self._rows[a], self._rows[b]
        if first and second and first != second:
            return Refusal("reduction", f"it reduces {_shown(second)}, the group {_shown(first)}")
        row = first or second
        sizes = self._sizes[a] | self._sizes[b]
        if row is None:
            if len(sizes) > 1:
                return Refusal("domain", f"{_elements(self._sizes[b])}, the group {_elements(self._sizes[a])}")
            return None
        if not sizes <= {_full(row), _kept(row)}:
            return Refusal("domain", f"{_elements(sizes)} beside rows of {_shown(row)}")
        if first and not _inner(first) and _full(first) in self._sizes[b]:
            return Refusal("reduction", "it needs whole rows of a reduction over outer dimensions")
        return None

    def _between(self, a: int, b: int) -> list[int] | Refusal:
        """The groups placed between two that the later one needs, in order; a refusal if one of them needs the earlier.

        Nothing placed before the earlier one can need it, and nothing placed after the later one is needed by it.
        """
        early, late = sorted((a, b), key=lambda group: self._place[group])
        seen: set[int] = set()
        stack = [late]
        while stack:
            group = stack.pop()
            for previous in {self.find(before) for before in self._before[group]} - {group}:
                if previous == early:
                    if group == late:
                        continue
                    op = self.ops[max(self.members[group])]
                    return Refusal("cycle", f"it also needs {op.op}, which needs the group's result first")
                if previous not in seen and self._place[previous] > self._place[early]:
                    if len(seen) >= SEARCH:
                        return Refusal("search", f"no proof among {SEARCH} groups that nothing lies in between")
                    seen.add(previous)
                    stack.append(previous)
        return sorted(seen, key=lambda group: self._place[group])

    def _merge(self, a: int, b: int, between: list[int], inlined: bool = False) -> None:
        """Make one group of two, under the name of the larger; ``inlined``: ``a`` is computed in the loops of ``b``.

        It takes the place of the earlier one, and ``between``, which the later one needs, goes just before it.
        """
        place = min(self._place[a], self._place[b])
        if between:
            for position, group in enumerate(between):
                self._place[group] = (*place, 0, position)
            place = (*place, 1)
        kept, gone = (a, b) if len(self.members[a]) > len(self.members[b]) else (b, a)
        sizes = self._sizes[b] if inlined else self._sizes[a] | self._sizes[b]
        row = self._rows[a] or self._rows[b]
        self._parent[gone] = kept
        self._place[kept] = place
        self.members[kept] += self.members[gone]
        self._before[kept] |= self._before[gone]
        self._after_order[kept] |= self._after_order[gone]
        self._dtypes[kept] = self._dtypes[a] | self._dtypes[b]
        self._sizes[kept], self._rows[kept] = sizes, row


def _segments(ops: list[Op]) -> list[int]:
    """Per op, how many host syncs were issued before it."""
    found, passed = [], 0
    for op in ops:
        found.append(passed)
        passed += op.role == "sync"
    return found


def _shown(row: Row) -> str:
    return " × ".join(f"{size} summed" if reduced else str(size) for reduced, size in row)


def _elements(sizes: set[int]) -> str:
    return "it works on " + " and ".join(str(size) for size in sorted(sizes)) + " elements" if sizes else "rows"
