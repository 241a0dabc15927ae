"""The bases of every type that is written to a file, and the small types they share."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import ClassVar

import msgspec

# Sums are rebuilt from floats that were rounded nowhere; this only absorbs their last bits.
RELATIVE_TOLERANCE = 1e-6


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every type in the file: immutable and keyword-only."""


class Measured(Record, frozen=True, kw_only=True):
    """A record whose nullable measurements each carry a reason when they are null.

    Raises ``ValueError`` when a null field named in ``MEASUREMENTS`` has no reason, or a measured one has.
    """

    MEASUREMENTS: ClassVar[tuple[str, ...]] = ()

    unmeasured: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name in self.MEASUREMENTS:
            if (getattr(self, name) is None) != (name in self.unmeasured):
                state = "null without a reason" if getattr(self, name) is None else "measured, yet has a reason"
                raise ValueError(f"{type(self).__name__}.{name} is {state}")
        for name in self.unmeasured:
            if name not in self.MEASUREMENTS:
                raise ValueError(f"{type(self).__name__} has no measurement named {name!r}")


class Interval(Record, frozen=True, kw_only=True):
    """A median with its 95 % bootstrap interval, from ``samples`` repetitions; the unit is in the field's name."""

    median: float
    low: float
    high: float
    samples: int

    def __post_init__(self) -> None:
        if not self.low <= self.median <= self.high:
            raise ValueError(f"interval not ordered: {self.low} <= {self.median} <= {self.high}")


class Percentiles(Record, frozen=True, kw_only=True):
    """p5, p50 and p95 of ``samples`` observations; the unit is in the field's name."""

    p5: float
    p50: float
    p95: float
    samples: int


class SourceLine(Record, frozen=True, kw_only=True):
    """A line of the model author's code (the first frame outside torch)."""

    file: str
    line: int

    def __str__(self) -> str:
        """As messages name it: a file of an installed package from that package's folder on."""
        return f"{package_path(self.file) or self.file}:{self.line}"


def package_path(file: str) -> str | None:
    """The part of ``file`` below the folder that packages are installed in; None for a file that is in none."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            rest = parts[len(parts) - parts[::-1].index(folder) :]
            return "/".join(rest) or None
    return None


def check_sum(name: str, parts: float, total: float) -> None:
    """Raise ``ValueError`` unless ``parts`` equals ``total`` up to float rounding."""
    if not math.isclose(parts, total, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-3):
        raise ValueError(f"{name}: parts sum to {parts}, total is {total}")
