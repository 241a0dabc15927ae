"""Ops that a variant gained, lost, or runs otherwise, and findings that came or went.  Pure."""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence

from taxbreak_fx.diff_clock import host_us
from taxbreak_fx.diff_match import Pair
from taxbreak_fx.diff_noise import Noise
from taxbreak_fx.diff_types import FindingChange, LineChange, RowChange
from taxbreak_fx.finding import Finding
from taxbreak_fx.variant_record import Node


def row_changes(variant: str, pairs: Sequence[Pair], noise: Noise, cpu: bool) -> list[RowChange]:
    """The rows whose counts changed, or whose host or device time did beyond its noise; the most costly first.

    ``noise`` is the variant's.  A row that runs as before and takes as long is no change.
    """
    found = [_changed(variant, pair, noise, cpu) for pair in pairs]
    changed = [change for change in found if change is not None]
    return sorted(changed, key=cost_order)


def _changed(variant: str, pair: Pair, noise: Noise, cpu: bool) -> RowChange | None:
    base, head = pair.base, pair.head
    node = head or base
    assert node is not None
    host, device = _host_change(pair, noise, cpu), _device_change(pair, noise)
    if pair.same and host is None and device is None:
        return None
    return RowChange(
        variant=variant,
        presence="both" if base and head else "added" if head else "removed",
        op=node.op,
        module_path=node.module_path,
        base_source=base.source if base else None,
        head_source=head.source if head else None,
        calls=(head.count if head else 0) - (base.count if base else 0),
        launches=_less(base, head, "launches"),
        kernels=_less(base, head, "kernels"),
        host_us=host,
        device_us=device,
    )


def _less(base: Node | None, head: Node | None, field: str) -> int | None:
    """Head − base of a count, where a row that is not there counts 0; None where one that is there was not counted."""
    values = [0 if node is None else getattr(node, field) for node in (base, head)]
    return None if None in values else values[1] - values[0]


def _device_change(pair: Pair, noise: Noise) -> float | None:
    """Head − base; of a row that runs as before only where it is beyond its noise."""
    before = 0.0 if pair.base is None else pair.base.device_us
    after = 0.0 if pair.head is None else pair.head.device_us
    if before is None or after is None:
        return None
    if pair.same and pair.base is not None:
        expected = noise.device_row(pair.base)
        if expected is None or expected.low <= after <= expected.high:
            return None
    return after - before


def _host_change(pair: Pair, noise: Noise, cpu: bool) -> float | None:
    """Head − expected; of a row that runs as before only where it is beyond its noise."""
    before = 0.0 if pair.base is None else host_us(pair.base, cpu)
    after = 0.0 if pair.head is None else host_us(pair.head, cpu)
    if before is None or after is None:
        return None
    if pair.base is None:
        return after
    expected = noise.row(before)
    if expected is None or (pair.same and expected.low <= after <= expected.high):
        return None
    return after - expected.value


def cost_order(change: RowChange | LineChange) -> tuple[float, int, int]:
    """The most costly first; where no time is known, those of most launches, then kernels."""
    us = abs(change.host_us or 0.0) + abs(change.device_us or 0.0)
    return -us, -abs(change.launches or 0), -abs(change.kernels or 0)


def finding_changes(base: Sequence[Finding], head: Sequence[Finding], moved: Collection[str]) -> list[FindingChange]:
    """Findings of the head that the base lacks, then those of the base that are gone; matched by fingerprint.

    ``moved``: the variants in which something changed.  In another one a rule that looks at a time has crossed its
    threshold by noise: such a finding is ``unsteady``, neither new nor fixed.
    """
    added, gone = _beyond(head, base), _beyond(base, head)
    found = [FindingChange(state="new" if f.variant in moved else "unsteady", finding=f) for f in added]
    return found + [FindingChange(state="fixed" if f.variant in moved else "unsteady", finding=f) for f in gone]


def _beyond(ours: Sequence[Finding], theirs: Sequence[Finding]) -> list[Finding]:
    """Those of ``ours`` beyond as many of the same fingerprint as ``theirs`` has."""
    left = collections.Counter(finding.fingerprint for finding in theirs)
    found = []
    for finding in ours:
        if left[finding.fingerprint]:
            left[finding.fingerprint] -= 1
        else:
            found.append(finding)
    return found
