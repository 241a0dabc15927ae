"""The tables of a diff, as data and not yet escaped."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from taxbreak_fx.diff_types import Change, Diff, FindingChange, LineChange, RowChange, VariantState, Verdict
from taxbreak_fx.record import SourceLine
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.findings import cost, where
from taxbreak_fx.report.format import MISSING
from taxbreak_fx.report.tables import Column, Table, table

MAIN = (
    "launches", "graph_launches", "kernels", "memops", "t_wall_us", "t_host_us", "ft_us", "ct_us", "kt_us",
    "device_active_us", "hdbi",
)  # fmt: skip
MAX_NAME, MOST_NAMES = 60, 8  # characters of an op's name, and ops of a line
FEWEST_LINES = 3  # of each variant, however few rows there are for all
WITHIN = "within noise"
SAME = "same"
LIMIT = "within the limit"


def gates_table(verdicts: Sequence[Verdict]) -> Table | None:
    """One row per gate and variant, the failed ones first, those that pass alike in one.  None without gates."""
    if not verdicts:
        return None
    groups: dict[tuple[str, str, str], list[str | None]] = collections.defaultdict(list)
    for verdict in sorted(verdicts, key=lambda v: ("failed", "not judged", "passed").index(v.state)):
        why = LIMIT if verdict.state == "passed" and verdict.why.endswith(LIMIT) else verdict.why
        groups[verdict.gate, verdict.state, why].append(verdict.variant)
    columns = (Column("result"), Column("gate", flexible=True), Column("variant"), Column("why", flexible=True))
    rows = [
        ["FAILED" if state == "failed" else state, gate, _names(names), why]
        for (gate, state, why), names in groups.items()
    ]
    return table("Gates", columns, rows)


def _names(variants: list[str | None]) -> str:
    return variants[0] or "review" if len(variants) == 1 else f"{len(variants)} variants"


def variants_table(found: Diff) -> Table:
    """One row per variant: what it launches, and how long it takes, before and after."""
    columns = (
        Column("variant"), Column("launches"), Column("kernels"), Column("wall ms"), Column("wall"),
        Column("device ms", priority=5), Column("device", priority=4), Column("exposed ΔFT ms", priority=3),
    )  # fmt: skip
    known = {(change.variant, change.metric): change for change in found.changes}
    same = {clock.variant: SAME if clock.exact else WITHIN for clock in found.clocks}
    rows = [_variant_row(state, known, same.get(state.variant, WITHIN)) for state in found.variants]
    whole = table("Variants (base → head, per step)", columns, rows)
    return whole.select([i for i in range(len(columns)) if i == 0 or any(row[i] != MISSING for row in whole.rows)])


def _variant_row(state: VariantState, known: dict[tuple[str | None, str], Change], same: str) -> list[str]:
    if (state.base, state.head) != ("ok", "ok"):
        return [state.variant, f"{state.base} → {state.head}", *[MISSING] * 6]
    found = [known.get((state.variant, name)) for name in ("launches", "kernels", "t_wall_us", "device_active_us")]
    exposed = known.get((state.variant, "exposed.ft_us"))
    launches, kernels, wall, device = found
    return [
        state.variant, _counts(launches), _counts(kernels), _times(wall), _share(wall, same), _times(device),
        _share(device, same), _times(exposed),
    ]  # fmt: skip


def _counts(change: Change | None) -> str:
    if change is None or change.base is None or change.head is None:
        return MISSING
    before, after = round(change.base), round(change.head)
    return f"{before:,}" if before == after else f"{before:,} → {after:,} ({after - before:+,})"


def _times(change: Change | None) -> str:
    return MISSING if change is None else f"{fmt.ms(change.base)} → {fmt.ms(change.head)}"


def _share(change: Change | None, same: str) -> str:
    if change is None or change.delta is None:
        return MISSING
    if not change.real:
        return same
    return MISSING if change.relative is None else f"{100 * change.relative:+.1f} %"


def changes_table(found: Diff, all_main: bool) -> Table | None:
    """The metrics that changed beyond noise; with ``all_main`` also the main ones of every variant that changed.

    None where none did.
    """
    moved = {change.variant for change in found.changes if change.real}
    shown = [
        change
        for change in found.changes
        if change.real or (all_main and change.variant in moved and change.variant and change.metric in MAIN)
    ]
    if not shown:
        return None
    columns = (
        Column("variant"), Column("metric"), Column("base", right=True), Column("expected", right=True, priority=5),
        Column("noise", priority=3), Column("head", right=True), Column("change", right=True),
        Column("%", right=True), Column("real"),
    )  # fmt: skip
    exact: set[str | None] = {clock.variant for clock in found.clocks if clock.exact}
    return table("Terms (times in µs per step)", columns, [_change_row(change, exact) for change in shown])


def _change_row(change: Change, exact: set[str | None]) -> list[str]:
    name = change.metric.removesuffix("_bytes") if change.unit == "bytes" else change.metric
    return [
        change.variant or "review",
        name,
        _value(change, change.base),
        MISSING if change.expected is None else _value(change, change.expected.value),
        "exact" if change.variant in exact and change.expected is not None else _noise(change),
        _value(change, change.head),
        MISSING if change.delta is None else _signed(change, change.delta),
        MISSING if change.relative is None else f"{100 * change.relative:+.1f}",
        "*" if change.real else "",
    ]


def _noise(change: Change) -> str:
    if change.expected is None:
        return MISSING
    low, high = change.expected.low, change.expected.high
    if low == high:
        return "exact"
    # A term can be no less than nothing but by its own residual's noise: the file keeps the interval's end.
    shown = 0.0 if low < 0 and min(change.base or 0.0, change.head or 0.0) >= 0 else low
    return f"{_value(change, shown)} … {_value(change, high)}"


def _value(change: Change, value: float | None) -> str:
    if value is None:
        return MISSING
    if change.unit == "count":
        return fmt.count(round(value))
    if change.unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    return fmt.index(value) if change.unit == "index" else fmt.number(value)


def _signed(change: Change, value: float) -> str:
    text = _value(change, abs(value))
    return text if not value else f"{'+' if value > 0 else '-'}{text}"


def findings_table(changes: Sequence[FindingChange], top: int) -> Table | None:
    """New, fixed, then unsteady findings.  None where both reviews have the same."""
    if not changes:
        return None
    columns = (
        Column("state"), Column("severity"), Column("variant"), Column("where", flexible=True, keep="end"),
        Column("finding", flexible=True), Column("cost", flexible=True), Column("rule", detail=True),
        Column("fix", detail=True),
    )  # fmt: skip
    rows = [
        [c.state, f.severity, f.variant, where(f), f.title, cost(f), f.rule, f.fix]
        for c in changes[:top]
        for f in (c.finding,)
    ]  # fmt: skip
    under = list(_left(len(changes), top))
    if any(c.state == "unsteady" for c in changes):
        under.append(
            "unsteady: came or went although nothing that its variant runs has changed, nor a time beyond its noise"
        )
    return table("Findings", columns, rows, under)


def lines_table(found: Diff, top: int) -> Table | None:
    """The lines of the author's code whose ops changed, at most ``top`` of all variants.  None where none did.

    Every variant that has some shows its most costly ones.
    """
    groups: dict[str, list[LineChange]] = collections.defaultdict(list)
    for line in sorted(found.lines, key=lambda line: line.source is None):
        groups[line.variant].append(line)
    if not groups:
        return None
    each = max(FEWEST_LINES, top // len(groups))
    columns = (
        Column("variant"), Column("line", flexible=True, keep="end"), Column("what", flexible=True),
        Column("calls", right=True, priority=2), Column("launches", right=True), Column("kernels", right=True),
        Column("host µs", right=True), Column("device µs", right=True),
        Column("module", flexible=True, keep="end", priority=1),
    )  # fmt: skip
    rows = [
        [c.variant, fmt.source(c.source), _what(c), _count(c.calls), _count(c.launches), _count(c.kernels),
         _us(c.host_us), _us(c.device_us), c.module_path or MISSING]
        for lines in groups.values() for c in lines[:each]
    ]  # fmt: skip
    left = [
        f"… and {len(lines) - each} more lines of {name}: see --top and --format json"
        for name, lines in groups.items()
        if len(lines) > each
    ]
    return table("Lines (head − base per step; + added, − removed, ~ changed)", columns, rows, left)


def _what(line: LineChange) -> str:
    """Ops without namespace and overload."""
    signed = (("+", line.added), ("−", line.removed), ("~", line.changed))
    names = [f"{sign}{op.split('.')[1] if op.startswith('aten.') else op}" for sign, ops in signed for op in ops]
    shown = [fmt.clip(name, MAX_NAME) for name in dict.fromkeys(names)]
    return " ".join(shown[:MOST_NAMES]) + (f" … and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else "")


def rows_table(changes: Sequence[RowChange], top: int) -> Table | None:
    """The ops that were added, removed or run otherwise.  None where none was."""
    columns = (
        Column("variant"), Column("op", flexible=True), Column("module", flexible=True, keep="end"),
        Column("line", flexible=True, keep="end"), Column("state"), Column("calls", right=True),
        Column("launches", right=True), Column("kernels", right=True), Column("host µs", right=True),
        Column("device µs", right=True),
    )  # fmt: skip
    rows = [
        [c.variant, _short(c.op), c.module_path or MISSING, _moved(c.base_source, c.head_source),
         "changed" if c.presence == "both" else c.presence,
         _count(c.calls), _count(c.launches), _count(c.kernels), _us(c.host_us), _us(c.device_us)]
        for c in changes[:top]
    ]  # fmt: skip
    return table("Ops (head − base per step)", columns, rows, _left(len(changes), top)) if rows else None


def _left(number: int, top: int) -> Iterable[str]:
    return [f"… and {number - top} more: see --top and --format json"] if number > top else []


def _moved(base: SourceLine | None, head: SourceLine | None) -> str:
    text = fmt.source(head or base)
    return f"{text} (was {base.line})" if base and head and base.line != head.line else text


def _short(op: str) -> str:
    return op.removeprefix("aten.").removesuffix(".default")


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:+,}" if value else "0"


def _us(value: float | None) -> str:
    return MISSING if value is None else f"{'+' if value > 0 else ''}{fmt.number(value)}"
