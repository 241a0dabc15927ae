"""What the reports show of vendor libraries: calls counted, ΔCT by family and by both ways of measuring it."""

from __future__ import annotations

from taxbreak_fx.model import Review
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.tables import Column, Table, table
from taxbreak_fx.variant_record import Breakdown, FamilyLibrary

SUBTRACTIVE = "subtractive"  # how ``Breakdown.ct_source`` begins where ΔCT is not timed directly


def calls_table(review: Review) -> Table | None:
    """Vendor-library calls per step as counted, one row per variant.  None when they were counted nowhere."""
    counted = [(v, v.library_calls) for v in review.variants if v.library_calls is not None]
    names = list(dict.fromkeys(name for _, calls in counted for name in calls))
    if not names:
        return None
    rows = [[v.name, *(fmt.count(calls.get(name, 0)) for name in names)] for v, calls in counted]
    columns = [Column("variant"), *(Column(plain(name), right=True) for name in names)]
    return table("Vendor-library calls per step", columns, rows)


def families_table(review: Review) -> Table | None:
    """ΔCT per op family by both estimates, with their disagreement.  None when no variant has it by family."""
    shown = [(v.name, v.breakdown) for v in review.variants if v.breakdown is not None and v.breakdown.ct_families]
    if not shown:
        return None
    titles = ("calls", "direct", "subtractive", "subtractive ÷ direct − 1")
    columns = (Column("variant"), Column("family"), *(Column(title, right=True) for title in titles))
    rows = [
        [
            name, row.family, fmt.count(row.calls),
            *(MISSING if us is None else fmt.number(us) for us in (row.direct_us, row.subtractive_us)),
            _disagreement(row),
        ]
        for name, terms in shown for row in terms.ct_families
    ]  # fmt: skip
    sources = [(names, source) for source, names in _sources(shown).items() if not source.startswith(SUBTRACTIVE)]
    return table("ΔCT by family (µs per step)", columns, rows, [_had(names, source) for names, source in sources])


def _disagreement(row: FamilyLibrary) -> str:
    if row.direct_us is None or row.subtractive_us is None or row.direct_us <= 0:
        return MISSING
    return f"{100 * (row.subtractive_us / row.direct_us - 1):+.0f} %"


def _sources(shown: list[tuple[str, Breakdown]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, terms in shown:
        found.setdefault(terms.ct_source, []).append(name)
    return found


def source_notes(review: Review) -> list[str]:
    """Where ΔCT was not timed directly: one line per reason, naming the variants."""
    measured = [(v.name, v.breakdown) for v in review.variants if v.breakdown is not None]
    found = _sources([(name, terms) for name, terms in measured if terms.ct_us is not None])
    return [plain(_had(names, source)) for source, names in found.items() if source.startswith(SUBTRACTIVE)]


def _had(names: list[str], source: str) -> str:
    return f"ΔCT of {', '.join(names)}: {source}"
