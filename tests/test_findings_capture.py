"""Findings on steps that run here: small modules and tiny transformers models on the CPU, from capture to review."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from msgspec.structs import replace
from torch import nn
from torch._inductor.utils import fresh_inductor_cache

from taxbreak_fx.api import Options, review_with
from taxbreak_fx.finding import Finding
from taxbreak_fx.findings import find, with_findings
from taxbreak_fx.graph_facts import graph_skips
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import Interval, SourceLine
from taxbreak_fx.variant_record import GraphSkip, Node

HERE = str(Path(__file__))
CALL_US = 10.0  # what every call costs in a ``calm`` review


class Branching(nn.Module):
    """Two graphs, because the host looks at a value between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.layer(x))
        if y.sum() > 0:  # the line of the break
            y = y * 2
        return self.layer(y)


class Straight(Branching):
    """The same without a look."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.layer(x))
        y = torch.where(y.sum() > 0, y * 2, y)
        return self.layer(y)


class Numbered(nn.Module):
    """A layer whose number becomes part of what Dynamo compiles."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + self.number  # the guarded line


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Numbered(number) for number in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def line(of: Any, text: str) -> SourceLine:
    """The line of ``of``'s source that holds ``text``."""
    lines, first = inspect.getsourcelines(of)
    return SourceLine(file=HERE, line=first + next(n for n, one in enumerate(lines) if text in one))


def reviewed(module: nn.Module, *variants: str, **inputs: torch.Tensor) -> Review:
    review = review_with(Options(variants=variants, budget_s=0.1), module.eval(), **inputs)
    assert review.findings == find(review)
    return with_findings(calm(review))


def calm(review: Review) -> Review:
    """The review as if every call had cost the same.

    Where others use the CPU too, a single loss of it is longer than these steps, and what is dear is then chance.
    """
    return replace(review, variants=[_calm(variant) for variant in review.variants])


def _calm(variant: Variant) -> Variant:
    wall = CALL_US * sum(node.count for node in variant.nodes)
    if not wall:
        return variant
    t_wall = Interval(median=wall, low=wall, high=wall, samples=10)
    nodes = [
        replace(node, ft_us=CALL_US * node.count, device_us=0.0, unmeasured=_without(node, "ft_us", "device_us"))
        for node in variant.nodes
    ]
    return replace(variant, nodes=nodes, t_wall_us=t_wall, unmeasured=_without(variant, "t_wall_us"))


def _without(record: Node | Variant, *names: str) -> dict[str, str]:
    return {name: why for name, why in record.unmeasured.items() if name not in names}


def of(review: Review, rule: str) -> list[Finding]:
    return [finding for finding in review.findings if finding.rule == rule]


def one(review: Review, rule: str) -> Finding:
    (found,) = of(review, rule)
    return found


@cache
def tiny(name: str, **options: str) -> Review:
    """The eager step of a tiny transformers model."""
    tokens = torch.arange(12).reshape(2, 6)
    return reviewed(tiny_models.build(name, **options), "eager", input_ids=tokens)


def test_a_branch_on_a_value() -> None:
    review = reviewed(Branching(), "eager", "dynamo", x=torch.ones(4, 8))
    where = line(Branching.forward, "if y.sum()")
    broken, sync = one(review, "graph-break"), one(review, "host-sync")
    assert broken.source == sync.source == where
    assert not broken.in_library and broken.variant == "dynamo" and broken.confidence == "high"
    assert "1 of 2 graphs end here" in broken.evidence[0]
    # On the CPU nothing is waited for, so that it is a note with the reason.
    assert sync.severity == "note" and any("on a GPU each of these is a wait" in text for text in sync.evidence)
    assert review.graphs[0].frame == SourceLine(file=HERE, line=line(Branching.forward, "def forward").line)


def test_no_branch_no_finding() -> None:
    review = reviewed(Straight(), "eager", "dynamo", x=torch.ones(4, 8))
    assert {finding.rule for finding in review.findings} & {"graph-break", "host-sync", "recompile"} == set()


def test_a_recompile_names_the_guard_and_its_line() -> None:
    review = reviewed(Layers(3), "eager", "dynamo", x=torch.ones(4))
    found = one(review, "recompile")
    assert found.source == line(Numbered.forward, "self.number")
    assert "was compiled 3 times" in found.evidence[0] and "number == 0" in found.evidence[1]
    assert "allow_unspec_int_on_nn_module" in found.fix and "gives up" not in found.title
    reasons = [graph.recompile_reason for graph in review.graphs]
    assert reasons[0] is None and all(reasons[1:])


def test_too_many_recompiles() -> None:
    found = one(reviewed(Layers(9), "eager", "dynamo", x=torch.ones(4)), "recompile")
    assert "gives up" in found.title and any("recompile_limit" in text for text in found.evidence)


def test_what_inductor_leaves_between_graphs_has_a_line() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).sort()[0]

    skips: list[GraphSkip] = []
    with fresh_inductor_cache(), graph_skips([], skips):  # what is cached is not decided again
        torch.compile(step, options={"triton.cudagraphs": True, "graph_partition": True})(torch.ones(4, 4))
    assert skips and all(skip.partition for skip in skips)
    assert line(step, "torch.relu") in [skip.source for skip in skips]
    plain: list[GraphSkip] = []
    torch._dynamo.reset()
    with fresh_inductor_cache(), graph_skips([], plain):
        torch.compile(step, options={"graph_partition": True})(torch.ones(4, 4))
    assert plain == []  # without CUDA graphs no op is left out of one


def test_norm_and_rotary_chains_of_an_unmodified_llama() -> None:
    chains = {finding.op: finding for finding in of(tiny("llama"), "unfused-chain")}
    assert {"norm", "rotary"} <= set(chains)
    for each in chains.values():
        assert each.source is not None and each.in_library and each.exposed_us is not None
    norm = chains["norm"]
    # Two layers of two norms and the last one; the conversions to float32 and back do nothing in float32.
    assert "in 5 calls" in norm.evidence[0] and norm.saving_origin == "predicted"
    assert not {"norm", "rotary"} & {finding.op for finding in of(tiny("bert"), "unfused-chain")}


@pytest.mark.parametrize("name", tiny_models.MOE_MODELS)
def test_the_expert_loop_of_unmodified_models(name: str) -> None:
    found = one(tiny(name, experts_implementation="eager"), "expert-loop")
    assert found.module_path is not None and found.module_path.startswith("model.layers.*")
    assert found.source is not None and found.source.file.endswith(f"modeling_{name}.py")
    assert of(tiny(name, experts_implementation="grouped_mm"), "expert-loop") == []


def test_dense_models_have_no_expert_loop() -> None:
    for name in ("llama", "gpt2", "bert"):
        assert of(tiny(name), "expert-loop") == []


def test_the_findings_of_a_cpu_are_all_exposed() -> None:
    for name in ("llama", "bert", "gpt2"):
        for finding in tiny(name).findings:
            assert finding.exposed_us is not None and finding.share is not None
            assert finding.rule not in ("device-bound", "slow-sdpa", "parameter-copies", "cudagraph-skipped")
