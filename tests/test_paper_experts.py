"""The loop over ALL experts: the same outputs as transformers' own loop, and ops that count experts, not hits."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import tiny_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.paper import all_experts

LAYERS, EXPERTS, CHOSEN = 2, 4, 2
MODELS = ("olmoe", "qwen2_moe")
VISIT = "index_add_"


class Ops(TorchDispatchMode):
    """Counts ops, and keeps which experts each layer's router chose."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.chosen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        out = func(*args, **(kwargs or {}))
        if name == "topk":
            self.chosen.append(out[1])
        return out

    @property
    def hit(self) -> int:
        """Experts that some token chose, over all layers."""
        return sum(len(chosen.unique()) for chosen in self.chosen)


def counted(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, Ops]:
    """Logits (batch, length, vocabulary) of a forward call, and what it ran."""
    with torch.no_grad(), Ops() as ops:
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    assert len(ops.chosen) == LAYERS
    return logits, ops


def tokens(length: int) -> torch.Tensor:
    return torch.arange(length).reshape(1, length) * 7 % tiny_models.VOCABULARY


def both(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """transformers' eager loop, and the loop over all experts on equal weights."""
    own = tiny_models.build(name, experts_implementation="eager")
    every = all_experts.with_all_experts(tiny_models.build(name, experts_implementation="eager"))
    return own, every


@pytest.mark.parametrize("length", [1, 3, 9])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_transformers(name: str, length: int) -> None:
    own, every = both(name)
    expected, _ = counted(own, tokens(length))
    found, _ = counted(every, tokens(length))
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_every_expert_is_visited_whatever_was_hit(name: str) -> None:
    own, every = both(name)
    hits = set()
    for length in (1, 3, 9):
        _, some = counted(own, tokens(length))
        _, all_ = counted(every, tokens(length))
        assert all_.counts[VISIT] == LAYERS * EXPERTS
        assert some.counts[VISIT] == some.hit == all_.hit
        hits.add(some.hit)
    assert LAYERS * CHOSEN in hits and len(hits) > 1  # one token hits as many as it chooses, more tokens hit more


@pytest.mark.parametrize("name", MODELS)
def test_ops_of_transformers_loop_grow_with_the_experts_hit(name: str) -> None:
    own, _ = both(name)
    found = {ops.hit: ops.counts.total() for _, ops in (counted(own, tokens(length)) for length in (1, 2, 3, 9))}
    assert len(found) >= 2
    low, high = min(found), max(found)
    each, rest = divmod(found[high] - found[low], high - low)
    assert (rest, each > 5) == (0, True)
    for hit, count in found.items():
        assert count == found[low] + each * (hit - low)


def test_ops_of_the_loop_over_all_grow_with_the_experts_and_not_with_hits() -> None:
    totals = {}
    for experts in (4, 6, 8):
        model = tiny_models.build("olmoe", experts_implementation="eager")
        config = model.config.__class__(**{**model.config.to_dict(), "num_experts": experts})  # type: ignore[union-attr, operator]
        config._experts_implementation = "eager"
        every = all_experts.with_all_experts(type(model)(config).eval())
        totals[experts] = {counted(every, tokens(length))[1].counts.total() for length in (1, 2, 9)}
    assert all(len(counts) == 1 for counts in totals.values()), totals
    four, six, eight = (counts.pop() for counts in totals.values())
    assert six - four == eight - six > 5 * 2 * LAYERS


def test_weights_are_shared_not_copied() -> None:
    model = tiny_models.build("olmoe", experts_implementation="eager")
    fused = next(module for module in model.modules() if hasattr(module, "gate_up_proj"))
    before: Any = fused.gate_up_proj
    all_experts.with_all_experts(model)
    gates = [
        expert.gate.weight
        for expert in next(m for m in model.modules() if isinstance(m, all_experts.AllExperts)).experts
    ]
    assert {gate.untyped_storage().data_ptr() for gate in gates} == {before.untyped_storage().data_ptr()}


def test_a_dense_model_has_no_experts_to_replace() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM has no fused experts"):
        all_experts.with_all_experts(tiny_models.build("llama"))


def test_a_factory_makes_the_step_that_a_review_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from taxbreak_fx.request import ReviewRequest
    from taxbreak_fx.workload import Workload

    asked: list[ReviewRequest] = []

    def load(request: ReviewRequest, device: str) -> Workload:
        from taxbreak_fx.model import StepInfo

        asked.append(request)
        model = tiny_models.build("olmoe", experts_implementation="eager")
        step = StepInfo(phase="decode", batch=4, seq_len=9, dtype="float32", device=device)
        return Workload(call=model, model="tiny", step=step, kwargs={"input_ids": tokens(3), "use_cache": False})

    monkeypatch.setattr(all_experts, "load", load)
    call, args, kwargs = all_experts.olmoe_dynamic("cpu", torch.float32, 4, 9, "decode", 3)
    assert any(isinstance(module, all_experts.AllExperts) for module in call.modules())
    assert call(*args, **kwargs).logits.shape == (1, 3, tiny_models.VOCABULARY)
    wanted = ReviewRequest(model="OLMoE-1B-7B", phase="decode", batch=4, seq_len=9, cache="dynamic", dtype="float32",
                           experts_implementation="eager", seed=3)  # fmt: skip
    assert asked == [wanted]
