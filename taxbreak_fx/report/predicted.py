"""What the reports show of predicted variants: what each was made from, and how far off that is known to be."""

from __future__ import annotations

from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.tables import Column, Table, table
from taxbreak_fx.variant_record import Prediction


def shown_name(variant: Variant) -> str:
    """The variant's name, marked where it was not measured."""
    return variant.name if variant.origin == "measured" else f"{variant.name} ({variant.origin})"


def predictions(review: Review) -> list[tuple[Variant, Prediction]]:
    """The variants that were predicted from others."""
    return [(variant, variant.prediction) for variant in review.variants if variant.prediction is not None]


def checks(review: Review) -> list[str]:
    """Per prediction, what the simulation is off by on its base, and on the variant that really ran so; without one,
    what changes."""
    found = []
    for variant, made in predictions(review):
        line = f"{variant.name}: simulation of {made.base} off by {_percent(made.base_error)}"
        if made.measured_as is not None:
            line += f"; measured as {made.measured_as}, prediction off by {_percent(made.error)}"
        else:
            line += f"; wall {_percent(made.wall_change)}, T_Orchestration {_percent(made.orchestration_change)}"
        found.append(plain(line))
    return found


def predicted_table(review: Review) -> Table | None:
    """Each prediction beside its base and, where it was measured, the real variant.  None without any."""
    rows = predictions(review)
    if not rows:
        return None
    walls = {v.name: v.t_wall_us.median for v in review.variants if v.t_wall_us is not None}
    columns = (
        Column("predicted"), Column("base"), Column("base wall", right=True), Column("base simulated off", right=True),
        Column("wall", right=True), Column("wall change", right=True), Column("T_Orchestration change", right=True),
        Column("measured as"), Column("measured wall", right=True), Column("prediction off", right=True),
    )  # fmt: skip
    cells = [
        [
            variant.name, made.base, fmt.ms(walls.get(made.base)), _percent(made.base_error),
            fmt.ms(walls.get(variant.name)), _percent(made.wall_change), _percent(made.orchestration_change),
            made.measured_as or MISSING, fmt.ms(walls.get(made.measured_as or "")), _percent(made.error),
        ]
        for variant, made in rows
    ]  # fmt: skip
    under = ["where both were timed in pairs with eager, the prediction is off by what their ratios to it differ"]
    return table("Predictions beside what was measured (ms per step)", columns, cells, under)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:+.1f} %"
