"""Inductor's plan for a GPU that is absent: the counts that a real H200 had, origins, and nothing left behind."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from taxbreak_fx import absent_step, dry_run_patches
from taxbreak_fx.absent_gpu import H200
from taxbreak_fx.dry_run import dry_run, record_apart
from taxbreak_fx.dry_run_patches import CHECKED, PATCHES, check_version, pretended_to_inductor
from taxbreak_fx.dry_run_step import plan_step
from taxbreak_fx.errors import CaptureError, DeviceError, TaxbreakError, UsageError
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import parse_inputs
from taxbreak_fx.predicted import DryRun
from taxbreak_fx.request import ReviewRequest

HERE = Path(__file__).parent
RELEASE = ".".join(torch.__version__.split(".")[:2])
# (generated kernels, extern calls) of two layers.  2.11: predicted on and counted by the profiler of an H200 (torch
# 2.11.0+cu130, transformers 5.17).  2.13 turns the product of one frequency row (Llama, OLMoE) into a kernel.
COUNTS = {
    "gpt2": {"2.11": (13, 11), "2.13": (13, 11)},
    "llama": {"2.11": (20, 18), "2.13": (21, 17)},
    "olmoe": {"2.11": (24, 22), "2.13": (23, 21)},
}


# In this process a GPU that is there would answer; the tests that start another one hide it.
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="run with CUDA_VISIBLE_DEVICES=")


def request(model: str, **more: Any) -> ReviewRequest:
    return ReviewRequest(model=model, **({"phase": "decode", "seq_len": 32} | more))


@pytest.fixture(scope="module", params=sorted(COUNTS))
def named(request: pytest.FixtureRequest) -> tuple[str, DryRun]:
    name: str = request.param
    return name, dry_run(ReviewRequest(model=f"{HERE / 'absent_models.py'}:{name}", dtype="bfloat16"), 300.0)


def test_launches_are_those_of_the_real_gpu(named: tuple[str, DryRun]) -> None:
    name, plan = named
    assert plan.counts == COUNTS[name][RELEASE]
    (graph,) = plan.graphs
    assert graph.guards is not None and graph.guards > 0
    assert plan.versions["torch"] == torch.__version__
    assert plan.peak_memory_bytes < 2 << 30


def test_every_launch_comes_from_lines_of_the_author(named: tuple[str, DryRun]) -> None:
    _, plan = named
    for launch in plan.graphs[0].launches:
        assert launch.origins, launch.target
        assert all(origin.op and origin.node for origin in launch.origins)
        sources = [origin.source for origin in launch.origins if origin.source is not None]
        assert sources and all("transformers" in source.file for source in sources), launch.target
    fused = [launch for launch in plan.graphs[0].launches if launch.kind == "kernel"]
    assert any(len({origin.source for origin in launch.origins}) > 1 for launch in fused)


def test_every_launch_is_described(named: tuple[str, DryRun]) -> None:
    _, plan = named
    for launch in plan.graphs[0].launches:
        assert launch.read_bytes is not None and launch.read_bytes >= 0
        if launch.kind == "kernel":
            assert launch.target.startswith("triton:triton_") and launch.numels and launch.written_bytes
            assert classify_op(launch.target, "cuda").library == "Triton/Inductor"
        else:
            assert launch.inputs is not None
            parsed = parse_inputs(launch.inputs)
            assert parsed is not None and parsed.tensors, launch.inputs
            kind = classify_op(launch.target, "cuda", dtype=launch.dtype, inputs=launch.inputs)
            assert kind.family != "unknown", launch.target
    attention = [launch.target for launch in plan.graphs[0].launches if "attention" in launch.target]
    assert attention.count("aten._scaled_dot_product_cudnn_attention.default") == 2


def test_a_kernel_does_not_read_a_whole_table(named: tuple[str, DryRun]) -> None:
    """The first kernel looks up one token: its row, not the 1024 rows of the embedding."""
    _, plan = named
    first = plan.graphs[0].launches[0]
    assert any(origin.op.startswith("aten.embedding") for origin in first.origins)
    assert first.read_bytes is not None and first.read_bytes < 1024 * 512 * 2 / 10


ROW = """
import torch
def row(device):
    def step(cache, position, new):
        cache.index_copy_(0, position, 2 * new)
        return new + 1
    position = torch.zeros(1, dtype=torch.long, device=device)
    return step, (torch.zeros(4096, 64, device=device), position, torch.zeros(1, 64, device=device)), {}
"""


def test_a_kernel_that_writes_a_row_of_a_cache_does_not_read_the_cache(tmp_path: Path) -> None:
    (tmp_path / "author.py").write_text(ROW)
    (graph,) = dry_run(request(f"{tmp_path / 'author.py'}:row", dtype="float32"), 300.0).graphs
    moved = [(made.read_bytes, made.written_bytes) for made in graph.launches]
    # A position and a row of 64 values in, two rows out, in one kernel or in two.
    assert sum(read or 0 for read, _ in moved) in (8 + 256, 8 + 2 * 256)
    assert sum(written or 0 for _, written in moved) == 2 * 256


def test_products_read_their_weights(named: tuple[str, DryRun]) -> None:
    name, plan = named
    head = plan.graphs[0].launches[-1]
    assert (head.target, head.outputs) == ("extern:mm", "bfloat16[1x1024](1024,1)"), name
    assert (head.read_bytes, head.written_bytes) == (2 * (512 + 512 * 1024), 2 * 1024)


def test_buffers_are_allocated_before_they_are_used(named: tuple[str, DryRun]) -> None:
    _, plan = named
    graph = plan.graphs[0]
    assert graph.allocations and all(made.size_bytes > 0 for made in graph.allocations)
    places = [made.before for made in graph.allocations]
    assert places == sorted(places) and places[-1] <= len(graph.launches)


def test_it_survives_the_way_through_json(named: tuple[str, DryRun]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(named[1]), type=DryRun) == named[1]


def _patched() -> dict[str, Any]:
    found = {}
    for patch in PATCHES:
        owner = dry_run_patches._object(patch.where)
        found |= {f"{patch.where}.{name}": getattr(owner, name, None) for name in patch.names}
    interfaces = importlib.import_module("torch._dynamo.device_interface")
    list(interfaces.get_registered_device_interfaces())
    return found | {"interfaces": dict(interfaces.device_interfaces), "available": torch.cuda.is_available()}


@no_gpu
def test_no_patch_stays_behind() -> None:
    before = _patched()
    plan = plan_step(request("gpt2-tiny"), "h200")
    assert plan.counts[1] == 11
    with pytest.raises(ZeroDivisionError), pretended_to_inductor(H200):
        assert torch.cuda.is_available() and torch.cuda.get_device_name() == "NVIDIA H200"
        raise ZeroDivisionError
    assert _patched() == before
    again = plan_step(request("gpt2-tiny"), "h200")
    assert again.graphs == plan.graphs


def test_every_patch_has_a_reason() -> None:
    assert all(patch.reason and patch.names for patch in PATCHES)
    places = [(patch.where, name) for patch in PATCHES for name in patch.names]
    assert len(places) == len(set(places))


@no_gpu
def test_a_graph_break_is_a_graph_more(tmp_path: Path) -> None:
    source = """
import torch
def step(x):
    y = torch.relu(x) * 2
    torch._dynamo.graph_break()
    return y @ y + 1
def broken(device):
    return step, (torch.ones(64, 64, device=device),), {}
"""
    (tmp_path / "author.py").write_text(source)
    plan = plan_step(request(f"{tmp_path / 'author.py'}:broken", dtype="float32"), "h200")
    assert [graph.counts for graph in plan.graphs] == [(1, 0), (1, 1)]
    assert plan.graphs[0].break_reason is not None and plan.graphs[1].break_reason is None
    lines = [launch.origins[-1].source for graph in plan.graphs for launch in graph.launches]
    assert [source.line for source in lines if source] == [4, 6, 6]


@no_gpu
def test_products_with_unaligned_rows_are_padded_where_arithmetic_bounds_them(tmp_path: Path) -> None:
    """As on an H200, where Inductor times both: the head of GPT-2's prefill was padded, that of a decode step not."""
    source = """
import torch
def step(x, weight):
    return torch.nn.functional.linear(x, weight)
def _made(rows, columns):
    return lambda device: (step, (torch.ones(rows, 768, device=device, dtype=torch.bfloat16),
                                  torch.ones(columns, 768, device=device, dtype=torch.bfloat16)), {})
odd_rows, odd_columns, one_row, aligned = _made(509, 50256), _made(512, 50257), _made(1, 50257), _made(512, 50256)
"""
    (tmp_path / "author.py").write_text(source)
    wide = {}
    for name in ("odd_rows", "odd_columns", "one_row", "aligned"):
        plan = plan_step(request(f"{tmp_path / 'author.py'}:{name}", dtype="bfloat16"), "h200")
        (product,) = [one for graph in plan.graphs for one in graph.launches if one.kind == "extern"]
        wide[name] = product.outputs.split("](")[0]
    assert wide == {
        "odd_rows": "bfloat16[509x50256",
        "odd_columns": "bfloat16[512x50264",
        "one_row": "bfloat16[1x50257",
        "aligned": "bfloat16[512x50256",
    }


@no_gpu
def test_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_version()
    assert RELEASE in CHECKED
    monkeypatch.setattr(torch, "__version__", "2.99.1+cu130")
    with pytest.raises(CaptureError, match=r"not checked on torch 2\.99\.1\+cu130: it covers 2\.11 and 2\.13"):
        plan_step(request("gpt2-tiny"), "h200")


@no_gpu
def test_experts_that_need_data_are_named() -> None:
    with pytest.raises(CaptureError, match=r"^aten\.nonzero\.default at .*olmoe.*\.py:\d+ needs the data of a tensor"):
        plan_step(request("olmoe-tiny", experts_implementation="eager"), "h200")


BAD = [
    ({"model": "no-such-model"}, {}, UsageError, "no model 'no-such-model'"),
    ({"model": "gpt2-tiny"}, {"target": "a-gpu"}, UsageError, "no GPU 'a-gpu' to pretend; known: h200"),
    ({"model": "gpt2-tiny"}, {"timeout_s": 0.0}, UsageError, "time limit must be positive, not 0 s"),
    ({"model": "gpt2-tiny"}, {"timeout_s": 0.2}, CaptureError, r"gpt2-tiny took longer than 0\.2 s"),
]


@pytest.mark.parametrize(("asked", "options", "kind", "reason"), BAD, ids=[reason for *_, reason in BAD])
def test_mistakes_cross_the_process(
    asked: dict[str, Any], options: dict[str, Any], kind: type[TaxbreakError], reason: str
) -> None:
    with pytest.raises(kind, match=reason) as caught:
        dry_run(ReviewRequest(**asked), **options)
    assert "\n" not in str(caught.value) and caught.value.exit_code == kind.exit_code


@no_gpu
def test_recording_apart_yields_the_same_step() -> None:
    here, apart = absent_step.record_fake_step(request("gpt2-tiny")), record_apart(request("gpt2-tiny"))
    assert msgspec.structs.replace(apart, seconds=here.seconds) == here


def test_a_visible_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="hide it with CUDA_VISIBLE_DEVICES="):
        absent_step.record_fake_step(request("gpt2-tiny"))


def test_a_dead_worker_is_reported(tmp_path: Path) -> None:
    (tmp_path / "author.py").write_text(
        "import os\ndef dies(device):\n    print('the end', flush=True)\n    os._exit(7)\n"
    )
    with pytest.raises(CaptureError, match="ended with exit code 7: the end"):
        dry_run(request(f"{tmp_path / 'author.py'}:dies"))


def test_an_error_that_goes_on_for_lines_is_told_by_its_first(tmp_path: Path) -> None:
    (tmp_path / "author.py").write_text(
        "class Odd(BaseException): pass\n"
        "def fails(device):\n    raise Odd('could not run it\\nCPU: registered\\nMeta: registered')\n"
    )
    with pytest.raises(CaptureError, match=r"ended with exit code 1: (\S+\.)?Odd: could not run it$"):
        dry_run(request(f"{tmp_path / 'author.py'}:fails"))


def test_asking_for_a_dry_run_does_not_load_torch() -> None:
    code = "import sys, taxbreak_fx.dry_run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
