"""Measures a hardware profile on this machine, section by section, within a time budget.

A section that fails, or that the time does not reach, leaves its entries null with the reason; the rest stands.  All
host times come before the first profiled run.  Ctrl-C keeps what was measured.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec
import torch

from taxbreak_fx import trace
from taxbreak_fx.calibrate import calibrate_host, describe_machine, launch_floor
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.errors import MeasurementError, TaxbreakError
from taxbreak_fx.hardware import Profile
from taxbreak_fx.host_reference import reference_us
from taxbreak_fx.interpose import Interposer
from taxbreak_fx.profile_measure_compiled import (
    GRAPH_NODES,
    measure_copied_inputs,
    measure_graph,
    measure_guards,
    measure_inductor,
    program_workload,
)
from taxbreak_fx.profile_measure_device import all_groups, attention_choices, bandwidths, grids, traced_times
from taxbreak_fx.profile_measure_draft import GAPS, GRAPHED, INDUCTOR, OPERATORS, Device, Draft, assemble
from taxbreak_fx.profile_measure_host import python_layers
from taxbreak_fx.profile_measure_steps import FITS, Fit, MeasuredStep, fit_workload, operators_workload
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.recorders.tracing import profiled
from taxbreak_fx.stages import INTERRUPTED, Outcome, Stage, with_floor
from taxbreak_fx.supervisor import Event

# Of the budget: host times must leave the profiler its share, since they all come first.
_HOST_SHARE = 0.7
_PASS_S = 0.6  # of repeated passes per fit step and kind of pass; never fewer passes than a time needs
_BANDWIDTH_ELEMENTS = 1 << 26
_MEMOP_CALLS = 30


@dataclass(frozen=True)
class Plan:
    """What is measured; tests measure less.  ``guarded`` are compiled with guards counted, ``inductor`` by Inductor."""

    fits: tuple[Fit, ...] = FITS
    operators: bool = True
    guarded: tuple[Fit, ...] = (
        Fit("gpt2", 1, "prefill"),
        Fit("gpt2", 4, "prefill"),
        Fit("Llama-3.2-1B", 2, "prefill"),
    )
    inductor: tuple[Fit, ...] = (Fit("gpt2", 1, "prefill"), Fit("Llama-3.2-1B", 2, "prefill"))
    pass_s: float = _PASS_S


@dataclass(frozen=True)
class _Section:
    """``lacks``: the entries of the profile that have its reason when it fails."""

    title: str
    lacks: tuple[str, ...]
    run: Callable[[], None]
    traced: bool = False


def measure_profile(
    device: Device,
    name: str | None,
    budget_s: float,
    on_event: Callable[[Event], None],
    plan: Plan | None = None,
) -> Profile:
    """The profile of this machine: all of it on ``cuda``, the parts of the host on ``cpu``.

    ``budget_s``: no section starts after it; the one under way then is finished.  ``KeyboardInterrupt`` passes through
    only where nothing was measured yet; else the profile is returned with the note "interrupted by the user".
    """
    return _Measurement(device, budget_s, on_event, plan or Plan()).run(name)


class _Measurement:
    def __init__(self, device: Device, budget_s: float, on_event: Callable[[Event], None], plan: Plan) -> None:
        self._device, self._budget_s, self._on_event, self._plan = device, budget_s, on_event, plan
        self._draft = Draft(device)
        self._sync: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else _nothing

    def run(self, name: str | None) -> Profile:
        """Every section in order, then the profile."""
        started = time.monotonic()
        sections = list(self._sections())
        number = 0
        try:
            self._draft.scores += reference_us()
            for number, section in enumerate(sections):
                self._tell("start", section, "", number, len(sections))
                share = 1.0 if section.traced or self._device == "cpu" else _HOST_SHARE
                late = time.monotonic() - started > self._budget_s * share
                reason = (
                    f"its share of the budget of {self._budget_s:g} s was spent" if late else self._attempt(section)
                )
                if reason is not None:
                    self._lack(section, reason)
                kind = "done" if reason is None else "failed"
                self._tell(kind, section, reason or "", number + 1, len(sections))
        except KeyboardInterrupt:
            if not self._draft.scores:
                raise
            for section in sections[number:]:
                self._lack(section, INTERRUPTED)
            self._draft.notes.append(INTERRUPTED)
        return assemble(self._draft, name)

    def _attempt(self, section: _Section) -> str | None:
        try:
            if not section.traced:  # the profiler leaves its process slower
                self._draft.scores += reference_us()
            with_room(section.run)
        except Exception as error:  # whatever a section raises costs its own entries only, and is reported
            torch._dynamo.reset()
            return str(error) if isinstance(error, TaxbreakError) else one_line(error)
        finally:
            gc.collect()
        return None

    def _lack(self, section: _Section, reason: str) -> None:
        for name in section.lacks:
            self._draft.reasons.setdefault(name, f"{section.title}: {reason}")

    def _tell(self, kind: str, section: _Section, message: str, done: int, total: int) -> None:
        self._on_event(Event(kind=kind, stage=section.title, variant=None, message=message, done=done, total=total))

    def _sections(self) -> Iterator[_Section]:
        plan, cuda = self._plan, self._device == "cuda"
        yield _Section("machine and launch path", ("machine", "launch"), self._machine)
        yield _Section("Python layers", ("python",), self._python)
        if plan.operators:
            yield _Section(OPERATORS, (f"fit_steps.{OPERATORS}",), partial(self._step, None))
        for fit in plan.fits:
            yield _Section(fit.name, (f"fit_steps.{fit.name}",), partial(self._step, fit))
        if cuda:
            for nodes in GRAPH_NODES:
                yield _Section(f"graph of {nodes}", ("graphs",), partial(self._graph, nodes))
            yield _Section("copy calls", ("launch.memop_us",), self._memop)
        for fit in plan.guarded:
            yield _Section(
                f"guards, {fit.name}", ("compiled.guards_us", "compiled.guard_us"), partial(self._guards, fit)
            )
        for inductor in (None, *plan.inductor):
            title = "program" if inductor is None else inductor.name
            yield _Section(f"inductor, {title}", INDUCTOR, partial(self._inductor, inductor))
        if not cuda:
            return
        yield _Section("reduce-overhead", GRAPHED, self._copied)
        yield _Section("launch floor, traced", ("launch.t_sys_traced_us", *GAPS), self._floor, traced=True)
        yield _Section("kernels of the steps", ("ops.kernels",), self._trace_steps, traced=True)
        yield _Section(
            "bandwidth", ("device.copy_gb_s", "device.read_gb_s", "device.write_gb_s"), self._bandwidth, True
        )
        yield _Section("attention", ("device.attention",), self._attention, traced=True)
        yield _Section("kernel times", ("device.grids",), self._grids, traced=True)

    def _machine(self) -> None:
        calibration = calibrate_host(self._device)
        self._draft.machine = describe_machine(self._device, calibration, None)

    def _python(self) -> None:
        self._draft.python |= python_layers(self._device, self._sync)

    def _step(self, fit: Fit | None) -> None:
        workload = operators_workload(self._device) if fit is None else fit_workload(fit, self._device)
        title = OPERATORS if fit is None else fit.name
        self._draft.steps.append(MeasuredStep(title, workload, self._device, self._plan.pass_s))

    def _guards(self, fit: Fit) -> None:
        self._draft.guarded[fit.name] = measure_guards(
            fit_workload(fit, self._device), self._device, 3 * self._plan.pass_s
        )

    def _inductor(self, fit: Fit | None) -> None:
        workload = program_workload(self._device) if fit is None else fit_workload(fit, self._device)
        title = "program" if fit is None else fit.name
        self._draft.compiled[title] = measure_inductor(workload, self._device, self._plan.pass_s, self._draft.launch_us)

    def _copied(self) -> None:
        self._draft.copied += measure_copied_inputs(self._device, self._plan.pass_s)

    def _graph(self, nodes: int) -> None:
        machine = self._draft.machine
        trip = machine.calibration.launch_path.round_trip_us if machine is not None else None
        self._draft.graphs.append(measure_graph(nodes, trip))

    def _memop(self) -> None:
        self._draft.launch["memop_us"] = _memop_us()

    def _floor(self) -> None:
        floor = launch_floor(
            lambda run: trace.kernel_latencies(profiled(run)), lambda run: trace.kernel_durations(profiled(run))
        )
        result = msgspec.Raw(msgspec.json.encode(floor))
        if self._draft.machine is None:
            raise MeasurementError("the machine was not described")
        outcome = Outcome(stage=Stage(kind="floor"), seconds=0.0, result=result)
        self._draft.machine = with_floor(self._draft.machine, outcome, self._device)

    def _trace_steps(self) -> None:
        failures = []
        for step in self._draft.steps:
            try:
                step.trace()
            except Exception as error:  # costs the kernel counts of this step only
                failures.append(f"{step.name}: {one_line(error)}")
        self._draft.notes += [f"no kernels counted in {failure}" for failure in failures]
        if failures and len(failures) == len(self._draft.steps):
            raise MeasurementError(failures[0])

    def _bandwidth(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self._draft.rates |= {"l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory}
        self._draft.rates |= bandwidths(self._device, _BANDWIDTH_ELEMENTS, traced_times)

    def _attention(self) -> None:
        self._draft.attention += attention_choices(self._device, traced_times)

    def _grids(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        found, lost, notes = grids(all_groups(self._device, l2_bytes), traced_times)
        self._draft.grids += found
        self._draft.reasons |= lost
        self._draft.notes += notes


def _memop_us() -> float:
    """Host time of the call that copies within the device, in microseconds.  Raises ``MeasurementError``."""
    interposer = Interposer()
    x, y = torch.ones(1_024, device="cuda"), torch.ones(1_024, device="cuda")
    try:
        interposer.install()
        cost = interposer.cost_us()
        y.copy_(x)
        torch.cuda.synchronize()
        with interposer.listening() as heard:
            for _ in range(_MEMOP_CALLS):
                y.copy_(x)
            torch.cuda.synchronize()
    finally:
        interposer.close()
    copies = [event.us - cost.inside for event in heard.events if event.library == "memop"]
    if not copies:
        raise MeasurementError("a copy within the device was not heard as one")
    return statistics.median(copies)


def _nothing() -> None:
    pass
