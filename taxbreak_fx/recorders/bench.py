"""The bench on which variants are measured: one workload, its restorable state, one device, one clock."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, Literal

import torch

from taxbreak_fx.errors import CaptureError
from taxbreak_fx.graph_facts import graph_skips
from taxbreak_fx.state import Snapshot
from taxbreak_fx.turn import Turn
from taxbreak_fx.variant_record import GraphSkip
from taxbreak_fx.variants import Built, build
from taxbreak_fx.workload import Workload

WARMUP_PAIRS = 3
MIN_PAIRS = 10
MAX_PAIRS = 60
MAX_SETTLING_STEPS = 8  # as many recompiles as torch.compile allows per code object before it gives up


class Bench:
    """Holds the workload and restores its state outside every timed region.  ``turn`` is given up while it compiles.

    Raises ``CaptureError`` when the step itself fails, or writes a parameter.
    """

    def __init__(
        self, workload: Workload, device: Literal["cuda", "cpu"], budget_s: float, turn: Turn | None = None
    ) -> None:
        self.workload, self.device, self.budget_s = workload, device, budget_s
        self._turn = turn if turn is not None else Turn(None)
        self.roots: list[Any] = [workload.call, workload.args, dict(workload.kwargs), *workload.state]
        self.sync: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else _nothing
        self.snapshot = Snapshot(self.roots)
        with torch.no_grad():
            try:
                workload.run()
                self.sync()
            except Exception as error:  # whatever the user's step raises is theirs to mend
                raise CaptureError(f"the step fails when run as it is: {one_line(error)}") from error
            self.snapshot.settle()
            self.snapshot.restore()
        self.eager = Built(workload.run)
        self.preempted = 0  # how often so far the scheduler took the CPU away inside a timed step
        self.faults = 0  # pages that timed steps so far have got from the system

    def build(self, name: str) -> tuple[Built, float]:
        """Build a variant and run it until a step compiles nothing more: the variant, and the seconds that took,
        without those it waited for its turn."""
        self.snapshot.restore()
        self.sync()
        started, waited = time.perf_counter(), self._turn.waited_s
        notes: list[str] = []
        skips: list[GraphSkip] = []
        with torch.no_grad(), graph_skips(notes, skips):
            built = build(name, self.workload, self.snapshot, self._turn.given_up)
            for _ in range(built.build_calls):
                self.step(built)
            for _ in range(MAX_SETTLING_STEPS):
                known = len(built.graphs)
                self.step(built)
                if len(built.graphs) == known:
                    break
        built.notes += notes
        built.graph_skips += skips if built.graphed else []
        return built, time.perf_counter() - started - (self._turn.waited_s - waited)

    @torch.no_grad()  # on its own account: asked for without, Dynamo compiles the step once more, with a backward
    def step(self, built: Built) -> Any:
        """One step from the remembered state, device idle before and after; returns its output."""
        self.snapshot.restore()
        built.prepare()
        self.sync()
        output = built.call()
        self.sync()
        return output

    def timed(self, built: Built) -> tuple[float, float]:
        """(T_wall, T_host) of one step in microseconds: call to device idle, and call to return."""
        self.snapshot.restore()
        built.prepare()
        self.sync()
        before = usage()
        started = time.perf_counter_ns()
        output = built.call()
        returned = time.perf_counter_ns()
        self.sync()
        idle = time.perf_counter_ns()
        after = usage()
        self.preempted += after.ru_nivcsw - before.ru_nivcsw
        self.faults += after.ru_minflt - before.ru_minflt
        del output  # freed after the clock stopped, as a caller who keeps it would
        return (idle - started) / 1e3, (returned - started) / 1e3

    def pairs(self, built: Built) -> list[tuple[float, float, float, float]]:
        """Interleaved (variant wall, variant host, eager wall, eager host) in microseconds.

        The order alternates, and the loop ends with the budget, but never before ``MIN_PAIRS``.
        """
        rows: list[tuple[float, float, float, float]] = []
        with torch.no_grad(), quiet_gc():
            for _ in range(WARMUP_PAIRS):
                self.timed(self.eager)
                self.timed(built)
            deadline = time.perf_counter() + self.budget_s
            while len(rows) < MIN_PAIRS or (len(rows) < MAX_PAIRS and time.perf_counter() < deadline):
                if len(rows) % 2:
                    own, base = self.timed(built), self.timed(self.eager)
                else:
                    base, own = self.timed(self.eager), self.timed(built)
                rows.append((*own, *base))
        return rows


def usage() -> resource.struct_rusage:
    """What this thread has used so far (where the system tells no threads apart, this process).

    ``ru_nivcsw``: how often the scheduler has taken the CPU away, because more is ready to run than there are cores;
    ``ru_minflt``: pages of memory that were not there yet.
    """
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))


@contextmanager
def quiet_gc() -> Any:
    """No cyclic garbage collection inside the timed region; what there is now is collected first."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:300]


def _nothing() -> None:
    pass
