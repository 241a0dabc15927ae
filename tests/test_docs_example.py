"""docs/examples/bert_unmasked.py does what docs/tutorial.md says of it: traced, its attention gets no mask."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "bert_unmasked.py"
TINY = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def made() -> tuple[Any, dict[str, Any]]:
    """The example's model, tiny, and its inputs."""
    spec = importlib.util.spec_from_file_location("bert_unmasked", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BertConfig = partial(module.BertConfig, **TINY)
    model, args, inputs = module.step("cpu", torch.float32, 1, 8)
    assert args == ()
    return model, inputs


def masks(model: Any, inputs: dict[str, Any]) -> list[bool]:
    """Whether Dynamo's graph passes a mask, for each call of attention."""
    found: list[bool] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls = [node for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
        found.extend(node.kwargs["attn_mask"] is not None for node in calls)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend)(**inputs)
    return found


def test_tracing_builds_no_mask_and_the_result_is_the_same(made: tuple[Any, dict[str, Any]]) -> None:
    model, inputs = made
    model.set_attn_implementation("sdpa_unmasked")
    assert masks(model, inputs) == [False]
    with torch.no_grad():
        unmasked = model(**inputs).last_hidden_state
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(**inputs).last_hidden_state, unmasked)


def test_without_the_fix_tracing_builds_one(made: tuple[Any, dict[str, Any]]) -> None:
    model, inputs = made
    model.set_attn_implementation("sdpa")
    assert masks(model, inputs) == [True], "transformers builds none by itself now: the third finding is history"
