"""Variants build themselves, say what Dynamo did, can be watched, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.graph_facts import graph_skips
from taxbreak_fx.model import StepInfo
from taxbreak_fx.observe import Label
from taxbreak_fx.probes import ClockProbe, CountProbe
from taxbreak_fx.record import SourceLine
from taxbreak_fx.request import CUDA_VARIANTS
from taxbreak_fx.state import Snapshot
from taxbreak_fx.ticks import Ticks
from taxbreak_fx.variant_record import GraphSkip
from taxbreak_fx.variants import DESCRIPTIONS, Built, build
from taxbreak_fx.workload import Workload

STEP = StepInfo(phase="forward", batch=None, seq_len=None, dtype="float32", device="cpu")


class Broken(nn.Module):
    """Two graphs: a print stands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.layer(x))
        torch._dynamo.graph_break()  # the line that the graph's information names
        return y + x


def workload(call: Any, *args: Any) -> Workload:
    """A step on the CPU."""
    return Workload(call=call, model="toy", step=STEP, args=args)


def built(name: str, call: Any, *args: Any) -> Built:
    """A variant after its first run."""
    made = build(name, workload(call, *args), Snapshot([call, args]))
    with torch.no_grad():
        made.call()
    return made


def test_every_variant_of_the_request_has_a_description() -> None:
    assert set(DESCRIPTIONS) == set(CUDA_VARIANTS)


def test_an_unknown_variant_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown variant 'fast'; known: eager, "):
        build("fast", workload(nn.Identity()), Snapshot([]))


def test_eager_is_the_step_itself() -> None:
    x = torch.ones(2, 3)
    made = built("eager", Broken(), x)
    assert (made.graphs, made.graphed, made.mechanism) == ([], False, "function mode")
    made.release()
    made.call()  # nothing was compiled: there is nothing to drop


def test_dynamo_reports_its_graphs_with_the_line_of_a_break() -> None:
    made = built("dynamo", Broken(), torch.ones(2, 3))
    first, second = made.graphs
    assert (first.nodes, second.nodes) == (2, 1)  # linear and relu; add
    assert first.break_reason is not None and "graph_break" in first.break_reason and "\n" not in first.break_reason
    assert first.source is not None and Path(first.source.file) == Path(__file__)
    line = Path(__file__).read_text().splitlines()[first.source.line - 1]
    assert "the line that the graph's information names" in line
    assert (second.break_reason, second.source) == (None, None)
    assert first.compile_id != second.compile_id


def _helper(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()  # inside the helper
    return x + 1


def test_a_break_inside_a_helper_is_the_helpers_line() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return _helper(torch.relu(x)) * 2

    source = built("dynamo", step, torch.ones(2)).graphs[0].source
    assert source is not None
    assert "inside the helper" in Path(__file__).read_text().splitlines()[source.line - 1]


def test_watching_a_variant_changes_no_output_and_numbers_its_graph_calls() -> None:
    module, x = Broken(), torch.rand(2, 3)
    made = built("dynamo", module, x)
    labels: list[Label] = []
    probe = CountProbe()
    with torch.no_grad():
        with made.observe(probe, labels):
            watched = made.call()
        assert torch.equal(watched, module(x))
        assert [(label.target, label.graph) for label in labels] == [
            ("torch.nn.functional.linear", 1),
            ("torch.relu", 1),
            ("operator.add", 2),
        ]
        made.call()
    assert probe.count == 3  # the probe was taken off again


def test_graph_numbers_start_again_with_every_pass_and_probes_are_taken_off_after_an_error() -> None:
    made = built("dynamo", Broken(), torch.ones(2, 3))
    for _ in range(2):
        labels: list[Label] = []
        probe = ClockProbe()
        with torch.no_grad(), pytest.raises(ZeroDivisionError), made.observe(probe, labels):
            made.call()
            raise ZeroDivisionError
        assert [label.graph for label in labels] == [1, 1, 2]
        assert len(probe.split()) == 3
    with torch.no_grad():
        made.call()
    assert (len(probe.split()), len(probe.graphs)) == (3, 4)


def test_every_graph_call_is_clocked_around_its_sites() -> None:
    made = built("dynamo", Broken(), torch.ones(2, 3))
    probe = ClockProbe()
    with torch.no_grad(), made.observe(probe):
        made.call()
    # linear and relu in the first graph, add in the second
    (first, ended, second, over), edges = probe.graphs, probe.stamps
    ordered = [first, *edges[:4], ended, second, *edges[4:], over]
    assert len(edges) == 6 and ordered == sorted(ordered)
    assert probe.codes == []


def test_inductors_code_lies_inside_its_graph_calls_and_around_its_sites() -> None:
    made = built("inductor", Broken(), torch.ones(2, 3))
    probe, labels = ClockProbe(), list[Label]()
    with torch.no_grad():
        with made.observe(CountProbe(), labels):
            made.call()
        with made.observe(probe):
            made.call()
    made.release()
    assert (len(probe.graphs), len(probe.codes)) == (4, 4)
    assert len(probe.split()) == len(labels)
    for number in (0, 1):
        (graph_in, graph_out), (code_in, code_out) = (
            probe.graphs[2 * number : 2 * number + 2],
            probe.codes[2 * number : 2 * number + 2],
        )
        assert graph_in <= code_in <= code_out <= graph_out
    sites = [index for index, label in enumerate(labels) if label.graph == 1]
    last = probe.stamps[2 * sites[-1] + 1]
    assert probe.codes[0] <= probe.stamps[0] and last <= probe.codes[1] <= probe.codes[2]


def test_a_variant_goes_back_to_its_own_mechanism() -> None:
    made = built("eager", Broken(), torch.ones(2, 3))
    made.tick(Ticks([]))
    assert made.mechanism == "ticks"
    made.tick(None, "function mode")
    probe = CountProbe()
    with torch.no_grad(), made.observe(probe):
        made.call()
    assert made.mechanism == "function mode" and probe.count > 0


def test_a_compiled_call_keeps_its_arguments_and_keywords() -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
            return x * by

    step = Workload(call=Scale(), model="toy", step=STEP, args=(torch.ones(2),), kwargs={"by": 3.0})
    made = build("dynamo", step, Snapshot([]))
    with torch.no_grad():
        assert made.call().tolist() == step.run().tolist() == [3.0, 3.0]


def test_a_released_variant_says_so() -> None:
    made = built("dynamo", Broken(), torch.ones(2, 3))
    made.release()
    with pytest.raises(CaptureError, match="was released"):
        made.call()


def test_what_inductor_says_when_it_does_not_graph_becomes_a_note() -> None:
    from torch._inductor import cudagraph_utils

    warning = cudagraph_utils.cudagraphs_log.warning
    notes: list[str] = []
    skips: list[GraphSkip] = []
    with graph_skips(notes, skips):
        for _ in range(2):
            cudagraph_utils.cudagraphs_log.warning(
                'skipping cudagraphs due to %s. Found from : \n  File "/home/author/toy.py", line 7, in forward\n',
                "cpu device (arg0)",
            )
        cudagraph_utils.cudagraphs_log.warning("100 % of it")
    assert notes == [
        'skipping cudagraphs due to cpu device (arg0). Found from : File "/home/author/toy.py", line 7, in forward',
        "100 % of it",
    ]
    assert skips == [GraphSkip(reason="cpu device (arg0)", source=SourceLine(file="/home/author/toy.py", line=7))]
    assert cudagraph_utils.cudagraphs_log.warning == warning


def test_graphed_variants_ask_for_the_runs_that_recording_takes() -> None:
    x = torch.ones(2, 3)
    for name in ("reduce-overhead", "cudagraphs"):
        made = build(name, workload(Broken(), x), Snapshot([]))
        assert (made.graphed, made.build_calls) == (True, 3)
        made.prepare()
