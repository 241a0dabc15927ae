"""The text of ``taxbreak fusion``: groups and what they save, agreement with Inductor, and each way of capture."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence

from taxbreak_fx.capturable import NOT_PRICED, Blocker
from taxbreak_fx.fusion_agreement import Agreement, AgreementRow
from taxbreak_fx.nodes import folded
from taxbreak_fx.record import SourceLine
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, plain
from taxbreak_fx.report.tables import Column, Table, table
from taxbreak_fx.report.text import render
from taxbreak_fx.whatif_fusion import FusionWhatIf, LikeGroups, WayOfCapture
from taxbreak_fx.whatif_prices import Coverage

MIB = 2**20
ADD_UP = (
    "Launches, ΔFT, ΔCT, ΔKT and bytes add up over groups, since no op is in two. Exposed, the wall time saved, does "
    "not:\neach row, and the last, is simulated with all its groups fused at once. "
    "A CUDA graph removes the same launches."
)
SCORE = "score: of pairs of fusible ops of which one reads the other, the share that both fuse, or neither does"
OVERLAP = "overlap: of pairs that either puts into one kernel, directly or not, the share that both do"
UNSEEN = "unseen: ops of ours that no kernel of Inductor names (folded into constants, or rewritten)"
_LABELS = {"ft_us": "ΔFT", "ct_us": "ΔCT", "kt_us": "ΔKT"}
_FOLDERS = re.compile(r"\((?:[^()]*[/\\])?([^()/\\]+[/\\][^()/\\]+:\d+)\)")


def fusion_text(found: FusionWhatIf, top: int, width: int = 100) -> str:
    """The report, ending in a newline; ``top``: rows of like groups, of misses and of blockers that are shown."""
    parts = [_head(found), _groups(found, top, width), _agreement(found, top, width)]
    parts += [_captures(found, width), *(_blockers(way, top, width) for way in found.captures)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _head(found: FusionWhatIf) -> list[str]:
    recorded, step = found.recorded, found.recorded.step
    parts = [recorded.model, step.phase]
    parts += [f"batch {step.batch}"] if step.batch is not None else []
    parts += [f"sequence {step.seq_len}"] if step.seq_len is not None else []
    launches = sum(op.launches or 0 for op in found.grouped.ops)
    form = "as Dynamo captures it" if recorded.captured else "uncompiled"
    lines = [
        ", ".join([*parts, step.dtype]),
        f"what-if: nothing here was timed; torch {recorded.torch}, recorded on {step.device}",
        f"{len(found.grouped.ops):,} ops {form}, {launches:,} of them launches on a GPU",
    ]
    if recorded.captured is None:
        lines.append(f"no Dynamo graph ({recorded.not_captured}): the groups are of the uncompiled step")
    pricing = found.pricing
    if pricing is None:
        lines.append("not priced: give a measured review of this step by --review")
    else:
        machine = pricing.machine
        lines.append(f"prices: eager of a {pricing.origin} review, {machine.device}, torch {machine.torch}")
        lines += _coverage(pricing.captured or pricing.eager)
        kernel = pricing.kernel
        lines.append(
            "a fused kernel costs what the group's cheapest op does (the review has no Triton launches)"
            if kernel is None
            else f"a fused kernel costs ΔFT {fmt.microseconds(kernel.ft_us)}, ΔKT {fmt.microseconds(kernel.kt_us)}: "
            "the mean of the review's own Triton launches"
        )
    lines += [f"note: {note}" for note in (*recorded.notes, *found.grouped.notes)]
    return [plain(line) for line in lines]


def _coverage(reach: Coverage) -> list[str]:
    line = (
        f"priced: {reach.launching_priced:,} of {reach.launching:,} launching ops ({reach.priced:,} of {reach.ops:,} "
        f"in all); {reach.unused_rows} of {reach.rows} rows of the review ({fmt.ms(reach.unused_us)} ms) met no op here"
    )
    lacking = (*reach.unpriced.items(), *reach.missing_terms.items())
    return [line, *(f"{MISSING} {count:,} ops: {_labelled(reason)}" for reason, count in lacking)]


def _labelled(reason: str) -> str:
    """A reason with the report's name of a term in front, instead of the file's."""
    field, colon, rest = reason.partition(": ")
    return f"{_LABELS[field]}{colon}{rest}" if field in _LABELS else reason


def _groups(found: FusionWhatIf, top: int, width: int) -> list[str]:
    if not found.like:
        return ["No two ops of the step could be one kernel."]
    shown = found.like[:top]
    columns = (
        Column("#", right=True), Column("like", right=True), Column("source", flexible=True, keep="end"),
        Column("ops", right=True), Column("launches", right=True), Column("ΔFT", right=True), Column("ΔCT", right=True),
        Column("ΔKT", right=True), Column("exposed", right=True), Column("KiB", right=True), Column("ends at"),
    )  # fmt: skip
    cells = [
        [
            str(rank), f"{len(row.groups)}×", _first_source(row.sources), str(len(row.names)),
            f"{fmt.count(row.launches_before)} → {row.launches_after}", fmt.ms(row.ft_saved_us),
            fmt.ms(row.ct_saved_us), fmt.ms(row.kt_saved_us), fmt.ms(row.exposed_us), _kibibytes(row.bytes_saved),
            row.end,
        ]
        for rank, row in enumerate(shown, 1)
    ]  # fmt: skip
    sums = found.totals
    count, launches = len(found.fusion.groups), sums["launches_before"]
    cells.append(
        [
            "", f"{count}×", f"all {len(found.like)} rows", "",
            f"{fmt.count(None if launches is None else int(launches))} → {int(sums['launches_after'] or 0)}",
            *(fmt.ms(known.saved_us) for known in found.known.values()), fmt.ms(sums["exposed_us"]),
            _kibibytes(sums["bytes_saved"]), "",
        ]
    )  # fmt: skip
    lines = _section(
        table("Ops that one kernel could do, saved per step (ms; negative = added)", columns, cells), width
    )
    partly = {known.groups for known in found.known.values() if 0 < known.groups < count}
    if partly:
        lines.append(f"The last row's times are of the {min(partly)} of {count} groups that are priced.")
    lines.append(ADD_UP)
    if len(found.like) > top:
        lines.append(f"… and {len(found.like) - top} more rows: --top {len(found.like)}, or --json")
    if found.fusion.searches_cut:
        lines.append(f"{found.fusion.searches_cut} merges were not tried further: the search for a path grew too long")
    for rank, row in enumerate(shown, 1):
        lines += ["", *_described(rank, row, found)]
    return lines


def _described(rank: int, row: LikeGroups, found: FusionWhatIf) -> list[str]:
    names = collections.Counter(name.removeprefix("aten.") for name in row.names)
    ops = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in names.items())
    lines = [f"{rank}: {ops}", f"   in {', '.join(path or '(the model)' for path in row.module_paths) or MISSING}"]
    costs = {fmt.source(cost.source): cost for cost in found.lines}
    for source in dict.fromkeys(map(fmt.source, row.sources)):
        cost = costs.get(source)
        tail = (
            "" if cost is None else f"  exposed {fmt.ms(cost.exposed_us)} ms of wall time, the whole line in the step"
        )
        lines.append(f"   {source}{tail}")
    lines.append(f"   ends: {_short_paths(row.reason)}")
    if row.graphs > 1:
        lines.append(f"   reaches over {row.graphs} of Dynamo's graphs: only if the breaks between them are mended")
    for name, known in found.known.items():
        if known.groups and name in row.unmeasured:  # what no group has, the head explains
            lines.append(f"   {MISSING} {_LABELS[name.replace('_saved', '')]}: {row.unmeasured[name]}")
    return [plain(line) for line in lines]


def _agreement(found: FusionWhatIf, top: int, width: int) -> list[str]:
    result = found.agreement
    if result is None:
        return [plain(f"Inductor's own fusion: not compared ({found.recorded.not_compiled})")]
    relations = collections.Counter(row.relation for row in result.rows)
    cells = [[relation, f"{count:,}"] for relation, count in relations.most_common()]
    title = f"Agreement with the kernels Inductor makes of this step on {found.recorded.step.device}"
    lines = _section(table(plain(title), (Column("our group"), Column("groups", right=True)), cells), width)
    lines += [
        f"score {_share(result.score)} ({result.agreed:,} of {result.pairs:,} pairs), "
        f"overlap {_share(result.overlap)}, unseen {result.unseen:,}",
        SCORE, OVERLAP, UNSEEN,
    ]  # fmt: skip
    return lines + _missed(found, result, top, width)


def _missed(found: FusionWhatIf, result: Agreement, top: int, width: int) -> list[str]:
    rank_of = {index: rank for rank, row in enumerate(found.like, 1) for index in row.groups}
    rows: dict[tuple[str, ...], list[AgreementRow]] = collections.defaultdict(list)
    for row in result.rows:
        if row.reason is not None and row.group is not None:
            rows[str(rank_of[row.group]), row.relation, row.reason].append(row)
    if not rows:
        return []
    columns = (
        Column("#", right=True), Column("like", right=True), Column("source", flexible=True, keep="end"),
        Column("kernels", right=True), Column("reason"), Column("detail", flexible=True),
    )  # fmt: skip
    ordered = sorted(rows.items(), key=lambda item: int(item[0][0]))
    cells = [
        [rank, f"{len(same)}×", _first_source(found.like[int(rank) - 1].sources), str(len(same[0].kernels)), reason,
         same[0].detail]
        for (rank, _, reason), same in ordered[:top]
    ]  # fmt: skip
    lines = ["", *_section(table("Groups that Inductor makes several kernels of, or none", columns, cells), width)]
    return lines + ([f"… and {len(ordered) - top} more rows: --json"] if len(ordered) > top else [])


def _captures(found: FusionWhatIf, width: int) -> list[str]:
    columns = (
        Column("way of capture"), Column("whole"), Column("regions", right=True),
        Column("launches covered", right=True), Column("pool MiB", right=True), Column("blockers", right=True),
        Column("measured graph launches", right=True), Column("measured launches", right=True),
    )  # fmt: skip
    cells = []
    under = []
    for way in found.captures:
        measured = [fmt.count(way.graph_launches), fmt.count(way.launches)]
        if way.capture is None:
            cells.append([way.way, MISSING, MISSING, MISSING, MISSING, MISSING, *measured])
            under.append(f"{MISSING} {way.way}: {way.reason}")
            continue
        regions, blockers = way.capture.regions, way.capture.blockers
        stopping = sum(blocker.effect != "costs" for blocker in blockers)
        pool = fmt.number(sum(region.pool_bytes for region in regions) / MIB)
        whole = fmt.yes_no(way.capture.whole)
        cells.append([way.way, whole, str(len(regions)), _share(way.capture.covered), pool, str(stopping), *measured])
    lines = _section(table("CUDA graphs: what could be captured", columns, cells, under), width)
    return [*lines, "blockers: what splits the step or leaves a graph of Dynamo's un-graphed; pool: sum over regions"]


def _blockers(way: WayOfCapture, top: int, width: int) -> list[str]:
    if way.capture is None or not way.capture.blockers:
        return []
    rows: dict[tuple[str, ...], list[Blocker]] = collections.defaultdict(list)
    for blocker in way.capture.blockers:
        head = blocker.what.partition(":")[0] if blocker.kind not in ("mutated input", "graph break") else ""
        key = (blocker.kind, blocker.effect, head.partition(" ")[0], fmt.source(blocker.source))
        rows[*key, folded(blocker.module_path) or ""].append(blocker)
    columns = (
        Column("kind"), Column("effect"), Column("like", right=True), Column("source", flexible=True, keep="end"),
        Column("KiB", right=True), Column("keep", right=True), Column("removing", right=True),
        Column("what", flexible=True),
    )  # fmt: skip
    # What stops capture first, then what it costs.
    ordered = sorted(rows.values(), key=lambda same: same[0].effect == "costs")
    cells = [
        [
            same[0].kind, same[0].effect, f"{len(same)}×", fmt.source(same[0].source), _kib(same),
            fmt.ms(_per_step(same, "keep_us")), fmt.ms(_per_step(same, "removing_us")), _short_paths(same[0].what),
        ]
        for same in ordered[:top]
    ]  # fmt: skip
    shown = [blocker for same in ordered[:top] for blocker in same if blocker.effect != "costs"]
    reasons = dict.fromkeys(reason for blocker in shown for reason in blocker.unmeasured.values())
    reasons.pop(NOT_PRICED, None)  # the head says so once
    lines = _section(table(plain(f"{way.way}: blockers and costs (ms of host time per step)"), columns, cells), width)
    lines += [plain(f"{MISSING} keep, removing: {reason}") for reason in reasons]
    return lines + ([f"… and {len(ordered) - top} more rows: --json"] if len(ordered) > top else [])


def _section(rows: Table, width: int) -> list[str]:
    lines, dropped = render(rows, width)
    title = f"{rows.title}; no room for: {', '.join(dropped)}" if dropped else rows.title
    return [title, *(line.rstrip() for line in lines), *rows.under]


def _first_source(sources: Sequence[SourceLine]) -> str:
    if not sources:
        return MISSING
    return fmt.source(sources[0]) + (f" +{len(sources) - 1}" if len(sources) > 1 else "")


def _short_paths(text: str) -> str:
    return _FOLDERS.sub(r"(\1)", text)


def _kib(blockers: Iterable[Blocker]) -> str:
    known = [blocker.bytes for blocker in blockers if blocker.bytes is not None]
    return _kibibytes(sum(known) if known else None)


def _kibibytes(size: float | None) -> str:
    return MISSING if size is None else f"{size / 1024:,.0f}"


def _per_step(blockers: Iterable[Blocker], name: str) -> float | None:
    """The sum over ``blockers``; those that skip one graph each cost the whole of it, so it counts once."""
    values: dict[object, float | None] = {}
    for position, blocker in enumerate(blockers):
        values[("graph", blocker.graph) if blocker.effect == "skips" else position] = getattr(blocker, name)
    known = [value for value in values.values() if value is not None]
    return sum(known) if len(known) == len(values) else None


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"
