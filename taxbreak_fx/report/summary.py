"""The first thing that a report says: wall time, HDBI, where the exposed time is, the best variant, the top finding."""

from __future__ import annotations

from typing import NamedTuple

from taxbreak_fx.compare import wall_at_speed_of
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.content import reference
from taxbreak_fx.report.exposed import TERM_LABELS, host_us
from taxbreak_fx.report.findings import cost, where
from taxbreak_fx.report.format import plain


class Fact(NamedTuple):
    """A number to be seen first: what it is, its value with unit, and what belongs beside it."""

    name: str
    value: str
    note: str


def best(review: Review) -> Variant | None:
    """The variant with the shortest T_wall, at one host's speed, of those that were measured, or predicted, as the
    reference was; one whose outputs differ from eager's only where all do."""
    base = reference(review)
    origin = base.origin if base is not None else "measured"
    timed = [v for v in review.variants if v.status == "ok" and v.origin == origin and v.t_wall_us is not None]
    right = [v for v in timed if v.outputs_equal is not False] or timed
    return min(right, key=lambda v: wall_at_speed_of(base or v, v, review.comparisons), default=None)


def facts(review: Review) -> list[Fact]:
    """Wall time, HDBI and exposed host time of the reference, and the best variant; what is not known is left out."""
    base = reference(review)
    if base is None:
        return []
    found = []
    wall = base.t_wall_us
    if wall is not None:
        between = f"{fmt.ms(wall.low)} to {fmt.ms(wall.high)} ms, 95 %" if wall.samples else base.origin
        found.append(Fact(f"wall, {base.name}", f"{fmt.ms(wall.median)} ms", between))
    terms = base.breakdown
    if terms is not None and terms.hdbi is not None:
        device = (
            f"device active {fmt.ms(base.device_active_us)} ms, T_Orchestration {fmt.ms(terms.orchestration_us)} ms"
        )
        found.append(Fact(f"HDBI, {base.name}", fmt.index(terms.hdbi), device))
    hidden = host_us(base.exposed)
    if hidden is not None and base.exposed is not None and base.exposed.wall_us:
        part = f"{100 * hidden / base.exposed.wall_us:.0f} % of the simulated wall"
        found.append(Fact(f"exposed host time, {base.name}", f"{fmt.ms(hidden)} ms", part))
    quickest = best(review)
    if quickest is not None and quickest.name != base.name and quickest.t_wall_us is not None:
        ratio = next(
            (c.wall_ratio for c in review.comparisons if (c.base, c.variant) == (base.name, quickest.name)), None
        )
        note = f"fastest {base.origin} variant" if ratio is None else f"{fmt.interval(ratio)} of {base.name}"
        found.append(Fact(f"best, {quickest.name}", f"{fmt.ms(quickest.t_wall_us.median)} ms", note))
    return [Fact(*(plain(part) for part in fact)) for fact in found]


def sentences(review: Review) -> list[str]:
    """Where the exposed time is, and the finding that costs most."""
    base = reference(review)
    if base is None:
        return ["No variant could be measured: the variants table says why."]
    found = []
    exposed = base.exposed
    if exposed is not None and exposed.wall_us:
        ranked = sorted(exposed.waterfall.items(), key=lambda pair: pair[1], reverse=True)
        parts = [f"{TERM_LABELS.get(term, term)} {100 * us / exposed.wall_us:.0f} %" for term, us in ranked]
        found.append(f"Where the time of {base.name} is, exposed, by ordered removal: {', '.join(parts)}.")
        if exposed.lines:
            top = max(exposed.lines, key=lambda line: line.exposed_us)
            found.append(
                f"The line that costs most: {fmt.source(top.source)}, {fmt.ms(top.exposed_us)} ms exposed ({top.name})."
            )
    else:
        why = "files of that version hold none" if exposed is None else exposed.unmeasured.get("wall_us", "")
        found.append(f"What the device hides is not known here: {why}.")
    if review.findings:
        first = review.findings[0]
        place = f", {where(first)}" if first.source is not None else ""
        advice = first.fix.rstrip(" .")
        found.append(f"Top finding: {first.title}{place}, in {first.variant}: {cost(first)}. Fix: {advice}.")
    return [plain(line) for line in found]
