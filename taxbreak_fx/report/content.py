"""What the text, markdown and html reports show of a ``Review``: head lines, tables and notes, not yet escaped.

Every string has passed ``plain``: one line, no control characters.  Renderers escape for their own format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from taxbreak_fx.model import Breakdown, Comparison, Interval, Measured, Node, Review, Variant
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain

HDBI_MEANING = "HDBI = device active / (device active + ΔFT + ΔCT + ΔKT); low = host-bound."
TERMS_MEANING = (
    "ΔFT framework and Python, ΔCT vendor-library calls, ΔKT launch floors; ΔKT includes launch latency on the device, "
    "so the terms may exceed the wall time."
)
LABELS = {
    "t_wall_us": "wall", "t_host_us": "host", "device_active_us": "device", "device_us": "device", "wall_us": "wall",
    "launches": "launches", "kernels": "kernels", "outputs_equal": "equal", "ft_us": "ΔFT", "ct_us": "ΔCT",
    "kt_us": "ΔKT", "hdbi": "HDBI", "breakdown": "ΔFT, ΔCT, ΔKT, HDBI", "wall_ratio": "wall ratio",
    "breakeven_steps": "breakeven steps", "launch_us": "launch cost", "t_sys_us": "T_sys",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column; ``flexible`` ones may be cut (keeping ``keep``), ``detail`` ones stay out of the terminal.

    When the terminal is too narrow, the column of the lowest ``priority`` goes first.
    """

    title: str
    right: bool = False
    flexible: bool = False
    keep: Literal["start", "end"] = "start"
    detail: bool = False
    priority: int = 9


@dataclass(frozen=True)
class Table:
    """Cells are text; ``under`` holds the lines that belong below the table."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    under: tuple[str, ...] = ()

    def select(self, kept: Sequence[int]) -> Table:
        """The same table with only the columns at the indices ``kept``."""
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Table(self.title, tuple(self.columns[i] for i in kept), rows, self.under)


def _table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], under: Iterable[str] = ()) -> Table:
    """A table without the right-aligned columns in which no row has a value."""
    cells = tuple(tuple(plain(cell) for cell in row) for row in rows)
    table = Table(title, tuple(columns), cells, tuple(plain(line) for line in under))
    kept = [i for i, column in enumerate(columns) if not column.right or any(row[i] != MISSING for row in cells)]
    return table.select(kept)


def headline(review: Review) -> list[str]:
    """The model and step, the machine, and what else was chosen for the step, if anything: one line each."""
    step, machine = review.step, review.machine
    parts = [review.model, step.phase]
    parts += [f"batch {step.batch}"] if step.batch is not None else []
    parts += [f"sequence {step.seq_len}"] if step.seq_len is not None else []
    parts += [step.dtype]
    parts += [review.origin] if review.origin != "measured" else []
    parts += [f"scope: {review.scope}"] if review.scope != "step" else []
    calibration = machine.calibration
    floor = f"T_sys {fmt.percentiles(calibration.t_sys_us)}"
    where = [machine.device, f"torch {machine.torch}", f"launch {fmt.microseconds(calibration.launch_us)}", floor]
    options = ", ".join(f"{name} {value}" for name, value in sorted(step.options.items()))
    return [plain(", ".join(parts)), plain(", ".join(where)), *([plain(options)] if options else [])]


def reference(review: Review) -> Variant | None:
    """The variant that others are set against: eager, else the first that was measured."""
    measured = [variant for variant in review.variants if variant.status == "ok"]
    return next((variant for variant in measured if variant.name == "eager"), measured[0] if measured else None)


def _noise_us(wall: Interval | None) -> float | None:
    return None if wall is None else wall.high - wall.low


def variants_table(review: Review) -> Table:
    """One row per variant: wall and host time, device, counts, terms, HDBI, output check."""
    columns = (
        Column("variant"), Column("wall [95 %]"), Column("host", right=True, priority=1), Column("device", right=True),
        Column("launches", right=True, priority=4), Column("kernels", right=True, priority=3),
        Column("ΔFT", right=True), Column("ΔCT", right=True, priority=6), Column("ΔKT", right=True, priority=5),
        Column("HDBI", right=True),
        Column("equal", right=True, priority=2), Column("memory MiB", right=True, detail=True),
        Column("build s", right=True, detail=True),
    )  # fmt: skip
    under = [f"{v.name} {v.status}: {v.reason}" for v in review.variants if v.status != "ok"]
    for variant in review.variants:
        check = variant.output_check
        if variant.outputs_equal is False and check is not None:
            under.append(
                f"{variant.name} outputs differ: relative error {check.variant_error:.2g} "
                f"(eager {check.eager_error:.2g}) against {check.reference_dtype}, "
                f"{check.top1_flips} of {check.top1_total} top-1 flips"
            )
    return _table("Variants (ms per step)", columns, [_variant_row(v) for v in review.variants], under)


def _variant_row(variant: Variant) -> list[str]:
    if variant.status != "ok":
        return [variant.name, variant.status, *[MISSING] * 11]
    terms, noise = variant.breakdown, _noise_us(variant.t_wall_us)
    memory = None if variant.peak_memory_bytes is None else round(variant.peak_memory_bytes / 2**20)
    return [
        variant.name,
        fmt.interval(variant.t_wall_us, 1e-3),
        fmt.ms(None if variant.t_host_us is None else variant.t_host_us.median),
        fmt.ms(variant.device_active_us),
        fmt.count(variant.launches),
        fmt.count(variant.kernels),
        *(fmt.term(value, noise) for value in _terms(terms)),
        fmt.index(terms.hdbi if terms else None),
        fmt.yes_no(variant.outputs_equal),
        fmt.count(memory),
        MISSING if variant.compile_s is None else fmt.number(variant.compile_s),
    ]


def _terms(terms: Breakdown | None) -> tuple[float | None, float | None, float | None]:
    return (terms.ft_us, terms.ct_us, terms.kt_us) if terms else (None, None, None)


def removed_table(review: Review, base: str | None = None) -> Table | None:
    """What each variant removed, by term; only comparisons with ``base`` when it is given.  None without any."""
    shown = compared(review, base)
    if not shown:
        return None
    columns = (
        Column("variant"), Column("base", detail=True), Column("ΔFT", right=True),
        Column("ΔCT", right=True, priority=3), Column("ΔKT", right=True, priority=2),
        Column("device", right=True, priority=1), Column("wall", right=True, priority=4), Column("wall ratio [95 %]"),
        Column("HDBI", right=True, detail=True), Column("launches", right=True, detail=True),
        Column("kernels", right=True, detail=True), Column("breakeven steps", right=True, detail=True),
        Column("verdict", flexible=True),
    )  # fmt: skip
    against = f"relative to {base} " if base is not None else ""
    under = [f"{c.variant} is worse than {c.base} in: {', '.join(c.worse)}" for c in shown if c.worse]
    title = plain(f"Removed {against}(ms per step; negative = added)")
    return _table(title, columns, [_removed_row(c) for c in shown], under)


def compared(review: Review, base: str | None) -> list[Comparison]:
    """The comparisons with ``base``, or all of them."""
    return [c for c in review.comparisons if base is None or c.base == base]


def _removed_row(comparison: Comparison) -> list[str]:
    removed = comparison.removed
    steps = comparison.breakeven_steps
    return [
        comparison.variant,
        comparison.base,
        *(fmt.ms(v) for v in (removed.ft_us, removed.ct_us, removed.kt_us, removed.device_us, removed.wall_us)),
        fmt.interval(comparison.wall_ratio),
        _change(fmt.index(comparison.hdbi_before), fmt.index(comparison.hdbi_after)),
        _change(fmt.count(comparison.launches_before), fmt.count(comparison.launches_after)),
        _change(fmt.count(comparison.kernels_before), fmt.count(comparison.kernels_after)),
        MISSING if steps is None else fmt.number(steps),
        comparison.verdict,
    ]


def _change(before: str, after: str) -> str:
    return MISSING if before == after == MISSING else f"{before} → {after}"


def orchestration_us(node: Node) -> float | None:
    """ΔFT + ΔCT + ΔKT of ``node``; None unless ΔFT was measured (a missing ΔCT or ΔKT contributes nothing)."""
    return None if node.ft_us is None else node.ft_us + (node.ct_us or 0.0) + (node.kt_us or 0.0)


def top_nodes(review: Review, limit: int) -> tuple[Variant | None, list[Node]]:
    """The ``limit`` costliest nodes by orchestration, of eager or else of the first measured variant with nodes."""
    with_nodes = [v for v in review.variants if v.status == "ok" and v.nodes]
    if not with_nodes:
        return None, []
    variant = next((v for v in with_nodes if v.name == "eager"), with_nodes[0])
    measured = [(cost, node) for node in variant.nodes if (cost := orchestration_us(node)) is not None]
    ranked = sorted(measured, key=lambda pair: pair[0], reverse=True)
    return variant, [node for _, node in ranked[:limit]]


def ops_table(review: Review, limit: int) -> Table | None:
    """The costliest ops with their source lines.  None when no variant has nodes with a measured ΔFT."""
    variant, nodes = top_nodes(review, limit)
    if variant is None or not nodes:
        return None
    columns = (
        Column("op", flexible=True), Column("source", flexible=True, keep="end"),
        Column("module", flexible=True, keep="end"), Column("calls", right=True, priority=8), Column("sum", right=True),
        Column("ΔFT", right=True, detail=True), Column("ΔCT", right=True, detail=True),
        Column("ΔKT", right=True, detail=True), Column("device", right=True), Column("family", detail=True),
        Column("library", detail=True),
    )  # fmt: skip
    noise = _noise_us(variant.t_wall_us)
    rows = [_node_row(node, noise) for node in nodes]
    title = f"Top ops of {variant.name} by ΔFT + ΔCT + ΔKT (ms per step, {len(nodes)} of {len(variant.nodes)})"
    return _table(plain(title), columns, rows)


def _node_row(node: Node, noise_us: float | None) -> list[str]:
    costs = (orchestration_us(node), node.ft_us, node.ct_us, node.kt_us)
    return [
        node.op.removeprefix("aten.").removesuffix(".default"),
        fmt.source(node.source),
        MISSING if node.module_path is None else node.module_path,
        fmt.count(node.count),
        *(fmt.term(value, noise_us) for value in costs),
        fmt.ms(node.device_us),
        node.family,
        node.library,
    ]


def parts_table(review: Review) -> Table | None:
    """How ΔFT splits, one row per variant, one column per part.  None when nothing was split."""
    split = [(v, v.breakdown) for v in review.variants if v.breakdown is not None and v.breakdown.ft_parts]
    if not split:
        return None
    parts = list(dict.fromkeys(part for _, terms in split for part in terms.ft_parts))
    rows = [
        [v.name, fmt.ms(terms.ft_us), *(fmt.ms(terms.ft_parts.get(part)) for part in parts)]
        for v, terms in split
    ]  # fmt: skip
    columns = [Column("variant"), Column("ΔFT", right=True), *(Column(plain(part), right=True) for part in parts)]
    return _table("Parts of ΔFT (ms per step, sign kept)", columns, rows)


def library_table(review: Review) -> Table | None:
    """Vendor-library calls per step as counted, one row per variant.  None when they were counted nowhere."""
    counted = [(v, v.library_calls) for v in review.variants if v.library_calls is not None]
    names = list(dict.fromkeys(name for _, calls in counted for name in calls))
    if not names:
        return None
    rows = [[v.name, *(fmt.count(calls.get(name, 0)) for name in names)] for v, calls in counted]
    columns = [Column("variant"), *(Column(plain(name), right=True) for name in names)]
    return _table("Vendor-library calls per step", columns, rows)


def graphs_table(review: Review) -> Table | None:
    """Dynamo's graphs and why capture ended in each.  None when there are none."""
    if not review.graphs:
        return None
    columns = (Column("graph"), Column("nodes", right=True), Column("source"), Column("break"))
    rows = [
        [g.compile_id, fmt.count(g.nodes), fmt.source(g.source), g.break_reason if g.break_reason else "none"]
        for g in review.graphs
    ]
    return _table("Dynamo graphs", columns, rows)


def missing_notes(review: Review, base: str | None, nodes: Sequence[Node]) -> list[str]:
    """Why a shown value is ``–``: one line per reason, naming the columns and the variants it concerns.

    ``base`` and ``nodes`` say which comparisons and ops are shown; breakeven steps are shown with all comparisons.
    """
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}

    def note(record: Measured, where: str) -> None:
        for field, reason in record.unmeasured.items():
            if field in LABELS and not (base is not None and field == "breakeven_steps"):
                labels, places = found.setdefault(reason, ({}, {}))
                labels[LABELS[field]] = None
                places[where] = None

    note(review.machine.calibration, "machine")
    for variant in review.variants:
        if variant.status == "ok":
            note(variant, variant.name)
            if variant.breakdown is not None:
                note(variant.breakdown, variant.name)
    for comparison in compared(review, base):
        note(comparison, comparison.variant)
        note(comparison.removed, comparison.variant)
    for node in nodes:
        note(node, node.op)
    return [
        plain(f"{MISSING} {', '.join(labels)} ({', '.join(places)}): {reason}")
        for reason, (labels, places) in found.items()
    ]


def other_notes(review: Review) -> list[str]:
    """The review's own notes, then those of its variants."""
    own = [plain(note) for note in review.notes]
    return own + [plain(f"{variant.name}: {note}") for variant in review.variants for note in variant.notes]


def near_zero_note(tables: Sequence[Table]) -> list[str]:
    """What ``≈0`` means, when one of ``tables`` shows it."""
    shown = any(cell == fmt.NEAR_ZERO for table in tables for row in table.rows for cell in row)
    meaning = f"{fmt.NEAR_ZERO}: a small negative, within the interval of the wall time; the file keeps it"
    return [meaning] if shown else []


def page(review: Review, ops: int = 25) -> tuple[list[Table], list[str]]:
    """All tables and notes of a full page (markdown, html)."""
    optional = (
        removed_table(review), ops_table(review, ops), parts_table(review), library_table(review), graphs_table(review),
    )  # fmt: skip
    tables = [variants_table(review), *(table for table in optional if table is not None)]
    notes = [HDBI_MEANING, TERMS_MEANING, *other_notes(review), *missing_notes(review, None, top_nodes(review, ops)[1])]
    notes += near_zero_note(tables)
    return tables, notes
