"""What rules ask of a review: its variants and comparisons by name, and what a group of its nodes costs.

Exposed costs come from the variant's stored timeline, run again without the group (``timeline.Simulator``): exactly how
the review's own exposed costs per line were had.  Microseconds per step everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from taxbreak_fx.model import Comparison, Review, Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.timeline import Item, Piece, Simulator, Timeline, Work, simulate
from taxbreak_fx.timeline_store import restored
from taxbreak_fx.variant_record import Node

OLD = "the review is of a version that did not simulate the step"
ONE_THREAD = "measured: the host is the device, so nothing hides it"
_GROUP = SourceLine(file="<group>", line=0)  # a line that no code has


class Cost(NamedTuple):
    """What something costs.  ``exposed_us`` is null where it is not known, with ``why``; raw times bound it then.

    ``basis`` says in words where ``exposed_us`` comes from.
    """

    exposed_us: float | None = None
    host_us: float | None = None
    device_us: float | None = None
    why: str = OLD
    basis: str = "simulated without it"

    @property
    def raw_us(self) -> float | None:
        """Host and device time together: more than this cannot be exposed.  None where neither is known."""
        known = [us for us in (self.host_us, self.device_us) if us is not None]
        return sum(known) if known else None

    def words(self, wall_us: float | None, origin: str = "measured") -> list[str]:
        """The cost as lines of evidence; ``origin``: of the raw times."""
        of_wall = f" of {wall_us:,.0f} µs T_wall" if wall_us else ""
        parts = [f"{us:,.0f} µs {what}" for us, what in ((self.host_us, "host"), (self.device_us, "device"))
                 if us is not None]  # fmt: skip
        raw = [f"raw time per step, {origin}: {', '.join(parts)}{of_wall}"] if parts else []
        if self.exposed_us is None:
            return [*raw, f"how much of it the device hides is not known: {self.why}"]
        return [*raw, f"exposed: {self.exposed_us:,.0f} µs{of_wall}, {self.basis}"]


class Scene:
    """A review as rules look at it; timelines are restored once."""

    def __init__(self, review: Review) -> None:
        self.review = review
        self.variants = [variant for variant in review.variants if variant.status == "ok"]
        self._named = {variant.name: variant for variant in self.variants}
        self._timelines: dict[str, Timeline | str] = {}

    @property
    def base(self) -> Variant | None:
        """The step as written: eager, or what else the review measures variants against."""
        return self._named.get("eager") or next(iter(self.variants), None)

    @property
    def on_device(self) -> bool:
        """Whether host and device are two: on the CPU device the host is the device."""
        return self.review.step.device != "cpu"

    def variant(self, name: str) -> Variant | None:
        """The variant of that name, if it ran."""
        return self._named.get(name)

    def comparison(self, base: str, name: str) -> Comparison | None:
        """The comparison of two variants, if there is one."""
        return next((c for c in self.review.comparisons if (c.base, c.variant) == (base, name)), None)

    def timeline(self, variant: Variant) -> Timeline | str:
        """What the variant was simulated from, or why there is none."""
        if variant.name not in self._timelines:
            self._timelines[variant.name] = restored(variant.timeline) if variant.timeline else _missing(variant)
        return self._timelines[variant.name]

    def host_us(self, node: Node) -> float | None:
        """Host time of a node with its launch calls as calibrated; None where it was not measured."""
        if node.ft_us is None:
            return None
        return node.ft_us + (node.ct_us or 0.0) + (node.launches or 0) * (self.launch_us or 0.0)

    @property
    def launch_us(self) -> float | None:
        """The calibrated cost of one launch call."""
        return self.review.machine.calibration.launch_us

    def cost(self, variant: Variant, nodes: Sequence[Node], host_share: float | None = None) -> Cost:
        """What these nodes of the variant cost together, or, given ``host_share``, that share of their host time alone.

        Where a line and family also has nodes that are not among these, its exposed cost counts by their share of host
        time: a timeline tells lines and families, not ops.
        """
        host, device = self.summed(nodes, self.host_us), self.summed(nodes, lambda node: node.device_us)
        if host_share is not None:
            host, device = None if host is None else host * host_share, None
        if not self.on_device:
            known = None if host is None and device is None else (host or 0.0) + (device or 0.0)
            return Cost(exposed_us=known, host_us=host, device_us=device, why="not measured", basis=ONE_THREAD)
        timeline = self.timeline(variant)
        if isinstance(timeline, str):
            return Cost(host_us=host, device_us=device, why=timeline)
        keys = {(node.source, node.family) for node in nodes if node.source is not None}
        items = tuple(
            msgspec.structs.replace(item, source=_GROUP if (item.source, item.family) in keys else None)
            for item in timeline.items
        )
        found = Simulator(msgspec.structs.replace(timeline, items=items)).lines(1)
        if not found:
            return Cost(host_us=host, device_us=device, why="its lines are not in the timeline")
        everyone = [node for node in variant.nodes if (node.source, node.family) in keys]
        part, whole = self.summed(nodes, self.host_us), self.summed(everyone, self.host_us)
        share = part / whole if part and whole else 1.0
        exposed = found[0].exposed_us if host_share is None else found[0].exposed_host_us * host_share
        return Cost(exposed_us=exposed * share, host_us=host, device_us=device)

    def exposed_device_us(self, variant: Variant, spare_us: float, family: str | None = None) -> float | None:
        """What T_wall loses when the device does ``spare_us`` less, all alike in its work (of ``family``); None without
        a timeline."""
        timeline = self.timeline(variant)
        if isinstance(timeline, str):
            return None
        works = [item.action for item in timeline.items if isinstance(item.action, Work)]
        total = math.fsum(p.us for work in works for p in work.pieces if family in (None, p.family))
        scale = max(0.0, 1.0 - spare_us / total) if total else 1.0

        def spared(piece: Piece) -> Piece:
            return Piece(us=piece.us * scale, family=piece.family) if family in (None, piece.family) else piece

        return self.gain_us(timeline, lambda item: _with_pieces(item, spared))

    def exposed_beyond_us(self, variant: Variant, nodes: Sequence[Node], host: float, device: float) -> float | None:
        """What T_wall loses when the lines and families of ``nodes`` keep only these shares of their host and device
        time; None without a timeline."""
        timeline = self.timeline(variant)
        if isinstance(timeline, str):
            return None
        keys = {(node.source, node.family) for node in nodes}

        def kept(item: Item) -> Item:
            if (item.source, item.family) not in keys:
                return item
            own = msgspec.structs.replace(
                item, ft_us=item.ft_us * host, ct_us=item.ct_us * host, launch_us=item.launch_us * host
            )
            return _with_pieces(own, lambda piece: Piece(us=piece.us * device, family=piece.family))

        return self.gain_us(timeline, kept)

    def exposed_launches_us(self, timeline: Timeline) -> float:
        """What T_wall loses without the host time at launches of single kernels and copies."""

        def free(item: Item) -> Item:
            if not isinstance(item.action, Work) or item.action.kind == "graph":
                return item
            return msgspec.structs.replace(item, ft_us=0.0, ct_us=0.0, launch_us=0.0)

        return self.gain_us(timeline, free)

    def gain_us(self, timeline: Timeline, change: Callable[[Item], Item]) -> float:
        """T_wall of the timeline − T_wall with every item changed."""
        changed = msgspec.structs.replace(timeline, items=tuple(change(item) for item in timeline.items))
        return simulate(timeline).wall_us - simulate(changed).wall_us

    @staticmethod
    def summed(nodes: Iterable[Node], time: Callable[[Node], float | None]) -> float | None:
        """The sum over the nodes whose time is known; None where none is."""
        known = [us for node in nodes if (us := time(node)) is not None]
        return math.fsum(known) if known else None


def _with_pieces(item: Item, spared: Callable[[Piece], Piece]) -> Item:
    if not isinstance(item.action, Work):
        return item
    pieces = tuple(spared(piece) for piece in item.action.pieces)
    return msgspec.structs.replace(item, action=msgspec.structs.replace(item.action, pieces=pieces))


def _missing(variant: Variant) -> str:
    if variant.exposed is None:
        return OLD
    return variant.exposed.unmeasured.get("wall_us", "the review kept no timeline of it")


def kernels(node: Node) -> int:
    """Kernels of a node; where the device counts none (the CPU), one per call that does work of its own."""
    if node.kernels is not None:
        return node.kernels
    return 0 if node.family in ("view", "host-sync") else node.count


def ops_of(node: Node) -> list[str]:
    """Names of the ATen ops of a node, without namespace: ``to.dtype``."""
    return [op.removeprefix("aten.") for op in node.op.split("+")]


def short(node: Node) -> str:
    """The op of a node as evidence names it, cut to 60 characters."""
    return node.op if len(node.op) <= 60 else node.op[:59] + "…"


def total(nodes: Iterable[Node], term: str) -> float | None:
    """Sum of a term over the nodes that have it; None where none has."""
    known = [us for node in nodes if (us := getattr(node, term)) is not None]
    return math.fsum(known) if known else None


def terms(nodes: Sequence[Node], share: float = 1.0) -> dict[str, float]:
    """The terms of these nodes times ``share``; those that no node has are left out."""
    found = {term: total(nodes, term) for term in ("ft_us", "ct_us", "kt_us", "device_us")}
    return {term: us * share for term, us in found.items() if us is not None}
