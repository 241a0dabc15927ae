"""The torch.compile backend on the CPU: it measures, and the program cannot tell."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from taxbreak_fx import backend, backend_session, schema
from taxbreak_fx.backend_graph import GraphCallable, _unwrapped
from taxbreak_fx.backend_options import KNOWN, NEEDS_PYTHON, parse
from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review
from taxbreak_fx.recorders import graph as graph_recorder
from taxbreak_fx.recorders.graph import freeze_inputs

ONLY_GRAPH = {"variants": ["dynamo"], "quiet": True}
MODES: list[Callable[[], AbstractContextManager[Any]]] = [torch.no_grad, torch.inference_mode, torch.enable_grad]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TAXBREAK", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    # Fewer repetitions: these tests are about behaviour, not about times.
    monkeypatch.setattr(graph_recorder, "PAIRS", 6)
    monkeypatch.setattr(backend_session, "PAIRS", 6)
    backend.reset()
    yield
    backend.reset()
    torch._dynamo.reset()
    logging.getLogger("taxbreak_fx").setLevel(logging.NOTSET)


class Net(torch.nn.Module):
    """Writes a buffer, updates running statistics, draws random numbers, and writes into a cache it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        cache[:, 1:] = cache[:, :-1].clone()
        cache[:, 0] = x.sum(1).detach()
        return self.drop(self.norm(self.first(x))) * cache.sum()


def only_review() -> Review:
    reviews = backend.report()
    assert len(reviews) == 1
    return reviews[0]


def run(
    net: Callable[..., torch.Tensor], mode: Callable[[], AbstractContextManager[Any]], calls: int = 1
) -> tuple[Any, ...]:
    """Outputs of each call, cache and random state after the last."""
    torch.manual_seed(5)
    x, cache = torch.randn(4, 8), torch.zeros(4, 3)
    with mode():
        outputs = [net(x, cache).detach().clone() for _ in range(calls)]
    return (*outputs, cache.clone(), torch.get_rng_state())


@pytest.mark.parametrize("mode", MODES)
def test_call_one_leaves_what_eager_leaves(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    plain, measured = Net(), Net()
    expected = run(plain, mode)
    found = run(torch.compile(measured, backend="taxbreak", options=ONLY_GRAPH), mode)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    for (name, a), b in zip(plain.state_dict().items(), measured.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    review = only_review()
    assert review.scope == "captured graphs" and review.variant("dynamo").status == "ok"
    assert review.notes[0].startswith("scope: the captured graphs")


def test_later_calls_leave_what_eager_leaves() -> None:
    plain, measured = Net(), Net()
    expected = run(plain, torch.no_grad, 3)
    found = run(torch.compile(measured, backend="taxbreak", options=ONLY_GRAPH), torch.no_grad, 3)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert int(measured.calls) == 3


def test_a_counter_counts_the_calls_of_the_program_only() -> None:
    net = Net()
    compiled = torch.compile(net, backend="taxbreak", options={"variants": ["dynamo", "inductor"], "quiet": True})
    seen = []
    for _ in range(3):
        run(compiled, torch.no_grad)
        seen.append((int(net.calls), int(net.norm.num_batches_tracked)))
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert only_review().variant("inductor").status == "ok"


def test_gradients_are_those_of_eager() -> None:
    grads = []
    for options in (None, {"variants": ["dynamo", "inductor"], "quiet": True, "run": "inductor"}):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        step = net if options is None else torch.compile(net, backend="taxbreak", options=options)
        x = torch.randn(3, 6, requires_grad=True)
        for _ in range(2):  # the measured call, and one that runs what Inductor compiled
            step(x).square().sum().backward()
        assert x.grad is not None
        grads.append([x.grad, *(parameter.grad for parameter in net.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    assert only_review().machine.conditions.grad_mode == "grad"


def test_tensors_saved_for_backward_before_the_graph_keep_their_versions() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    hidden = x.exp()  # saves its output, which is then the compiled function's input

    def tail(h: torch.Tensor) -> torch.Tensor:
        return h.mul(2).sum()

    version = hidden._version
    torch.compile(tail, backend="taxbreak", options=ONLY_GRAPH)(hidden).backward()
    assert hidden._version == version
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach().exp())


def test_inputs_that_share_memory_are_copied_together() -> None:
    base = torch.arange(12.0)
    head, tail = base[:8].view(2, 4), base[4:]
    weight = torch.nn.Parameter(torch.ones(2))
    copied_head, copied_tail, copied_weight, number = freeze_inputs([head, tail, weight, 3])
    assert copied_weight is weight and number == 3
    copied_head.fill_(-1.0)
    assert torch.equal(copied_tail[:4], torch.full((4,), -1.0)) and copied_head.stride() == head.stride()
    assert torch.equal(base, torch.arange(12.0))


def test_dynamic_shapes_share_one_graph() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * x.shape[0] + 1

    options = {"variants": ["dynamo", "inductor"], "quiet": True, "run": "inductor"}
    compiled = torch.compile(scaled, backend="taxbreak", dynamic=True, options=options)
    with torch.no_grad():
        for size in (4, 5, 6):
            x = torch.randn(size, 8)
            torch.testing.assert_close(compiled(x), scaled(x))
    review = only_review()
    assert len(review.graphs) == 1
    assert [variant.status for variant in review.variants] == ["ok", "ok"]


def test_graph_breaks_and_recompiles_add_up() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x.sin() + 1
        torch._dynamo.graph_break()
        return y.cos() * 2

    compiled = torch.compile(broken, backend="taxbreak", options=ONLY_GRAPH, dynamic=False)
    with torch.no_grad():
        compiled(torch.randn(4))
        first = only_review()
        compiled(torch.randn(5))
    second = only_review()
    assert [graph.compile_id for graph in first.graphs] == ["0/0", "1/0"]
    assert first.graphs[0].break_reason is not None
    assert [graph.compile_id for graph in second.graphs] == ["0/0", "1/0", "0/1", "1/1"]
    before, after = first.variant("dynamo"), second.variant("dynamo")
    assert before.t_host_us is not None and after.t_host_us is not None
    assert sum(node.count for node in before.nodes) == 4 and sum(node.count for node in after.nodes) == 8
    assert before.breakdown is not None and before.breakdown.closure_error is not None
    assert not {"guards", "frame", "python"} & set(before.breakdown.ft_parts)


def test_every_graph_is_journaled_before_the_next_one_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found: list[int] = []

    @torch.compiler.disable
    def look() -> None:
        found.append(len(list(out.glob("journal/*.json"))))

    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        look()
        return y * 2

    torch.compile(broken, backend="taxbreak", options={**ONLY_GRAPH, "out": str(out)})(torch.randn(3))
    assert found == [1]
    journal = sorted(out.glob("journal/*.json"))
    assert len(journal) == 2
    entry = json.loads(journal[0].read_bytes())
    assert entry["graph"]["compile_id"] == "0/0" and entry["recordings"][0]["variant"] == "dynamo"
    review = schema.load(out / "review.json")
    assert review == only_review() and len(review.graphs) == 2


def test_nothing_is_written_without_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.compile(torch.sin, backend="taxbreak", options=ONLY_GRAPH)(torch.randn(3))
    only_review()
    assert list(tmp_path.iterdir()) == []


def test_variants_that_need_the_program_are_skipped_with_the_reason() -> None:
    options = {"variants": ["eager", "dynamo", "eager-graph", "cudagraphs"], "quiet": True}
    torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options=options)(torch.randn(3))
    review = only_review()
    assert review.variant("eager").status == "skipped" and review.variant("eager").reason == NEEDS_PYTHON
    assert review.variant("eager-graph").reason == NEEDS_PYTHON
    assert review.variant("cudagraphs").reason == "needs a CUDA device"


def test_a_failing_variant_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from taxbreak_fx import variant_graph

    def refuse(*args: Any) -> Any:
        raise NotImplementedError("no such code today")

    monkeypatch.setattr(variant_graph, "compile_inductor", refuse)
    options = {"variants": ["dynamo", "inductor"], "quiet": True, "run": "inductor"}
    x = torch.randn(3)
    compiled = torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options=options)
    for _ in range(3):
        assert torch.equal(compiled(x), x.sin() + 1)
    review = only_review()
    assert review.variant("dynamo").status == "ok"
    assert review.variant("inductor").status == "failed"
    assert review.variant("inductor").reason == "graph 0/0: NotImplementedError: no such code today"


def test_a_broken_measurement_does_not_break_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> Any:
        raise ZeroDivisionError("the clock stands still")

    monkeypatch.setattr(backend_session, "time_graph", fail)
    net, x = Net(), torch.randn(4, 8)
    compiled = torch.compile(net, backend="taxbreak", options=ONLY_GRAPH)
    with caplog.at_level(logging.WARNING, "taxbreak_fx"):
        for number in range(1, 4):
            compiled(x, torch.zeros(4, 3))
            assert int(net.calls) == number
    assert backend.report() == []
    assert "graph 0/0 is not measured: ZeroDivisionError: the clock stands still" in caplog.text


def test_the_programs_own_error_is_the_programs() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x)

    with pytest.raises(torch.linalg.LinAlgError):
        torch.compile(wrong, backend="taxbreak", options=ONLY_GRAPH)(-torch.eye(3))


def test_a_graph_that_writes_a_parameter_is_not_run_twice() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))

    def step(x: torch.Tensor) -> torch.Tensor:
        weight.add_(x)
        return weight * 2

    compiled = torch.compile(step, backend="taxbreak", options=ONLY_GRAPH)
    with torch.no_grad():
        compiled(torch.ones(3))
    assert torch.equal(weight.detach(), torch.ones(3))
    assert backend.report() == []


def test_a_subclass_is_passed_through() -> None:
    class Marked(torch.Tensor):
        pass

    x = torch.randn(3).as_subclass(Marked)
    compiled = torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options=ONLY_GRAPH)
    torch.testing.assert_close(compiled(x), x.sin() + 1)


def test_a_spent_budget_skips_with_that_reason() -> None:
    options = {"variants": ["dynamo"], "quiet": True, "budget_s": 1e-6, "out": None}
    x = torch.randn(3)
    compiled = torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options=options)
    assert torch.equal(compiled(x), x.sin() + 1) and torch.equal(compiled(x), x.sin() + 1)
    assert backend.report() == []
    (session,) = backend._sessions.values()
    assert "over budget" in session.notes[0]


def test_what_does_not_fit_into_the_budget_says_what_it_needed() -> None:
    assert backend_session.over_budget(3.0, 0.004, -0.2) == "over budget: 3 s are spent"
    needed = backend_session.over_budget(60.0, 0.0042, 0.0031)
    assert needed == "over budget: needs about 0.0042 s, its share of budget_s is 0.0031 s"


def test_best_is_the_fastest_whose_outputs_do_not_differ() -> None:
    x = torch.randn(64, 64)
    compiled = torch.compile(
        lambda x: (x.sin() + x.cos()).tanh() * 2, backend="taxbreak", options={"quiet": True, "name": "waves"}
    )
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), (x.sin() + x.cos()).tanh() * 2)
    review = only_review()
    assert review.model == "waves"
    assert [(c.base, c.variant) for c in review.comparisons] == [("dynamo", "inductor")]
    assert review.variant("inductor").outputs_equal is True
    assert review.variant("inductor").compile_s is not None
    parts = review.variant("inductor").breakdown
    # Inductor's runtime around its code is clocked; guards and frame lie outside a backend.
    assert parts is not None and parts.closure_error is not None
    assert {"aot_wrapper", "wrapper", "unattributed"} <= set(parts.ft_parts)
    assert not {"guards", "frame", "guards_and_frame"} & set(parts.ft_parts)
    assert "before a backend" in review.variant("dynamo").unmeasured["compile_s"]


def test_what_runs_from_then_on_is_the_compilers_callable_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[GraphCallable] = []
    settle = GraphCallable._settle

    def listen(self: GraphCallable, chosen: str) -> None:
        settled.append(self)
        settle(self, chosen)

    monkeypatch.setattr(GraphCallable, "_settle", listen)
    options = {"quiet": True, "run": "inductor", "variants": ["dynamo", "inductor"]}
    compiled = torch.compile(lambda x: (x.sin() + x.cos()).tanh() * 2, backend="taxbreak", options=options)
    x = torch.randn(8, 8)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), (x.sin() + x.cos()).tanh() * 2)
    (graph,) = settled
    # A wrapper of Dynamo's, which costs about as much as a small graph's own runtime, would carry this mark.
    assert not hasattr(graph._run, "_torchdynamo_orig_callable")
    assert graph._run.__name__ not in ("second", "_first"), "measuring is over"
    # The compiled code still is kept from being traced again by the program's own torch.compile.
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled(x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted


def test_only_dynamos_own_wrapper_is_taken_off() -> None:
    class Model:
        def forward(self, x: int) -> int:
            return x + 1

    def run(x: int) -> int:
        return x + 1

    wrapped = torch._dynamo.disable(run)
    assert _unwrapped(wrapped) is run
    assert _unwrapped(run) is run

    @functools.wraps(wrapped)  # which carries the mark of what it wraps
    def twice(x: int) -> int:
        return 2 * wrapped(x)

    assert _unwrapped(twice)(1) == 4
    model = Model()
    assert _unwrapped(model.forward)(1) == 2
    assert _unwrapped(functools.partial(run, 1))() == 2


def test_a_model_of_transformers() -> None:
    module = tiny_models.build("gpt2")
    tokens = torch.arange(12).reshape(2, 6)
    compiled = torch.compile(module, backend="taxbreak", options=ONLY_GRAPH)
    with torch.no_grad():
        expected = module(input_ids=tokens, use_cache=False).logits
        assert torch.equal(compiled(input_ids=tokens, use_cache=False).logits, expected)
    review = only_review()
    assert review.model == "GPT2Model", "the outermost module that the graph's nodes come from"
    sources = [node.source for node in review.variant("dynamo").nodes]
    assert any(source is not None and source.file.endswith("modeling_gpt2.py") for source in sources)


# --- options -------------------------------------------------------------------------------------------------------


def test_unknown_options_are_refused_in_inductors_words() -> None:
    compiled = torch.compile(torch.sin, backend="taxbreak", options={"variant": ["dynamo"]})
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(torch.randn(3))
    assert f"Unexpected optimization option variant, known options are {list(KNOWN)}" in str(caught.value)
    assert isinstance(caught.value.__cause__ or caught.value.inner_exception, UsageError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_s": "60"}, "Unexpected type of attr budget_s, got str should be int or float"),
        ({"budget_s": True}, "Unexpected type of attr budget_s, got bool"),
        ({"budget_s": -1}, "positive number of seconds"),
        ({"timeout_s": float("nan")}, "positive number of seconds"),
        ({"quiet": 1}, "Unexpected type of attr quiet, got int should be bool"),
        ({"run": "fastest"}, "got 'fastest' should be one of"),
        ({"variants": ["inductr"]}, "unknown 'inductr'; did you mean inductor"),
        ({"variants": 3}, "Unexpected type of attr variants, got int should be list or tuple"),
        ({"mode": "fast"}, "Unrecognized mode=fast, should be one of: default"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(options, None)
    assert message in str(caught.value)


def test_options_as_torch_passes_them(tmp_path: Path) -> None:
    assert parse(None, "max-autotune").mode == parse({"mode": "max-autotune"}, None).mode == "max-autotune"
    assert parse({"budget-s": 5, "variants": "dynamo, inductor"}, None).measured("cpu") == ("dynamo", "inductor")
    assert parse({"variants": ["inductor"]}, None).measured("cpu") == ("dynamo", "inductor"), "the base is always run"
    assert parse({"out": tmp_path}, None).out == str(tmp_path)


def test_mode_reaches_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    from taxbreak_fx import variant_graph

    heard: list[tuple[str, Any]] = []

    def listen(gm: Any, inputs: Any, mode: str, modules: Any, options: Any) -> Any:
        heard.append((mode, options))
        return gm.forward

    monkeypatch.setattr(variant_graph, "compile_inductor", listen)
    torch.compile(lambda x: x.sin() + 1, backend="taxbreak", mode="reduce-overhead")(torch.randn(3))
    assert heard == [("reduce-overhead", {"triton.cudagraphs": False})]


def test_a_folder_that_cannot_be_is_refused_at_compile_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiled = torch.compile(torch.sin, backend="taxbreak", options={"out": str(tmp_path / "file")})
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="cannot be a folder"):
        compiled(torch.randn(3))


def test_zero_in_the_environment_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAXBREAK", "0")
    x = torch.randn(3)
    assert torch.equal(torch.compile(lambda x: x.sin() + 1, backend="taxbreak")(x), x.sin() + 1)
    assert backend._sessions == {}


# --- what is shown -------------------------------------------------------------------------------------------------


def test_the_table_is_logged_once_in_the_steady_state(caplog: pytest.LogCaptureFixture) -> None:
    compiled = torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options={"variants": ["dynamo"]})
    x = torch.randn(3)
    compiled(x)
    assert "Variants" not in caplog.text, "graphs of the first step may be still to come"
    for _ in range(3):
        compiled(x)
    backend.report()
    assert caplog.text.count("Variants (ms per step)") == 1
    assert "1 captured graph, each counted once" in caplog.text


@pytest.mark.parametrize("how", ["option", "level", "rank"])
def test_the_table_can_be_silenced(how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "level":
        logging.getLogger("taxbreak_fx").setLevel(logging.WARNING)
    if how == "rank":
        monkeypatch.setenv("RANK", "1")
    options = {"variants": ["dynamo"], "quiet": how == "option"}
    torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options=options)(torch.randn(3))
    only_review()
    assert "Variants" not in caplog.text


FRESH = """
import sys, torch
from torch._dynamo import list_backends
assert "taxbreak" in list_backends(), list_backends()
assert not any(name.startswith("taxbreak_fx") for name in sys.modules)
torch.compile(lambda x: x.sin() + 1, backend="taxbreak", options={"variants": ["dynamo"]})(torch.ones(3))
"""


def test_found_by_its_entry_point_in_a_fresh_interpreter_and_shown_at_its_end() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Variants (ms per step)" in done.stderr and done.stdout == ""


# --- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_graph_trees_and_cuda_graphs_are_counted() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64)).cuda().eval()
    x = torch.randn(8, 64, device="cuda")
    compiled = torch.compile(net, backend="taxbreak", options={"quiet": True})
    with torch.no_grad():
        expected = net(x)
        for _ in range(4):
            torch.testing.assert_close(compiled(x), expected, rtol=1e-3, atol=1e-3)
    review = only_review()
    assert [variant.name for variant in review.variants] == ["dynamo", "inductor", "reduce-overhead", "cudagraphs"]
    for variant in review.variants:
        assert variant.status == "ok", variant.reason
        assert variant.kernels and variant.launches, variant.unmeasured
    assert review.variant("reduce-overhead").graph_launches == 1
    assert review.variant("dynamo").graph_launches == 0
    assert review.machine.calibration.t_sys_us is not None


@pytest.mark.gpu
def test_state_on_the_gpu_is_that_of_eager() -> None:
    plain, measured = Net().cuda(), Net().cuda()
    states = []
    for net in (plain, torch.compile(measured, backend="taxbreak", options={"quiet": True, "run": "reduce-overhead"})):
        torch.manual_seed(5)
        x, cache = torch.randn(4, 8, device="cuda"), torch.zeros(4, 3, device="cuda")
        with torch.no_grad():
            output = net(x, cache).clone()
        states.append((output, cache.clone(), torch.cuda.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert int(measured.calls) == 1
    with torch.no_grad():
        torch.compiler.cudagraph_mark_step_begin()
    only_review()
    assert int(measured.calls) == 1
