"""What a review advises: one type for every rule, report and gate.  ``findings`` makes them, reports show them."""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.record import Record, SourceLine

Severity = Literal["error", "warning", "note"]  # the levels of SARIF
Confidence = Literal["high", "medium", "low"]


class Finding(Record, frozen=True, kw_only=True):
    """One thing on one line of the author's code that costs time, or is good to know.

    ``rule``: id of the rule, the name of its page ``docs/rules/RULE.md``.  ``source``: the author's line;
    ``in_library``: it lies in an installed package, not in the author's own files.  ``variant``: where it was seen.
    ``exposed_us``: what it costs that the device does not hide, microseconds per step, and ``share``: of T_wall; null
    where that is not known, with why in the evidence.  ``evidence``: sentences with numbers, units and their origin.
    ``saving_us``: term → microseconds per step that the fix is predicted to remove (negative: adds), by
    ``saving_origin``; empty where nothing can be said.

    ``fingerprint``: the same for the same finding after edits elsewhere: made of rule, variant, file name, module path
    and op, never of line numbers or times.
    """

    rule: str
    title: str
    severity: Severity
    confidence: Confidence
    variant: str
    source: SourceLine | None
    in_library: bool = False
    module_path: str | None = None
    op: str | None = None
    exposed_us: float | None = None
    share: float | None = None
    evidence: list[str]
    fix: str
    saving_us: dict[str, float] = {}
    saving_origin: Literal["measured", "predicted"] | None = None
    fingerprint: str
