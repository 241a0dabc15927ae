"""Reviews for the tests of ``diff``: what an edit, another host, or a prediction makes of the sample review."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sample_review import AUTHOR_FILE, interval, node

from taxbreak_fx.breakdown_timeline import Built, exposed_of
from taxbreak_fx.diff_types import Diff
from taxbreak_fx.finding import Finding
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.timeline import Work
from taxbreak_fx.timeline_store import restored, stored
from taxbreak_fx.variant_record import Node
from taxbreak_fx.whatif_timeline import on_faster_host

replace = msgspec.structs.replace
EVERY_GATE = [
    "launches>+0%", "kernels>+0%", "memops>+0%", "ops>+0", "t_wall_us>+0%", "t_host_us>+0%", "issue_us>+0%",
    "launch_us>+0%", "ft_us>+0%", "ct_us>+0%", "kt_us>+0%", "orchestration_us>+0%", "device_active_us>+0%", "hdbi<-0%",
    "findings>+0", "findings.new>+0", "graph_breaks>+0", "peak_memory_bytes>+0%",
]  # fmt: skip


def with_variant(review: Review, name: str, change: Callable[[Variant], Variant]) -> Review:
    """``review`` with one variant changed."""
    return replace(review, variants=[change(v) if v.name == name else v for v in review.variants])


def with_nodes(review: Review, nodes: list[Node]) -> Review:
    """``review`` whose eager variant has ``nodes``, and the counts that they add up to."""
    launches = sum(n.launches or 0 for n in nodes)
    kernels = sum(n.kernels or 0 for n in nodes)
    return with_variant(review, "eager", lambda v: replace(v, nodes=nodes, launches=launches, kernels=kernels))


def at(line: int, op: str = "aten.add.Tensor", module: str | None = "m", launches: int = 1, file: str = "a.py") -> Node:
    made = node(op, "elementwise", line, launches, launches, 10.0, 0.0, 4.0, 2.0, module)
    return replace(made, source=SourceLine(file=file, line=line))


def on_slower_host(review: Review, factor: float, device: float = 1.0) -> Review:
    """``review`` of an eager step as a machine would have measured it whose host is ``factor`` times as slow.

    Only what is all host is touched: T_host and the terms; wall times are as long as the host is.
    """

    def slower(variant: Variant) -> Variant:
        if variant.status != "ok":
            return variant
        assert variant.t_wall_us and variant.t_host_us and variant.breakdown
        terms = variant.breakdown
        fields: dict[str, Any] = {"ft_parts": {name: us * factor for name, us in terms.ft_parts.items()}}
        for name in ("ft_us", "ct_us"):
            value = getattr(terms, name)
            fields[name] = None if value is None else value * factor
        if fields["ft_us"] is not None:
            fields["orchestration_us"] = fields["ft_us"] + fields["ct_us"] + (terms.kt_us or 0.0)
        if terms.hdbi is not None and variant.device_active_us is not None:
            busy = variant.device_active_us * device
            fields["hdbi"] = busy / (busy + fields["orchestration_us"])
        rows = [
            replace(n, ft_us=n.ft_us and n.ft_us * factor, ct_us=n.ct_us and n.ct_us * factor) for n in variant.nodes
        ]
        host, wall = variant.t_host_us, variant.t_wall_us
        idle = wall.median - host.median  # what is not the host's does not slow down
        moved = (host.median * factor + idle) / wall.median
        simulated = slower_timeline(variant, factor, device, wall.median * moved)
        return replace(
            variant,
            **simulated,
            t_wall_us=interval(wall.median * moved, wall.low * moved, wall.high * moved),
            t_host_us=interval(host.median * factor, host.low * factor, host.high * factor),
            issue_us=variant.issue_us and variant.issue_us * factor,
            device_active_us=variant.device_active_us and variant.device_active_us * device,
            breakdown=replace(terms, **fields),
            nodes=rows,
        )

    changed = replace(review, variants=[slower(v) for v in review.variants])
    grown = {
        old.name: new.t_wall_us.median / old.t_wall_us.median
        for old, new in zip(review.variants, changed.variants, strict=True)
        if old.t_wall_us and new.t_wall_us
    }
    comparisons = []
    for c in review.comparisons:
        assert c.wall_ratio is not None
        by, old = grown[c.variant] / grown[c.base], c.wall_ratio
        comparisons.append(replace(c, wall_ratio=interval(old.median * by, old.low * by, old.high * by)))
    return replace(changed, comparisons=comparisons)


def slower_timeline(variant: Variant, factor: float, device: float, wall_us: float) -> dict[str, Any]:
    """What is simulated of ``variant`` on that machine; nothing where it keeps no timeline."""
    if variant.timeline is None or variant.exposed is None or variant.exposed.latency_source is None:
        return {}
    timeline = on_faster_host(restored(variant.timeline), 1 / factor)
    items = []
    for item in timeline.items:
        if isinstance(item.action, Work):
            pieces = tuple(replace(piece, us=piece.us * device) for piece in item.action.pieces)
            item = replace(item, action=replace(item.action, pieces=pieces))
        items.append(item)
    timeline = replace(timeline, items=tuple(items))
    built = Built(timeline, variant.exposed.latency_source, variant.exposed.notes)
    return {"timeline": stored(timeline), "exposed": exposed_of(built, wall_us)}


def real(found: Diff) -> list[tuple[str | None, str]]:
    return [(c.variant, c.metric) for c in found.changes if c.real]


def finding(fingerprint: str, variant: str = "eager", severity: str = "warning") -> Finding:
    return Finding(
        rule="expert-loop", title="Experts run one by one", severity=severity, confidence="high", variant=variant,  # type: ignore[arg-type]
        source=SourceLine(file=AUTHOR_FILE, line=60), evidence=[], fix="Use grouped_mm.", fingerprint=fingerprint,
    )  # fmt: skip


def predicted(review: Review) -> Review:
    return replace(
        review, origin="predicted", variants=[replace(v, origin="predicted") for v in review.variants],
    )  # fmt: skip
