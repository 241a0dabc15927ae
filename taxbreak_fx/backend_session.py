"""One review in the making: the graphs captured under one set of options, measured one by one, and their sum."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from taxbreak_fx import __version__, calibrate, schema
from taxbreak_fx.backend_options import BackendOptions
from taxbreak_fx.breakdown import decompose
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.compare import compare_all
from taxbreak_fx.decompose import equal_outputs
from taxbreak_fx.errors import MeasurementError, OutputError
from taxbreak_fx.findings import with_findings
from taxbreak_fx.machine import Machine
from taxbreak_fx.merge import merge
from taxbreak_fx.model import GraphInfo, Review, StepInfo, Variant
from taxbreak_fx.record import Record
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.recorders.graph import (
    FEWEST_PAIRS,
    PAIRS,
    GraphBench,
    GraphReference,
    graph_step,
    time_graph,
    trace_graph,
)
from taxbreak_fx.recorders.tracing import traced_floor
from taxbreak_fx.recording import LaunchFloor, Recording, Timing, Trace
from taxbreak_fx.stages import Outcome, Stage, with_floor
from taxbreak_fx.variant_graph import Compiled, GraphVariant

log = logging.getLogger("taxbreak_fx")
BASE = "dynamo"
SCOPE_NOTE = (
    "scope: the captured graphs, each counted once; guards, the eval frame and the program's own Python "
    "(ft_parts 'guards', 'frame', 'python') lie outside a backend and are not measured; `taxbreak review` measures them"
)
NO_FRAME = "guards, eval frame and Python lie outside the captured graphs"
NO_BUILD = "the graph is captured before a backend is called"
NOT_TRACED = "not traced yet: traces follow when the graphs have all been timed"


@dataclass
class MeasuredGraph:
    """What one graph yielded, and until it is traced the means to run it again."""

    info: GraphInfo
    timings: dict[str, Timing] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    trace_failures: dict[str, str] = field(default_factory=dict)
    best: str = BASE
    late: bool = False
    inference: bool = False
    bench: GraphBench | None = None
    built: dict[str, GraphVariant] = field(default_factory=dict)


class Entry(Record, frozen=True, kw_only=True):
    """A graph as journaled: recordings so far, and the variants that have none with the reason."""

    graph: GraphInfo
    recordings: list[Recording]
    failures: dict[str, str]
    skipped: dict[str, str]
    best: str


class Session:
    """Measures graphs, keeps the account of time, and makes the review.  ``publish`` shows a finished review once."""

    def __init__(
        self,
        options: BackendOptions,
        device: Literal["cuda", "cpu"],
        folder: Path | None,
        file: str,
        publish: Callable[[Review], None],
    ) -> None:
        self.options, self.device = options, device
        self.graphs: list[MeasuredGraph] = []
        self.notes: list[str] = []
        self.name = options.name
        self._folder, self._file, self._publish = folder, file, publish
        self._spent_s = 0.0
        self._machine: Machine | None = None
        self._floor: Outcome | None = None
        self._step: StepInfo | None = None
        self._shown = False

    def note(self, text: str) -> None:
        """Say something of the whole review, once."""
        if text not in self.notes:
            self.notes.append(text)

    def exhausted(self) -> bool:
        """Whether the budget is spent: nothing more will be measured."""
        return self._spent_s >= self.options.budget_s

    def measure(
        self,
        gm: torch.fx.GraphModule,
        info: GraphInfo,
        compiled: Mapping[str, Compiled],
        failures: Mapping[str, str],
        inputs: list[Any],
        grad: bool,
        bounded: bool,
    ) -> str:
        """Time every compiled variant on ``inputs``, which nobody else may use, and return the best one.

        ``bounded`` by the budget, or with all repetitions whatever they take, as several ranks must.

        Raises ``CaptureError`` when the graph itself cannot be run again, ``MeasurementError`` when it is not timed.
        """
        started = time.perf_counter()
        inference = torch.is_inference_mode_enabled()
        graph = MeasuredGraph(info, failures=dict(failures), late=self._floor is not None, inference=inference)
        try:
            self._step = self._step or graph_step(inputs, self.device)
            self._describe("grad" if grad else "inference_mode" if inference else "no_grad")
            base = GraphVariant(compiled[BASE], gm, inputs, grad)
            bench = GraphBench(base, gm, inputs, graph_step(inputs, self.device), self.device)
            deadline = started + self._left_s() if bounded else None
            with_room(lambda: self._time_all(graph, bench, gm, compiled, grad, deadline))
            if BASE not in graph.timings:
                reason = graph.skipped.get(BASE) or graph.failures.get(BASE) or "not measured"
                raise MeasurementError(reason)
        finally:
            self._spent_s += time.perf_counter() - started
        self.graphs.append(graph)
        if self.device == "cuda":
            graph.bench = bench
        else:
            graph.built.clear()
        graph.best = _best(graph)
        self._journal(graph, len(self.graphs))
        if self._folder is not None:
            self.write()
        return graph.best

    def _time_all(
        self,
        graph: MeasuredGraph,
        bench: GraphBench,
        gm: torch.fx.GraphModule,
        compiled: Mapping[str, Compiled],
        grad: bool,
        deadline: float | None,
    ) -> None:
        """Time the variants in order; without a ``deadline`` with all pairs."""
        reference = GraphReference(bench)
        for position, (name, built) in enumerate(compiled.items()):
            if deadline is not None:
                # Half of what is left is kept for later graphs; of the other half, every variant to come has its share.
                share = (deadline - time.perf_counter()) / (2 * (len(compiled) - position))
                bench.count = _affordable(bench, share)
                if bench.count < FEWEST_PAIRS:
                    graph.skipped[name] = over_budget(self.options.budget_s, bench.cost_s(FEWEST_PAIRS), share)
                    if name == BASE:
                        return
                    continue
            variant = bench.eager if name == BASE else GraphVariant(built, gm, bench.inputs, grad)
            assert isinstance(variant, GraphVariant)
            try:
                seconds = None if name == BASE else built.seconds
                graph.timings[name] = time_graph(bench, variant, seconds, graph.info, reference)
                graph.built[name] = variant
            except Exception as error:  # whatever a variant raises costs that variant only, and is reported
                graph.failures[name] = one_line(error)
                log.warning("taxbreak: graph %s, variant %s: %s", graph.info.compile_id, name, one_line(error))
                if name == BASE:
                    return
                bench.snapshot.restore()
                if self.device == "cuda":
                    torch.cuda.empty_cache()

    def _left_s(self) -> float:
        return self.options.budget_s - self._spent_s

    def _describe(self, grad_mode: str) -> None:
        if self._machine is None:
            machine = calibrate.describe_machine(self.device, calibrate.calibrate_host(self.device), None)
            conditions = msgspec.structs.replace(machine.conditions, grad_mode=grad_mode)
            self._machine = msgspec.structs.replace(machine, conditions=conditions)

    def wants_traces(self) -> bool:
        """Whether a graph is timed and not yet traced."""
        return any(graph.bench is not None for graph in self.graphs)

    def finish(self, alone: bool = True) -> Review | None:
        """Trace what is timed and not yet traced, write the review and show it once.  None when nothing was measured.

        ``alone`` is false when other ranks may not be in this call with this one: then nothing is traced.
        """
        if not self.graphs:
            return None
        if self.wants_traces():
            refusal = None if alone else "several ranks are traced together, and this call is not known to be common"
            for number, graph in enumerate(self.graphs, start=1):
                if graph.bench is not None:
                    self._trace(graph, graph.bench, refusal)
                    self._journal(graph, number)
            if self._floor is None and refusal is None:
                self._floor = _launch_floor()
        review = self.write()
        if not self._shown:
            self._shown = True
            self._publish(review)
        return review

    def _trace(self, graph: MeasuredGraph, bench: GraphBench, refusal: str | None) -> None:
        for name, variant in graph.built.items():
            if refusal is None:
                try:
                    with torch.inference_mode(graph.inference):
                        graph.traces[name] = trace_graph(bench, variant)
                except Exception as error:  # a trace that fails costs its own counts, and is reported
                    graph.trace_failures[name] = one_line(error)
            else:
                graph.trace_failures[name] = refusal
            variant.release()
        graph.built.clear()
        graph.bench = None  # and with it the snapshots of the inputs

    def review(self) -> Review:
        """The review of all graphs measured so far.  Raises ``MeasurementError`` when there are none."""
        if self._machine is None or self._step is None or not self.graphs:
            raise MeasurementError("the backend has measured no graph yet: call the compiled function first")
        machine = with_floor(self._machine, self._floor, self.device)
        notes = [SCOPE_NOTE, *self.notes]
        graphs = self._countable(notes)
        recordings = [self._merged(name, graphs, machine) for name in self._names()]
        base = recordings[0]
        variants: list[Variant] = []
        for recording in recordings:
            skip = next((graph for graph in graphs if recording.variant in graph.skipped), None)
            if skip is not None:
                reason = f"graph {skip.info.compile_id}: {skip.skipped[recording.variant]}"
                variants.append(Variant.unavailable(recording.variant, "skipped", reason))
                continue
            variants.append(_finished(decompose(recording, base)))
        timed = {item.variant: item.timing for item in recordings if item.timing is not None}
        variants += [Variant.unavailable(n, "skipped", why) for n, why in self.options.skipped(self.device).items()]
        review = Review(
            tool_version=__version__,
            origin="measured",
            scope="captured graphs",
            model=self.name or "captured graphs",
            step=self._step,
            machine=machine,
            variants=variants,
            comparisons=compare_all(variants, timed, BASE),
            graphs=[graph.info for graph in self.graphs],
            notes=notes,
        )
        return with_findings(review)

    def _names(self) -> list[str]:
        found = [name for graph in self.graphs for name in (*graph.timings, *graph.failures, *graph.skipped)]
        return list(dict.fromkeys([BASE, *found]))

    def _countable(self, notes: list[str]) -> list[MeasuredGraph]:
        """The graphs that enter the sums: on CUDA those whose captured form could be traced, if any could."""
        for graph in self.graphs:
            if graph.late:
                notes.append(f"graph {graph.info.compile_id} was timed after a trace had run in this process")
        traced = [graph for graph in self.graphs if BASE not in graph.trace_failures]
        if not traced or len(traced) == len(self.graphs):
            return self.graphs
        for graph in self.graphs:
            if graph not in traced:
                why = graph.trace_failures[BASE]
                notes.append(f"graph {graph.info.compile_id} is in no sum: its trace failed ({why})")
        return traced

    def _merged(self, name: str, graphs: Sequence[MeasuredGraph], machine: Machine) -> Recording:
        return merge([_recording(graph, name, self.device, machine) for graph in graphs])

    def write(self) -> Review:
        """Rewrite ``review.json`` from all graphs so far.  A folder that cannot be written is logged, once."""
        review = self.review()
        if self._folder is not None:
            try:
                schema.save(review, self._folder / self._file)
            except OutputError as error:
                self._lose_folder(error)
        return review

    def _journal(self, graph: MeasuredGraph, number: int) -> None:
        if self._folder is None or self._machine is None:
            return
        entry = Entry(
            graph=graph.info,
            recordings=[_recording(graph, name, self.device, self._machine) for name in graph.timings],
            failures=graph.failures,
            skipped=graph.skipped,
            best=graph.best,
        )
        slug = graph.info.compile_id.replace("/", "_").replace("!", "")
        path = self._folder / "journal" / f"{self.device}-{number:02d}-graph-{slug}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            schema.write(path, msgspec.json.encode(entry))
        except (OSError, OutputError) as error:
            self._lose_folder(error)

    def _lose_folder(self, error: Exception) -> None:
        log.warning("taxbreak: nothing more is written: %s", error)
        self._folder = None


def _best(graph: MeasuredGraph) -> str:
    """The variant with the least wall time against the captured graph, unless its outputs are known to differ."""
    ratios = {
        name: statistics.median(a / b for a, b in zip(timing.wall_us, timing.base_wall_us, strict=True))
        for name, timing in graph.timings.items()
        if timing.output_check is None or equal_outputs(timing.output_check, timing.output_floor)
    }
    return min(ratios, key=lambda name: ratios[name], default=BASE)


def over_budget(budget_s: float, needed_s: float, share_s: float) -> str:
    """Why a variant is not timed that needs ``needed_s`` of the ``share_s`` seconds that are left for it."""
    if share_s <= 0:
        return f"over budget: {budget_s:g} s are spent"
    return f"over budget: needs about {needed_s:.2g} s, its share of budget_s is {share_s:.2g} s"


def _affordable(bench: GraphBench, share_s: float) -> int:
    """As many pairs as fit into ``share_s``, at most ``PAIRS``; 0 when not even the fewest do."""
    for count in (PAIRS, PAIRS // 2, FEWEST_PAIRS):
        if bench.cost_s(count) <= share_s:
            return count
    return 0


def _recording(graph: MeasuredGraph, name: str, device: Literal["cuda", "cpu"], machine: Machine) -> Recording:
    timing, traced = graph.timings.get(name), graph.traces.get(name)
    failures = {"frame": NO_FRAME}
    where = f"graph {graph.info.compile_id}: "
    if timing is None:
        failures["timing"] = where + (graph.failures.get(name) or graph.skipped.get(name) or "not compiled")
    if traced is None and device == "cuda":
        failures["trace"] = where + graph.trace_failures.get(name, NOT_TRACED)
    return Recording(
        variant=name,
        device=device,
        calibration=machine.calibration,
        timing=timing,
        trace=traced,
        frame=None,
        failures=failures,
        scope="captured graphs",
    )


def _finished(variant: Variant) -> Variant:
    """``variant`` with the reason that belongs to a backend where the base has no build time."""
    if variant.status != "ok" or variant.compile_s is not None:
        return variant
    return msgspec.structs.replace(variant, unmeasured={**variant.unmeasured, "compile_s": NO_BUILD})


def _launch_floor() -> Outcome:
    stage, started = Stage(kind="floor"), time.perf_counter()
    try:
        floor: LaunchFloor = traced_floor()
    except Exception as error:  # without a floor ΔKT is null, with this reason
        return Outcome(stage=stage, seconds=time.perf_counter() - started, failure=one_line(error))
    encoded = msgspec.Raw(msgspec.json.encode(floor))
    return Outcome(stage=stage, seconds=time.perf_counter() - started, result=encoded)
