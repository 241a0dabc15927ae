"""What a step writes is found and put back, so that step i and step j do the same work."""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from taxbreak_fx.errors import CaptureError
from taxbreak_fx.state import COPIED_BYTES, Snapshot, reachable_modules, tensors_of

GLOBAL_TENSOR = torch.zeros(2)
GLOBAL_LIST: list[int] = []
GLOBAL_COUNT = 0


def settled(step: Callable[..., Any], *args: Any, roots: tuple[Any, ...] = ()) -> Snapshot:
    """A snapshot of ``step`` and its arguments after one run, as the bench makes it."""
    snapshot = Snapshot([step, args, *roots])
    with torch.no_grad():
        step(*args)
    snapshot.settle()
    snapshot.restore()
    return snapshot


def guarded(snapshot: Snapshot, step: Callable[[], Any]) -> Callable[[], Any]:
    """``step`` from the remembered state."""

    def run() -> Any:
        snapshot.restore()
        return step()

    return run


def outputs(snapshot: Snapshot, step: Callable[[], Any], times: int) -> list[Any]:
    """What ``step`` returns on ``times`` runs, each from the remembered state."""
    run = guarded(snapshot, step)
    with torch.no_grad():
        return [run() for _ in range(times)]


class Plain:
    """An object of the author's own, no module."""

    def __init__(self) -> None:
        self.position, self.log, self.seen, self.table = 0, [1], {1}, {"a": 1}
        self.cache = torch.zeros(4)

    def step(self) -> tuple[int, int, int, int, float]:
        """Writes one of everything, and returns what it found."""
        found = self.position, len(self.log), len(self.seen), len(self.table), float(self.cache.sum())
        self.cache[self.position] = 7.0
        self.position += 1
        self.log.append(self.position)
        self.seen.add(99)
        self.table["b"] = 2
        self.table["a"] = 3
        return found


def test_plain_objects_counters_lists_sets_dicts_and_tensors() -> None:
    owner = Plain()
    snapshot = settled(owner.step)
    assert outputs(snapshot, owner.step, 6) == [(0, 1, 1, 1, 0.0)] * 6  # 6 > the 4 positions of the cache
    snapshot.restore()
    assert (owner.position, owner.log, owner.seen, owner.table) == (0, [1], {1}, {"a": 1})


def test_a_deque_is_a_rolling_cache() -> None:
    window = collections.deque([torch.zeros(1)], maxlen=3)

    def step() -> int:
        window.append(torch.ones(1))
        return len(window)

    assert outputs(settled(step), step, 5) == [2] * 5
    assert isinstance(window, collections.deque) and window.maxlen == 3


class Counting(nn.Module):
    """Writes a buffer in place, replaces another, and counts in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("last", torch.zeros(2))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> tuple[float, float, int]:
        found = float(self.count), float(self.last.sum()), self.calls
        self.count += 1
        self.last = x * self.weight
        self.calls += 1
        return found


def test_a_modules_buffers_are_written_back_in_place() -> None:
    module, x = Counting(), torch.ones(2)
    count, last = module.count, module.last
    snapshot = settled(module, x)
    assert outputs(snapshot, lambda: module(x), 5) == [(0.0, 0.0, 0)] * 5
    snapshot.restore()
    assert module.count is count and module.last is last
    assert snapshot.written == 1  # the counter: the other buffer was replaced, not written


def test_a_step_that_writes_nothing_leaves_nothing_to_restore() -> None:
    module = nn.Linear(2, 2)
    snapshot = settled(module, torch.ones(1, 2))
    assert (snapshot.written, snapshot.uses_rng) == (0, False)


def test_writes_that_move_no_version_are_found_by_content() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("gap", torch.tensor([float("nan"), 1.0]))  # a NaN that nobody writes

        def forward(self) -> float:
            self.seen.data.add_(1)
            return float(self.seen)

    module = Behind()
    snapshot = settled(module)
    assert outputs(snapshot, module, 4) == [1.0] * 4
    assert snapshot.written == 1


def test_a_parameter_written_in_place_is_an_error() -> None:
    module = nn.Linear(2, 3)

    def step() -> None:
        module.weight.add_(1)

    with pytest.raises(CaptureError, match=r"writes a parameter in place \(shape 3x2\)"):
        settled(step)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_a_decode_step_repeated_fifty_times_at_its_position_is_one_step(cache: Any) -> None:
    module = tiny_models.build("llama")
    with torch.no_grad():
        steps = dict(tiny_models.steps(module, cache=cache))
        steps["prefill"]()
        step = steps["decode"]
        snapshot = settled(step)  # reaches the model and the cache through the closure
        run = guarded(snapshot, step)
        first = run().logits
        # A static cache of 32 positions would be over its end after 26 steps.
        assert all(torch.equal(run().logits, first) for _ in range(50))
        # and it is the step that a fresh cache gives
        fresh = dict(tiny_models.steps(module, cache=cache))
        fresh["prefill"]()
        assert torch.equal(fresh["decode"]().logits, first)


def test_random_numbers_repeat_only_where_the_step_draws_them() -> None:
    def drawing() -> float:
        return float(torch.rand(()))

    snapshot = settled(drawing)
    assert snapshot.uses_rng
    assert len(set(outputs(snapshot, drawing, 3))) == 1

    quiet = settled(lambda: torch.ones(2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    quiet.restore()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    moved = torch.get_rng_state()
    quiet.restore()
    assert torch.equal(torch.get_rng_state(), moved)  # the caller's own draws are not undone


def test_a_generator_of_the_steps_own_repeats() -> None:
    generator = torch.Generator().manual_seed(3)

    def step() -> float:
        return float(torch.rand((), generator=generator))

    assert len(set(outputs(settled(step), step, 3))) == 1


def test_closures_defaults_partials_and_bound_methods() -> None:
    held, default, argument = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    count = 0

    def step(extra: torch.Tensor, kept: torch.Tensor = default, *, other: list[int] = [0]) -> tuple[Any, ...]:  # noqa: B006
        nonlocal count
        found = float(held), float(kept), float(extra), count, len(other)
        for tensor in (held, kept, extra):
            tensor.add_(1)
        count += 1
        other.append(1)
        return found

    bound = functools.partial(step, argument)
    assert outputs(settled(bound), bound, 3) == [(0.0, 0.0, 0.0, 0, 1)] * 3
    assert count == 1  # as the last run left it

    owner = Plain()
    method = owner.step
    assert outputs(settled(functools.partial(method)), method, 3) == [(0, 1, 1, 1, 0.0)] * 3


def _helper() -> None:
    GLOBAL_TENSOR.add_(1)


def test_module_globals_that_the_step_uses() -> None:
    def step() -> tuple[float, int, int]:
        global GLOBAL_COUNT
        found = float(GLOBAL_TENSOR.sum()), len(GLOBAL_LIST), GLOBAL_COUNT
        _helper()
        [GLOBAL_LIST.append(number) for number in range(2)]
        GLOBAL_COUNT += 1
        return found

    snapshot = settled(step)
    assert outputs(snapshot, step, 3) == [(0.0, 0, 0)] * 3
    snapshot.restore()
    assert (float(GLOBAL_TENSOR.sum()), GLOBAL_LIST, GLOBAL_COUNT) == (0.0, [], 0)


def test_aliasing_views_and_an_expanded_one() -> None:
    base = torch.arange(6.0)
    state = {"base": base, "row": base.view(2, 3)[1], "wide": base[:2].expand(3, 2), "bits": base.view(torch.int32)}

    def step() -> list[float]:
        found = base.tolist()
        state["row"].mul_(2)
        return found

    snapshot = settled(step)
    assert outputs(snapshot, step, 3) == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 3
    snapshot.restore()
    assert base.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert state["bits"].data_ptr() == base.data_ptr()


def test_inference_tensors_are_restored() -> None:
    with torch.inference_mode():
        cache, still = torch.zeros(2), torch.ones(2)

    def step() -> float:
        found = float(cache.sum() + still.sum())
        with torch.inference_mode():
            cache.add_(1)
        return found

    snapshot = settled(step)
    assert outputs(snapshot, step, 3) == [2.0] * 3
    assert snapshot.written == 1


def test_tied_buffers_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.zeros(2))
            self.register_buffer("b", self.a)

        def forward(self) -> float:
            self.b.add_(1)
            return float(self.a.sum())

    module = Tied()
    snapshot = settled(module)
    assert outputs(snapshot, module, 3) == [2.0] * 3
    snapshot.restore()
    assert module.a is module.b and float(module.a.sum()) == 0.0
    assert snapshot.written == 1


def test_further_state_that_no_argument_reaches() -> None:
    hidden = {"cache": torch.zeros(1)}

    class Step:
        __slots__ = ()

        def __call__(self) -> float:
            hidden["cache"].add_(1)
            return float(hidden["cache"])

    step = Step()
    assert outputs(settled(step, roots=(hidden,)), step, 3) == [1.0] * 3


def test_what_compiling_adds_to_an_object_stays() -> None:
    module = nn.Linear(1, 1)
    snapshot = settled(module, torch.ones(1, 1))
    module.__dict__["_dynamo_marked"] = "kept"
    module.__dict__["scratch"] = "dropped"
    snapshot.restore()
    assert module.__dict__.pop("_dynamo_marked") == "kept"
    assert "scratch" not in module.__dict__


def test_loggers_and_ops_are_not_walked_into() -> None:
    logger, aten = logging.getLogger("taxbreak.test_state"), torch.ops.aten

    def step() -> None:
        logger.debug("%s", aten)

    snapshot = settled(step)
    added = logging.getLogger("taxbreak.test_state.later")
    snapshot.restore()
    assert logging.getLogger("taxbreak.test_state.later") is added


def test_the_storages_are_those_of_weights_inputs_and_state() -> None:
    module, x = nn.Linear(2, 2), torch.ones(1, 2)
    snapshot = Snapshot([module, [x]])
    assert {t.untyped_storage().data_ptr() for t in (module.weight, module.bias, x)} == snapshot.storages


def test_replays_do_not_share_what_the_step_advances_unless_it_is_large() -> None:
    position, cache, weight = torch.zeros(1), torch.zeros(COPIED_BYTES // 4 + 1), torch.ones(1)

    def step() -> None:
        position.add_(weight)
        cache.add_(weight)

    shared = settled(step).storages
    assert {t.untyped_storage().data_ptr() for t in (cache, weight)} <= shared
    assert position.untyped_storage().data_ptr() not in shared


def test_reachable_modules_are_the_outermost() -> None:
    inner, outer = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))
    assert reachable_modules([outer.forward]) == [outer]
    assert set(reachable_modules([lambda: (inner, outer)])) == {inner, outer}
    assert reachable_modules([torch.ones(1), 3, None]) == []


def test_tensors_of_lists_each_tensor_once() -> None:
    tensor = torch.ones(1)
    assert [id(found) for found in tensors_of({"a": [tensor, (tensor,)]})] == [id(tensor)]
