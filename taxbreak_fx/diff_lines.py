"""What an edit did to each line of the author's code: the changed ops of a variant, summed by line.  Pure."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from taxbreak_fx.diff_match import Pair, file_name, op_name
from taxbreak_fx.diff_noise import LEAST_US
from taxbreak_fx.diff_rows import cost_order
from taxbreak_fx.diff_types import LineChange, Presence, RowChange
from taxbreak_fx.record import SourceLine
from taxbreak_fx.variant_record import Node

_At = tuple[str | None, int]  # file without its folders, and line


class _Lines(NamedTuple):
    """``became``: the head's line that a base line is now.  ``new``: the head's lines, and whether all ops are new."""

    became: dict[_At, _At]
    new: dict[_At, bool]

    def head_of(self, base: SourceLine, candidates: Iterable[int]) -> _At | None:
        """The head's line that the base line became; None where it is gone.

        ``candidates``: where it may be, from what moved around it; a line there of which all ops are new is that line,
        rewritten.
        """
        at = _at(base)
        if at in self.became:
            return self.became[at]
        return next(((at[0], line) for line in candidates if self.new.get((at[0], line), False)), None)


def line_changes(
    variant: str, pairs: Sequence[Pair], rows: Iterable[RowChange], candidates: Callable[[Node], Iterable[int]]
) -> list[LineChange]:
    """``rows``, the changed ones of ``pairs``, summed by line, the most costly first.

    ``candidates``: the lines of the head on which a base row may be, the likelier first.  An op that only went to
    another module of the same line adds up to nothing, and is left out.
    """
    lines = _lines(pairs)
    rows_of_base = [pair.base for pair in pairs if pair.base is not None]
    where = {_at(node.source): candidates(node) for node in rows_of_base if node.source is not None}
    groups: dict[tuple[_At | str | None, bool], list[RowChange]] = collections.defaultdict(list)
    for row in rows:
        if row.head_source is not None:
            groups[(_at(row.head_source), False)].append(row)
        elif row.base_source is not None:
            at = _at(row.base_source)
            now = lines.head_of(row.base_source, where[at])
            groups[(at if now is None else now, now is None)].append(row)
        else:
            groups[(row.module_path, False)].append(row)
    made = [
        _line(variant, group, gone, isinstance(at, tuple) and lines.new.get(at, False))
        for (at, gone), group in groups.items()
    ]
    return sorted((line for line in made if line is not None), key=cost_order)


def _at(source: SourceLine) -> _At:
    return file_name(source) or "", source.line


def _lines(pairs: Sequence[Pair]) -> _Lines:
    became: dict[_At, _At] = {}
    new: dict[_At, bool] = {}
    for base, head, _ in pairs:
        if head is not None and head.source is not None:
            at = _at(head.source)
            new[at] = new.get(at, True) and base is None
            if base is not None and base.source is not None:
                became.setdefault(_at(base.source), at)
    return _Lines(became, new)


def _line(variant: str, rows: list[RowChange], gone: bool, new: bool) -> LineChange | None:
    """The rows of one line; None where they add up to nothing."""
    ops: dict[str, list[RowChange]] = collections.defaultdict(list)
    for row in rows:
        ops[op_name(row.op)].append(row)
    net = [group for group in ops.values() if not _nothing(group)]
    if not net:
        return None
    states: dict[Presence, list[str]] = {"added": [], "removed": [], "both": []}
    for group in net:
        kinds = {row.presence for row in group}
        states[kinds.pop() if len(kinds) == 1 else "both"].append(group[0].op)
    head = next((row.head_source for row in rows if row.head_source is not None), None)
    return LineChange(
        variant=variant,
        presence="removed" if gone else "added" if new and not states["removed"] and not states["both"] else "both",
        source=head or rows[0].base_source,
        module_path=_common([row.module_path for row in rows]),
        added=states["added"],
        removed=states["removed"],
        changed=states["both"],
        calls=sum(row.calls for row in rows),
        launches=sum(row.launches or 0 for row in rows),
        kernels=sum(row.kernels or 0 for row in rows),
        host_us=_sum(row.host_us for row in rows),
        device_us=_sum(row.device_us for row in rows),
    )


def _common(modules: list[str | None]) -> str | None:
    """The innermost module that holds all of them."""
    paths = [module.split(".") for module in modules if module is not None]
    if not paths or len(paths) < len(modules):
        return None
    levels = zip(*paths, strict=False)  # as deep as the shortest
    return ".".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)) or None


def _nothing(rows: list[RowChange]) -> bool:
    """The op is called, launches and runs as before on this line, and no row of it changed its time alone."""
    if any(sum(values) for values in zip(*((r.calls, r.launches or 0, r.kernels or 0) for r in rows), strict=True)):
        return False
    if any(row.presence == "both" and not (row.calls or row.launches or row.kernels) for row in rows):
        times = _sum(row.host_us for row in rows), _sum(row.device_us for row in rows)
        return all(abs(us or 0.0) < LEAST_US for us in times)
    return True


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
