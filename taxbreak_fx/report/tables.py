"""Tables as data: columns and cells of plain text, before a renderer escapes them for its format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from taxbreak_fx.report.format import MISSING, plain


@dataclass(frozen=True)
class Column:
    """A column; ``flexible`` ones may be cut (keeping ``keep``), ``detail`` ones stay out of the terminal.

    When the terminal is too narrow, the column of the lowest ``priority`` goes first.
    """

    title: str
    right: bool = False
    flexible: bool = False
    keep: Literal["start", "end"] = "start"
    detail: bool = False
    priority: int = 9


@dataclass(frozen=True)
class Table:
    """Cells are text; ``under`` holds the lines that belong below the table."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    under: tuple[str, ...] = ()

    def select(self, kept: Sequence[int]) -> Table:
        """The same table with only the columns at the indices ``kept``."""
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.title, tuple(self.columns[i] for i in kept), rows, self.under)


def table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], under: Iterable[str] = ()) -> Table:
    """A table without the right-aligned columns in which no row has a value."""
    cells = tuple(tuple(plain(cell) for cell in row) for row in rows)
    whole = Table(title, tuple(columns), cells, tuple(plain(line) for line in under))
    kept = [i for i, column in enumerate(columns) if not column.right or any(row[i] != MISSING for row in cells)]
    return whole.select(kept)
