"""``taxbreak_fx.review`` on a module and on functions, in this process."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

import taxbreak_fx
from taxbreak_fx import schema, variants
from taxbreak_fx.api import Options, review_with
from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.model import Review

ROOT = Path(__file__).parent.parent
QUICK = Options(variants=("dynamo",), budget_s=0.02)


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every timed region begins with a garbage collection: keep it from walking all of torch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Small(nn.Module):
    """A layer, and a buffer that each step writes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.count += 1
        return torch.relu(self.layer(x)) * scale


def assert_whole(review: Review) -> None:
    """Both variants are measured, and their CPU identity holds."""
    assert [(variant.name, variant.status) for variant in review.variants] == [("eager", "ok"), ("dynamo", "ok")]
    for variant in review.variants:
        parts, host, device = variant.breakdown, variant.t_host_us, variant.device_active_us
        assert parts is not None and parts.ft_us is not None and parts.ct_us is not None
        assert host is not None and device is not None
        assert parts.ft_us + parts.ct_us + device == pytest.approx(host.median)
        assert sum(parts.ft_parts.values()) == pytest.approx(parts.ft_us)
    (comparison,) = review.comparisons
    assert (comparison.base, comparison.variant) == ("eager", "dynamo") and comparison.wall_ratio is not None


def test_a_module(tmp_path: Path) -> None:
    module = Small()
    review = review_with(QUICK, module, torch.ones(2, 8), scale=2.0)
    assert_whole(review)
    assert (review.model, review.step.device, review.step.dtype) == ("Small", "cpu", "float32")
    assert {variant.outputs_equal for variant in review.variants} == {True}
    assert float(module.count) in (0.0, 1.0)  # not the hundreds of steps that were run
    eager = review.variant("eager")
    linear = next(node for node in eager.nodes if node.op == "aten.linear.default")
    assert linear.module_path == "layer" and linear.source is not None
    assert Path(linear.source.file) == Path(__file__)
    assert "self.layer(x)" in Path(__file__).read_text().splitlines()[linear.source.line - 1]
    # and the whole survives the file
    review.save(tmp_path / "review.json")
    assert schema.load(tmp_path / "review.json") == review


def test_a_function_with_its_model_in_a_closure() -> None:
    module, seen = Small().to(torch.bfloat16), []

    def decode(x: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return module(x) + 1

    review = review_with(QUICK, decode, torch.ones(2, 8, dtype=torch.bfloat16))
    assert_whole(review)
    assert review.model.endswith("decode")
    assert review.step.dtype == "bfloat16"
    assert len(seen) <= 1
    assert {node.module_path for node in review.variant("eager").nodes if "linear" in node.op} == {"layer"}


def test_a_variant_that_fails_is_reported_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, *args: Any) -> Any:
        if name == "dynamo":
            raise torch.OutOfMemoryError("tried to allocate 32 GiB\non a device")
        return variants.build(name, *args)

    monkeypatch.setattr("taxbreak_fx.recorders.bench.build", build)
    review = review_with(QUICK, Small(), torch.ones(1, 8))
    assert (review.variant("eager").status, review.variant("dynamo").status) == ("ok", "failed")
    assert review.variant("dynamo").reason == "OutOfMemoryError: tried to allocate 32 GiB on a device"
    assert review.comparisons == []


def test_nothing_is_measured_beside_an_eager_step_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, *args: Any) -> Any:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr("taxbreak_fx.recorders.bench.build", build)
    review = review_with(QUICK, Small(), torch.ones(1, 8))
    assert review.variant("eager").reason == "OutOfMemoryError: too large"
    assert review.variant("dynamo").reason == "eager failed: OutOfMemoryError: too large"


def test_a_step_that_writes_a_parameter_is_refused() -> None:
    module = nn.Linear(2, 2)

    def train(x: torch.Tensor) -> torch.Tensor:
        module.weight.sub_(0.1)
        return module(x)

    with pytest.raises(CaptureError, match="writes a parameter in place"):
        review_with(QUICK, train, torch.ones(1, 2))


def test_user_mistakes() -> None:
    with pytest.raises(UsageError, match="needs a callable step, not int"):
        taxbreak_fx.review(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'cudagraphs' needs a CUDA device"):
        review_with(Options(variants=("cudagraphs",)), Small(), torch.ones(1, 8))
    for budget_s in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="budget_s must be a positive number of seconds"):
            review_with(Options(budget_s=budget_s), Small(), torch.ones(1, 8))
    with pytest.raises(UsageError, match="supported devices: cuda, cpu"):
        review_with(QUICK, Small(), torch.ones(1, 8, device="meta"))
    with pytest.raises(CaptureError, match="the step fails when run as it is"):
        review_with(QUICK, Small(), torch.ones(1, 3))


def test_the_package_alone_imports_no_torch() -> None:
    code = "import sys, taxbreak_fx; assert taxbreak_fx.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
