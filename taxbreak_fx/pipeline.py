"""The only wiring of the measuring side: runs stages on one workload, in this process."""

from __future__ import annotations

import gc
import time
from typing import Literal

import msgspec
import torch

from taxbreak_fx import calibrate
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.recorders.bench import Bench, one_line
from taxbreak_fx.recorders.frame import measure_frame
from taxbreak_fx.recorders.generation import time_generate
from taxbreak_fx.recorders.outputs import OutputReference
from taxbreak_fx.recorders.timing import time_variant
from taxbreak_fx.recorders.tracing import trace_variant, traced_floor
from taxbreak_fx.recording import HostFacts
from taxbreak_fx.stages import Outcome, Result, Stage
from taxbreak_fx.turn import Turn, turn_on
from taxbreak_fx.workload import Workload

_STICKY = (
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "CUDA error: misaligned",
    "an illegal instruction",
    "CUDA-capable device(s) is/are busy",
    "CUDA driver error",
)


class Runner:
    """Runs the stages of one workload.  A stage that fails is an outcome with its reason, never an exception.

    A stage waits for its turn on the device, and gives it up only while it compiles.
    """

    def __init__(
        self, workload: Workload, device: Literal["cuda", "cpu"], budget_s: float, turn: Turn | None = None
    ) -> None:
        self._workload, self._device = workload, device
        self._turn = turn if turn is not None else turn_on(device)
        with self._turn():
            self._bench = Bench(workload, device, budget_s, self._turn)
        self._reference = OutputReference(self._bench)

    def run(self, stage: Stage) -> Outcome:
        """Run one stage.  ``KeyboardInterrupt`` passes through."""
        started = time.perf_counter()
        try:
            with self._turn():
                result = with_room(lambda: self._result(stage))
        except Exception as error:  # whatever a variant raises costs that variant only, and is reported
            failure = str(error) if isinstance(error, TaxbreakError) else one_line(error)
            fatal = any(mark in str(error) for mark in _STICKY)
            if not fatal:
                self._tidy()
            return Outcome(stage=stage, seconds=time.perf_counter() - started, failure=failure, fatal=fatal)
        encoded = msgspec.Raw(msgspec.json.encode(result))
        return Outcome(stage=stage, seconds=time.perf_counter() - started, result=encoded)

    def _result(self, stage: Stage) -> Result:
        if stage.kind == "host":
            calibration = calibrate.calibrate_host(self._device)
            machine = calibrate.describe_machine(self._device, calibration, self._workload.seed)
            if self._turn.failure is not None:  # others may have measured meanwhile
                conditions = msgspec.structs.replace(machine.conditions, no_turn=self._turn.failure)
                machine = msgspec.structs.replace(machine, conditions=conditions)
            return HostFacts(machine=machine, model=self._workload.model, step=self._workload.step)
        if stage.kind == "frame":
            return measure_frame(self._bench)
        if stage.kind == "generate":
            return time_generate(self._bench)
        if stage.kind == "floor":
            return traced_floor()
        assert stage.variant is not None
        if stage.kind == "timing":
            return time_variant(self._bench, stage.variant, self._reference)
        return trace_variant(self._bench, stage.variant)

    def _tidy(self) -> None:
        """After a failure: no compiled code, no cached memory, state as it was."""
        torch._dynamo.reset()
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        self._bench.snapshot.restore()
