"""Which op of one review is which of another, although the lines of the code have moved.  Pure."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from taxbreak_fx.record import SourceLine
from taxbreak_fx.variant_record import Node

# Inductor numbers its kernels through the whole step: an op more at its start renames all that follow.
_NUMBER = re.compile(r"_\d+$")

GENERATED = "triton"

Key = tuple[str, str | None, str | None]
_Place = tuple[str, str | None, int, tuple[int, int | None, int | None]]


class Pair(NamedTuple):
    """A row of the base and the row of the head that is the same; one of them is None where it has no other.

    ``by_place``: told by line and counts alone, so that it may be another module or kernel, whose times say nothing.
    """

    base: Node | None
    head: Node | None
    by_place: bool = False

    @property
    def same(self) -> bool:
        """Both are there, and call, launch and run as many kernels."""
        if self.base is None or self.head is None:
            return False
        return counts(self.base) == counts(self.head)


def counts(node: Node) -> tuple[int, int | None, int | None]:
    """Calls, launches and kernels of a row."""
    return node.count, node.launches, node.kernels


def file_name(source: SourceLine | None) -> str | None:
    """The file without its folders: two checkouts, or two machines, have the same file in other places."""
    return None if source is None else source.file.replace("\\", "/").rsplit("/", 1)[-1]


def op_name(op: str) -> str:
    """The op, a generated kernel without its number."""
    return _NUMBER.sub("", op) if op.startswith(GENERATED) else op


def key(node: Node) -> Key:
    """What a row keeps through edits elsewhere: op, folded module path, and file."""
    return op_name(node.op), node.module_path, file_name(node.source)


def match(base: Sequence[Node], head: Sequence[Node]) -> list[Pair]:
    """Every row of both, each once: those that are the same in pairs, in the order of ``base``, then what is added.

    Rows with one key on both sides are the same.  Several of them are matched by line, in order, each base line first
    moved as far as the nearest row that is alone with its key was: an insertion above moves all that follow alike.
    What is left is the same where it stands on the same line and counts alike: a module that was renamed, or a
    generated kernel that now fuses other ops.
    """
    groups = _groups(base), _groups(head)
    expected = _moves(*groups)
    partner: dict[int, Node] = {}
    for name, ours in groups[0].items():
        theirs = groups[1].get(name, [])
        partner |= {id(a): b for a, b in _aligned(ours, theirs, expected)}
    taken = {id(node) for node in partner.values()}
    left: dict[_Place, list[Node]] = collections.defaultdict(list)
    for node in head:
        if id(node) not in taken and node.source is not None:
            left[_stand(node, _line(node))].append(node)
    placed: set[int] = set()
    for node in base:
        if id(node) not in partner and node.source is not None and (others := left[_stand(node, expected(node))]):
            partner[id(node)] = others.pop(0)
            placed.add(id(node))
            taken.add(id(partner[id(node)]))
    pairs = [Pair(node, partner.get(id(node)), id(node) in placed) for node in base]
    return pairs + [Pair(None, node) for node in head if id(node) not in taken]


def candidate_lines(base: Sequence[Node], head: Sequence[Node]) -> Callable[[Node], tuple[int, int]]:
    """Where the line of a base row may be in the head: moved as what is above it was, and as what is below it was."""
    anchors = _anchors(_groups(base), _groups(head))

    def candidates(node: Node) -> tuple[int, int]:
        line = _line(node)
        moved = sorted(anchors.get(file_name(node.source), []))
        above = [to - at for at, to in moved if at <= line]
        below = [to - at for at, to in moved if at > line]
        return line + (above[-1] if above else 0), line + (below[0] if below else 0)

    return candidates


def _stand(node: Node, line: int) -> _Place:
    op = GENERATED if node.op.startswith(GENERATED) else node.op
    return op, file_name(node.source), line, counts(node)


def _groups(nodes: Sequence[Node]) -> dict[Key, list[Node]]:
    found: dict[Key, list[Node]] = collections.defaultdict(list)
    for node in nodes:
        found[key(node)].append(node)
    return {name: sorted(group, key=_order) for name, group in found.items()}


def _order(node: Node) -> tuple[int, int]:
    """Line, then Inductor's number: kernels of one name and line are launched in the order of their numbers."""
    number = _NUMBER.search(node.op)
    return _line(node), int(number[0][1:]) if number is not None else 0


def _line(node: Node) -> int:
    return node.source.line if node.source is not None else 0


def _anchors(base: dict[Key, list[Node]], head: dict[Key, list[Node]]) -> dict[str | None, list[tuple[int, int]]]:
    """By file: the line before and after of every row that is alone with its key in both."""
    anchors: dict[str | None, list[tuple[int, int]]] = collections.defaultdict(list)
    for name, group in base.items():
        other = head.get(name, [])
        if len(group) == len(other) == 1 and name[2] is not None:
            anchors[name[2]].append((_line(group[0]), _line(other[0])))
    return anchors


def _moves(base: dict[Key, list[Node]], head: dict[Key, list[Node]]) -> Callable[[Node], int]:
    """Where a line of the base is expected in the head."""
    anchors = _anchors(base, head)

    def expected(node: Node) -> int:
        line = _line(node)
        near = min(anchors.get(file_name(node.source), []), key=lambda pair: abs(pair[0] - line), default=(0, 0))
        return line + near[1] - near[0]

    return expected


def _aligned(base: list[Node], head: list[Node], expected: Callable[[Node], int]) -> list[tuple[Node, Node]]:
    """As many pairs as the shorter list has rows, in order, that move least; of equals, those that count alike."""
    if len(base) > len(head):
        return [(a, b) for b, a in _least(head, base, lambda b, a: _cost(a, b, expected))]
    return _least(base, head, lambda a, b: _cost(a, b, expected))


def _cost(base: Node, head: Node, expected: Callable[[Node], int]) -> tuple[int, int]:
    return abs(expected(base) - _line(head)), int(counts(base) != counts(head))


def _least(
    short: list[Node], long: list[Node], cost: Callable[[Node, Node], tuple[int, int]]
) -> list[tuple[Node, Node]]:
    """Every row of ``short`` with one of ``long``, both in order, at the least sum of costs (dynamic programming)."""
    spare = len(long) - len(short)
    # best[j]: the cheapest way to place the rows so far when j rows of ``long`` were passed over, and their partners.
    best: list[tuple[tuple[int, int], tuple[int, ...]]] = [((0, 0), ()) for _ in range(spare + 1)]
    for index, row in enumerate(short):
        placed = []
        for passed, ((far, unlike), places) in enumerate(best):
            more = cost(row, long[index + passed])
            placed.append(((far + more[0], unlike + more[1]), (*places, index + passed)))
        for passed in range(1, spare + 1):
            placed[passed] = min(placed[passed], placed[passed - 1])
        best = placed
    return [(row, long[place]) for row, place in zip(short, best[-1][1], strict=True)]
