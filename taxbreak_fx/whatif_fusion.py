"""The document of ``taxbreak fusion``: what fusing ops, and capturing the step in CUDA graphs, could save.

Assembled from op graphs and, where there is one, a measured review; no torch here.  ``encode`` writes it.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import msgspec

from taxbreak_fx import __version__
from taxbreak_fx.capturable import Capture, Way, capturable
from taxbreak_fx.fusion import EndCode, Exposed, Fusion, FusionGroup, fusible_groups, total
from taxbreak_fx.fusion_agreement import Agreement, Kernels, agreement
from taxbreak_fx.fusion_search import Rules
from taxbreak_fx.machine import Machine
from taxbreak_fx.model import Origin, Review, StepInfo, Variant
from taxbreak_fx.nodes import folded
from taxbreak_fx.record import Measured, Record, SourceLine
from taxbreak_fx.step_graph import HostCost, StepGraph
from taxbreak_fx.variant_record import ExposedCost
from taxbreak_fx.whatif_exposed import groups_exposed
from taxbreak_fx.whatif_prices import (
    Coverage,
    check_versions,
    eager_of,
    fused_kernel,
    measured,
    place_of,
    price_blockers,
    price_ops,
)

SCHEMA_VERSION = "1.0.0"
_SAVED = ("ft_saved_us", "ct_saved_us", "kt_saved_us")


class Recorded(Record, frozen=True, kw_only=True):
    """A step as recorded on this machine.

    ``eager``: uncompiled.  ``captured``: as Dynamo's graphs, null where there are none, for the reason in
    ``not_captured``.  ``kernels``: what Inductor made of these, null for the reason in ``not_compiled``.  ``notes``:
    what the device that it ran on keeps the analysis from seeing.
    """

    model: str
    step: StepInfo
    torch: str
    transformers: str | None
    eager: StepGraph
    captured: StepGraph | None
    not_captured: str | None = None
    kernels: Kernels | None = None
    not_compiled: str | None = None
    notes: list[str] = []


class LikeGroups(Measured, frozen=True, kw_only=True):
    """Groups of like ops from the same lines in like-named modules (layer numbers folded to ``*``), per step.

    ``groups``: their indices in ``Fusion.groups``; ``names``: the ops of one; ``graphs``: how many of Dynamo's graphs
    one reaches over: more than one only if the breaks between them are mended.  Launches, savings (µs) and bytes are
    sums over the groups; ``exposed_us``: T_wall saved by fusing all of them at once.  ``end`` and ``reason`` are of the
    first.
    """

    MEASUREMENTS = ("launches_before", *_SAVED, "exposed_us")

    groups: tuple[int, ...]
    names: tuple[str, ...]
    module_paths: tuple[str, ...]
    sources: tuple[SourceLine, ...]
    graphs: int
    launches_before: int | None
    launches_after: int
    ft_saved_us: float | None
    ct_saved_us: float | None
    kt_saved_us: float | None
    exposed_us: float | None
    bytes_saved: int
    end: EndCode
    reason: str

    @property
    def host_saved_us(self) -> float | None:
        """ΔFT + ΔCT + ΔKT saved, in µs; None where one of them is not known."""
        values = [getattr(self, name) for name in _SAVED]
        return None if any(value is None for value in values) else math.fsum(values)


class Pricing(Record, frozen=True, kw_only=True):
    """Where the prices are from.  ``kernel``: what a fused kernel is taken to cost, null where its cheapest member's
    cost is taken; ``captured`` and ``eager``: how far the prices reach in the two graphs."""

    origin: Origin
    machine: Machine
    kernel: HostCost | None
    captured: Coverage | None
    eager: Coverage


class WayOfCapture(Record, frozen=True, kw_only=True):
    """One way of capture.  ``capture`` is null where it could not be told, for ``reason``.

    ``graph_launches`` and ``launches``: those of the review's variant of this name, null where it was not measured.
    """

    way: Way
    capture: Capture | None
    reason: str | None = None
    graph_launches: int | None = None
    launches: int | None = None


class KnownTotal(Record, frozen=True, kw_only=True):
    """What ``groups`` groups save of one term, in µs per step; null without any."""

    groups: int
    saved_us: float | None


class FusionWhatIf(Record, frozen=True, kw_only=True):
    """The whole document.  Indices of ops in ``fusion`` are of ``captured``, or of ``eager`` where that is null; those
    in the way of capture ``eager-graph`` are of ``eager``, in the others of ``captured``.

    ``totals``: sums over all groups, null where a group's value is not known; ``known``: per term, over the groups of
    which it is.  ``lines``: what the lines of the groups
    cost of the review's wall time (``Exposed.lines``).
    """

    schema_version: str = SCHEMA_VERSION
    tool_version: str
    recorded: Recorded
    pricing: Pricing | None
    fusion: Fusion
    like: list[LikeGroups]
    totals: dict[str, float | None]
    known: dict[str, KnownTotal]
    lines: list[ExposedCost] = []
    agreement: Agreement | None = None
    captures: list[WayOfCapture]

    @property
    def grouped(self) -> StepGraph:
        """The graph whose ops ``fusion`` groups."""
        return self.recorded.captured or self.recorded.eager


def fusion_whatif(recorded: Recorded, review: Review | None = None) -> FusionWhatIf:
    """The document of a recorded step, priced from ``review``.

    Raises ``UsageError`` when ``review`` is not of this model and step, or its lines are of another transformers.
    """
    pricing: Pricing | None = None
    variant: Variant | None = None
    if review is not None:
        variant = eager_of(review, recorded.model, recorded.step)
        check_versions(review, recorded.transformers)
        eager = price_ops(recorded.eager, variant.nodes)
        captured = None if recorded.captured is None else price_ops(recorded.captured, variant.nodes)
        pricing = Pricing(
            origin=review.origin,
            machine=review.machine,
            kernel=fused_kernel(review),
            captured=None if captured is None else captured.coverage,
            eager=eager.coverage,
        )
        recorded = msgspec.structs.replace(
            recorded, eager=eager.graph, captured=None if captured is None else captured.graph
        )
    graph = recorded.captured or recorded.eager
    # Over graph breaks as well: a group that only a break forbids is what mending the break would buy.
    kernel = pricing.kernel if pricing else None
    exposed = groups_exposed(graph, variant, kernel)
    fusion = fusible_groups(graph, Rules(across_graphs=True), kernel, exposed)
    compared = recorded.kernels is not None and recorded.captured is not None
    return FusionWhatIf(
        tool_version=__version__,
        recorded=recorded,
        pricing=pricing,
        fusion=fusion,
        like=like_groups(graph, fusion.groups, exposed),
        totals=total(fusion.groups) | {"exposed_us": _together(fusion.groups, exposed)[0]},
        known=_known(fusion.groups),
        lines=_exposed_lines(fusion.groups, variant),
        agreement=agreement(graph, fusion.groups, recorded.kernels) if compared and recorded.kernels else None,
        captures=[
            _way("reduce-overhead", recorded.captured, recorded, review),
            _way("cudagraphs", recorded.captured, recorded, review),
            _way("eager-graph", recorded.eager, recorded, review),
        ],
    )


def encode(document: FusionWhatIf) -> bytes:
    """Indented UTF-8 JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def decode(data: bytes) -> FusionWhatIf:
    """What ``encode`` wrote.  Raises ``msgspec.DecodeError`` for anything else."""
    return msgspec.json.decode(data, type=FusionWhatIf)


def like_groups(graph: StepGraph, groups: Sequence[FusionGroup], exposed: Exposed | None = None) -> list[LikeGroups]:
    """``groups`` put together by ops, lines and folded modules, best first: by wall time saved where ``exposed`` tells
    it, by host time saved, launches, bytes."""
    found: dict[tuple[object, ...], list[int]] = collections.defaultdict(list)
    for index, group in enumerate(groups):
        found[group.names, group.sources, _modules(group), _graphs(graph, group)].append(index)
    rows = [
        _like(tuple(members), [groups[index] for index in members], _graphs(graph, groups[members[0]]), exposed)
        for members in found.values()
    ]
    return sorted(rows, key=_rank)


def _graphs(graph: StepGraph, group: FusionGroup) -> int:
    return len({graph.ops[index].graph for index in group.ops})


def _together(groups: Sequence[FusionGroup], exposed: Exposed | None) -> tuple[float | None, str | None]:
    """Wall time saved by fusing those of ``groups`` at once of which each alone is known; or None and why."""
    known = [group for group in groups if group.exposed_us is not None]
    if exposed is None or not known:
        return None, next((group.unmeasured["exposed_us"] for group in groups), "no group")
    return exposed([(group.ops, group.bytes_saved) for group in known]), None


def _like(indices: tuple[int, ...], members: Sequence[FusionGroup], graphs: int, exposed: Exposed | None) -> LikeGroups:
    first = members[0]
    together, why = _together(members, exposed)
    sums = total(members) | {"exposed_us": together}
    reasons = {
        name: next(member.unmeasured[name] for member in members if name in member.unmeasured)
        for name in LikeGroups.MEASUREMENTS
        if sums[name] is None and name != "exposed_us"
    }
    if why is not None:
        reasons["exposed_us"] = why
    before = sums["launches_before"]
    return LikeGroups(
        groups=indices,
        names=first.names,
        module_paths=_modules(first),
        sources=first.sources,
        graphs=graphs,
        launches_before=None if before is None else int(before),
        launches_after=sum(member.launches_after for member in members),
        bytes_saved=sum(member.bytes_saved for member in members),
        end=first.end,
        reason=first.reason,
        unmeasured=reasons,
        ft_saved_us=sums["ft_saved_us"],
        ct_saved_us=sums["ct_saved_us"],
        kt_saved_us=sums["kt_saved_us"],
        exposed_us=together,
    )


def _modules(group: FusionGroup) -> tuple[str, ...]:
    return tuple(dict.fromkeys(folded(path) or "" for path in group.module_paths))


def _rank(row: LikeGroups) -> tuple[bool, float, bool, float, int, int, int]:
    """Those whose exposed saving is known first, then priced ones; ties by the order of the groups."""
    host = row.host_saved_us
    return (
        row.exposed_us is None,
        -(row.exposed_us or 0.0),
        host is None,
        -(host or 0.0),
        row.launches_after - (row.launches_before or row.launches_after),
        -row.bytes_saved,
        row.groups[0],
    )


def _way(way: Way, graph: StepGraph | None, recorded: Recorded, review: Review | None) -> WayOfCapture:
    variant = measured(review, way)
    capture = None if graph is None else capturable(graph, way=way)
    if capture is not None and graph is not None and review is not None:
        capture = price_blockers(graph, capture, variant)
    return WayOfCapture(
        way=way,
        capture=capture,
        reason=recorded.not_captured if graph is None else None,
        graph_launches=None if variant is None else variant.graph_launches,
        launches=None if variant is None else variant.launches,
    )


def _known(groups: Sequence[FusionGroup]) -> dict[str, KnownTotal]:
    found = {}
    for name in _SAVED:
        values = [value for group in groups if (value := getattr(group, name)) is not None]
        found[name] = KnownTotal(groups=len(values), saved_us=math.fsum(values) if values else None)
    return found


def _exposed_lines(groups: Sequence[FusionGroup], variant: Variant | None) -> list[ExposedCost]:
    """The exposed cost of the lines that form groups, as the review simulated it; most first."""
    if variant is None or variant.exposed is None:
        return []
    formed = {place_of(line, None) for group in groups for line in group.sources}
    found = [cost for cost in variant.exposed.lines if cost.source and place_of(cost.source, None) in formed]
    return sorted(found, key=lambda cost: -cost.exposed_us)
