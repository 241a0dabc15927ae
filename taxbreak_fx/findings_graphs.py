"""Rules on what Dynamo and CUDA graphs could not take in one piece: breaks, recompiles, graphs left out, copies."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence

import msgspec

from taxbreak_fx.breakdown_timeline import AROUND, BETWEEN
from taxbreak_fx.findings_host import waits
from taxbreak_fx.findings_rule import Saving, Seen, file_name, place, rule
from taxbreak_fx.findings_scene import ONE_THREAD, Cost, Scene
from taxbreak_fx.model import GraphInfo, Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.timeline import Work, simulate
from taxbreak_fx.variant_record import GraphSkip

# torch._dynamo.config.recompile_limit, its default in torch 2.11 to 2.13: after so many the frame runs uncompiled.
RECOMPILE_LIMIT = 8
# Launches that stay beside a CUDA graph are its own (the seed of random numbers, an input's copy) up to so many, or to
# this share of the kernels: the committed reviews that are whole have 1 to 5 of 104 to 1,448.
OWN_LAUNCHES = 8
OUTSIDE_SHARE = 0.05
# Copies that a graph makes of its inputs; fewer are its real inputs (token, position, mask, cache index).
OWN_COPIES = 16
_GRAPHED = ("reduce-overhead", "cudagraphs", "eager-graph")
_COPY = "Memcpy DtoD"
_NO_REASON = "Inductor gives no reason here (nor does code from its cache)"
_PARTS = ("guards", "frame", "guards_and_frame", "aot_wrapper", "cudagraph_runtime")


@rule("graph-break", "Dynamo breaks the graph")
def graph_break(scene: Scene) -> Iterator[Seen]:
    """One finding per line and reason."""
    graphs = scene.review.graphs
    variant = _compiled(scene)
    broken: dict[tuple[str, int, str], list[GraphInfo]] = collections.defaultdict(list)
    for graph in graphs:
        if graph.break_reason is not None:
            line = graph.source.line if graph.source is not None else 0
            broken[file_name(graph.source), line, _head(graph.break_reason)].append(graph)
    for (_, _, head), ended in broken.items():
        if variant is None:
            return
        share = len(ended) / len(graphs)
        evidence = [
            f"{len(ended)} of {len(graphs)} graphs end here: {ended[0].break_reason}",
            *_against(scene, variant),
        ]
        parts = {} if variant.breakdown is None else variant.breakdown.ft_parts
        around = {name: us for name, us in parts.items() if name in _PARTS}
        if around:
            listed = ", ".join(f"{name} {us:,.0f} µs" for name, us in around.items())
            evidence.append(f"around the graphs of {variant.name}, {variant.origin}: {listed}")
        yield Seen(
            variant,
            _around(scene, variant, sum(around.values()) if around else None, share),
            evidence,
            _mend_break(ended[0].break_reason or ""),
            "high",
            ended[0].source or ended[0].frame,
            op=head,
            keep=True,
        )


def _compiled(scene: Scene) -> Variant | None:
    """The first variant that Dynamo compiled; graphs and their breaks are its."""
    return next((v for v in scene.variants if v.prediction is None and v.name not in ("eager", "eager-graph")), None)


def _around(scene: Scene, variant: Variant, host_us: float | None, share: float) -> Cost:
    """What surrounds the graphs of a variant, by a share of the graphs."""
    host = None if host_us is None else host_us * share
    if not scene.on_device:
        return Cost(exposed_us=host, host_us=host, why="not measured", basis=ONE_THREAD)
    exposed = variant.exposed
    if exposed is None or exposed.wall_us is None:
        return Cost(host_us=host, why=_why(scene, variant))
    found = next((family for family in exposed.families if family.name == AROUND), None)
    if found is None:
        return Cost(host_us=host, why="the timeline has nothing around its graphs")
    basis = f"simulated without what surrounds the graphs, {share:.0%} of it"
    return Cost(exposed_us=found.exposed_us * share, host_us=host, basis=basis)


def _why(scene: Scene, variant: Variant) -> str:
    found = scene.timeline(variant)
    return found if isinstance(found, str) else "not simulated"


def _head(reason: str) -> str:
    """What a break is called: Dynamo's words before it explains."""
    return re.split(r" Explanation:| Hint:|[.:] ", reason)[0][:80]


def _mend_break(reason: str) -> str:
    hint = re.search(r"Hint: (.+?)(?: Hint:| Developer debug context:|$)", reason)
    if "Dynamic shape operator" in reason or "dynamic output shape" in reason:
        return (
            "keep sizes fixed (mask instead of selecting), or let Dynamo trace it: "
            "torch._dynamo.config.capture_dynamic_output_shape_ops = True"
        )
    if hint is not None:
        return f"Dynamo's hint: {hint.group(1)}"
    if "item" in reason or "branch" in reason:
        return "select with torch.where instead of branching on a tensor's value; torch.cond where both sides are large"
    return "move the call that breaks out of the step; torch.compile(fullgraph=True) names every other one"


def _against(scene: Scene, variant: Variant) -> list[str]:
    found = scene.comparison("eager", variant.name)
    if found is None or found.wall_ratio is None:
        return []
    return [f"{variant.name} against eager: {found.verdict}, T_wall × {found.wall_ratio.median:.2f}"]


@rule("recompile", "Dynamo compiles the same function again and again")
def recompile(scene: Scene) -> Iterator[Seen]:
    """One finding per frame that was compiled more than once."""
    variant = _compiled(scene)
    frames: dict[str, list[GraphInfo]] = collections.defaultdict(list)
    for graph in scene.review.graphs:
        frames[graph.compile_id.split("/")[0]].append(graph)
    for frame, graphs in frames.items() if variant is not None else ():
        if len(graphs) < 2 or variant is None:
            continue
        reasons = list(dict.fromkeys(g.recompile_reason for g in graphs if g.recompile_reason is not None))
        limited = len(graphs) >= RECOMPILE_LIMIT
        unsteady = [note for v in scene.variants for note in v.notes if "Recompilation triggered" in note][:1]
        evidence = [
            f"frame {frame} was compiled {len(graphs)} times, {sum(g.nodes for g in graphs)} ops in all",
            *(f"guard that failed: {reason}" for reason in reasons[:3]),
        ]
        if limited:
            evidence.append(
                f"{RECOMPILE_LIMIT} is torch's recompile_limit: calls that none of these graphs fits run uncompiled"
            )
        evidence += ["steps still recompile after warm-up, which Dynamo reports" for _ in unsteady]
        source = next((g.recompile_source for g in graphs if g.recompile_source), None)
        source = source or next((g.frame or g.source for g in graphs if g.frame or g.source), None)
        parts = {} if variant.breakdown is None else variant.breakdown.ft_parts
        paid = limited or bool(unsteady)
        guards = parts.get("guards_and_frame", parts.get("guards")) if paid else None
        cost = (
            _around(scene, variant, guards, len(graphs) / len(scene.review.graphs))
            if paid
            else Cost(why="compiling is paid once; only the guards of further graphs are paid per step")
        )
        yield Seen(
            variant,
            cost,
            evidence,
            _mend_recompile(reasons, limited),
            "high",
            source,
            op="recompile",
            keep=True,
            title="Dynamo gives up on a function after too many recompiles" if limited else None,
        )


def _mend_recompile(reasons: Sequence[str], limited: bool) -> str:
    text = " ".join(reasons)
    if "size mismatch" in text or "stride mismatch" in text:
        return "mark the size that varies with torch._dynamo.mark_dynamic, or pad inputs to a few fixed sizes"
    if "integer attribute" in text:
        return (
            "a module's integer (a layer index, say) is part of the compiled code: keep it in a tensor, or set "
            "torch._dynamo.config.allow_unspec_int_on_nn_module = True"
        )
    if limited and not reasons:
        return (
            "what differs between the calls (often a layer index that graph breaks turn into an argument) must not be "
            "guarded: mend the graph break first; TORCH_LOGS=recompiles names the guard"
        )
    return "make what differs between the calls a tensor, or the same; TORCH_LOGS=recompiles names every guard"


@rule("cudagraph-skipped", "Work that a CUDA graph should hold runs outside of one")
def cudagraph_skipped(scene: Scene) -> Iterator[Seen]:
    """Per reason that Inductor gives; one for all variants whose launches stay outside without a reason of its."""
    failed = [
        v for v in scene.review.variants
        if v.name in _GRAPHED and v.status == "failed" and "captur" in (v.reason or "").lower()
    ]  # fmt: skip
    silent = []
    for variant in scene.variants:
        if variant.name not in _GRAPHED or variant.prediction is not None or variant.launches is None:
            continue
        graphs, outside = variant.graph_launches or 0, _outside(variant)
        partial = outside > max(OWN_LAUNCHES, OUTSIDE_SHARE * (variant.kernels or 0))
        for head, skips in _by_reason(variant.graph_skips).items():
            partition = skips[0].partition
            said = [f"Inductor: {skip.reason}" + (f" at {place(skip.source)}" if skip.source is not None else "")
                    for skip in skips[:5]]  # fmt: skip
            said += [f"{len(skips)} ops run between graphs for this reason"] if partition else []
            yield Seen(
                variant,
                _cost_outside(scene, variant),
                [*said, *_beside(scene, variant)],
                _mend_skip(skips[0].reason),
                "high",
                next((skip.source for skip in skips if skip.source is not None), None),
                op=head,
                keep=True,
                title=_title(graphs, partition),
            )
        if not variant.graph_skips and (partial or graphs != 1):
            silent.append(variant)
    if silent or failed:
        worst = max(silent, key=_outside, default=None)
        source, said = _blocker(scene)
        yield Seen(
            worst or failed[0],
            _cost_outside(scene, worst) if worst is not None else Cost(why="the variant did not run"),
            [*said, *([_NO_REASON] if silent else []), *(t for variant in silent for t in _beside(scene, variant)),
             *(f"{variant.name} failed: {variant.reason}" for variant in failed)],
            _mend_skip(""),
            "high" if source is not None else "medium",
            source,
            op="graph",
            keep=True,
            title="The step cannot be captured as one CUDA graph" if worst is None else _title(
                worst.graph_launches or 0, partition=False
            ),
            key="outside",
        )  # fmt: skip


def _by_reason(skips: Sequence[GraphSkip]) -> dict[str, list[GraphSkip]]:
    """Skips by the kind of their reason, without the input or op that it names."""
    found: dict[str, list[GraphSkip]] = collections.defaultdict(list)
    for skip in skips:
        found[re.split(r"[(:]", skip.reason)[0].strip()[:60]].append(skip)
    return found


def _title(graphs: int, partition: bool) -> str | None:
    if not graphs:
        return "Nothing was graphed: the variant runs without a CUDA graph"
    return "A CUDA graph is split here" if partition else None


def _outside(variant: Variant) -> int:
    """Launches of a graphed variant that are no graph's."""
    return (variant.launches or 0) - (variant.graph_launches or 0)


def _blocker(scene: Scene) -> tuple[SourceLine | None, list[str]]:
    """The line that keeps the step from one graph, where Inductor names none: a wait of the host, else a break."""
    nodes = [node for node in scene.base.nodes if waits(node)] if scene.base is not None else []
    if nodes:
        worst = max(nodes, key=lambda node: scene.host_us(node) or 0.0)
        return worst.source, [f"a graph cannot hold a wait of the host, and the step waits at {place(worst.source)}"]
    broken = next((graph for graph in scene.review.graphs if graph.break_reason is not None), None)
    if broken is not None:
        return broken.source, [
            f"the step is not one graph: {_head(broken.break_reason or '')} at {place(broken.source)}"
        ]
    return None, []


def _cost_outside(scene: Scene, variant: Variant) -> Cost:
    """Launches outside of graphs at what a launch call costs; exposed: without the host time at those launches."""
    host = None if scene.launch_us is None else _outside(variant) * scene.launch_us
    timeline = scene.timeline(variant)
    if isinstance(timeline, str):
        return Cost(host_us=host, why=timeline)
    return Cost(exposed_us=scene.exposed_launches_us(timeline), host_us=host, basis="simulated without those calls")


def _beside(scene: Scene, variant: Variant) -> list[str]:
    """What a graphed variant launches, and how it stands against the one that is not graphed."""
    told = [f"{variant.name}: {variant.graph_launches} graph launches, {_outside(variant)} launches outside of them, "
            f"{variant.kernels} kernels per step"]  # fmt: skip
    against = {"reduce-overhead": "inductor", "cudagraphs": "dynamo", "eager-graph": "eager"}[variant.name]
    found = scene.comparison(against, variant.name) or scene.comparison("eager", variant.name)
    if found is not None and found.wall_ratio is not None:
        told.append(f"{variant.name} against {found.base}: {found.verdict}, T_wall × {found.wall_ratio.median:.2f}")
    return told


def _mend_skip(reason: str) -> str:
    if "mutated input" in reason:
        return "keep what is written at one address: torch._dynamo.mark_static_address, or a buffer of the model"
    if "cpu" in reason:
        return "make that tensor on the device: a CUDA graph holds no work of the CPU"
    if "dynamic" in reason or "unbacked" in reason:
        return "fix the size, or pad to a few: every new size is captured anew, and one from data cannot be captured"
    if "DeviceCopy" in reason:
        return "copy to or from the device before or after the step"
    return "take waits of the host and graph breaks out of the step; TORCH_LOGS=cudagraphs names each op"


@rule("parameter-copies", "Parameters are copied into the CUDA graph at every step")
def parameter_copies(scene: Scene) -> Iterator[Seen]:
    """A graphed variant that makes many more device copies than any variant that is not graphed."""
    for variant in scene.variants:
        device = copied_us(scene, variant)
        if device is None:
            continue
        host, spared = _without_copies(scene, variant)
        saved = {"device_us": device} | ({} if spared is None else {"wall_us": spared})
        copies = sum(node.count for node in variant.nodes if node.op.startswith(_COPY))
        yield Seen(
            variant,
            Cost(spared, host, device, _why(scene, variant), "simulated without the copies and the code before each"),
            [
                f"{variant.name} makes {variant.memops} device copies and fills per step, un-graphed variants at most "
                f"{_plain_memops(scene)}; {copies} of them device to device",
                *_beside(scene, variant)[1:],
                *_others(scene, variant),
            ],
            "use mode='reduce-overhead', whose graphs read parameters in place; with backend='cudagraphs' call "
            "torch._dynamo.mark_static_address on the parameters",
            "high",
            op=_COPY,
            source=next((graph.frame for graph in scene.review.graphs if graph.frame is not None), None),
            saving=Saving(saved, "predicted"),
        )


def _without_copies(scene: Scene, variant: Variant) -> tuple[float | None, float | None]:
    """Host time of the copies outside recorded calls, with that of the code before each, and what T_wall loses without
    both and without the copies; None without a timeline."""
    timeline = scene.timeline(variant)
    if isinstance(timeline, str):
        return None, None
    items, host = list(timeline.items), 0.0
    for index, item in enumerate(items):
        if not (isinstance(item.action, Work) and item.action.kind == "memop" and item.source is None):
            continue
        leading = index and items[index - 1].family == BETWEEN and items[index - 1].action is None
        for at in (index - 1, index) if leading else (index,):
            one = items[at]
            host += one.ft_us + one.ct_us + one.launch_us
            items[at] = msgspec.structs.replace(one, ft_us=0.0, ct_us=0.0, launch_us=0.0, action=None)
    changed = msgspec.structs.replace(timeline, items=tuple(items))
    return host, simulate(timeline).wall_us - simulate(changed).wall_us


def copied_us(scene: Scene, variant: Variant) -> float | None:
    """Device time of the copies that a graphed variant makes beyond those of the step; None where they are few."""
    plain = _plain_memops(scene)
    if variant.name not in _GRAPHED or variant.memops is None or plain is None or not variant.graph_launches:
        return None
    copies = [node for node in variant.nodes if node.op.startswith(_COPY)]
    many = variant.memops - plain >= OWN_COPIES
    return sum(node.device_us or 0.0 for node in copies) if copies and many else None


def _plain_memops(scene: Scene) -> int | None:
    """The most copies and fills of a variant that is not graphed."""
    return max((v.memops for v in scene.variants if v.name not in _GRAPHED and v.memops is not None), default=None)


def _others(scene: Scene, variant: Variant) -> list[str]:
    graphed = [v for v in scene.variants if v.name in _GRAPHED and v is not variant and v.graph_launches == 1]
    return [f"{v.name} of the same step: {v.memops} copies, {v.device_active_us:,.0f} µs device against "
            f"{variant.device_active_us:,.0f}" for v in graphed
            if v.device_active_us is not None and variant.device_active_us is not None]  # fmt: skip
