"""What the reports show of exposed cost: T_wall as simulated, and what of each term the device does not hide."""

from __future__ import annotations

from taxbreak_fx.model import Review
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.tables import Column, Table, table
from taxbreak_fx.variant_record import Exposed, ExposedCost

HOST_TERMS = ("ft", "ct", "kt")
TERM_LABELS = {"ft": "ΔFT", "ct": "ΔCT", "kt": "launches and their latency", "sync": "sync returns", "device": "device"}
MEANING = "exposed: what the device does not hide of ΔFT, ΔCT and launches"


def simulated(review: Review) -> list[tuple[str, Exposed]]:
    """The variants whose step could be simulated, by name."""
    found = [(variant.name, variant.exposed) for variant in review.variants]
    return [(name, exposed) for name, exposed in found if exposed is not None and exposed.wall_us is not None]


def host_us(exposed: Exposed | None) -> float | None:
    """Exposed host cost: ΔFT, ΔCT and launches with their latency removed together; None where nothing is simulated."""
    if exposed is None or exposed.wall_us is None:
        return None
    return sum(exposed.waterfall[term] for term in HOST_TERMS)


def accuracy(review: Review) -> list[str]:
    """What the column means, and how far the simulated T_wall is off the measured one."""
    shown = [f"{name} {_percent(exposed.error)}" for name, exposed in simulated(review) if exposed.error is not None]
    return [f"{MEANING}; simulated wall off by {', '.join(shown)}"] if shown else []


def exposed_table(review: Review) -> Table | None:
    """Each variant's simulated T_wall and the exposed cost of each term beside the raw ones.  None without any."""
    rows = simulated(review)
    if not rows:
        return None
    measured = {v.name: v.t_wall_us.median for v in review.variants if v.t_wall_us is not None}
    columns = (
        Column("variant"), Column("wall", right=True), Column("simulated", right=True), Column("error", right=True),
        Column("max(host, device)", right=True), Column("error", right=True), Column("idle", right=True),
        Column("blocked", right=True), *(Column(label, right=True) for label in TERM_LABELS.values()),
    )  # fmt: skip
    cells = [
        [
            name, fmt.ms(measured.get(name)), fmt.ms(e.wall_us), _percent(e.error), fmt.ms(e.naive_us),
            _percent(e.naive_error), fmt.ms(e.idle_us), fmt.ms(_sum(e.synced_us, e.queued_us)),
            *(fmt.ms(us) for us in (e.ft_us, e.ct_us, e.kt_us, e.sync_us, e.device_us)),
        ]
        for name, e in rows
    ]  # fmt: skip
    under = ["T_wall − T_wall without that term alone; what two terms hide from each other shows in neither"]
    under += [f"{name}: {note}" for name, e in rows for note in e.notes]
    return table("Exposed cost by term, simulated (ms per step)", columns, cells, under)


def waterfall_table(review: Review) -> Table | None:
    """Ordered removal, which does add up to the simulated T_wall.  None without any."""
    rows = simulated(review)
    if not rows:
        return None
    terms = list(dict.fromkeys(term for _, exposed in rows for term in exposed.waterfall))
    columns = (
        Column("variant"), Column("simulated wall", right=True),
        *(Column(f"− {TERM_LABELS.get(term, plain(term))}", right=True) for term in terms),
    )  # fmt: skip
    cells = [[name, fmt.ms(e.wall_us), *(fmt.ms(e.waterfall.get(term)) for term in terms)] for name, e in rows]
    return table("Waterfall: terms removed one after the other, left to right (ms per step)", columns, cells)


def costs_table(review: Review, limit: int) -> list[Table]:
    """Families, and lines of the author's code, raw and exposed, of eager or else of the first simulated variant."""
    rows = simulated(review)
    if not rows:
        return []
    name, exposed = next((row for row in rows if row[0] == "eager"), rows[0])
    found = []
    for what, costs in (("family", exposed.families), ("source", exposed.lines[:limit])):
        if costs:
            title = plain(f"Exposed cost of {name} by {what}, simulated (ms per step)")
            found.append(table(title, _columns(what), [_cells(cost) for cost in costs]))
    return found


def _columns(what: str) -> tuple[Column, ...]:
    titles = ("host", "exposed host", "device", "exposed device", "exposed")
    first = (Column("source"), Column("families")) if what == "source" else (Column("family"),)
    return (*first, *(Column(title, right=True) for title in titles))


def _cells(cost: ExposedCost) -> list[str]:
    place = [cost.name] if cost.source is None else [fmt.source(cost.source), cost.name]
    values = (cost.host_us, cost.exposed_host_us, cost.device_us, cost.exposed_device_us, cost.exposed_us)
    return [*place, *(fmt.ms(us) for us in values)]


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:+.1f} %"
