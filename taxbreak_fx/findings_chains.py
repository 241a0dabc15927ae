"""Rules on small kernels in a row: chains that one kernel could do, trips through another dtype, copies nobody wrote.

Chains are recognised in the step as written, by op names, lines and module paths: a review keeps no order of its ops.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from taxbreak_fx.findings_gemm import expert_loops
from taxbreak_fx.findings_rule import Saving, Seen, place, rule
from taxbreak_fx.findings_scene import Cost, Scene, kernels, ops_of, short, terms
from taxbreak_fx.model import Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.variant_record import Node

_POINTWISE = ("elementwise", "copy", "reduction", "normalization")
# Kernels per call from which a norm or one line counts as a chain: two may be a pattern with a reason.
CHAIN = 3
_ROTATE_LINES = 5  # rotate_half halves its input in the lines just above its return
_ACTIVATIONS = ("act", "act_fn", "activation", "activation_fn", "intermediate_act_fn")
_FIXES = {
    "norm": "use the fused op (torch.nn.functional.rms_norm or layer_norm), or a kernel library's; torch.compile fuses "
    "the chain as it is",
    "rotary": "apply it with one fused kernel to queries and keys together (a Triton or flash-attn rotary kernel); "
    "torch.compile fuses the chain as it is",
    "activation": "use the fused op (torch.nn.functional.gelu(x, approximate='tanh') for GPT-2's, a fused silu-and-mul "
    "for gated ones); torch.compile fuses the chain as it is",
    "residual": "add and normalise in one kernel (a fused add-norm); torch.compile fuses the two",
}
_WIDENS = ("to.dtype", "_to_copy", "float.default", "type_as")
_COPIES = ("reshape.default", "contiguous.default", "clone.default", "flatten.using_ints", "repeat.default",
           "repeat_interleave.self_int", "_reshape_copy", "unfold")  # fmt: skip


class Chain(NamedTuple):
    """Nodes of one ``kind`` that one kernel per call could do."""

    kind: str
    nodes: list[Node]
    calls: int
    confident: bool


@rule("unfused-chain", "Small kernels in a row that one kernel could do")
def unfused_chain(scene: Scene) -> Iterator[Seen]:
    """One finding per place in the code: the same function used by several modules is one."""
    base = scene.base
    for chain in chains(base) if base is not None else ():
        assert base is not None
        launched = sum(map(kernels, chain.nodes))
        lines = sorted({n.source for n in chain.nodes if n.source is not None}, key=lambda s: (s.file, s.line))
        paths = sorted({node.module_path or "" for node in chain.nodes})
        what = "kernels" if base.kernels is not None else "ops"
        evidence = [
            f"{launched} {what} per step in {chain.calls} calls ({launched / chain.calls:.1f} each), of "
            f"{base.kernels if base.kernels is not None else sum(map(kernels, base.nodes))} in {base.name}",
            f"at {', '.join(place(line) for line in lines[:6])}, in {', '.join(paths[:6])}",
        ]
        cost = scene.cost(base, chain.nodes)
        saving, told = _saving(scene, base, chain, lines, cost)
        first = min(
            (node for node in chain.nodes if node.source is not None), key=lambda n: n.source.line if n.source else 0
        )
        yield Seen(
            base,
            cost,
            [*evidence, *told],
            _FIXES[chain.kind],
            "high" if chain.confident else "medium",
            first.source,
            paths[0] or None,
            chain.kind,
            saving,
            title=f"Unfused {chain.kind}: {launched / chain.calls:.0f} {what} where one could do"
            if chain.kind != "residual"
            else "Residual adds stand apart from the norms that follow them",
        )


def chains(variant: Variant) -> list[Chain]:
    """The chains of a step, none inside a loop over experts; a node is in one chain at most."""
    looped = {id(node) for loop in expert_loops(variant) for node in loop.nodes}
    nodes = [n for n in variant.nodes if id(n) not in looped and n.source is not None]
    found: list[Chain] = []
    for make in (_norms, _rotary, _activations, _residuals):
        taken = {id(node) for chain in found for node in chain.nodes}
        found += make([node for node in nodes if id(node) not in taken], found)
    return found


def _has(nodes: Iterable[Node], *names: str) -> bool:
    return any(op.split(".")[0].rstrip("_") in names for node in nodes for op in ops_of(node))


def _by_path(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = collections.defaultdict(list)
    for node in nodes:
        if node.module_path is not None:
            found[node.module_path].append(node)
    return found


def _norms(nodes: Sequence[Node], before: list[Chain]) -> Iterator[Chain]:
    """Modules that take a mean and a root; those written in one place together."""
    places: dict[SourceLine, list[tuple[list[Node], int]]] = collections.defaultdict(list)
    for own in _by_path(nodes).values():
        small = [node for node in own if node.family in _POINTWISE and kernels(node)]
        roots = [node for node in small if _has([node], "rsqrt", "sqrt")]
        if not roots or not _has(small, "mean", "var", "var_mean") or roots[0].source is None:
            continue
        if sum(map(kernels, small)) >= CHAIN * roots[0].count:
            places[roots[0].source].append((small, roots[0].count))
    for groups in places.values():
        yield Chain("norm", [node for own, _ in groups for node in own], sum(calls for _, calls in groups), True)


def _rotary(nodes: Sequence[Node], before: list[Chain]) -> Iterator[Chain]:
    """``rotate_half`` (a line that negates and joins, the halves above it) and the lines of its file and module that
    multiply and add, once for queries and once for keys."""
    for own in _by_path(nodes).values():
        by_line: dict[SourceLine, list[Node]] = collections.defaultdict(list)
        for node in own:
            if node.source is not None:
                by_line[node.source].append(node)
        for turn, here in by_line.items():
            if not (_has(here, "neg") and _has(here, "cat")):
                continue
            chain = [
                node for line, some in by_line.items() if line.file == turn.file and (
                    0 <= turn.line - line.line <= _ROTATE_LINES or (_has(some, "mul") and _has(some, "add"))
                ) for node in some
            ]  # fmt: skip
            yield Chain("rotary", chain, min(node.count for node in here), False)


def _activations(nodes: Sequence[Node], before: list[Chain]) -> Iterator[Chain]:
    """Lines of several pointwise kernels, and gates: an activation beside a product of as many calls in its parent."""
    by_line: dict[SourceLine, list[Node]] = collections.defaultdict(list)
    for node in nodes:
        if node.source is not None and node.family == "elementwise" and kernels(node):
            by_line[node.source].append(node)
    for some in by_line.values():
        calls = min(node.count for node in some)
        if len(some) > 1 and sum(map(kernels, some)) >= CHAIN * calls:
            yield Chain("activation", some, calls, True)
    for node in nodes:
        parent, _, name = (node.module_path or "").rpartition(".")
        if name not in _ACTIVATIONS or node.family != "elementwise" or not kernels(node):
            continue
        gates = [n for n in nodes if n.module_path == parent and n.count == node.count and _has([n], "mul")]
        if len(gates) == 1 and node.source is not None and len(by_line[node.source]) == 1:
            yield Chain("activation", [node, *gates], node.count, False)


def _residuals(nodes: Sequence[Node], before: list[Chain]) -> Iterator[Chain]:
    """Adds of a module whose own child normalises."""
    norms = {n.module_path for n in nodes if n.family == "normalization" and n.module_path}
    norms |= {node.module_path for chain in before if chain.kind == "norm" for node in chain.nodes if node.module_path}
    parents = {path.rpartition(".")[0] for path in norms if path}
    chained = [node for chain in before if chain.kind == "norm" for node in chain.nodes]
    files = {n.source.file for n in (*nodes, *chained) if n.module_path in norms and n.source is not None}
    found: dict[str | None, list[Node]] = collections.defaultdict(list)
    for node in nodes:
        # A cache or a mask adds, too, but in a file of its own.
        near = node.module_path in parents and node.source is not None and node.source.file in files
        if near and node.family == "elementwise" and kernels(node) and node.count > 1 and _has([node], "add"):
            found[_file(node)].append(node)
    for adds in found.values():
        yield Chain("residual", adds, sum(node.count for node in adds), False)


def _saving(
    scene: Scene, base: Variant, chain: Chain, lines: Sequence[SourceLine], cost: Cost
) -> tuple[Saving | None, list[str]]:
    """By what Inductor made of these lines, if its kernels name them; else by calls that would be one instead of many.

    Inductor names a fused kernel by the line that stores its result, so that it may do the work of other lines too.
    """
    compiled = scene.variant("inductor")
    rows = compiled.nodes if compiled is not None and chain.kind != "residual" else []
    fused = [node for node in rows if node.op.startswith("triton:") and node.source in lines and kernels(node)]
    found = scene.comparison(base.name, "inductor")
    launched = sum(map(kernels, chain.nodes))
    if fused and compiled is not None and found is not None and chain.calls <= sum(map(kernels, fused)) < launched:
        drift = _drift(base, compiled, found.removed.ft_us)
        old, new = terms(chain.nodes), terms(fused)
        device = f"{old.get('device_us', 0.0):,.0f} → {new.get('device_us', 0.0):,.0f} µs"
        if drift is not None:
            speed = {"ft_us": drift, "ct_us": drift}
            saved = {term: old[term] - new[term] * speed.get(term, 1.0) for term in old if term in new}
            text = f"inductor does it in {sum(map(kernels, fused))} kernels, measured: device {device}"
            return Saving(saved, "measured"), [text]
    share = 1.0 if chain.kind == "residual" else 1 - chain.calls / launched
    saved = {term: us for term, us in terms(chain.nodes, share).items() if term != "device_us"}
    if cost.exposed_us is not None:
        saved["wall_us"] = cost.exposed_us * share
    return Saving(saved, "predicted"), []


def _drift(base: Variant, variant: Variant, removed_us: float | None) -> float | None:
    """By how much the host was faster while the variant was timed: removed = before − after × drift (``compare``)."""
    before = base.breakdown.ft_us if base.breakdown is not None else None
    after = variant.breakdown.ft_us if variant.breakdown is not None else None
    if before is None or not after or removed_us is None:
        return None
    return (before - removed_us) / after


@rule("dtype-round-trip", "Values are converted to another dtype and back")
def dtype_round_trip(scene: Scene) -> Iterator[Seen]:
    """Modules that convert at least twice per call; those written in one place together."""
    base = scene.base
    places: dict[tuple[SourceLine | None, ...], list[Node]] = collections.defaultdict(list)
    for own in _by_path(base.nodes if base is not None else ()).values():
        trips = [
            n for n in own if n.family == "copy" and kernels(n) and any(op.startswith(_WIDENS) for op in ops_of(n))
        ]
        if trips and sum(n.count for n in trips) >= 2 * min(n.count for n in trips):
            places[tuple(sorted((n.source for n in trips), key=_line))] += trips
    for nodes in places.values():
        assert base is not None
        lines = sorted({n.source for n in nodes if n.source is not None}, key=_line)
        paths = sorted({node.module_path or "" for node in nodes})
        count = sum(map(kernels, nodes))
        yield Seen(
            base,
            scene.cost(base, nodes),
            [
                f"{count} conversions per step at {', '.join(place(line) for line in lines[:6])}, "
                f"in {', '.join(paths[:6])}",
                "at least two per call of the module: there and back",
            ],
            "use an op that computes in fp32 inside its kernel (rms_norm, layer_norm, softmax with dtype=), or keep "
            "the wider dtype until the values are needed in the narrow one",
            "medium",
            lines[0] if lines else None,
            paths[0] or None,
            "to.dtype",
            Saving(terms(nodes), "predicted"),
        )


def _line(source: SourceLine | None) -> tuple[str, int]:
    return ("", 0) if source is None else (source.file, source.line)


@rule("hidden-copy", "A layout op copies the whole tensor")
def hidden_copy(scene: Scene) -> Iterator[Seen]:
    """Reshapes and the like that launched a kernel where a view was to be expected."""
    base = scene.base
    for node in base.nodes if base is not None else ():
        assert base is not None
        if node.family != "copy" or not kernels(node) or not any(op in _COPIES for op in ops_of(node)):
            continue
        name = ops_of(node)[0].split(".")[0]
        near = [n for n in base.nodes if n.module_path == node.module_path and _file(n) == _file(node)]
        grouped = _has(near, "expand")
        yield Seen(
            base,
            scene.cost(base, [node]),
            [f"{short(node)} at {place(node.source)} copies in each of {node.count} calls per step"],
            "do not repeat keys and values for grouped attention: scaled_dot_product_attention(enable_gqa=True)"
            if grouped and name in ("reshape", "clone")
            else "keep a layout that can be viewed: transpose later, or let the op read strides as they are",
            "high" if scene.on_device else "medium",
            node.source,
            node.module_path,
            name,
            Saving(terms([node]), "predicted"),
        )


def _file(node: Node) -> str | None:
    return None if node.source is None else node.source.file
