"""What a review's step would take if the step itself were another: batch, experts' or attention's implementation.

A timeline cannot tell that; two predictions can (``predict``): of the step as it is, and of the changed one, with the
costs of one hardware profile.  Both are first put on the review's scale: host and device times × measured ÷ predicted
as is, term by term, so that an error of the profile that is in both cancels.  Then, as for every what-if, each number
is what was measured × simulated(changed) ÷ simulated(as is); counts are those of the changed prediction.  T_wall and
T_host are simulated on that scale, not scaled themselves: a batch may turn a step whose host is off by one factor into
one that waits for a device that is off by another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from taxbreak_fx.errors import FormatError, UsageError
from taxbreak_fx.findings import with_findings
from taxbreak_fx.hardware import Profile
from taxbreak_fx.model import Comparison, Review, Variant
from taxbreak_fx.predict import VARIANTS
from taxbreak_fx.record import Record
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.timeline import Floors, Item, Timeline, Work
from taxbreak_fx.timeline_store import restored
from taxbreak_fx.whatif import Change, check_speed, whatif
from taxbreak_fx.whatif_compare import compared
from taxbreak_fx.whatif_timeline import GraphLaunches, GraphPoint
from taxbreak_fx.whatif_variant import AND, Changed, Facts, Sums, changed_variant

RULE = "changed steps: measured × predicted (changed) ÷ predicted (as it is); see docs/whatif.md"


class StepChange(Record, frozen=True, kw_only=True):
    """Another step of the same model; None: as it is."""

    batch: int | None = None
    experts_implementation: str | None = None
    attn_implementation: str | None = None

    @property
    def labels(self) -> list[str]:
        """As names of variants say it."""
        pairs = (("batch", self.batch), ("experts", self.experts_implementation), ("attn", self.attn_implementation))
        return [f"{name} {value}" for name, value in pairs if value is not None]


class Scales(NamedTuple):
    """Measured ÷ predicted, of the step as it is: ΔFT, ΔCT, launch calls, way to a graph's first node, device time."""

    ft: float
    ct: float
    launch: float
    first: float
    device: float


def check_step(change: StepChange, review: Review, source: str = "the review") -> None:
    """Raise ``UsageError`` for a batch of nothing, and for a review of no step that a GPU's profile could predict."""
    if change.batch is not None and change.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {change.batch}")
    if review.step.device != "cuda":
        raise UsageError(
            f"{source} is of the {review.step.device} device, and a changed step is predicted for a GPU only: "
            f"review it on a CUDA device, or predict it: taxbreak predict {review.model}"
        )


def changed_request(request: ReviewRequest, change: StepChange) -> ReviewRequest:
    """``request`` for the changed step."""
    values = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
    return msgspec.structs.replace(request, **values)


def step_bases(review: Review, names: Sequence[str] = (), source: str = "the review") -> list[Variant]:
    """The variants to change: ``names``, or without any all that were run and can be predicted.

    Raises ``UsageError`` for a name that the review does not have or no prediction can be made of, ``FormatError`` for
    one without times, and where there is none.
    """
    known = {variant.name: variant for variant in review.variants}
    for name in names:
        if name not in known:
            raise UsageError(f"{source} has no variant {name!r}; it has {', '.join(known)}")
        if name not in VARIANTS:
            raise UsageError(f"a changed step of {name} is not predicted: choose among {', '.join(VARIANTS)}")
        if (why := _no_times(known[name])) is not None:
            raise FormatError(f"{source}: {name} has no times to start from ({why}); choose another --variant")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    found = [variant for variant in review.variants if variant.name in VARIANTS and _no_times(variant) is None]
    if not found:
        raise FormatError(f"{source} has no variant to start from: none of {', '.join(VARIANTS)} has times")
    return found


def _no_times(variant: Variant) -> str | None:
    if variant.status != "ok":
        return variant.reason or variant.status
    lacking = [name for name in ("t_wall_us", "t_host_us", "breakdown") if getattr(variant, name) is None]
    return variant.unmeasured[lacking[0]] if lacking else None


def step_whatif(
    review: Review,
    as_is: Review,
    changed: Review,
    step: StepChange,
    change: Change | None = None,
    names: Sequence[str] = (),
    source: str = "the review",
    elsewhere: GraphLaunches | None = None,
) -> Review:
    """``review`` with a predicted variant of the changed step behind each of ``step_bases``.

    ``as_is`` and ``changed``: predictions (``predict``) of its step and of the changed one with one profile.
    ``change``: then done to the changed steps as ``whatif`` does it; what it makes stands behind them.
    ``elsewhere``: as ``whatif``.
    Raises as ``step_bases`` and, given a ``change``, as ``whatif``.
    """
    bases = step_bases(review, names, source)
    change = change or Change()
    check_speed(change)
    mades = {base.name: _made(review, base, as_is, changed, step.labels) for base in bases}
    eager = next((v for v in review.variants if v.name == "eager" and v.status == "ok"), None)
    comparisons = [pair for base in bases for pair in _pairs(review, eager, base, mades[base.name])]
    both = msgspec.structs.replace(
        review, variants=[*review.variants, *mades.values()], comparisons=[*review.comparisons, *comparisons]
    )
    more: list[Variant] = []
    notes: list[str] = []
    if change != Change():
        usable = [made.name for made in mades.values() if made.status == "ok"]
        if not usable:
            raise FormatError(f"no changed step could be predicted: {next(iter(mades.values())).reason}")
        composed = whatif(both, change, usable if names else (), source, usable, elsewhere)
        before = {variant.name for variant in both.variants}
        more = [variant for variant in composed.variants if variant.name not in before]
        comparisons += [c for c in composed.comparisons if c.variant in {variant.name for variant in more}]
        notes = [note for note in composed.notes if note not in review.notes]
    variants = [eager] if eager is not None and eager not in bases else []
    for base in bases:
        made = mades[base.name]
        variants += [base, made, *(v for v in more if v.name.startswith(made.name + AND))]
    shown = {variant.name for variant in variants}
    kept = [c for c in review.comparisons if c.base in shown and c.variant in shown]
    left = [v.name for v in review.variants if v.status == "ok" and v.name not in shown and v.name not in VARIANTS]
    notes = [RULE, *notes, *changed.notes]
    notes += [f"not changed: {', '.join(left)}, of which no prediction is made"] if left and not names else []
    notes += _other_device(review, changed)
    return with_findings(
        msgspec.structs.replace(
            review,
            origin="predicted",
            variants=variants,
            comparisons=[*kept, *comparisons],
            notes=list(dict.fromkeys([*notes, *review.notes])),
        )
    )


def graphs_of(profile: Profile) -> GraphLaunches:
    """The graph launches that a profile holds."""
    points = [
        GraphPoint(point.nodes, point.host_us, point.first_node_us)
        for point in profile.graphs
        if point.first_node_us is not None
    ]
    return GraphLaunches(points, f"profile {profile.name}")


def final(review: Review, base: str) -> Variant:
    """Of a ``step_whatif``: the variant of ``base`` with every change.  Raises ``KeyError`` where there is none."""
    found = [v for v in review.variants if v.origin == "predicted" and v.name.startswith(base + AND)]
    if not found:
        raise KeyError(base)
    return found[-1]


def _pairs(review: Review, eager: Variant | None, base: Variant, made: Variant) -> list[Comparison]:
    if made.status != "ok":
        return []
    found = [compared(review, eager, base, made)] if eager is not None else []
    return found + ([compared(review, base, base, made)] if base.name != "eager" else [])


def _made(review: Review, base: Variant, as_is: Review, changed: Review, labels: list[str]) -> Variant:
    """The changed variant; unavailable with its reason where either step is not predicted."""
    own, new = as_is.variant(base.name), changed.variant(base.name)
    for variant, what in ((own, "the step as it is"), (new, "the changed step")):
        if variant.status != "ok":
            without = Variant.unavailable(AND.join([base.name, *labels]), "skipped", f"{what}: {variant.reason}")
            return msgspec.structs.replace(without, origin="predicted")
    assert own.timeline is not None and new.timeline is not None and own.exposed is not None
    assert own.t_wall_us is not None and base.t_wall_us is not None and new.breakdown is not None
    scales, like = scales_of(base, own), own.exposed
    floors = restored(own.timeline).floors
    if base.timeline is not None and base.exposed is not None and base.exposed.latency_source is not None:
        floors, like = restored(base.timeline).floors, base.exposed
    before, after = (on_scale(restored(one), scales, floors) for one in (own.timeline, new.timeline))
    facts = Facts(
        launches=new.launches,
        graph_launches=new.graph_launches,
        kernels=new.kernels,
        memops=new.memops,
        library_calls=None,
        ft_parts=new.breakdown.ft_parts,
        ct_source=f"predicted from {base.name}",
        kt_source=None if base.breakdown is None else base.breakdown.kt_source,
    )
    done = Changed(after, labels, [*_notes(base, own, scales), *new.notes])
    sums = (_sums(own, scales), _sums(new, scales))
    like = msgspec.structs.replace(like, notes=[])  # what is said of a measured timeline is not said of a predicted one
    error = own.t_wall_us.median / base.t_wall_us.median - 1  # before it is put on the review's scale
    made = changed_variant(review, base, before, done, facts, like, error, sums=sums)
    if made.t_wait_us is None or made.issue_us is None or made.t_host_us is None:
        return made
    return msgspec.structs.replace(made, t_wait_us=made.t_host_us.median - made.issue_us)


def _sums(variant: Variant, scales: Scales) -> Sums:
    """Of a predicted variant: its terms, whose ΔFT holds the waits on an idle device that its timeline has apart."""
    own = variant.breakdown
    assert own is not None and own.ft_us is not None and own.ct_us is not None and own.kt_us is not None
    assert variant.launch_us is not None and variant.device_sum_us is not None
    return Sums(
        ft=own.ft_us * scales.ft,
        ct=own.ct_us * scales.ct,
        launch=variant.launch_us * scales.launch,
        kt=own.kt_us * scales.first,
        device=variant.device_sum_us * scales.device,
    )


def scales_of(base: Variant, own: Variant) -> Scales:
    """What puts ``own``, the prediction of ``base``, on its scale.

    A term that either side does not tell takes the factor of the whole host time, and that 1 where it is not told; one
    that was predicted as nothing stays so.
    """
    ours, theirs = base.breakdown, own.breakdown
    host = _quotient(base.issue_us, own.issue_us) or 1.0
    terms = [_of(_quotient(getattr(ours, n, None), getattr(theirs, n, None)), host) for n in ("ft_us", "ct_us")]
    launch = _of(_quotient(base.launch_us, own.launch_us), host)
    first = _of(_quotient(getattr(ours, "kt_us", None), getattr(theirs, "kt_us", None)), host)
    device = _of(_quotient(base.device_active_us, own.device_active_us), 1.0)
    return Scales(terms[0], terms[1], launch, first, device)


def _quotient(measured: float | None, predicted: float | None) -> float | None:
    """No time is below zero, whatever noise makes of a term that is a remainder."""
    if measured is None or predicted is None:
        return None
    return max(0.0, measured) / predicted if predicted > 0 else 1.0


def _of(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def on_scale(timeline: Timeline, scales: Scales, floors: Floors) -> Timeline:
    """``timeline`` with its times on another scale, on a machine with these constants."""

    def scaled(item: Item) -> Item:
        action = item.action
        if isinstance(action, Work):
            pieces = tuple(msgspec.structs.replace(piece, us=piece.us * scales.device) for piece in action.pieces)
            first = None if action.first_node_us is None else action.first_node_us * scales.first
            action = msgspec.structs.replace(action, pieces=pieces, first_node_us=first)
        return msgspec.structs.replace(
            item,
            ft_us=item.ft_us * scales.ft,
            ct_us=item.ct_us * scales.ct,
            launch_us=item.launch_us * scales.launch,
            action=action,
        )

    return Timeline(items=tuple(scaled(item) for item in timeline.items), floors=floors)


def _notes(base: Variant, own: Variant, scales: Scales) -> list[str]:
    """On what scale the prediction was put, and which counts of the step as it is were predicted otherwise."""
    named = {"ΔFT": scales.ft, "ΔCT": scales.ct, "launch calls": scales.launch, "device time": scales.device}
    notes = []
    if any(not math.isclose(value, 1.0, rel_tol=1e-3) for value in named.values()):
        notes.append(f"on the scale of {base.name}: {', '.join(f'{name} × {v:.3g}' for name, v in named.items())}")
    other = [
        f"{name} {getattr(own, name):,} (measured: {getattr(base, name):,})"
        for name in ("launches", "kernels")
        if getattr(base, name) is not None and getattr(base, name) != getattr(own, name)
    ]
    return notes + ([f"of the step as it is, predicted are {', '.join(other)}"] if other else [])


def _other_device(review: Review, changed: Review) -> list[str]:
    ours, theirs = review.machine.device, changed.machine.device
    return [] if ours == theirs else [f"reviewed on {ours}, predicted with the costs of {theirs}"]
