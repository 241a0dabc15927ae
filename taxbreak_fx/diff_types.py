"""What ``diff`` finds between two reviews: frozen types, and the content of ``taxbreak diff --format json``."""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.finding import Finding
from taxbreak_fx.record import Record, SourceLine

DIFF_VERSION = "1.0.0"

Unit = Literal["count", "µs", "bytes", "index"]
Presence = Literal["both", "added", "removed"]
State = Literal["passed", "failed", "not judged"]


class Expected(Record, frozen=True, kw_only=True):
    """What the base would show on the head's machine if nothing had changed, in the metric's unit.

    A head within ``low`` … ``high`` is no measured change.  Of what is exact the three are one number.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"expectation not ordered: {self.low} <= {self.value} <= {self.high}")


class Change(Record, frozen=True, kw_only=True):
    """One metric of one variant (null: of the whole review) in base and head, as the files have it.

    ``delta`` = ``head`` − ``expected.value``; ``relative`` = ``delta`` ÷ |``expected.value``|, null where that is 0.
    ``real``: the head is outside ``expected``.  ``reason``: why nothing can be said; then ``expected`` is null.
    """

    variant: str | None
    metric: str
    unit: Unit
    base: float | None
    head: float | None
    expected: Expected | None = None
    delta: float | None = None
    relative: float | None = None
    real: bool = False
    reason: str | None = None


class Clock(Record, frozen=True, kw_only=True):
    """How a variant's host times in the base are brought to the head's machine.

    ``host``: head's host time per base's for the same work, null where nothing tells; ``spread``: the factor by which
    that may be wrong, either way; ``source``: what tells it, or why nothing does.  ``exact``: both are predictions
    from one profile, so that nothing drifts.
    """

    variant: str
    host: float | None
    spread: float = 1.0
    source: str
    exact: bool = False


class RowChange(Record, frozen=True, kw_only=True):
    """An op of one line and module that a variant gained, lost, or calls otherwise; per step, head − base.

    ``host_us`` (ΔFT + ΔCT) and ``device_us``: head − expected, null where a time is unknown, or the change is within
    its noise and nothing else changed.
    """

    variant: str
    presence: Presence
    op: str
    module_path: str | None
    base_source: SourceLine | None
    head_source: SourceLine | None
    calls: int
    launches: int | None
    kernels: int | None
    host_us: float | None
    device_us: float | None


class LineChange(Record, frozen=True, kw_only=True):
    """The changed rows of one variant on one line of the author's code, summed: what an edit of that line did.

    ``source``: the head's line; of a line that only the base has, the base's, and ``presence`` is then ``removed``;
    null: no line is known.  ``module_path``: the innermost module that holds the rows, null where there is none.
    ``added``, ``removed`` and ``changed`` name the ops.
    """

    variant: str
    presence: Presence
    source: SourceLine | None
    module_path: str | None
    added: list[str]
    removed: list[str]
    changed: list[str]
    calls: int
    launches: int
    kernels: int
    host_us: float | None
    device_us: float | None


class FindingChange(Record, frozen=True, kw_only=True):
    """A finding that only one of the reviews has.

    ``unsteady``: it came or went although nothing that its variant runs has changed, nor any time beyond its noise.
    """

    state: Literal["new", "fixed", "unsteady"]
    finding: Finding


class VariantState(Record, frozen=True, kw_only=True):
    """Whether a variant ran in base and head: its status, ``absent`` where the review has none, and why not ``ok``."""

    variant: str
    base: str
    head: str
    reason: str | None = None


class Verdict(Record, frozen=True, kw_only=True):
    """What a gate says of one variant (null: of the review, or of no variant at all), and why, in one sentence."""

    gate: str
    variant: str | None
    state: State
    why: str


class Side(Record, frozen=True, kw_only=True):
    """One of the two reviews: its file and what a reader must know to trust the comparison."""

    name: str
    origin: str
    model: str
    device: str
    torch: str
    transformers: str
    date: str


class Diff(Record, frozen=True, kw_only=True):
    """Head against base.  ``overridden``: differences that would have been refused, and were allowed by an option."""

    diff_version: str = DIFF_VERSION
    base: Side
    head: Side
    overridden: list[str]
    clocks: list[Clock]
    variants: list[VariantState]
    changes: list[Change]
    rows: list[RowChange]
    lines: list[LineChange]
    findings: list[FindingChange]
    verdicts: list[Verdict] = []
    notes: list[str] = []

    def change(self, metric: str, variant: str | None = None) -> Change:
        """The change of ``metric`` in ``variant``.  Raises ``KeyError`` when there is none."""
        for change in self.changes:
            if (change.metric, change.variant) == (metric, variant):
                return change
        raise KeyError((metric, variant))
