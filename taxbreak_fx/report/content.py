"""What the text, markdown and html reports show of a ``Review``: head lines, tables and notes, not yet escaped.

Every string has passed ``plain``: one line, no control characters.  Renderers escape for their own format.
"""

from __future__ import annotations

from collections.abc import Sequence

from taxbreak_fx.model import Comparison, Review, Variant
from taxbreak_fx.record import Interval, Measured
from taxbreak_fx.report import exposed
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.generate import generate_table, steps_table
from taxbreak_fx.report.library import calls_table, families_table, source_notes
from taxbreak_fx.report.predicted import checks, predicted_table, shown_name
from taxbreak_fx.report.tables import Column, Table, table
from taxbreak_fx.variant_record import Breakdown, Node

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
    "hdbi_untraced": "untraced HDBI", "direct_us": "direct ΔCT", "subtractive_us": "subtractive ΔCT",
}  # fmt: skip


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
    traced, untraced = calibration.t_sys_us, calibration.launch_path.t_sys_untraced_us
    floor = f"T_sys {fmt.percentiles(traced)}"
    if traced is not None and untraced is not None:
        floor = f"T_sys {fmt.microseconds(traced.p50)} traced, {fmt.microseconds(untraced.p50)} untraced"
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
        Column("variant"), Column("wall [95 %]"), Column("host", right=True, priority=2), Column("device", right=True),
        Column("launches", right=True, priority=4), Column("kernels", right=True, priority=3),
        Column("ΔFT", right=True), Column("ΔCT", right=True, priority=6), Column("ΔKT", right=True, priority=5),
        Column("exposed", right=True), Column("HDBI", right=True),
        Column("equal", right=True, priority=1), Column("memory MiB", right=True, detail=True),
        Column("build s", right=True, detail=True),
    )  # fmt: skip
    under = [*checks(review), *(f"{v.name} {v.status}: {v.reason}" for v in review.variants if v.status != "ok")]
    for variant in review.variants:
        check = variant.output_check
        if variant.outputs_equal is False and check is not None:
            under.append(
                f"{variant.name} outputs differ: relative error {check.variant_error:.2g} "
                f"(eager {check.eager_error:.2g}) against {check.reference_dtype}, "
                f"{check.top1_flips} of {check.top1_total} top-1 flips"
            )
    under += exposed.accuracy(review)
    under += _other_index(review)
    return table("Variants (ms per step)", columns, [_variant_row(v) for v in review.variants], under)


def _other_index(review: Review) -> list[str]:
    """HDBI on the untraced launch floor, of the variants where the floor makes a difference that shows."""
    both = [(v.name, v.breakdown) for v in review.variants if v.breakdown is not None]
    known = [(name, fmt.index(t.hdbi), fmt.index(t.hdbi_untraced)) for name, t in both if t.hdbi_untraced is not None]
    moved = [f"{name} {untraced}" for name, traced, untraced in known if traced != untraced]
    rest = [] if len(moved) == len(known) else ["the others as above" if moved else "as above"]
    return [f"HDBI on the untraced launch floor: {', '.join([*moved, *rest])}"] if known else []


def _variant_row(variant: Variant) -> list[str]:
    if variant.status != "ok":
        return [shown_name(variant), variant.status, *[MISSING] * 12]
    terms, noise = variant.breakdown, _noise_us(variant.t_wall_us)
    memory = None if variant.peak_memory_bytes is None else round(variant.peak_memory_bytes / 2**20)
    return [
        shown_name(variant),
        fmt.interval(variant.t_wall_us, 1e-3),
        fmt.ms(None if variant.t_host_us is None else variant.t_host_us.median),
        fmt.ms(variant.device_active_us),
        fmt.count(variant.launches),
        fmt.count(variant.kernels),
        *(fmt.term(value, noise) for value in _terms(terms)),
        fmt.ms(exposed.host_us(variant.exposed)),
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
    levels = " or ".join(dict.fromkeys(_level(c) for c in shown))
    columns = (
        Column("variant"), Column("base", detail=True), Column("ΔFT", right=True),
        Column("ΔCT", right=True, priority=3), Column("ΔKT", right=True, priority=2),
        Column("device", right=True, priority=1), Column("wall", right=True, priority=4),
        Column(f"wall ratio [{levels}]"),
        Column("HDBI", right=True, detail=True), Column("launches", right=True, detail=True),
        Column("kernels", right=True, detail=True), Column("breakeven steps", right=True, detail=True),
        Column("verdict", flexible=True),
    )  # fmt: skip
    against = f"relative to {base} " if base is not None else ""
    under = [f"{c.variant} is worse than {c.base} in: {', '.join(c.worse)}" for c in shown if c.worse]
    title = plain(f"Removed {against}(ms per step; negative = added)")
    return table(title, columns, [_removed_row(c) for c in shown], under)


def _level(comparison: Comparison) -> str:
    return f"{100 * comparison.ratio_confidence:.4g} %" if comparison.origin == "measured" else "simulation error"


def compared(review: Review, base: str | None) -> list[Comparison]:
    """The comparisons with ``base``, or all of them."""
    return [c for c in review.comparisons if base is None or c.base == base]


def _removed_row(comparison: Comparison) -> list[str]:
    removed = comparison.removed
    steps = comparison.breakeven_steps
    return [
        comparison.variant,
        comparison.base,
        *(fmt.difference(getattr(removed, name), removed.noise_us.get(name)) for name in type(removed).MEASUREMENTS),
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
    return table(plain(title), columns, rows)


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
    return table("Parts of ΔFT (ms per step, sign kept)", columns, rows)


def replay_table(review: Review) -> Table | None:
    """Isolated replay beside the step, per family, of the first variant that has it.  None when none was replayed."""
    variant = next((v for v in review.variants if v.replay), None)
    if variant is None:
        return None
    columns = (
        Column("family"), Column("unique ops", right=True), Column("failed", right=True),
        Column("hot / in situ", right=True), Column("leaf op µs", right=True),
        Column("launch above T_sys µs", right=True), Column("kernels matched by"),
    )  # fmt: skip
    rows = [
        [
            row.family, fmt.count(row.unique_ops), fmt.count(row.failed),
            *(MISSING if v is None else fmt.number(v) for v in (row.hot_over_in_situ, row.leaf_us, row.kt_fw_us)),
            ", ".join(f"{tier} {count}" for tier, count in row.tiers.items()) or MISSING,
        ]
        for row in variant.replay
    ]  # fmt: skip
    return table(plain(f"Isolated replay of {variant.name}, by family"), columns, rows)


def launch_table(review: Review) -> Table | None:
    """What a launch costs and how long it takes, by each way of measuring it.  None when none was measured."""
    calibration = review.machine.calibration
    path = calibration.launch_path
    rows = (
        ("T_sys: null kernel by Triton, traced", calibration.t_sys_us),
        ("T_sys: null kernel by a loop in C, traced", path.t_sys_bare_us),
        ("T_sys: untraced estimate, launch to flag less half a round trip", path.t_sys_untraced_us),
        ("launch to flag: until the host sees what the kernel wrote, untraced", path.flag_us),
        ("round trip: host to polling kernel to host", path.round_trip_us),
        ("launch call: null kernel behind others", path.queued_us),
        ("launch call: null kernel on an idle stream", path.idle_us),
        ("launch call: kernel with twelve arguments behind others", path.queued_arguments_us),
        ("launch call: null kernel behind others, through the CUDA runtime", path.queued_runtime_us),
    )
    measured = [(name, value) for name, value in rows if value is not None]
    if not measured:
        return None
    columns = (Column("what"), *(Column(title, right=True) for title in ("p5", "p50", "p95", "launches")))
    cells = [
        [name, fmt.number(v.p5), fmt.number(v.p50), fmt.number(v.p95), fmt.count(v.samples)] for name, v in measured
    ]
    return table("Launch path (µs)", columns, cells)


def graphs_table(review: Review) -> Table | None:
    """Dynamo's graphs and why capture ended in each.  None when there are none."""
    if not review.graphs:
        return None
    columns = (Column("graph"), Column("nodes", right=True), Column("source"), Column("break"))
    rows = [
        [g.compile_id, fmt.count(g.nodes), fmt.source(g.source), g.break_reason if g.break_reason else "none"]
        for g in review.graphs
    ]
    return table("Dynamo graphs", columns, rows)


def missing_notes(review: Review, base: str | None, nodes: Sequence[Node]) -> list[str]:
    """Why a shown value is ``–``: one line per reason, naming the columns and the variants it concerns.

    ``base`` and ``nodes`` say which comparisons and ops are shown; breakeven steps and families are shown with all
    comparisons.
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
            if variant.exposed is not None and variant.exposed.wall_us is None:
                labels, places = found.setdefault(variant.exposed.unmeasured["wall_us"], ({}, {}))
                labels["exposed"] = places[variant.name] = None
            if variant.breakdown is not None:
                note(variant.breakdown, variant.name)
                for family in variant.breakdown.ct_families if base is None else ():
                    note(family, f"{variant.name} {family.family}")
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
    """The review's own notes, how ΔCT was had where it was not timed directly, then the notes of its variants."""
    own = [*(plain(note) for note in review.notes), *source_notes(review)]
    return own + [plain(f"{variant.name}: {note}") for variant in review.variants for note in variant.notes]


def near_zero_note(tables: Sequence[Table]) -> list[str]:
    """What ``≈0`` means, when one of ``tables`` shows it."""
    shown = any(cell == fmt.NEAR_ZERO for table in tables for row in table.rows for cell in row)
    meaning = f"{fmt.NEAR_ZERO}: a negative cost or a change within the noise of what it is made of; the file keeps it"
    return [meaning] if shown else []


def page(review: Review, ops: int = 25) -> tuple[list[Table], list[str]]:
    """All tables and notes of a full page (markdown, html)."""
    optional = (
        generate_table(review), steps_table(review), removed_table(review), predicted_table(review),
        ops_table(review, ops), parts_table(review), exposed.exposed_table(review), exposed.waterfall_table(review),
        *exposed.costs_table(review, ops), families_table(review), calls_table(review), graphs_table(review),
        launch_table(review), replay_table(review),
    )  # fmt: skip
    tables = [variants_table(review), *(table for table in optional if table is not None)]
    notes = [HDBI_MEANING, TERMS_MEANING, *other_notes(review), *missing_notes(review, None, top_nodes(review, ops)[1])]
    notes += near_zero_note(tables)
    return tables, notes
