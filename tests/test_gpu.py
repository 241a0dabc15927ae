"""What only a CUDA device can show: real traces, launch costs and crashes.  Counts and identities, never times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taxbreak_fx import calibrate
from taxbreak_fx.api import Options, review_with
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.request import CUDA_VARIANTS, ReviewRequest
from taxbreak_fx.supervisor import supervise

pytestmark = pytest.mark.gpu

STEPS = """
import os

import torch
import triton
import triton.language as tl


@triton.jit
def double_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


def asserting(device):
    table, index, x = torch.ones(4, device=device), torch.tensor([1], device=device), torch.ones(8, device=device)

    def step(x):
        return table[index + (100 if torch.compiler.is_compiling() else 0)] + x

    return step, (x,), {}


def greedy(device):
    x = torch.ones(8, device=device)

    def step(x):
        return x + (torch.empty(1 << 44, device=device).sum() if torch.compiler.is_compiling() else 0)

    return step, (x,), {}


def custom(device):
    x = torch.ones(1024, device=device)

    def step(x):
        out = torch.empty_like(x)
        double_kernel[(1,)](x, out, x.numel(), BLOCK=1024)
        return out + 1

    return step, (x,), {}
"""


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.py"
    path.write_text(STEPS)
    return path


def reviewed(path: Path, name: str, out: Path, *variants: str) -> Review:
    request = ReviewRequest(model=f"{path}:{name}", device="cuda", variants=variants, budget_s=0.2, timeout_s=90.0)
    out.mkdir()
    return supervise(request, out, lambda event: None)


def assert_whole(variant: Variant) -> None:
    """Every kernel and launch in one row; every term there or with its reason."""
    assert variant.status == "ok", variant.reason
    assert variant.kernels == sum(node.kernels or 0 for node in variant.nodes)
    assert variant.launches == sum(node.launches or 0 for node in variant.nodes)
    assert variant.device_sum_us == pytest.approx(sum(node.device_us or 0.0 for node in variant.nodes))
    assert variant.breakdown is not None


def test_a_module_under_every_variant() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.GELU()).cuda().eval()
    found = review_with(Options(budget_s=0.2), net, torch.randn(8, 64, device="cuda"))
    assert [variant.name for variant in found.variants] == list(CUDA_VARIANTS)
    for variant in found.variants:
        assert_whole(variant)
        assert variant.outputs_equal, variant.output_check
        assert variant.breakdown is not None and variant.breakdown.hdbi is not None
        assert 0.0 < variant.breakdown.hdbi < 1.0
    eager, graph = found.variant("eager"), found.variant("eager-graph")
    # linear, layer_norm and gelu are one kernel each; a graph of the same program launches the same kernels at once.
    assert eager.kernels == eager.launches == graph.kernels == 3
    assert (graph.launches, graph.graph_launches) == (1, 1)
    assert eager.library_calls is not None and eager.library_calls["cublas"] + eager.library_calls["cublaslt"] == 1
    assert graph.library_calls == {"cublas": 0, "cublaslt": 0, "cudnn": 0}
    assert {node.match_tier for node in eager.nodes if node.kernels} == {"exact"}
    assert {node.family for node in eager.nodes if node.kernels} == {"gemm", "normalization", "elementwise"}


def test_calibration_is_ordered_and_positive() -> None:
    assert 0.1 < calibrate.kernel_launch_us() < 1_000.0
    found = calibrate.describe_machine("cuda", calibrate.calibrate_host("cuda"), seed=0)
    assert found.device == torch.cuda.get_device_name() and found.driver
    assert found.calibration.launch_us is not None and (found.calibration.host_score or 0.0) > 0.0


def test_a_device_side_assert_costs_its_variant_only(steps: Path, tmp_path: Path) -> None:
    found = reviewed(steps, "asserting", tmp_path / "out", "dynamo", "eager-graph")
    assert found.variant("dynamo").status == "failed"
    assert "device-side assert" in str(found.variant("dynamo").reason)
    for name in ("eager", "eager-graph"):
        assert_whole(found.variant(name))


def test_out_of_memory_costs_its_variant_only(steps: Path, tmp_path: Path) -> None:
    found = reviewed(steps, "greedy", tmp_path / "out", "dynamo", "eager-graph")
    assert found.variant("dynamo").status == "failed"
    assert "out of memory" in str(found.variant("dynamo").reason).lower()
    for name in ("eager", "eager-graph"):
        assert_whole(found.variant(name))


def test_an_authors_triton_kernel_is_attributed(steps: Path, tmp_path: Path) -> None:
    found = reviewed(steps, "custom", tmp_path / "out", "eager-graph")
    for name in ("eager", "eager-graph"):
        variant = found.variant(name)
        assert_whole(variant)
        (row,) = [node for node in variant.nodes if node.op == "double_kernel"]
        assert (row.family, row.library, row.kernels) == ("custom-triton", "Triton", 1)
