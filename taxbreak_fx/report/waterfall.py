"""From eager to the best variant, step by step and term by term, as numbers and as the bars of a chart.

Where a step could be simulated, its terms are those of ordered removal (``Exposed.waterfall``): they add up to the
simulated T_wall, so the differences between two variants add up to the difference of their walls.  On the CPU, where
host and device are one thread, the raw terms do so, with the rest.  Else only the walls are compared.
"""

from __future__ import annotations

from typing import NamedTuple

from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.content import reference
from taxbreak_fx.report.exposed import TERM_LABELS
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.summary import best
from taxbreak_fx.report.tables import Column, Table, table

LADDER = ("eager", "dynamo", "inductor", "reduce-overhead")
REST, WALL = "rest", "wall"
LABELS = {**TERM_LABELS, REST: "not in any term", WALL: "wall time"}


class Stand(NamedTuple):
    """A variant on the way: its wall time as shown, as measured, and by term; microseconds."""

    name: str
    wall_us: float
    measured_us: float
    terms: dict[str, float]


class Bar(NamedTuple):
    """From where to where it reaches, in microseconds; ``term`` names its colour."""

    begin_us: float
    end_us: float
    term: str


class Line(NamedTuple):
    """A row of the chart: its name, its value as shown, its bars; ``total`` for a variant, not a change."""

    name: str
    value: str
    bars: list[Bar]
    total: bool


def path(review: Review) -> list[Stand]:
    """Eager, what lies between on the ladder, and the best variant; one entry where eager is the best."""
    base, goal = reference(review), best(review)
    if base is None or goal is None:
        return []
    chosen = [base]
    if base.name in LADDER and goal.name in LADDER:
        between = LADDER[LADDER.index(base.name) + 1 : LADDER.index(goal.name)]
        chosen += [v for name in between for v in review.variants if v.name == name and v.t_wall_us is not None]
    chosen += [goal] if goal.name != base.name else []
    split = [_terms(variant, review.step.device) for variant in chosen]
    # Terms of one variant and none of another cannot be subtracted.
    whole = all(terms is not None for terms in split)
    stands = []
    for variant, terms in zip(chosen, split, strict=True):
        measured = variant.t_wall_us.median if variant.t_wall_us is not None else 0.0
        shown = terms if whole and terms is not None else {WALL: measured}
        stands.append(Stand(variant.name, sum(shown.values()), measured, shown))
    return stands


def _terms(variant: Variant, device: str) -> dict[str, float] | None:
    """Parts of T_wall that add up to it; None where there are none."""
    exposed, raw = variant.exposed, variant.breakdown
    if exposed is not None and exposed.wall_us is not None:
        return dict(exposed.waterfall)
    known = (raw.ft_us, raw.ct_us, variant.device_active_us) if raw is not None else (None,)
    if device != "cpu" or variant.t_wall_us is None or any(us is None for us in known):
        return None
    parts = {name: us for name, us in zip(("ft", "ct", "device"), known, strict=True) if us is not None}
    return {**parts, REST: variant.t_wall_us.median - sum(parts.values())}


def changes(before: Stand, after: Stand) -> dict[str, float]:
    """After − before, by term: they add up to the difference of the walls."""
    names = dict.fromkeys([*before.terms, *after.terms])
    return {name: after.terms.get(name, 0.0) - before.terms.get(name, 0.0) for name in names}


def path_table(review: Review) -> Table | None:
    """The numbers of the picture.  None where no variant was measured."""
    stands = path(review)
    if not stands:
        return None
    names = [name for name in dict.fromkeys(n for s in stands for n in s.terms) if name != WALL]
    columns = (
        Column("step"), Column("wall", right=True), Column("measured wall", right=True),
        *(Column(LABELS.get(name, plain(name)), right=True) for name in names),
    )  # fmt: skip
    # Where the walls are the measured ones, they need not stand there twice: a column without values is dropped.
    simulated = any(stand.wall_us != stand.measured_us for stand in stands)
    rows = []
    for index, stand in enumerate(stands):
        if index:
            before = stands[index - 1]
            moved, total = changes(before, stand), stand.wall_us - before.wall_us
            measured = fmt.change(stand.measured_us - before.measured_us) if simulated else MISSING
            cells = (fmt.change(moved.get(name, 0.0)) for name in names)
            rows.append([f"{before.name} → {stand.name}", fmt.change(total), measured, *cells])
        measured = fmt.ms(stand.measured_us) if simulated else MISSING
        rows.append([stand.name, fmt.ms(stand.wall_us), measured, *(fmt.ms(stand.terms.get(name)) for name in names)])
    return table(f"{title(stands)} (ms per step)", columns, rows, [origin(review, stands)])


def title(stands: list[Stand]) -> str:
    """From where to where."""
    names = [stand.name for stand in stands]
    return plain(" → ".join(names)) if len(names) > 1 else plain(f"{names[0]}: no variant is faster")


def origin(review: Review, stands: list[Stand]) -> str:
    """What the bars rest on."""
    terms = {name for stand in stands for name in stand.terms}
    if WALL in terms:
        return "Wall times only: terms that add up to them are not known for every one of these variants."
    if REST in terms:
        return "Host and device are one thread, so ΔFT, ΔCT and device time add up to T_host."
    order = ", ".join(LABELS.get(name, name) for name in stands[0].terms)
    return f"Exposed time by ordered removal ({order}) of the simulated step" + (
        "; the variants table says how far the simulated wall is off the measured one."
        if any(stand.wall_us != stand.measured_us for stand in stands)
        else "."
    )


def chart_lines(review: Review) -> list[Line]:
    """Every variant on the way as the sum of its terms, and between two of them what each term adds or removes.

    Empty where no variant took any time.
    """
    found: list[Line] = []
    stands = path(review)
    if max((stand.wall_us for stand in stands), default=0.0) <= 0:
        return found
    for index, stand in enumerate(stands):
        if index:
            found += _steps(stands[index - 1], stand)
        found.append(_total(stand))
    return found


def terms_of(lines: list[Line]) -> list[tuple[str, str]]:
    """The terms that occur, in order, with their labels."""
    seen = {bar.term for line in lines for bar in line.bars}
    return [(name, label) for name, label in LABELS.items() if name in seen]


def _total(stand: Stand) -> Line:
    at, bars = 0.0, []
    for term, us in stand.terms.items():
        if us > 0:
            bars.append(Bar(at, at + us, term))
            at += us
    return Line(plain(stand.name), f"{fmt.ms(stand.wall_us)} ms", bars, True)


def _steps(before: Stand, after: Stand) -> list[Line]:
    at, found = before.wall_us, []
    for term, delta in changes(before, after).items():
        if delta:
            bar = Bar(max(0.0, min(at, at + delta)), max(at, at + delta), term)
            found.append(Line(LABELS.get(term, plain(term)), f"{fmt.change(delta)} ms", [bar], False))
        at += delta
    return found
