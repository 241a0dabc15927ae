"""Rules on what the host does besides issuing work: it waits for values, moves tensors, checks guards."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

from taxbreak_fx.findings_rule import Saving, Seen, file_name, place, rule
from taxbreak_fx.findings_scene import ONE_THREAD, Cost, Scene, kernels, ops_of, short, terms
from taxbreak_fx.model import Variant
from taxbreak_fx.timeline import simulate
from taxbreak_fx.variant_record import Node
from taxbreak_fx.whatif_timeline import without_guards

SYNC = "host-sync"
# Their result's size hangs on the data, so the host waits for the device to know it (ATen; ``where.default`` is the
# form with a condition alone).
_SIZED_BY_DATA = (
    "nonzero",
    "where.default",
    "masked_select",
    "unique",
    "_unique",
    "argwhere",
    "repeat_interleave.Tensor",
)
# What each way of waiting is in Python, and what to write instead.
_CAUSES = (
    ("is_nonzero", "`if tensor:` reads a device value", "decide on values the host already has, or compute both sides "
     "and select with torch.where"),
    ("item", "a device value is read as a Python number (.item(), int(), an index)", "keep the value in a tensor, or "
     "read all values at once after the step"),
    ("_local_scalar_dense", "a device value is read as a Python number", "keep the value in a tensor"),
    ("nonzero", "the size of the result hangs on the data", "keep fixed sizes: mask instead of selecting"),
    ("where", "torch.where(condition) gives indices, whose number hangs on the data", "keep fixed sizes: mask instead "
     "of selecting"),
)  # fmt: skip
_MOVES = ("to.device", "to.dtype_layout", "to.other", "_to_copy.default", "cpu.default", "cuda.default")


@rule("host-sync", "The host waits for the device inside the step")
def host_sync(scene: Scene) -> Iterator[Seen]:
    """One finding per module and file, at the line that costs most."""
    base = scene.base
    for nodes in _by_module(base, waits):
        assert base is not None
        worst = max(nodes, key=lambda node: scene.host_us(node) or 0.0)
        lines = [f"{place(node.source)} {short(node)}: {node.count} per step" for node in nodes]
        count = sum(node.count for node in nodes)
        evidence = [f"{count} waits per step, counted: {'; '.join(lines)}", *_causes(nodes)]
        evidence += [f"T_wait of the step: {base.t_wait_us:,.0f} µs"] if base.t_wait_us and base.t_wait_us > 0 else []
        evidence += _not_captured(scene)
        cost = scene.cost(base, nodes)
        explicit = [node for node in nodes if node.family == SYNC]
        saved = terms(explicit)
        if explicit and (spared := scene.cost(base, explicit).exposed_us) is not None:
            saved["wall_us"] = spared
        if not scene.on_device:
            evidence.append("measured on the CPU, where nothing is waited for; on a GPU each of these is a wait")
        yield Seen(
            base,
            cost,
            evidence,
            _fix(nodes),
            "high" if scene.on_device else "medium",
            worst.source,
            worst.module_path,
            SYNC,
            Saving(saved, "predicted"),
            keep=True,
            severity=None if scene.on_device else "note",
        )


def waits(node: Node) -> bool:
    """Whether the host waits for the device in this op."""
    return node.family == SYNC or any(op.startswith(_SIZED_BY_DATA) for op in ops_of(node))


def _by_module(base: Variant | None, chosen: Callable[[Node], bool]) -> list[list[Node]]:
    groups: dict[tuple[str, str | None], list[Node]] = collections.defaultdict(list)
    for node in base.nodes if base is not None else ():
        if node.source is not None and chosen(node):
            groups[file_name(node.source), node.module_path].append(node)
    return list(groups.values())


def _causes(nodes: list[Node]) -> list[str]:
    names = [op.split(".")[0] for node in nodes for op in ops_of(node)]
    return [f"{name}: {what}" for name, what, _ in _CAUSES if name in names]


def _fix(nodes: list[Node]) -> str:
    names = {op.split(".")[0] for node in nodes for op in ops_of(node)}
    found = [mend for name, _, mend in _CAUSES if name in names]
    return "; ".join(dict.fromkeys(found)) or "keep the value on the device until the step has ended"


def _not_captured(scene: Scene) -> list[str]:
    failed = [v for v in scene.review.variants if v.name == "eager-graph" and v.status == "failed"]
    return [f"a CUDA graph cannot hold it: eager-graph failed ({(v.reason or '')[:120]})" for v in failed]


@rule("cpu-tensor", "A tensor crosses between the CPU and the device inside the step")
def cpu_tensor(scene: Scene) -> Iterator[Seen]:
    """Moves that really copied: a ``to`` that moves nothing has no device time, one that converts launches a kernel."""
    base = scene.base
    for nodes in _by_module(base, _moved) if scene.on_device else ():
        assert base is not None
        worst = max(nodes, key=lambda node: scene.host_us(node) or 0.0)
        lines = [f"{place(n.source)} {short(n)}: {n.count} copies, {n.device_us:,.1f} µs device" for n in nodes]
        evidence = [f"copies that launch no kernel, traced: {'; '.join(lines)}"]
        saved = terms(nodes)
        yield Seen(base, scene.cost(base, nodes), evidence, _STAY, "high", worst.source, worst.module_path,
                   ops_of(worst)[0], Saving(saved, "predicted"), keep=True)  # fmt: skip


def _moved(node: Node) -> bool:
    return any(op in _MOVES for op in ops_of(node)) and not kernels(node) and (node.device_us or 0.0) > 0


_STAY = (
    "make the tensor on the device once (register_buffer, device=x.device), or move it before the step with "
    "pin_memory() and non_blocking=True"
)


@rule("guard-cost", "Checking Dynamo's guards takes a notable part of the step")
def guard_cost(scene: Scene) -> Iterator[Seen]:
    """The variant in which guards take the largest share; guards cost the others about as much."""
    shares = {
        variant.name: (variant.breakdown.ft_parts["guards"], variant)
        for variant in scene.variants
        if variant.prediction is None and variant.breakdown is not None and variant.t_wall_us is not None
        and variant.breakdown.ft_parts.get("guards", 0.0) > 0
    }  # fmt: skip
    if not shares:
        return
    guards, worst = max(
        shares.values(), key=lambda pair: pair[0] / (pair[1].t_wall_us.median if pair[1].t_wall_us else 1)
    )
    timeline = scene.timeline(worst)
    cost = Cost(host_us=guards, why=timeline if isinstance(timeline, str) else "")
    if not isinstance(timeline, str):
        gain = simulate(timeline).wall_us - simulate(without_guards(timeline, guards)).wall_us
        cost = cost._replace(exposed_us=gain, basis="simulated without guards")
    elif not scene.on_device:
        cost = cost._replace(exposed_us=guards, basis=ONE_THREAD)
    others = ", ".join(f"{name} {us:,.0f} µs" for name, (us, _) in shares.items())
    nodes = sum(graph.nodes for graph in scene.review.graphs)
    saved = {"ft_us": guards} | ({} if cost.exposed_us is None else {"wall_us": cost.exposed_us})
    yield Seen(
        worst,
        cost,
        [
            f"guards, {worst.origin}, microseconds per step: {others}",
            f"{len(scene.review.graphs)} captured graph(s) of {nodes} ops together",
        ],
        "when the model no longer changes between steps, run it under "
        "torch.compiler.set_stance(skip_guard_eval_unsafe=True), or drop guards that cannot fail with "
        "options={'guard_filter_fn': torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe}",
        "high",
        next((graph.frame for graph in scene.review.graphs if graph.frame is not None), None),
        op="guards",
        key="guards",
        saving=Saving(saved, "predicted"),
    )
