"""Two reviews of one step, before and after an edit: what runs otherwise, and which times changed beyond their noise.

Pure functions over two finished reviews; docs/diff.md says what is compared how.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from taxbreak_fx.diff_clock import clocks, unsteadiness
from taxbreak_fx.diff_lines import line_changes
from taxbreak_fx.diff_match import candidate_lines, match
from taxbreak_fx.diff_metrics import SEVERITIES, Metric, metrics_of
from taxbreak_fx.diff_noise import Noise
from taxbreak_fx.diff_policy import check, versions
from taxbreak_fx.diff_rows import finding_changes, row_changes
from taxbreak_fx.diff_types import (
    Change,
    Clock,
    Diff,
    Expected,
    FindingChange,
    LineChange,
    RowChange,
    Side,
    VariantState,
)
from taxbreak_fx.findings import keeps_findings
from taxbreak_fx.model import Review, Variant

ABSENT = "absent"
UNSTEADY = 1.5  # eager's own spread in one process from which a reader should measure again


def diff(
    base: Review,
    head: Review,
    *,
    allow_versions: bool = False,
    force: bool = False,
    names: tuple[str, str] = ("base", "head"),
) -> Diff:
    """``head`` against ``base``; ``names`` are those of the files.

    Raises ``UsageError`` for reviews of different steps or versions, unless the option for that is given.
    """
    overridden = check(base, head, allow_versions=allow_versions, force=force)
    states = _states(base, head)
    common = [state.variant for state in states if state.base == state.head == "ok"]
    pairs = {name: match(base.variant(name).nodes, head.variant(name).nodes) for name in common}
    timed = clocks(base, head, pairs)
    cpu = base.step.device == "cpu"
    changes: list[Change] = []
    rows: list[RowChange] = []
    lines: list[LineChange] = []
    moved = {state.variant for state in states if state.base != state.head}
    for name in common:
        noise = _noise(base, head, name, timed[name], cpu)
        before, after = base.variant(name), head.variant(name)
        found = _variant_changes(before, after, noise)
        own = row_changes(name, pairs[name], noise, cpu)
        changes += found
        rows += own
        lines += line_changes(name, pairs[name], own, candidate_lines(before.nodes, after.nodes))
        # A row's time alone is too little: a finding that rests on time comes with a change of the whole.
        if not all(pair.same for pair in pairs[name]) or any(change.real for change in found):
            moved.add(name)
    graphs = _graph_changes(base, head)
    if any(change.real for change in graphs):
        moved |= {finding.variant for finding in (*base.findings, *head.findings)}
    findings: list[FindingChange] = []
    if keeps_findings(base) and keeps_findings(head):
        findings = finding_changes(base.findings, head.findings, moved)
        graphs += _finding_counts(base, head, findings, moved)
    return Diff(
        base=_side(base, names[0]),
        head=_side(head, names[1]),
        overridden=overridden,
        clocks=list(timed.values()),
        variants=states,
        changes=[*graphs, *changes],
        rows=rows,
        lines=lines,
        findings=findings,
        notes=_notes(base, head, names, list(timed.values())),
    )


def encode(found: Diff) -> bytes:
    """``found`` as indented UTF-8 JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _side(review: Review, name: str) -> Side:
    machine, run_by = review.machine, versions(review)
    return Side(
        name=name,
        origin=review.origin,
        model=review.model,
        device=machine.device,
        torch=run_by["torch"],
        transformers=run_by["transformers"],
        date=machine.date,
    )


def _states(base: Review, head: Review) -> list[VariantState]:
    found = {v.name: v for v in base.variants}, {v.name: v for v in head.variants}
    states = []
    for name in dict.fromkeys([*found[0], *found[1]]):
        a, b = found[0].get(name), found[1].get(name)
        reason = b.reason if b is not None and b.reason else a.reason if a is not None else None
        status = a.status if a else ABSENT, b.status if b else ABSENT
        states.append(VariantState(variant=name, base=status[0], head=status[1], reason=reason))
    return states


def _noise(base: Review, head: Review, name: str, clock: Clock, cpu: bool) -> Noise:
    floors = base.machine.calibration.t_sys_us, head.machine.calibration.t_sys_us
    return Noise(base.variant(name), head.variant(name), clock, floors, cpu)


def _variant_changes(base: Variant, head: Variant, noise: Noise) -> list[Change]:
    return [change for m in metrics_of(base, head) if (change := _change(m, base, head, noise)) is not None]


def _change(metric: Metric, base: Variant, head: Variant, noise: Noise) -> Change | None:
    """None where neither review has the metric: it is none of this variant."""
    assert metric.read is not None
    (before, why_before), (after, why_after) = metric.read(base), metric.read(head)
    if before is None and after is None:
        return None
    if before is None or after is None:
        why = f"base: {why_before}" if before is None else f"head: {why_after}"
        return Change(variant=base.name, metric=metric.name, unit=metric.unit, base=before, head=after, reason=why)
    return _judged(metric.name, base.name, metric, before, after, noise.expected(metric, before))


def _judged(
    name: str, variant: str | None, metric: Metric | None, before: float, after: float, expected: Expected | str
) -> Change:
    unit = metric.unit if metric is not None else "count"
    if isinstance(expected, str):
        return Change(variant=variant, metric=name, unit=unit, base=before, head=after, reason=expected)
    delta = after - expected.value
    return Change(
        variant=variant,
        metric=name,
        unit=unit,
        base=before,
        head=after,
        expected=expected,
        delta=delta,
        relative=delta / abs(expected.value) if expected.value else None,
        real=not expected.low <= after <= expected.high,
    )


def _counted(name: str, before: int, after: int) -> Change:
    return _judged(name, None, None, before, after, Expected(value=before, low=before, high=before))


def _graph_changes(base: Review, head: Review) -> list[Change]:
    """Nothing where no review has graphs: then nobody looked for them."""
    if not base.graphs and not head.graphs:
        return []
    before, after = (
        {"graphs": len(one.graphs), "graph_breaks": sum(graph.break_reason is not None for graph in one.graphs)}
        for one in (base, head)
    )
    if not head.graphs:
        # What did not compile has no breaks either: that must not look like a step without any.
        why = "head: no graph was captured"
        return [Change(variant=None, metric=n, unit="count", base=v, head=None, reason=why) for n, v in before.items()]
    return [_counted(name, before[name], after[name]) for name in before]


def _finding_counts(base: Review, head: Review, changed: list[FindingChange], moved: Collection[str]) -> list[Change]:
    """How many findings there are, without what noise alone did: those that came or went by it are left out, and one
    that only crossed from one severity to another, in a variant that is not in ``moved``, keeps the base's."""
    new = [change.finding for change in changed if change.state == "new"]
    unsteady = {change.finding.fingerprint for change in changed if change.state == "unsteady"}
    before = [finding for finding in base.findings if finding.fingerprint not in unsteady]
    after = [finding for finding in head.findings if finding.fingerprint not in unsteady]
    kept = {finding.fingerprint: finding.severity for finding in before if finding.variant not in moved}
    severities = [f.severity for f in before], [kept.get(f.fingerprint, f.severity) for f in after]
    found = [_counted("findings", len(before), len(after)), _counted("findings.new", 0, len(new))]
    for severity in SEVERITIES:
        found.append(_counted(f"findings.{severity}", severities[0].count(severity), severities[1].count(severity)))
    return found


def _notes(base: Review, head: Review, names: tuple[str, str], timed: list[Clock]) -> list[str]:
    measured = not all(clock.exact for clock in timed)
    found = []
    for review, name in zip((base, head), names, strict=True):
        if measured and any(v.origin == "measured" for v in review.variants) and unsteadiness(review) > UNSTEADY:
            found.append(
                f"{name}: an unsteady machine, or eager timed only once: its wall time is known to a factor of "
                f"{unsteadiness(review):.2f}; only larger changes of eager's times can be told"
            )
    before, after = base.machine.calibration.host_score, head.machine.calibration.host_score
    if measured and before and after:
        loop = before / after
        told = [clock for clock in timed if clock.host is not None and not clock.exact]
        odd = [c.variant for c in told if c.host and abs(math.log(c.host / loop)) > math.log(c.spread * UNSTEADY)]
        if odd:
            found.append(
                f"{', '.join(odd)}: the head's host is another by its ops than by the calibration's loop, which took "
                f"{loop:.2f} × as long: an edit that slows every op alike looks like a slower host"
            )
    if timed and not measured:
        found.append("both are predicted from one profile: counts are exact, times as good as the profile")
    if not (keeps_findings(base) and keeps_findings(head)):
        found.append("findings are not compared: one of the reviews is older than they are; review it again")
    return found
