"""What a review advises: every rule looks at it, and what they find is put in order of cost.

A rule is declared where its kind lives (``findings_host``, ``findings_graphs``, …) and listed here; each has a page
``docs/rules/ID.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from taxbreak_fx.finding import Finding
from taxbreak_fx.findings_chains import dtype_round_trip, hidden_copy, unfused_chain
from taxbreak_fx.findings_gemm import expert_loop, small_gemms
from taxbreak_fx.findings_graphs import cudagraph_skipped, graph_break, parameter_copies, recompile
from taxbreak_fx.findings_host import cpu_tensor, guard_cost, host_sync
from taxbreak_fx.findings_rule import Rule, fingerprint
from taxbreak_fx.findings_scene import Scene
from taxbreak_fx.findings_variants import device_bound, slow_sdpa, variant_worse
from taxbreak_fx.model import Review

SINCE = (2, 2)  # of the schema: files of older versions keep no findings


def registry(rules: Iterable[Rule]) -> Mapping[str, Rule]:
    """Rules by id.  Raises ``ValueError`` for an id that two rules have: their findings could not be told apart."""
    found: dict[str, Rule] = {}
    for one in rules:
        if one.id in found:
            raise ValueError(f"two rules are called {one.id!r}")
        found[one.id] = one
    return found


RULES = registry(
    (
        expert_loop,
        host_sync,
        graph_break,
        recompile,
        cudagraph_skipped,
        variant_worse,
        slow_sdpa,
        unfused_chain,
        small_gemms,
        parameter_copies,
        guard_cost,
        hidden_copy,
        dtype_round_trip,
        cpu_tensor,
        device_bound,
    )
)


def find(review: Review, rules: Mapping[str, Rule] = RULES) -> list[Finding]:
    """The findings of a review, the most costly first.

    In order of exposed µs, and where those are not known of the raw time that bounds them; of equal ones the rules
    decide, in their order.  Fingerprints are unique: of several alike, in order of lines, the later ones are numbered.
    """
    scene = Scene(review)
    found = [ranked for one in rules.values() for ranked in one(scene)]
    return _told_apart([ranked.finding for ranked in sorted(found, key=lambda ranked: -(ranked.us or 0.0))])


def with_findings(review: Review) -> Review:
    """The review with its findings, in place of any that it had."""
    return msgspec.structs.replace(review, findings=find(review))


def keeps_findings(review: Review) -> bool:
    """Whether the review is of a schema version that has findings, so that none means none."""
    return tuple(int(part) for part in review.schema_version.split(".")[:2]) >= SINCE


def completed(review: Review) -> Review:
    """The review; one of a version that kept no findings with those of today's rules, and a note that says so."""
    if keeps_findings(review):
        return review
    note = f"findings are of today's rules: a review of schema {review.schema_version} keeps none"
    return msgspec.structs.replace(with_findings(review), notes=[*review.notes, note])


def _told_apart(findings: Sequence[Finding]) -> list[Finding]:
    kept = list(findings)
    seen: dict[str, int] = {}
    for index in sorted(range(len(kept)), key=lambda index: _line(kept[index])):
        mark = kept[index].fingerprint
        again = seen[mark] = seen.get(mark, 0) + 1
        if again > 1:
            kept[index] = msgspec.structs.replace(kept[index], fingerprint=fingerprint(mark, str(again)))
    return kept


def _line(finding: Finding) -> int:
    return finding.source.line if finding.source is not None else 0
