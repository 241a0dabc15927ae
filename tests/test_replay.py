"""Isolated replay: the same bits as in the step, state left as it was, and the cost of the OpOverload path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_models
import torch
import transformers

from taxbreak_fx import replay
from taxbreak_fx.capture import CapturedCall, record_eager
from taxbreak_fx.replay import replay_all, replay_smallest, tensors_of, written
from taxbreak_fx.replay_check import CallWitness, Level, ReplayCheck, check_replays
from taxbreak_fx.state import Snapshot

Step = Callable[[], Any]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
_SMALL = {"vocab_size": 64, "d_model": 16}
_ATTENTION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def _vit() -> Iterator[Any]:
    config = transformers.ViTConfig(image_size=16, patch_size=4, **_ATTENTION)
    module = transformers.ViTModel(config).eval()
    pixels = torch.randn(2, 3, 16, 16)
    yield module, lambda: module(pixel_values=pixels.to(module.device))


def _whisper() -> Iterator[Any]:
    layers = {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    wide = {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}
    config = transformers.WhisperConfig(
        **_SMALL, **layers, **heads, **wide, num_mel_bins=8, max_source_positions=16, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    module = transformers.WhisperModel(config).eval()
    sound, tokens = torch.randn(1, 8, 32), torch.arange(4)[None]
    yield module, lambda: module(input_features=sound.to(module.device), decoder_input_ids=tokens.to(module.device))


def _t5() -> Iterator[Any]:
    module = transformers.T5Model(transformers.T5Config(**_SMALL, d_kv=4, d_ff=24, num_layers=2, num_heads=4)).eval()
    tokens = torch.arange(12).reshape(2, 6)
    yield module, lambda: module(input_ids=tokens.to(module.device), decoder_input_ids=tokens.to(module.device))


def _mamba() -> Iterator[Any]:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    module = transformers.MambaForCausalLM(config).eval()
    tokens = torch.arange(12).reshape(2, 6)
    yield module, lambda: module(input_ids=tokens.to(module.device), use_cache=False)


def _registered(name: str, experts: str | None = None) -> Callable[[], Iterator[Any]]:
    def made() -> Iterator[Any]:
        module = tiny_models.build(name, experts_implementation=experts)
        for _, step in tiny_models.steps(module):
            yield module, step
            with torch.no_grad():
                step()

    return made


MODELS: dict[str, Callable[[], Iterator[Any]]] = {
    **{name: _registered(name) for name in ("gpt2", "llama", "gemma2", "bert")},
    "olmoe-eager": _registered("olmoe", "eager"),
    "olmoe-grouped": _registered("olmoe", "grouped_mm"),
    "vit": _vit,
    "whisper": _whisper,
    "t5": _t5,
    "mamba": _mamba,
}
# What these steps write in place or leave unwritten; everything else must be identical.
WRITERS = ("Tensor.add_", "aten.add_", "Tensor.index_add_", "aten.index_add_")
UNWRITTEN = ("torch.empty_like", "aten.empty_like")


def checked(step: Step, roots: list[Any]) -> dict[Level, list[ReplayCheck]]:
    """Every captured call and leaf of ``step``, replayed and compared."""
    with torch.no_grad():
        snapshot = Snapshot([step])
        step()
        snapshot.settle()
        snapshot.restore()
    witness, calls, leaves = CallWitness(), dict[str, CapturedCall](), dict[str, CapturedCall]()
    record_eager(step, roots, snapshot.storages, False, calls, leaves, witness=witness)
    snapshot.restore()
    return {
        "call": check_replays(calls.values(), "call", witness),
        "leaf": check_replays(leaves.values(), "leaf", witness),
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_op_of_every_model_replays_bit_identically_or_says_why_not(name: str) -> None:
    for module, step in MODELS[name]():
        for level, checks in checked(step, [module]).items():
            assert len(checks) > 15, level
            assert [check for check in checks if not check.stands] == []
            other = [check for check in checks if check.outcome != "identical"]
            written = [check for check in other if check.key.startswith(WRITERS)]
            assert {check.outcome for check in written} <= {"writes its input"}
            unwritten = [check for check in other if check.key.startswith(UNWRITTEN)]
            assert {check.outcome for check in unwritten} <= {"uninitialised"}
            assert len(written) + len(unwritten) == len(other)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in MODELS if name in ("vit", "whisper", "t5", "mamba")])
def test_every_op_replays_bit_identically_on_the_gpu(name: str) -> None:
    for module, step in MODELS[name]():
        module.to("cuda")
        for checks in checked(step, [module]).values():
            assert [check for check in checks if not check.stands] == []
            counts = Counter(check.outcome for check in checks)
            assert counts["identical"] > 0.8 * counts.total(), counts


# --- hand-made calls ------------------------------------------------------------------------------------------------


def outcomes(step: Step, level: Level = "call") -> dict[str, str]:
    """Outcome by the op's name, of every call of ``step`` that dispatches an op."""
    return {check.key.split("(", 1)[0]: check.outcome for check in checked(step, [])[level]}


@pytest.mark.parametrize("device", DEVICES)
def test_in_place_calls_are_identical_from_restored_inputs_and_say_that_they_write(device: str) -> None:
    x, index, source = (
        torch.ones(4, 4, device=device),
        torch.tensor([2, 0], device=device),
        torch.ones(2, 4, device=device),
    )
    cache = torch.zeros(1, 2, 8, 4, device=device)
    new, position = torch.ones(1, 2, 1, 4, device=device), torch.tensor([5], device=device)

    def step() -> None:
        (x * 1).mul_(1.5)
        x.clone().index_add_(0, index, source)
        cache.index_copy_(2, position, new)  # a KV-cache write: repeated, it writes the same again
        torch.zeros(4, 4, device=device).index_put_((index,), source)

    found = outcomes(step)
    assert found["Tensor.mul_"] == found["Tensor.index_add_"] == "writes its input"
    assert found["Tensor.index_copy_"] == found["Tensor.index_put_"] == "identical"
    assert "different" not in outcomes(step, "leaf").values()
    assert torch.equal(cache, torch.zeros_like(cache))  # neither recording nor replay is left in the cache


def test_out_arguments_and_views_keep_what_they_share() -> None:
    x, out = torch.arange(12.0).reshape(3, 4), torch.empty(3, 4)

    def step() -> None:
        torch.add(x, 1, out=out)
        torch.mm(x, x.t(), out=torch.empty(3, 3))
        x.t()[1:].view(3, 3).transpose(0, 1).narrow(0, 0, 2)

    assert set(outcomes(step).values()) <= {"identical", "uninitialised"}
    assert set(outcomes(step, "leaf").values()) <= {"identical", "uninitialised"}
    assert {"torch.add", "torch.mm", "Tensor.t", "Tensor.view"} <= set(outcomes(step))


def test_a_replay_whose_result_shares_other_memory_is_told_apart() -> None:
    x = torch.ones(3)
    witness, calls = CallWitness(), dict[str, CapturedCall]()
    record_eager(lambda: x.view(3), [], set(), False, calls, witness=witness)
    (call,) = calls.values()
    assert [check.outcome for check in check_replays([call], "call", witness)] == ["identical"]
    call.function = lambda x, _: x.clone()
    (copied,) = check_replays([call], "call", witness)
    assert (copied.outcome, copied.detail) == ("different", "the result shares memory with other arguments")
    call.function = lambda x, _: x.add_(0)
    assert not check_replays([call], "call", witness)[0].detail  # the same memory, the same bits
    call.function = lambda x, _: x.add_(1)
    assert check_replays([call], "call", witness)[0].outcome == "different"


@pytest.mark.parametrize("device", DEVICES)
def test_random_calls_draw_the_same_numbers_from_restored_generators_only(device: str) -> None:
    x, own = torch.full((64,), 0.5, device=device), torch.Generator(device).manual_seed(3)

    def step() -> None:
        torch.nn.functional.dropout(x, 0.5, training=True)
        torch.bernoulli(x)
        torch.rand(8, device=device)
        torch.empty(8, device=device).normal_(generator=own)

    state = torch.get_rng_state()
    assert {name: kind for name, kind in outcomes(step).items() if name != "torch.empty"} == {
        "torch.nn.functional.dropout": "random",
        "torch.bernoulli": "random",
        "torch.rand": "random",
        "Tensor.normal_": "random",
    }
    assert torch.equal(torch.get_rng_state(), state)


def test_tensor_lists_and_sizes_and_index_tensors() -> None:
    x, index = torch.arange(24.0).reshape(4, 6), torch.tensor([3, 1, 1])

    def step() -> None:
        torch.cat([x, x[:2]], 0)
        torch.stack([x[0], x[1]])
        torch.split(x, [1, 3])
        torch._foreach_add([x, x + 1], 2.0)
        torch._foreach_mul_([x.clone(), x.clone()], 2.0)
        x[index]
        x.index_select(0, index)
        torch.nn.functional.embedding(index, x)
        x[x > 5]  # the shape of the result is in the data
        (x > 5).nonzero()
        torch.zeros(x.shape[0], 2).expand(3, 4, 2)

    found = outcomes(step)
    assert found.pop("torch._foreach_mul_") == "writes its input"
    assert set(found.values()) == {"identical"}
    assert {"torch.cat", "torch.stack", "torch.functional.split", "torch._foreach_add", "Tensor.nonzero"} <= set(found)
    leaves = outcomes(step, "leaf")
    assert leaves.pop("aten._foreach_mul_.Scalar") == "writes its input"  # although it returns nothing
    assert set(leaves.values()) == {"identical"}


def test_symbolic_sizes_are_replayed_with_their_values() -> None:
    leaves: dict[str, CapturedCall] = {}
    witness = CallWitness()

    def body(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.new_ones(count, x.shape[1]).expand(3, count, x.shape[1])

    def backend(gm: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            record_eager(lambda: gm.forward(*args), [], set(), False, None, leaves, witness=witness)
            return gm.forward(*args)

        return run

    compiled = torch.compile(body, backend=backend, dynamic=True)
    with torch.no_grad():
        compiled(torch.ones(2, 5), 7)
    assert any("7" in key for key in leaves)
    assert {check.outcome for check in check_replays(leaves.values(), "leaf", witness)} == {"identical"}


def test_unwritten_memory_is_called_that() -> None:
    assert set(outcomes(lambda: torch.empty(1000), "leaf").values()) == {"uninitialised"}


def test_bits_not_values_are_compared() -> None:
    x = torch.tensor([float("nan"), -0.0, 0.0])
    assert set(outcomes(lambda: torch.mul(x, 1.0)).values()) == {"identical"}
    witness, calls = CallWitness(), dict[str, CapturedCall]()
    record_eager(lambda: torch.abs(torch.tensor([0.0])), [], set(), False, calls, witness=witness)
    call = next(call for key, call in calls.items() if key.startswith("torch.abs"))
    call.function = torch.neg  # -0.0 == 0.0, yet other bits
    assert check_replays([call], "call", witness)[0].outcome == "different"


def test_a_replay_that_is_refused_says_why() -> None:
    witness, calls = CallWitness(), dict[str, CapturedCall]()
    record_eager(lambda: torch.add(torch.ones(1), 1), [], set(), False, calls, witness=witness)
    call = next(call for key, call in calls.items() if key.startswith("torch.add"))
    call.function = lambda *_: (_ for _ in ()).throw(RuntimeError("not today"))
    (check,) = check_replays([call], "call", witness)
    assert (check.outcome, check.detail, check.stands) == ("failed", "RuntimeError: not today", False)


def test_a_call_that_never_comes_back_alike_is_nondeterministic() -> None:
    x, counter = torch.zeros(1), iter(range(100))
    witness, calls = CallWitness(), dict[str, CapturedCall]()
    record_eager(lambda: torch.add(x, 1), [], set(), False, calls, witness=witness)
    (call,) = calls.values()
    call.function = lambda x, _: x + next(counter) + 2
    assert check_replays([call], "call", witness)[0].outcome == "nondeterministic"


# --- hot loops ------------------------------------------------------------------------------------------------------


def captured(step: Step, level: Level) -> list[CapturedCall]:
    calls, leaves = dict[str, CapturedCall](), dict[str, CapturedCall]()
    record_eager(step, [], set(), False, calls, leaves)
    return list((calls if level == "call" else leaves).values())


@pytest.mark.parametrize("level", ["call", "leaf"])
def test_a_hot_loop_leaves_what_a_call_writes_as_it_was(level: Level) -> None:
    x, y, index = torch.ones(2, 2), torch.ones(2), torch.tensor([1])

    def step() -> None:
        x.mul_(0.5)  # hundreds of times over, it would compute on denormal numbers
        y.unsqueeze_(0)  # nor could this go on for ever: 64 dimensions are the most
        x[index] = 3.0
        torch.add(x, 1, out=torch.empty(2, 2))
        x.__iadd__(1)

    calls = captured(step, level)
    before = [torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, (call.args, call.kwargs)) for call in calls]
    replays = replay_all(calls, level, lambda: None)
    assert [replay.failure for replay in replays] == [None] * len(calls)
    for call, (args, kwargs) in zip(calls, before, strict=True):
        if "out" in call.kwargs:
            continue  # unwritten at first
        tensors = torch.utils._pytree.tree_leaves(((call.args, call.kwargs), (args, kwargs)))
        now, then = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        for a, b in zip(now, then, strict=True):
            assert torch.equal(a, b) and a.shape == b.shape if isinstance(a, torch.Tensor) else a == b, call.key


def test_what_a_call_writes_is_read_from_its_schema_or_its_name() -> None:
    x, index, out = torch.ones(2, 2), torch.tensor([1]), torch.empty(2, 2)

    def step() -> None:
        torch.add(x, 1)
        x.mul_(2)
        x[index] = 1.0
        torch.mul(x, 2, out=out)
        torch.nn.functional.relu(x, inplace=True)
        x.expand(3, 2, 2)
        torch._foreach_add_([x, out], 1)

    calls = {call.key.split("(", 1)[0]: len(written(call)) for call in captured(step, "call")}
    assert calls == {
        "torch.add": 0,
        "Tensor.mul_": 1,
        "Tensor.__setitem__": 1,
        "torch.mul": 1,
        "torch.nn.functional.relu": 1,
        "Tensor.expand": 0,
        "torch._foreach_add_": 2,
    }
    leaves = {call.op: len(written(call)) for call in captured(step, "leaf")}
    assert leaves["aten.mul_.Tensor"] == leaves["aten.mul.out"] == leaves["aten.relu_.default"] == 1
    assert leaves["aten._foreach_add_.Scalar"] == 2
    assert leaves["aten.add.Tensor"] == leaves["aten.expand.default"] == 0


def test_only_leaves_carry_the_cost_of_the_overload_path() -> None:
    x = torch.ones(2, 2)
    calls, leaves = (replay_all(captured(lambda: x + 1, level), level, lambda: None) for level in ("call", "leaf"))
    assert [replay.boxing_us for replay in calls] == [None]
    (leaf,) = leaves
    assert leaf.boxing_us is not None and leaf.host_us is not None and leaf.boxing_us < leaf.host_us
    assert [replay.boxing_us for replay in replay_smallest(captured(lambda: x + 1, "leaf"))] == [None]


def test_boxing_is_the_difference_of_interleaved_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that only the functions under test move: 5 µs for the overload, 3 µs for the function.
    now = 0

    def overload() -> None:
        nonlocal now
        now += 5_000

    def own() -> None:
        nonlocal now
        now += 3_000

    monkeypatch.setattr(replay.time, "perf_counter_ns", lambda: now)
    assert replay._dearer_us(overload, own, (), lambda: None) == 2.0
    assert replay._dearer_us(own, overload, (), lambda: None) == -2.0


@pytest.mark.parametrize("device", DEVICES)
def test_the_overload_path_costs_more_than_the_function(device: str) -> None:
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    assert replay.boxing_us(device, sync) > 0.0


def test_tensors_are_those_taken_and_returned() -> None:
    x = torch.ones(2, 2)
    aten = torch.ops.aten
    assert tensors_of(aten.tanh.default, (x,), {}) == 2
    assert tensors_of(aten.addmm.default, (x, x, x), {"beta": 1}) == 4
    assert tensors_of(aten.cat.default, ([x, x, x],), {}) == 4
    assert tensors_of(aten.native_layer_norm.default, (x, [2], None, None, 1e-5), {}) == 4
    assert (
        tensors_of(aten._scaled_dot_product_flash_attention.default, (x, x, x), {}) == 10
    )  # two lengths are no tensors
    assert tensors_of(torch.add, (x, 1), {}) == 2
