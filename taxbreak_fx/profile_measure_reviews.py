"""A hardware profile from reviews that were measured before, where no GPU is at hand to calibrate.

A review keeps times per op and line, not the inputs of its ops; those come from recording the same step on fake
tensors.  What reviews do not hold is null with a reason.  Pure functions, no torch.
"""

from __future__ import annotations

import collections
import contextlib
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from taxbreak_fx.errors import UsageError
from taxbreak_fx.hardware import (
    PROFILE_VERSION,
    CompiledCosts,
    DeviceCosts,
    FamilyGrid,
    FitStep,
    GraphPoint,
    LaunchCosts,
    Profile,
    PythonCosts,
)
from taxbreak_fx.hardware_costs import call_of
from taxbreak_fx.hardware_scale import on_host
from taxbreak_fx.kinds import site_op
from taxbreak_fx.machine import HostScore
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.nodes import folded
from taxbreak_fx.predicted import DryRun, FakeOp, FakeStep
from taxbreak_fx.profile_measure_draft import numbers, slug
from taxbreak_fx.profile_measure_fit import Row, family_costs, glue_costs, library_costs, line, op_costs
from taxbreak_fx.profile_measure_points import RowCall, device_grids, rated
from taxbreak_fx.record import Percentiles, SourceLine
from taxbreak_fx.timeline import QUEUE_DEPTH, launch_latency
from taxbreak_fx.variant_record import Node

# A variant whose clocked pieces miss its T_issue by more than this (and 10 µs) gives no host times: docs/method.md.
CLOSES, CLOSES_US = 0.02, 10.0
_NOT_HELD = "a review does not hold it: calibrate on the machine"


class Source(NamedTuple):
    """A measured review with the same step on fake tensors, and as Inductor would launch it (None: not planned)."""

    review: Review
    step: FakeStep
    plan: DryRun | None


def profile_of_reviews(sources: Sequence[Source], name: str | None) -> Profile:
    """The profile that the reviews' own times make, named ``name`` or after the device; its machine is the first's.

    Raises ``UsageError`` as ``check_reviews`` does.
    """
    check_reviews([source.review for source in sources])
    reasons: dict[str, str] = {"device.attention": _NOT_HELD}
    notes = [f"from reviews: {', '.join(title(source.review) for source in sources)}"]
    host_score = _score(sources)
    if host_score is None:
        reasons["host_score"] = "the reviews hold none, or of several versions: review again, or calibrate"
    else:
        notes.append(f"host times are those of a host whose reference workload takes {host_score.us:.0f} µs")
        sources = [_at_speed(source, host_score.us, notes) for source in sources]
    calls = {id(source): _calls(source) for source in sources}
    rows, fit_steps = [], []
    for source in sources:
        eager = source.review.variant("eager")
        if not _closes(eager):
            notes.append(f"{title(source.review)}, eager: no host times, its pieces do not add up to its T_issue")
            continue
        rows += [row for call in calls[id(source)] if (row := _row(source.step, call)) is not None]
        fit_steps.append(_fit_step(source))
    ops, left_out = op_costs(rows)
    grids = device_grids([call for source in sources for call in calls[id(source)]], notes)
    machine = sources[0].review.machine
    return Profile(
        profile_version=PROFILE_VERSION,
        name=name or slug(machine),
        origin="measured",
        date=machine.date,
        machine=machine,
        host_score=host_score,
        launch=numbers(LaunchCosts, "launch", _launch(sources, notes, reasons), reasons),
        graphs=tuple(_graphs(sources)),
        ops=tuple(ops),
        families=tuple(family_costs(ops)),
        libraries=tuple(library_costs(ops)),
        python=numbers(PythonCosts, "python", _glue(fit_steps, reasons), reasons, _NOT_HELD),
        fit_steps=tuple(fit_steps),
        compiled=numbers(CompiledCosts, "compiled", _compiled(sources, notes), reasons, _NOT_HELD),
        device=_device(grids, reasons, notes),
        notes=tuple(notes),
        unmeasured=reasons | left_out,
    )


def _score(sources: Sequence[Source]) -> HostScore | None:
    """The middle score of the hosts; None where no review holds one, or they are of several versions."""
    scores = [source.review.machine.calibration.host_reference for source in sources]
    known = [score for score in scores if score is not None]
    if len({score.version for score in known}) != 1:
        return None
    return HostScore(version=known[0].version, us=statistics.median(score.us for score in known))


def _at_speed(source: Source, us: float, notes: list[str]) -> Source:
    """The source with the host times that a profile is made of as a host would have them whose score is ``us``.

    By each variant's own score, before schema 2.5 by the review's; without either as they are, with a note.
    """
    review = source.review
    score = review.machine.calibration.host_reference
    if score is None:
        notes.append(f"{title(review)}: holds no host score, its host times are as measured")
        return source
    variants = [
        on_host(variant, us / (variant.host_reference_us or score.us)) if variant.status == "ok" else variant
        for variant in review.variants
    ]
    return source._replace(review=msgspec.structs.replace(review, variants=variants))


def check_reviews(reviews: Sequence[Review]) -> None:
    """Raise ``UsageError`` unless all are measured on one CUDA device, with eager among their variants."""
    for review in reviews:
        if review.origin != "measured" or review.scope != "step" or review.step.device != "cuda":
            raise UsageError(f"{title(review)}: a profile needs reviews of whole steps, measured on a CUDA device")
        if not any(v.name == "eager" and v.status == "ok" for v in review.variants):
            raise UsageError(f"{title(review)}: eager was not measured; a profile cannot be made of it")
    devices = sorted({f"{review.machine.device} under {review.machine.host_cpu}" for review in reviews})
    if len(devices) != 1:
        raise UsageError(f"a profile is of one machine, these reviews are of: {', '.join(devices) or 'none'}")


def title(review: Review) -> str:
    """Model, phase and date of a review."""
    return f"{review.model} {review.step.phase} ({review.machine.date[:10]})"


def _closes(variant: Variant) -> bool:
    breakdown = variant.breakdown
    if breakdown is None or breakdown.closure_error is None or variant.issue_us is None:
        return False
    return abs(breakdown.closure_error) <= max(CLOSES, CLOSES_US / variant.issue_us)


def _key(op: str, source: SourceLine | None, module_path: str | None) -> tuple[Any, ...]:
    """By what a review groups its rows; of the file its name only, since it lies elsewhere on another machine."""
    where = (os.path.basename(source.file), source.line) if source is not None else None
    return op, where, folded(module_path)


def _calls(source: Source) -> list[RowCall]:
    """The sites of the fake step that the review has a row for."""
    nodes = {_key(n.op, n.source, n.module_path): n for n in source.review.variant("eager").nodes}
    launching: dict[int | None, list[FakeOp]] = collections.defaultdict(list)
    for op in source.step.ops:
        if op.device == "cuda" and op.kernels != 0:
            launching[op.site].append(op)
    return [
        RowCall(index, node, tuple(launching[index]))
        for index, site in enumerate(source.step.sites)
        if (node := nodes.get(_key(site_op(site), site.source, site.module_path))) is not None
    ]


def _row(step: FakeStep, call: RowCall) -> Row | None:
    node, count = call.node, call.node.count
    if node.ft_us is None:
        return None
    ct_us = None if node.ct_us is None else node.ct_us / count
    kernels = None if node.kernels is None else node.kernels / count
    return Row(call_of(step.sites[call.site]), node.ft_us / count, ct_us, kernels)


def _fit_step(source: Source) -> FitStep:
    review, step = source.review, source.step
    eager = review.variant("eager")
    assert eager.breakdown is not None and eager.t_host_us is not None  # it closes
    glue = eager.breakdown.ft_parts.get("python", 0.0)
    host = eager.t_host_us.median
    return FitStep(
        name=title(review),
        sites=len(step.sites),
        modules=step.modules,
        functions=step.functions,
        host_us=host,
        sites_us=max(0.0, host - (eager.t_wait_us or 0.0) - glue),
        glue_us=max(0.0, glue),
    )


def _glue(steps: Sequence[FitStep], reasons: dict[str, str]) -> dict[str, float]:
    try:
        glue = glue_costs(steps)
    except ValueError as error:
        reasons["python"] = str(error)
        return {}
    names = {"site_glue_us": glue.site_us, "module_glue_us": glue.module_us, "function_glue_us": glue.function_us}
    return names | {"glue_error": glue.error}


def _device(grids: Sequence[FamilyGrid], reasons: dict[str, str], notes: list[str]) -> DeviceCosts:
    if not grids:
        reasons["device"] = "no row of the reviews has device times"
        return DeviceCosts()
    for name in ("read_gb_s", "write_gb_s", "l2_bytes", "memory_bytes"):
        reasons[f"device.{name}"] = _NOT_HELD
    notes.append("bandwidth, matrix rates and the shortest kernel are the best that a call of the reviews reached")
    return rated(grids)


def _launch(sources: Sequence[Source], notes: list[str], reasons: dict[str, str]) -> dict[str, float]:
    calibrations = [source.review.machine.calibration for source in sources]
    paths = [calibration.launch_path for calibration in calibrations]

    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    found = {
        "launch_us": middle(c.launch_us for c in calibrations),
        "idle_us": middle(_p50(path.idle_us) for path in paths),
        "t_sys_us": middle(_p50(path.t_sys_untraced_us) for path in paths),
        "t_sys_traced_us": middle(_p50(calibration.t_sys_us) for calibration in calibrations),
        "queue_depth": QUEUE_DEPTH,
    }
    if found["t_sys_us"] is not None and found["idle_us"] is not None:
        found["latency_us"] = launch_latency(found["t_sys_us"], found["idle_us"])
    eager = [v for source in sources if _closes(v := source.review.variant("eager"))]
    launched = [(v.launch_us, v.launches) for v in eager if v.launch_us is not None and v.launches]
    if launched:
        found["context_us"] = sum(us for us, _ in launched) / sum(count for _, count in launched)
    reasons["launch.memop_us"] = _NOT_HELD
    path = [calibration.device_path for calibration in calibrations]
    known = {name: middle(getattr(one, name) for one in path) for name in ("gap_us", "graph_gap_us", "sync_us")}
    known["idle_sync_us"] = middle(_p50(one.idle_sync_us) for one in path)
    if None in known.values():  # reviews before schema 2.1 hold none of them
        known = _fitted_gaps(sources, notes, reasons)
    elif (own := middle(_node_gaps(sources))) is not None:
        known["graph_gap_us"] = own
    return {key: value for key, value in (found | known).items() if value is not None}


def _node_gaps(sources: Sequence[Source]) -> Iterable[float]:
    """What lies between the nodes of each variant's own graphs: mostly more than between null kernels."""
    for source in sources:
        for variant in source.review.variants:
            if variant.graph_launches and variant.exposed is not None and "graph_gap_us" in variant.exposed.floors_us:
                yield variant.exposed.floors_us["graph_gap_us"]


def _fitted_gaps(sources: Sequence[Source], notes: list[str], reasons: dict[str, str]) -> dict[str, float | None]:
    """g and s by what steps in one CUDA graph have beyond their pieces, a line over their nodes."""
    reasons["launch.idle_sync_us"] = _NOT_HELD
    try:
        sync_us, gap_us = line([gap for source in sources for gap in _gaps(source.review)])
    except ValueError as error:
        for name in ("sync_us", "graph_gap_us", "gap_us"):
            reasons[f"launch.{name}"] = f"too few CUDA graphs in the reviews: {error}"
        return {}
    notes.append("gap_us is that between nodes of CUDA graphs; between kernels of a stream it may be more")
    return {"sync_us": sync_us, "graph_gap_us": gap_us, "gap_us": gap_us}


def _p50(values: Percentiles | None) -> float | None:
    return None if values is None else values.p50


def _gaps(review: Review) -> Iterable[tuple[float, float]]:
    """(gaps between nodes, what T_wall has beyond host, first node and device) of a step that is one graph launch."""
    for variant, nodes in _graph_steps(review):
        breakdown = variant.breakdown
        assert breakdown is not None and breakdown.kt_us is not None and variant.launch_us is not None
        if variant.t_wall_us is None or variant.t_host_us is None or variant.device_active_us is None:
            continue
        wrapper = variant.t_host_us.median - variant.launch_us
        yield nodes - 1, variant.t_wall_us.median - wrapper - breakdown.kt_us - variant.device_active_us


def _graph_steps(review: Review) -> Iterable[tuple[Variant, int]]:
    for variant in review.variants:
        if variant.name != "eager-graph" or variant.status != "ok" or variant.launches != 1:
            continue
        known = variant.breakdown is not None and variant.breakdown.kt_us is not None
        if variant.launch_us is not None and variant.kernels and known:
            yield variant, variant.kernels + (variant.memops or 0)


def _graphs(sources: Sequence[Source]) -> list[GraphPoint]:
    """The line through the graphs' launches at the fewest and the most nodes met: single ones differ by the copies
    among their nodes, and must not set the slope beyond them.  The launches themselves where they do not grow."""
    met: list[tuple[int, float, float]] = []
    for source in sources:
        for variant, nodes in _graph_steps(source.review):
            assert variant.launch_us is not None and variant.breakdown is not None
            assert variant.breakdown.kt_us is not None
            met.append((nodes, variant.launch_us, variant.breakdown.kt_us))
    try:
        host, first = line([(nodes, us) for nodes, us, _ in met]), line([(nodes, us) for nodes, _, us in met])
    except ValueError:
        return [GraphPoint(nodes=nodes, host_us=us, first_node_us=start) for nodes, us, start in sorted(met)]
    return [
        GraphPoint(nodes=at, host_us=host[0] + host[1] * at, first_node_us=first[0] + first[1] * at)
        for at in (min(met)[0], max(met)[0])
    ]


def _compiled(sources: Sequence[Source], notes: list[str]) -> dict[str, float]:
    """Medians over the steps; guards by their number where the plan tells it and it differs between steps."""
    values: dict[str, list[float]] = collections.defaultdict(list)
    guards: list[tuple[float, float]] = []
    trees: list[float] = []
    for source in sources:
        for variant in source.review.variants:
            if variant.name not in ("inductor", "reduce-overhead") or variant.breakdown is None:
                continue
            if not _closes(variant):
                continue
            parts = variant.breakdown.ft_parts
            if variant.name == "reduce-overhead":
                if "cudagraph_runtime" in parts and variant.graph_launches:
                    trees.append((parts["cudagraph_runtime"] + parts.get("aot_wrapper", 0.0)) / variant.graph_launches)
                continue
            graphs = len(source.review.graphs) or 1
            values["frame_us"].append(parts.get("frame", 0.0) / graphs)
            values["aot_us"].append(parts.get("aot_wrapper", 0.0) / graphs)
            values["guards_us"].append(parts.get("guards", 0.0) / graphs)
            planned = sum(graph.guards or 0 for graph in source.plan.graphs) if source.plan is not None else 0
            if planned:
                guards.append((planned / graphs, parts.get("guards", 0.0) / graphs))
            _wrapper(variant, values)
    found = {name: statistics.median(of) for name, of in values.items()}
    if values:
        found |= {"guard_us": 0.0, "triton_argument_us": 0.0}
        notes.append("Triton's launcher at its mean over the reviews' launches, whatever their arguments")
    with contextlib.suppress(ValueError):  # else the median stands, whatever the number of guards
        found["guards_us"], found["guard_us"] = line(guards)
    if trees and "aot_us" in found:
        found |= {"cudagraph_us": statistics.median(trees) - found["aot_us"], "cudagraph_input_us": 0.0}
        notes.append("CUDA graph trees at their median over the reviews, input copies included")
    return found


def _wrapper(variant: Variant, values: dict[str, list[float]]) -> None:
    """Means per line of Inductor's wrapper code, by kind of line."""
    assert variant.breakdown is not None
    kinds: dict[str, list[Node]] = collections.defaultdict(list)
    for node in variant.nodes:
        if node.op.startswith("triton:"):
            kinds["triton_us"].append(node)
        elif node.op.startswith("extern:"):
            kinds["extern_us"].append(node)
        elif "empty_strided" in node.op:
            kinds["allocation_us"].append(node)
    lines = sum(node.count for nodes in kinds.values() for node in nodes)
    for name, nodes in kinds.items():
        known = [node for node in nodes if node.ft_us is not None]
        if known:
            values[name].append(sum(node.ft_us or 0.0 for node in known) / sum(node.count for node in known))
    if lines and "wrapper" in variant.breakdown.ft_parts:
        values["wrapper_us"].append(variant.breakdown.ft_parts["wrapper"] / lines)
