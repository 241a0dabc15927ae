"""Rules on matrix products: a loop over experts, and several small ones over one input that could be one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from taxbreak_fx.findings_rule import Saving, Seen, place, rule
from taxbreak_fx.findings_scene import Scene, kernels, ops_of, short, terms
from taxbreak_fx.model import Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.variant_record import Node

# Linear layers that read one input, by what models call them.
_SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
_ROUTERS = ("topk", "sort")


class Loop(NamedTuple):
    """Nodes that run several times per call of the module ``path`` that routes; ``calls`` of it per step."""

    path: str
    calls: int
    nodes: list[Node]

    @property
    def turns(self) -> float:
        """Products of one line per call of the module: experts that it visits."""
        return max(node.count for node in self.nodes if node.family == "gemm") / self.calls


def expert_loops(variant: Variant) -> list[Loop]:
    """Loops over experts: under a module that picks the largest scores, products run more than once per pick."""
    found: dict[str, Loop] = {}
    for router in variant.nodes:
        if router.module_path is None or not any(op.startswith(_ROUTERS) for op in ops_of(router)):
            continue
        # The router is a module of its own beside the experts, or the module that holds them.
        for path in (router.module_path, _parent(router.module_path)):
            under = [node for node in variant.nodes if path and _is_under(node.module_path, path)]
            turning = [node for node in under if node.count >= 2 * router.count]
            if any(node.family == "gemm" for node in turning) and path not in found:
                found[path] = Loop(path, router.count, turning)
                break
    return list(found.values())


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _is_under(path: str | None, root: str) -> bool:
    return path is not None and (path == root or path.startswith(root + "."))


@rule("expert-loop", "A Python loop runs the experts one by one")
def expert_loop(scene: Scene) -> Iterator[Seen]:
    """One finding per loop, at its first line."""
    base = scene.base
    for loop in expert_loops(base) if base is not None else ():
        assert base is not None
        products = [node for node in loop.nodes if node.family == "gemm"]
        lines = sorted(
            {n.source for n in loop.nodes if n.source is not None and _file(n) == _file(products[0])}, key=_line
        )
        worst = sorted(loop.nodes, key=lambda node: scene.host_us(node) or 0.0, reverse=True)[:4]
        launched = sum(map(kernels, loop.nodes))
        every = base.kernels if base.kernels is not None else sum(map(kernels, base.nodes))
        what = "kernels" if base.kernels is not None else "ops"
        evidence = [
            f"{loop.turns:.0f} experts visited per call, {loop.calls} calls per step: {sum(n.count for n in products)} "
            f"products, {launched} of the step's {every} {what}",
            "dearest: " + "; ".join(f"{place(n.source)} {short(n)} × {n.count}, {scene.host_us(n) or 0.0:,.0f} µs host"
                                    for n in worst if n.ft_us is not None),
        ]  # fmt: skip
        chosen = scene.review.step.options.get("experts_implementation")
        evidence += [] if chosen is None else [f"the model was built with experts_implementation={chosen!r}"]
        share = 1 - 1 / loop.turns
        cost = scene.cost(base, loop.nodes)
        saved = {term: us for term, us in terms(loop.nodes, share).items() if term != "device_us"}
        if (spared := scene.cost(base, loop.nodes, host_share=share).exposed_us) is not None:
            saved["wall_us"] = spared
        yield Seen(
            base,
            cost,
            evidence,
            "run all experts in one grouped product: experts_implementation='grouped_mm' (transformers), "
            "torch.nn.functional.grouped_mm, or bmm over experts padded to one size; the saving assumes one call of "
            "each op instead of one per expert",
            "high",
            lines[0] if lines else products[0].source,
            loop.path,
            "expert loop",
            Saving(saved, "predicted"),
            keep=True,
        )


def _file(node: Node) -> str | None:
    return node.source.file if node.source is not None else None


def _line(source: SourceLine) -> int:
    return source.line


@rule("small-gemms", "Several small matrix products over one input could be one")
def small_gemms(scene: Scene) -> Iterator[Seen]:
    """Sibling linear layers whose products take the host longer than the device; one finding per parent module.

    Its cost is the host time of the calls that could be spared: the products themselves are work that must be done.
    """
    base = scene.base
    if base is None:
        return
    looped = {id(node) for loop in expert_loops(base) for node in loop.nodes}
    products = [n for n in base.nodes if n.family == "gemm" and n.module_path is not None and id(n) not in looped]
    named = {node.module_path: node for node in products}
    for parent in sorted({_parent(path) for path in named if path}):
        for names in _SIBLINGS:
            nodes = [node for name in names if (node := named.get(f"{parent}.{name}" if parent else name)) is not None]
            if len(nodes) < len(names) or len({node.count for node in nodes}) > 1:
                continue
            host, device = [scene.host_us(node) for node in nodes], [node.device_us for node in nodes]
            if None in host or None in device:
                continue
            busy, issued = sum(us or 0.0 for us in device), sum(us or 0.0 for us in host)
            if scene.on_device and busy >= issued:
                continue  # the products themselves are what takes time: fewer calls would not show
            count = nodes[0].count
            share = 1 - 1 / len(nodes)
            cost = scene.cost(base, nodes, host_share=share)
            saved = {term: us for term, us in terms(nodes, share).items() if term != "device_us"}
            if cost.exposed_us is not None:
                saved["wall_us"] = cost.exposed_us
            yield Seen(
                base,
                cost,
                [
                    f"{len(nodes)} products ({', '.join(names)}) × {count} per step; each takes "
                    f"{issued / count / len(nodes):.1f} µs of the host and {busy / count / len(nodes):.1f} µs of the "
                    "device",
                    f"one call instead of {len(nodes)} saves {share:.0%} of their host time and "
                    f"{count * (len(nodes) - 1)} launches per step",
                ],
                f"store the weights of {', '.join(names)} as one and split the result (a fused QKV or gate-up "
                "projection); a CUDA graph or torch.compile hides the host's part instead",
                "medium",
                nodes[0].source,
                parent,
                "+".join(names),
                Saving(saved, "predicted"),
            )
