"""Rules on variants as wholes: one that makes the step worse, one that lost a fast attention kernel, a busy device."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping

from taxbreak_fx.compare import LEAST_EFFECT, UNCHANGED, wall_at_speed_of
from taxbreak_fx.findings_graphs import copied_us
from taxbreak_fx.findings_rule import Saving, Seen, file_name, place, rule
from taxbreak_fx.findings_scene import Cost, Scene, kernels, short
from taxbreak_fx.model import Comparison, Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.variant_record import Node

# More kernels or device time in a variant that is not slower are worth a word from here on: below, it is faster for
# other reasons and adds a kernel or two of its own (random seeds, input copies); kernels also run some per cent longer
# in a graph, where nothing lies between them.
MORE = 0.10
# From this share of T_wall on the device is busy, so that all work of the host together cannot win a tenth of the step.
DEVICE_BOUND = 0.90
# The variant whose nodes tell the lines of a graphed one: the same program without the graph.
_UNGRAPHED = {"reduce-overhead": "inductor", "cudagraphs": "dynamo", "eager-graph": "dynamo"}
_PREDICTED = "predicted: "


@rule("variant-worse", "This variant makes the step worse")
def variant_worse(scene: Scene) -> Iterator[Seen]:
    """Slower, or more device time, or many more kernels than eager, beyond what was measured of noise."""
    said: set[str] = set()
    for comparison in sorted(scene.review.comparisons, key=lambda c: c.base != "eager"):
        base, variant = scene.variant(comparison.base), scene.variant(comparison.variant)
        if base is None or variant is None or variant.name in said or base.name == variant.name:
            continue
        verdict = comparison.verdict.removeprefix(_PREDICTED)
        first = comparison.base == _first(scene)
        if verdict == UNCHANGED or (verdict != "slower" and not first):
            continue  # on the ladder from one variant to the next only the wall time counts: eager is the reference
        worse = list(_worse(scene, base, variant, comparison, verdict))
        if not worse or (verdict != "slower" and variant.outputs_equal is not False and _explained(scene, variant)):
            continue
        said.add(variant.name)
        yield _seen(scene, base, variant, comparison, verdict, worse)


def _explained(scene: Scene, variant: Variant) -> bool:
    """Whether another rule says why the device has more to do."""
    return copied_us(scene, variant) is not None or variant in _without_fused(scene)


def _first(scene: Scene) -> str:
    return scene.base.name if scene.base is not None else ""


def _worse(scene: Scene, base: Variant, variant: Variant, comparison: Comparison, verdict: str) -> Iterator[str]:
    if verdict == "slower" and comparison.wall_ratio is not None:
        ratio = comparison.wall_ratio
        yield f"T_wall × {ratio.median:.2f} of {base.name} ({ratio.low:.2f} to {ratio.high:.2f}, paired)"
    if _more_device(scene, comparison, verdict) is not None:
        yield f"device time: {base.device_active_us:,.0f} → {variant.device_active_us:,.0f} µs"
        before, after = base.kernels, variant.kernels
        if before is not None and after is not None and after > before:
            yield f"kernels: {before} → {after}"
    elif (
        base.kernels and variant.kernels is not None and variant.kernels > base.kernels * (1 + MORE)
        and scene.on_device
    ):  # fmt: skip
        yield f"kernels: {base.kernels} → {variant.kernels}"
    if variant.outputs_equal is False:
        yield "outputs are not equal to the reference"
    for note in variant.notes:
        if note.startswith("nothing was compiled"):
            yield note


def _more_device(scene: Scene, comparison: Comparison, verdict: str) -> float | None:
    """Microseconds of device time that were added, if beyond noise; on the CPU they are what host times leave."""
    removed = comparison.removed
    if removed.device_us is None or not scene.on_device:
        return None
    base = scene.variant(comparison.base)
    device = base.device_active_us if base is not None and base.device_active_us is not None else 0.0
    least = max(removed.noise_us.get("device_us", 0.0), (LEAST_EFFECT if verdict == "slower" else MORE) * device)
    return -removed.device_us if removed.device_us < -least else None


def _seen(
    scene: Scene, base: Variant, variant: Variant, comparison: Comparison, verdict: str, worse: list[str]
) -> Seen:
    removed = comparison.removed
    more = _more_device(scene, comparison, verdict)
    if verdict == "slower" and removed.wall_us is not None:
        cost = Cost(exposed_us=-removed.wall_us, device_us=more, basis=f"the measured difference to {base.name}")
    else:
        spared = scene.exposed_device_us(variant, more) if more is not None else None
        timeline = scene.timeline(variant)
        why = timeline if isinstance(timeline, str) else "more kernels, but hardly more time on the device"
        cost = Cost(exposed_us=spared, device_us=more, why=why, basis=f"simulated with the device time of {base.name}")
    where = _grown(scene, base, variant)
    evidence = [f"{variant.name} against {base.name}: {text}" for text in worse]
    breaks = sum(graph.break_reason is not None for graph in scene.review.graphs)
    if breaks and variant.name not in ("eager", "eager-graph"):
        evidence.append(f"the step is {len(scene.review.graphs)} graphs, {breaks} of which end in a graph break")
    source: SourceLine | None = None
    if where is not None:
        source, text = where
        evidence.append(text)
    terms = ("ft_us", "ct_us", "kt_us", "device_us", "wall_us")
    slower = verdict == "slower"
    saved = {term: -us for term in terms if _counts(us := getattr(removed, term), removed.noise_us.get(term, 0.0))}
    if not slower:  # going back to the base would cost more than it gives
        saved = {} if more is None else {"device_us": more}
    return Seen(
        variant,
        cost,
        evidence,
        f"do not ship {variant.name} for this step: {base.name} is faster"
        if slower
        else f"{variant.name} is {verdict}, yet gives part of it away: mend the line where device time grew",
        "medium" if comparison.origin == "predicted" else "high",
        source,
        op="slower" if slower else "device" if more is not None else "kernels",
        saving=Saving(saved, "predicted" if comparison.origin == "predicted" else "measured") if saved else None,
        keep=slower or variant.outputs_equal is False or more is None,
        severity="error" if variant.outputs_equal is False else None,
        title=None if slower else _title(more, variant),
        key=f"{base.name} {variant.name}",
    )


def _title(more: float | None, variant: Variant) -> str:
    if variant.outputs_equal is False:
        return "This variant computes something else"
    return "This variant adds device time" if more is not None else "This variant adds kernels"


def _counts(us: float | None, noise: float) -> bool:
    return us is not None and abs(us) > noise


def _grown(scene: Scene, base: Variant, variant: Variant) -> tuple[SourceLine, str] | None:
    """The line whose device time grew most, in the variant or in the one that runs the same program un-graphed."""
    if not scene.on_device:
        return None
    told = variant
    if not any(node.source is not None for node in variant.nodes):
        other = scene.variant(_UNGRAPHED.get(variant.name, ""))
        if other is None:
            return None
        told = other
    before, after = _by_line(base), _by_line(told)
    grown = {line: nodes for line, nodes in after.items() if line is not None and _device(nodes)}
    if not grown:
        return None
    line = max(grown, key=lambda one: _device(grown[one]) - _device(before.get(one, [])))
    old, new = before.get(line, []), grown[line]
    if line is None or _device(new) - _device(old) <= LEAST_EFFECT * (base.device_active_us or 0.0):
        return None
    where = "" if told is variant else f" (in {told.name}, the same program without a graph)"
    text = (
        f"most device time is added at {place(line)}{where}: {_device(old):,.0f} → {_device(new):,.0f} µs, "
        f"{sum(map(kernels, old))} → {sum(map(kernels, new))} kernels"
    )
    return line, text


def _by_line(variant: Variant) -> Mapping[SourceLine | None, list[Node]]:
    found: dict[SourceLine | None, list[Node]] = collections.defaultdict(list)
    for node in variant.nodes:
        found[node.source].append(node)
    return found


def _device(nodes: list[Node]) -> float:
    return sum(node.device_us or 0.0 for node in nodes)


@rule("slow-sdpa", "Attention falls back from a fused kernel to separate products and a softmax")
def slow_sdpa(scene: Scene) -> Iterator[Seen]:
    """Eager runs fused attention kernels; a variant runs none, and two more products for each of them."""
    base = scene.base
    if base is None:
        return
    fused = [node for node in base.nodes if node.family == "attention" and kernels(node)]
    calls = sum(node.count for node in fused)
    lost = _without_fused(scene)
    if not lost:
        return
    worst = max(fused, key=lambda node: node.device_us or 0.0)
    seen = next((v for v in lost if any(n.source == worst.source for n in v.nodes)), lost[0])
    there = [node for node in seen.nodes if node.source == worst.source and node.module_path == worst.module_path]
    evidence = [
        f"eager: {sum(map(kernels, fused))} kernels for {calls} calls of {short(worst)} ({worst.library}) at "
        f"{place(worst.source)}, {_device(fused):,.0f} µs device",
        f"no fused attention kernel and {calls} or more further products in: {', '.join(v.name for v in lost)}",
    ]
    if there:
        evidence.append(
            f"{seen.name} at that line: {sum(map(kernels, there))} kernels, {_device(there):,.0f} µs device"
        )
    evidence += [f"{v.name}: {v.kernels} kernels, {v.device_active_us:,.0f} µs device; eager: {base.kernels}, "
                 f"{base.device_active_us:,.0f}" for v in lost
                 if v.device_active_us is not None and base.device_active_us is not None]  # fmt: skip
    masks = sorted({place(n.source) for n in seen.nodes if n.source is not None and _masking(n.source)} -
                   {place(n.source) for n in base.nodes})  # fmt: skip
    if masks:
        evidence.append(f"{seen.name} builds a mask that eager does not, at {', '.join(masks[:4])}")
    own = [n for n in base.nodes if n.source == worst.source and n.module_path == worst.module_path]
    saved = (
        {term: _sum(there, term) - _sum(own, term) for term in ("ft_us", "ct_us", "kt_us", "device_us")}
        if there
        else {}
    )
    yield Seen(
        seen,
        _beyond_fused(scene, seen, there, own) if there else _beyond_device(scene, base, seen),
        evidence,
        # Passing no mask is not enough: traced, transformers 5.17 builds one for bidirectional attention all the same.
        "register the attention under a name for which no mask is built (docs/rules/slow-sdpa.md), or keep the fused "
        "kernel: torch.nn.attention.sdpa_kernel, or attn_implementation='flash_attention_2' or 'flex_attention'",
        "high" if there else "medium",
        worst.source,
        worst.module_path,
        "scaled_dot_product_attention",
        Saving(saved, "measured") if saved else None,
        keep=True,
        key="sdpa",
    )


def _beyond_fused(scene: Scene, variant: Variant, there: list[Node], own: list[Node]) -> Cost:
    """What ``there``, the nodes of the fallback in ``variant``, cost beyond ``own``, those of the fused kernels."""
    host, own_host = (scene.summed(nodes, scene.host_us) for nodes in (there, own))
    device, own_device = (scene.summed(nodes, lambda node: node.device_us) for nodes in (there, own))
    if host is None or own_host is None or device is None or own_device is None:
        return Cost(why="host or device time of the attention was not measured")
    timeline = scene.timeline(variant)
    return Cost(
        exposed_us=scene.exposed_beyond_us(
            variant, there, own_host / host if host else 1.0, own_device / device if device else 1.0
        ),
        host_us=host - own_host,
        device_us=device - own_device,
        why=timeline if isinstance(timeline, str) else "",
        basis="simulated with eager's host and device time at that line",
    )


def _beyond_device(scene: Scene, base: Variant, variant: Variant) -> Cost:
    """What the device time that ``variant`` has beyond ``base`` costs: its lines are not known."""
    if variant.device_active_us is None or base.device_active_us is None:
        return Cost(why="device time was not measured")
    more = variant.device_active_us - base.device_active_us
    timeline = scene.timeline(variant)
    return Cost(
        exposed_us=scene.exposed_device_us(variant, more),
        device_us=more,
        why=timeline if isinstance(timeline, str) else "",
        basis="simulated with that much less device time",
    )


def _without_fused(scene: Scene) -> list[Variant]:
    """Variants that run no fused attention kernel where eager does, and as many products more as eager has calls."""
    base = scene.base
    if base is None or base.name != "eager" or not scene.on_device:
        return []
    calls = sum(node.count for node in base.nodes if node.family == "attention" and kernels(node))
    return [
        variant for variant in scene.variants
        if variant is not base and calls and variant.prediction is None and variant.nodes
        and not any(n.family == "attention" for n in variant.nodes) and _products(variant) >= _products(base) + calls
    ]  # fmt: skip


def _products(variant: Variant) -> int:
    return sum(node.count for node in variant.nodes if node.family == "gemm")


def _masking(source: SourceLine) -> bool:
    return "mask" in file_name(source)


def _sum(nodes: list[Node], term: str) -> float:
    return sum(getattr(node, term) or 0.0 for node in nodes)


@rule("device-bound", "The device is the bottleneck: stop optimising the host")
def device_bound(scene: Scene) -> Iterator[Seen]:
    """T_wall is never below T_DeviceActive, so what is left of it is all that the host can still give: eager and the
    fastest variant are looked at, since others will not be run."""
    measured = [v for v in scene.variants if v.t_wall_us is not None and v.device_active_us is not None]
    looked = [v for v in measured if v is scene.base]
    fastest = min(measured, key=lambda v: wall_at_speed_of(scene.base or v, v, scene.review.comparisons), default=None)
    looked += [fastest] if fastest is not None and fastest not in looked else []
    for variant in looked if scene.on_device else ():
        assert variant.t_wall_us is not None and variant.device_active_us is not None
        wall, device = variant.t_wall_us.median, variant.device_active_us
        if device < DEVICE_BOUND * wall:
            continue
        families: dict[str, float] = collections.defaultdict(float)
        for node in variant.nodes:
            families[node.family] += node.device_us or 0.0
        top = sorted(families.items(), key=lambda pair: pair[1], reverse=True)[:3]
        lines = [node for node in (variant.nodes if any(n.source for n in variant.nodes) else _told(scene, variant))
                 if node.source is not None]  # fmt: skip
        worst = max(lines, key=lambda node: node.device_us or 0.0, default=None)
        left = max(0.0, wall - device)  # tracing lengthens short kernels: what is traced may exceed T_wall
        evidence = [
            f"the device works {device:,.0f} of {wall:,.0f} µs T_wall ({device / wall:.0%})",
            f"no change of the host alone can win more than {left:,.0f} µs ({left / wall:.0%})",
            "on the device: " + ", ".join(f"{family} {us:,.0f} µs" for family, us in top),
        ]
        if worst is not None:
            evidence.append(f"most of it at {place(worst.source)}: {short(worst)}, {worst.device_us or 0.0:,.0f} µs")
        exposed = variant.exposed
        hidden = Cost(exposed_us=left, device_us=device, basis="all that the host can still give")
        if exposed is not None and exposed.device_us is not None:
            evidence.append(f"without device work the step would be {exposed.device_us:,.0f} µs shorter, simulated")
        yield Seen(
            variant,
            hidden,
            evidence,
            "work on the kernels instead: a smaller dtype, fewer or fused products, a faster attention kernel, less to "
            "read; or a larger batch, if throughput counts",
            "high",
            worst.source if worst is not None else None,
            worst.module_path if worst is not None else None,
            op="device",
            keep=True,
            severity="note",
            key="as written" if variant is scene.base else "fastest",
        )


def _told(scene: Scene, variant: Variant) -> list[Node]:
    other = scene.variant(_UNGRAPHED.get(variant.name, ""))
    return other.nodes if other is not None else []
