"""Clock reads in the step's own code: met in order around each torch call, and the code is as it was afterwards."""

from __future__ import annotations

import gc
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import tiny_models
import torch
from torch import nn

from taxbreak_fx.capture import find_ticks, gathered, record_eager
from taxbreak_fx.errors import CaptureError
from taxbreak_fx.observe import Label
from taxbreak_fx.probes import ClockProbe, CountProbe, DrainProbe, RangeProbe
from taxbreak_fx.ticks import Ticks, node_spots

X = torch.tensor([[1.0, -2.0], [3.0, 4.0]])

# --- steps, one per way of calling torch ----------------------------------------------------------------------------


def functions(x: torch.Tensor) -> Any:
    y = torch.relu(x)
    return torch.softmax(y, -1)


def methods(x: torch.Tensor) -> Any:
    return x.exp().sum(-1)


def properties(x: torch.Tensor) -> Any:
    return x.mT + x.T


def operators(x: torch.Tensor) -> Any:
    y = -(x + x) * 2
    y[0] = x[1]
    y @= x
    return y @ x[0], ~(y > 1), y == x


def keywords(x: torch.Tensor) -> Any:
    return torch.sum(x, dim=0, keepdim=True) + torch.nn.functional.softmax(x, dim=-1)


def starred(x: torch.Tensor) -> Any:
    options = {"dim": 0, "keepdim": True}
    arguments = ((x, x),)
    return torch.cat(*arguments, **{"dim": 1}), torch.sum(x, **options)


def conditional_argument(x: torch.Tensor) -> Any:
    results = []
    for wanted in (True, False, True):
        results.append(torch.add(x, x if wanted else 3))
        results.append(torch.sum(x, dim=0 if wanted else 1))
        results.append(torch.relu(torch.neg(x) if wanted else x))
    return results


def truth_in_if(x: torch.Tensor) -> Any:
    y = x[0] if x.sum() > 0 else x[1]
    if y[0]:
        y = y + 1
    if not y[0]:
        y = y - 1
    return y


def truth_in_while(x: torch.Tensor) -> Any:
    y = x
    while y.sum() > 0:
        y = y - 1
    return y


def truth_kept(x: torch.Tensor) -> Any:
    return (x[0, 0] and x[0, 1]), (x[0, 0] - 1 or x[1, 1]), (x.sum() > 100 and x), 0 < x[0, 0] < 7


def iteration(x: torch.Tensor) -> Any:
    total = torch.zeros(2)
    for row in x:
        for entry in row:
            total = total + entry
    first, second = x
    return total, first - second, [row * 2 for row in x], torch.stack([*x])


def trying(x: torch.Tensor) -> Any:
    try:
        y = torch.relu(x)
        try:
            raise KeyError(y.sum().item())
        except KeyError as error:
            y = y + error.args[0]
        else:
            y = y - 100
        finally:
            y = y * 2
    finally:
        y = torch.neg(y)
    return y


@contextmanager
def doubling(x: torch.Tensor) -> Iterator[torch.Tensor]:
    yield x * 2
    x.exp()


def within(x: torch.Tensor) -> Any:
    with doubling(x) as y, torch.no_grad():
        z = torch.relu(y)
        with doubling(z):
            return z + 1


def generate(x: torch.Tensor) -> Iterator[torch.Tensor]:
    for number in range(3):
        yield torch.mul(x, number)
    yield from (x + 1, x.neg())


def generating(x: torch.Tensor) -> Any:
    return [y.sum() for y in generate(x)], list(generate(x))


class Layer:
    """A class with every kind of method."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(x) + self.moved(x)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, self.scale)

    @staticmethod
    def moved(x: torch.Tensor) -> torch.Tensor:
        return x + 1


def in_methods(x: torch.Tensor) -> Any:
    return Layer(2.0)(x)


def in_closure(x: torch.Tensor) -> Any:
    bias = x.sum()

    def shifted(y: torch.Tensor) -> torch.Tensor:
        return torch.relu(y) + bias

    return shifted(x), (lambda y: y * bias)(x), sorted([x[1, 0], x[0, 0]], key=lambda t: -t.item())


def nested(x: torch.Tensor) -> Any:
    return torch.relu(torch.neg(torch.exp(x.sum(-1)))) + torch.maximum(x.sin().cos()[0], x[1] * 2)


def nothing(x: torch.Tensor) -> Any:
    return x.shape, x.dim()


STEPS = [
    functions,
    methods,
    properties,
    operators,
    keywords,
    starred,
    conditional_argument,
    truth_in_if,
    truth_in_while,
    iteration,
    trying,
    within,
    generating,
    in_methods,
    in_closure,
    nested,
    nothing,
]


class OrderProbe:
    """Remembers the edges it met."""

    def __init__(self) -> None:
        self.edges: list[str] = []

    def enter(self) -> None:
        """Before a site."""
        self.edges.append("enter")

    def leave(self) -> None:
        """After it."""
        self.edges.append("leave")


def on(step: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
    """The step on the tensor that none of them writes."""
    return lambda: step(X)


def found(step: Callable[[], Any]) -> Ticks:
    """The ticks of a step, on its leading pass."""
    with torch.no_grad():
        return find_ticks(step, [])


def codes(*functions: Any) -> list[types.CodeType]:
    """What the functions run."""
    return [function.__code__ for function in functions]


def same(one: Any, other: Any) -> bool:
    """Equal structures of equal tensors and values of equal types."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


OWN = (generate, Layer.__call__, Layer.scaled, Layer.moved, torch.Tensor.__iter__, doubling.__wrapped__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_ticks_are_met_in_order_and_change_nothing(step: Callable[[torch.Tensor], Any]) -> None:
    run, own = on(step), codes(step, *OWN)
    with torch.no_grad():
        plain = run()
        ticks = found(run)
        order, clock, count = OrderProbe(), ClockProbe(), CountProbe()
        for probe in (order, clock, count):
            with ticks.installed(probe):
                result = run()
            assert same(result, plain)
            assert codes(step, *OWN) == own
    assert order.edges == ["enter", "leave"] * count.count
    assert len(clock.stamps) == 2 * count.count and clock.stamps == sorted(clock.stamps)
    assert (count.count == 0) == (step is nothing)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_call_that_dispatches_ops_lies_in_a_tick(step: Callable[[torch.Tensor], Any]) -> None:
    run = on(step)
    with torch.no_grad():
        alone = record_eager(run, [], set(), True)
        ticked = record_eager(run, [], set(), True, ticks=found(run))
    ops = [tuple(site.ops) for site in alone.sites if site.ops]
    assert [op for site in ticked.sites for op in site.ops] == [op for site in ops for op in site]
    # No two calls of these steps share a tick but those in functions, as some comprehensions are, made during the step.
    if step not in (in_closure, iteration, generating):
        assert [tuple(site.ops) for site in ticked.sites if site.ops] == ops


def test_a_function_made_during_the_step_is_ticked_where_it_is_called() -> None:
    def shifted(x: torch.Tensor) -> Any:
        return (lambda y: torch.relu(y) + 1)(x)

    with torch.no_grad():
        (site,) = record_eager(on(shifted), [], set(), True, ticks=found(on(shifted))).sites
    assert site.ops == ["aten.relu.default", "aten.add.Tensor"]
    assert site.call_key is None


def test_the_value_of_and_and_or_is_a_tensor_still() -> None:
    """Some Pythons jump on a truth and keep the value: that cannot be ticked, and must not be ticked wrongly."""
    run = on(truth_kept)
    with torch.no_grad():
        plain = run()
        try:
            ticks = found(run)
        except CaptureError as error:
            assert "it goes on in two places" in str(error)
            return
        for probe in (CountProbe(), ClockProbe()):
            with ticks.installed(probe):
                assert same(run(), plain)


def test_python_functions_of_torch_are_ticked_at_their_caller() -> None:
    layer = nn.LayerNorm(2)
    with torch.no_grad():
        ticked = record_eager(lambda: layer(X), [], set(), True, ticks=found(lambda: layer(X)))
    assert [site.ops for site in ticked.sites] == [["aten.layer_norm.default"]]


# --- passes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_pass_of_a_model_has_as_many_ticks_as_recorded_calls_with_ops(name: str) -> None:
    module, tokens = tiny_models.build(name), torch.arange(6).reshape(1, 6)

    def run() -> Any:
        return module(input_ids=tokens, use_cache=False).logits

    with torch.no_grad():
        plain, ticks = run(), found(run)
        recorded = [tuple(site.ops) for site in record_eager(run, [], set(), True).sites if site.ops]
        ticked = record_eager(run, [], set(), True, ticks=ticks).sites
        count, clock, drain, ranges = CountProbe(), ClockProbe(), DrainProbe(lambda: None), RangeProbe()
        for probe in (count, clock, drain, ranges):
            with ticks.installed(probe):
                assert torch.equal(run(), plain)
    assert {count.count, len(clock.split()), len(drain.split()), ranges.count} == {len(ticked)}
    assert [op for site in ticked for op in site.ops] == [op for ops in recorded for op in ops]
    # A function that is made during the step, or called from several places, may make the two differ by a few.
    assert 0 <= len(recorded) - sum(bool(site.ops) for site in ticked) <= len(recorded) // 10


def test_ticks_inside_other_ticks_belong_to_the_outer_site() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def outer(x: torch.Tensor) -> torch.Tensor:
        made = eval("lambda f, x: f(x) + 1")  # owned by nothing: its add is ticked here, around the tick of inner
        return made(inner, x)

    order, clock = OrderProbe(), ClockProbe()
    run = on(outer)
    with torch.no_grad():
        ticks = found(run)
        for probe in (order, clock):
            with ticks.installed(probe):
                run()
    assert order.edges == ["enter", "leave"]
    assert len(clock.stamps) == 2
    assert ticks.nested == [1], "its reads cost time inside the site"


def test_another_thread_that_runs_the_code_meanwhile_reaches_no_probe() -> None:
    run, count = on(functions), CountProbe()
    with torch.no_grad():
        ticks = found(run)
        with ticks.installed(CountProbe()):
            run()
        assert ticks.nested == [0, 0]
        with ticks.installed(count):
            other = threading.Thread(target=run)
            other.start()
            other.join()
            assert count.count == 0
            run()
    assert count.count == 2


def test_between_passes_the_step_is_its_own_and_no_probe_is_called() -> None:
    probe, run = CountProbe(), on(functions)
    own = functions.__code__
    with torch.no_grad():
        ticks = found(run)
        assert functions.__code__ is own
        with ticks.installed(probe):
            assert functions.__code__ is not own
            run()
        met = probe.count
        run()
    assert (met, probe.count) == (2, 2)


def raising(x: torch.Tensor) -> Any:
    y = torch.relu(x)
    if failing:
        raise ZeroDivisionError
    return y + 1


failing = False


@pytest.mark.parametrize("probe", [CountProbe, ClockProbe])
def test_the_code_is_restored_when_the_step_raises(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, run = raising.__code__, on(raising)
    ticks = found(run)
    with ticks.installed(CountProbe()):
        run()
    monkeypatch.setitem(globals(), "failing", True)
    with pytest.raises(ZeroDivisionError), ticks.installed(probe()):
        run()
    assert raising.__code__ is own
    monkeypatch.setitem(globals(), "failing", False)
    with ticks.installed(again := CountProbe()):
        run()
    assert again.count == 2


def test_every_function_that_runs_a_code_is_ticked() -> None:
    def make(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def layer(x: torch.Tensor) -> torch.Tensor:
            return torch.add(x, number)

        return layer

    layers = [make(number) for number in range(3)]

    def run() -> torch.Tensor:
        x = X
        for layer in layers:
            x = layer(x)
        return x

    probe, ticks = CountProbe(), found(run)
    with ticks.installed(probe):
        assert torch.equal(run(), X + 3)
    assert probe.count == 3


def test_functions_that_garbage_collection_was_told_to_forget_are_found() -> None:
    gc.collect()
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        probe, ticks = CountProbe(), found(on(functions))
        assert gc.get_freeze_count() > 0  # frozen again
        with ticks.installed(probe):
            functions(X)
        assert probe.count == 2
    finally:
        if not frozen:
            gc.unfreeze()


def test_what_is_not_frozen_stays_collectable() -> None:
    if gc.get_freeze_count():
        pytest.skip("another test froze what there was")
    found(on(functions))
    assert gc.get_freeze_count() == 0


# --- steps that cannot be ticked ------------------------------------------------------------------------------------


class Changing:
    """One more call in every pass."""

    def __init__(self) -> None:
        self.passes = 0

    def run(self) -> torch.Tensor:
        """The step."""
        self.passes += 1
        x = X
        for _ in range(self.passes):
            x = torch.relu(x)
        return x


@pytest.mark.parametrize("probe", [CountProbe, ClockProbe])
def test_a_step_whose_calls_depend_on_data_is_a_capture_error(probe: Any) -> None:
    step = Changing()
    ticks = found(step.run)
    with ticks.installed(CountProbe()):
        step.run()  # its second pass: two ticks of two reads each
    with (
        pytest.raises(CaptureError, match=r"^the step met 6 clock reads in one pass and 4 in another: its work dep"),
        ticks.installed(probe()),
    ):
        step.run()


def test_a_call_outside_all_ticks_is_a_capture_error() -> None:
    def step() -> torch.Tensor:
        return torch.relu(X) if len(passes) < 1 else X.exp()

    passes: list[int] = []
    ticks = found(step)
    passes.append(1)
    with torch.no_grad(), pytest.raises(CaptureError, match="that was not met before dispatches ops"):
        record_eager(step, [], set(), True, ticks=ticks)


def caught(x: torch.Tensor) -> torch.Tensor:
    try:
        return x.T.view(-1)
    except RuntimeError:
        return x.reshape(-1) + 1


def test_an_exception_through_a_torch_call_that_the_author_caught_is_a_capture_error() -> None:
    own, run = caught.__code__, on(caught)
    with torch.no_grad():
        ticks = found(run)
        for _ in range(2):
            with pytest.raises(CaptureError, match=r"its clock reads do not pair$"), ticks.installed(CountProbe()):
                run()
    assert caught.__code__ is own


def test_a_call_from_code_that_no_function_owns_is_a_capture_error() -> None:
    code = compile("result = torch.relu(X)", "<typed in>", "exec")
    with pytest.raises(CaptureError, match="no function owns"):
        Ticks([[(code, 0)]])


def test_a_step_without_torch_calls_has_no_ticks() -> None:
    ticks, count, clock = Ticks([]), CountProbe(), ClockProbe()
    for probe in (count, clock):
        with ticks.installed(probe):
            pass
    assert (count.count, clock.stamps) == (0, [])


# --- what is recorded inside ticks ----------------------------------------------------------------------------------


def test_calls_of_one_tick_are_one_site_with_the_name_of_the_first_that_works() -> None:
    def step() -> Any:
        return (lambda x: (x.size(), torch.relu(x), x + 1))(X)

    with torch.no_grad():
        recorder = record_eager(step, [], set(), True)
    sites = list(recorder.sites)
    (whole,) = gathered(recorder, [0, len(sites)])
    assert whole.label.target == "torch.relu"
    assert whole.ops == ["aten.relu.default", "aten.add.Tensor"]
    empty, rest = gathered(recorder, [0, 0, 0, len(sites)])
    assert (empty.label, empty.ops) == (Label("python"), [])
    assert rest.ops == whole.ops
    with pytest.raises(CaptureError, match="that was not met before"):
        gathered(recorder, [0, 1])


# --- generated code -------------------------------------------------------------------------------------------------


def captured(step: Callable[[torch.Tensor], Any]) -> torch.fx.GraphModule:
    """The graph that Dynamo makes of a step."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        graphs.append(gm)
        return gm.forward

    torch.compile(step, backend=backend, fullgraph=True)(X)
    torch._dynamo.reset()
    return graphs[0]


def every_kind_of_node(x: torch.Tensor) -> Any:
    y = x.clone()
    y += x
    y[0] = x[1]
    y[:, 0] = 3
    first, second = y.split(1)
    y *= 2
    softmax = torch.nn.functional.softmax(x, dim=-1)
    return y + first, y.T, -second, (x > 0) & (y > 0), softmax


def test_each_call_node_of_a_captured_graph_is_ticked_once_in_order() -> None:
    gm = captured(every_kind_of_node)
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    spots = node_spots(gm)
    assert len(spots) == len(nodes) == len({spot for (spot,) in spots})
    assert [offset for ((_, offset),) in spots] == sorted(offset for ((_, offset),) in spots)
    own, ticks = type(gm).forward.__code__, Ticks(spots)
    with torch.no_grad():
        plain = gm.forward(X)
        recorded = record_eager(lambda: gm.forward(X), [], set(), True)
        ticked = record_eager(lambda: gm.forward(X), [], set(), True, ticks=ticks)
        for probe in (CountProbe(), ClockProbe()):
            with ticks.installed(probe):
                assert same(gm.forward(X), plain)
    assert [tuple(site.ops) for site in ticked.sites if site.ops] == [
        tuple(site.ops) for site in recorded.sites if site.ops
    ]
    assert len(ticked.sites) == len(nodes)
    assert type(gm).forward.__code__ is own


def test_generated_code_of_another_shape_is_a_capture_error() -> None:
    gm = captured(functions)
    type(gm).forward = functions
    with pytest.raises(CaptureError, match="the generated code of node softmax is not a call and a store"):
        node_spots(gm)


# --- Inductor's wrapper ---------------------------------------------------------------------------------------------


def test_inductors_calls_are_ticked_as_often_as_its_stand_ins_are_called() -> None:
    from taxbreak_fx.model import StepInfo
    from taxbreak_fx.recorders.bench import Bench
    from taxbreak_fx.recorders.timing import capture_sites, reach_sites
    from taxbreak_fx.workload import Workload

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Softmax(-1))
    info = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device="cpu")
    bench = Bench(Workload(call=module, model="toy", step=info, args=(torch.rand(4, 8),)), "cpu", budget_s=0.02)
    built, _ = bench.build("inductor")
    try:
        with torch.no_grad():
            plain = bench.step(built)
        assert built.mechanism == "stand-in"
        sites = capture_sites(bench, built).sites
        reach_sites(bench, built)
        assert (built.mechanism, built.notes) == ("ticks", [])
        assert built.ticks is not None and len(sites) > 2
        count, clock = CountProbe(), ClockProbe()
        with torch.no_grad():
            for probe in (count, clock):
                with built.observe(probe):
                    assert torch.equal(built.call(), plain)
        assert (count.count, len(clock.split())) == (len(sites), len(sites))
        # recording still goes by the stand-ins, which know the names
        assert [site.target for site in capture_sites(bench, built).sites] == [site.target for site in sites]
    finally:
        built.release()


def test_eager_ticks_are_the_recorded_sites() -> None:
    from taxbreak_fx.model import StepInfo
    from taxbreak_fx.recorders.bench import Bench
    from taxbreak_fx.recorders.timing import capture_sites, reach_sites
    from taxbreak_fx.workload import Workload

    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16))
    info = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device="cpu")
    bench = Bench(Workload(call=module, model="toy", step=info, args=(torch.rand(4, 8),)), "cpu", budget_s=0.02)
    slow = [site for site in capture_sites(bench, bench.eager).sites if site.ops]
    reach_sites(bench, bench.eager)
    assert (bench.eager.mechanism, bench.eager.notes) == ("ticks", [])
    sites = capture_sites(bench, bench.eager).sites
    # equal but for the line outside torch from which the model was called
    assert [msgspec.structs.replace(site, source=None) for site in sites] == [
        msgspec.structs.replace(site, source=None) for site in slow
    ]
    assert [op for site in sites for op in site.ops] == [
        f"aten.{op}.default" for op in ("linear", "gelu", "layer_norm")
    ]
    count = CountProbe()
    with torch.no_grad(), bench.eager.observe(count):
        bench.eager.call()
    assert count.count == len(sites) == 3
