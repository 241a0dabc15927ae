"""What a step runs is recorded with its lines, modules and real arguments: on tiny transformers models."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from torch import nn

from taxbreak_fx.capture import CapturedCall, EagerRecorder, OpRecorder, freeze, main_dtype, record_eager, signature
from taxbreak_fx.observe import Label
from taxbreak_fx.state import Snapshot

MODELS = Path(transformers.__file__).parent
CASES = [("gpt2", None), ("llama", None), ("olmoe", "eager"), ("olmoe", "grouped_mm")]
# What they return is not decided by their arguments.
UNDECIDED = ("aten.empty", "aten.new_empty")


class Remembering(OpRecorder):
    """Also keeps what every captured leaf call returned when it was captured."""

    def __init__(self, leaves: dict[str, CapturedCall], shared: set[int]) -> None:
        super().__init__(leaves, shared)
        self.results: dict[str, Any] = {}
        self._leaves = leaves

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = len(self._leaves)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self._leaves) > before:
            self.results[next(reversed(self._leaves))] = _copied(result)
        return result


def _copied(result: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, result)


class Decode:
    """A tiny model's decode step on a static cache, recorded."""

    def __init__(self, name: str, experts: str | None = None) -> None:
        self.module = tiny_models.build(name, experts_implementation=experts)
        steps = dict(tiny_models.steps(self.module))
        with torch.no_grad():
            steps["prefill"]()
            self.step: Callable[[], Any] = steps["decode"]
            self.snapshot = Snapshot([self.step])
            self.output = self.step().logits
            self.snapshot.settle()
            self.snapshot.restore()
        roots, shared = [self.module], self.snapshot.storages
        self.top = record_eager(self.step, roots, shared, inference=True)
        self.snapshot.restore()
        self.calls: dict[str, CapturedCall] = {}
        self.leaves: dict[str, CapturedCall] = {}
        self.low = Remembering(self.leaves, shared)
        eager = EagerRecorder(self.low, roots, self.calls, shared)
        with torch.no_grad(), eager.watching_modules(), eager, self.low:
            self.recorded = self.step().logits


@pytest.fixture(scope="module", params=CASES, ids=["-".join(filter(None, case)) for case in CASES])
def decode(request: pytest.FixtureRequest) -> Decode:
    """The decode step of each model."""
    return Decode(*request.param)


def test_recording_does_not_change_the_output(decode: Decode) -> None:
    assert torch.equal(decode.recorded, decode.output)


def test_two_passes_meet_the_same_calls(decode: Decode) -> None:
    assert [site.label for site in decode.top.sites] == [site.label for site in decode.low.sites]
    assert len(decode.top.sites) > 50


def test_every_op_belongs_to_a_call(decode: Decode) -> None:
    assert (decode.top.stray, decode.low.stray) == ([], [])


def test_composite_ops_in_one_pass_leaf_ops_in_the_other(decode: Decode) -> None:
    tops = [op for site in decode.top.sites for op in site.ops]
    lows = [op for site in decode.low.sites for op in site.ops]
    assert "aten.scaled_dot_product_attention.default" in tops
    assert "aten.scaled_dot_product_attention.default" not in lows
    # GPT-2's Conv1D calls addmm itself; its head and all the others' projections are linear
    assert "aten.linear.default" in tops and "aten.linear.default" not in lows
    assert {"aten.mm.default", "aten.addmm.default"} & set(lows)
    assert len(lows) > len([op for op in tops if "to." not in op])


def test_source_lines_are_the_models_never_torchs(decode: Decode) -> None:
    sources = {site.label.source for site in decode.top.sites}
    assert None not in sources
    files = {Path(source.file) for source in sources if source}
    assert not [file for file in files if Path(torch.__file__).parent in file.parents]
    assert {file for file in files if file.name.startswith("modeling_")}
    # all but this folder's own call of the step is transformers'
    assert [file for file in files if MODELS not in file.parents] in ([], [Path(tiny_models.__file__)])


def test_linear_calls_have_the_path_of_their_module_and_the_line_that_calls_it(decode: Decode) -> None:
    linear = [site for site in decode.top.sites if site.label.target == "torch.nn.functional.linear"]
    paths = [site.label.module_path for site in linear]
    known = dict(decode.module.named_modules())
    for site in linear:
        path, source = site.label.module_path, site.label.source
        assert path in known and source is not None
        name = path.rpartition(".")[2]
        if isinstance(known[path], nn.Linear):
            assert f"{name}(" in linecache.getline(source.file, source.line)
    modules = [path for path, module in known.items() if isinstance(module, nn.Linear)]
    assert sorted(path for path in paths if path in modules) == sorted(modules)  # each once


def test_captured_calls_stand_for_every_call_that_works(decode: Decode) -> None:
    for site in decode.low.sites:
        assert set(site.leaf_keys) <= set(decode.leaves)
        assert len(site.leaf_keys) == len(site.ops)
        assert site.call_key is None or site.call_key in decode.calls
        assert site.ops or site.call_key is None
    uncaptured = {site.label.target for site in decode.low.sites if site.ops and site.call_key is None}
    assert uncaptured <= {target for target in uncaptured if target.startswith("Tensor.")}  # properties


def test_replays_of_deterministic_leaf_ops_are_bit_identical(decode: Decode) -> None:
    compared = 0
    for key, call in decode.leaves.items():
        if call.op.startswith(UNDECIDED):
            continue
        with torch.no_grad():
            first = _copied(call())
            repeated = _copied(call()) if not call.function._schema.is_mutable else first
        for found in (first, repeated):
            assert _same(found, decode.low.results[key]), key
        compared += 1
    assert compared > 25
    decode.snapshot.restore()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_replayed_calls_run_by_their_own_python_targets(decode: Decode) -> None:
    with torch.no_grad():
        for call in decode.calls.values():
            call()
    linear = [call for call in decode.calls.values() if call.key.startswith("torch.nn.functional.linear(")]
    assert {call.function for call in linear} == {nn.functional.linear}


def test_experts_implementations_are_different_work() -> None:
    eager, grouped = (Decode("olmoe", experts) for experts in ("eager", "grouped_mm"))
    eager_ops = {op for site in eager.top.sites for op in site.ops}
    grouped_ops = {op for site in grouped.top.sites for op in site.ops}
    assert "aten.nonzero.default" in eager_ops - grouped_ops
    assert any("grouped" in op for op in grouped_ops - eager_ops)


# --- arguments ------------------------------------------------------------------------------------------------------


def test_frozen_arguments_keep_aliasing_offsets_and_strides() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    indices = torch.tensor([2, 0])
    (a, [b, c]), kwargs = freeze((base, [base.t()[1:], base[1]]), {"index": indices, "scalar": 3}, set())
    assert (b.stride(), b.storage_offset(), c.storage_offset()) == ((1, 4), 1, 4)
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() == c.untyped_storage().data_ptr()
    assert a.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()
    base.zero_()
    indices.zero_()
    assert torch.equal(a, torch.arange(12.0).reshape(3, 4))  # a copy: what the step writes later does not reach it
    assert (kwargs["index"].tolist(), kwargs["scalar"]) == ([2, 0], 3)
    a[1, 0] = 99.0
    assert c[0] == 99.0


def test_weights_and_state_are_shared_not_copied() -> None:
    weight = nn.Parameter(torch.ones(4))
    (kept, view), _ = freeze((weight, weight[2:]), {}, {weight.untyped_storage().data_ptr()})
    assert kept.data_ptr() == weight.data_ptr() and view.data_ptr() == weight[2:].data_ptr()
    assert kept is not weight and kept.grad_fn is None


def test_arguments_keep_requires_grad_by_which_matmul_chooses_its_kernels() -> None:
    weight, x = nn.Parameter(torch.ones(9, 32)), torch.ones(2, 32, 6).transpose(1, 2)
    for shared in (set(), {weight.untyped_storage().data_ptr()}):
        (kept, plain), _ = freeze((weight, x), {}, shared)
        assert (kept.requires_grad, plain.requires_grad) == (True, False)
    leaves: dict[str, CapturedCall] = {}
    calls: dict[str, CapturedCall] = {}
    record_eager(lambda: nn.functional.linear(x, weight), [], set(), inference=False, calls=calls, leaves=leaves)
    (replay,) = calls.values()
    again: dict[str, CapturedCall] = {}
    record_eager(replay, [], set(), inference=False, leaves=again)
    assert list(again) == list(leaves)


def test_freezing_works_inside_the_recorders_own_modes() -> None:
    leaves: dict[str, CapturedCall] = {}
    x = torch.ones(2)
    record_eager(lambda: torch.add(x, 1), [], set(), inference=False, leaves=leaves)
    assert list(leaves) == ["aten.add.Tensor(float32[2](1), 1)"]
    assert torch.equal(next(iter(leaves.values()))(), torch.full((2,), 2.0))


def test_a_signature_tells_calls_apart_by_shape_stride_dtype_and_scalar() -> None:
    x = torch.ones(2, 3)
    variants = [(x,), (x.t(),), (x.t().contiguous(),), (x.to(torch.int64),), (x, 1), (x, 1.0), (x, True), (x, None)]
    assert len({signature(args, {}) for args in variants}) == len(variants)
    assert signature((x, slice(0, 2)), {}) != signature((x, slice(0, 1)), {}) != signature((x, ...), {})
    assert signature((x, slice(x, None)), {}) == "float32[2x3](3,1), slice"
    assert signature((x, [x, 2]), {"dim": 0}) == "float32[2x3](3,1), float32[2x3](3,1), 2, dim=0"
    assert signature((x,), {"beta": 0.5}) != signature((x,), {"alpha": 0.5})


def test_the_dtype_of_a_call_is_that_of_its_floating_argument() -> None:
    assert main_dtype((torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.bfloat16)), {}) == "bfloat16"
    assert main_dtype((torch.ones(1, dtype=torch.int64),), {}) == "int64"
    assert main_dtype((3,), {}) is None


def test_a_property_that_works_is_a_call_without_a_replay() -> None:
    calls: dict[str, CapturedCall] = {}
    x = torch.ones(2, 3)
    (site,) = record_eager(lambda: x.T, [], set(), inference=False, calls=calls).sites
    assert site.ops  # permute or t, by release
    assert (site.label.target, site.call_key, calls) == ("Tensor.T", None, {})


def test_a_call_whose_error_the_author_catches_ends_there() -> None:
    x = torch.ones(2)

    def step() -> torch.Tensor:
        try:
            torch.mm(x, x)
        except RuntimeError:
            x.view(-1)
        return x + 1

    recorder = record_eager(step, [], set(), inference=True)
    assert [site.label.target for site in recorder.sites] == ["torch.mm", "Tensor.view", "Tensor.add"]
    assert recorder.current is None


def test_module_paths_survive_an_error_and_hooks_are_removed() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Failing()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            try:
                return self.inner(x)
            except ValueError:
                return x + 1

    hooks = nn.modules.module
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    outer = nn.Sequential(Outer())
    (site,) = record_eager(lambda: outer(torch.ones(1)), [outer], set(), inference=True).sites[-1:]
    assert site.label.module_path == "0"
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before


def test_an_out_overload_is_replayed_as_the_overload_that_allocates() -> None:
    x, out = torch.ones(2, 2), torch.empty(2, 2)
    leaves: dict[str, CapturedCall] = {}
    recorder = OpRecorder(leaves)
    with torch.no_grad(), recorder:
        recorder.begin(Label("extern:mm"))
        torch.ops.aten.mm.out(x, x, out=out)
        torch.ops.aten.add.out(x, x, alpha=2, out=out)  # has no overload called default
        torch.ops.aten.mul.out(x, x, out=out)  # has one, of two numbers
        recorder.end()
    mm, add, mul = leaves.values()
    assert (mm.op, mm.function, mm.kwargs) == ("aten.mm.out", torch.ops.aten.mm.default, {})
    assert (add.op, add.function, sorted(add.kwargs)) == ("aten.add.out", torch.ops.aten.add.out, ["alpha", "out"])
    assert (mul.function, list(mul.kwargs)) == (torch.ops.aten.mul.out, ["out"])
    address = out.data_ptr()
    assert torch.equal(mm(), torch.full((2, 2), 2.0)) and mm().data_ptr() != address
