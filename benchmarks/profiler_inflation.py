"""Claim: a profiled step's host time is not the step's; every profiler setting inflates it, and none runs as we time.

    python benchmarks/profiler_inflation.py [--out benchmarks/results] [--device auto] [--processes 2] [--steps 40]

Every setting has fresh processes of its own, because a process's first profiler session leaves it slower for good.
In each: the model is loaded, N eager prefill steps are timed plain, N within one session, N plain again, T_host of
every step read by the same clock around the call.  Inflation = median profiled / median plain before, afterwards =
median plain after / median plain before, per process.  The same without any session shows how far a process drifts.
Processes start together and idle until their turn; turns go round the settings, reversed in every other round.
One more process counts the profilers that start during our own timing stage, then known ones as positive control.
GPT-2 on CUDA, GPT-2 tiny with the CPU's settings on the CPU.
Writes OUT/profiler_inflation.json = {claim, goal, unit, value, met, machine, rows}.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import msgspec
import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from taxbreak_fx.call_stack import with_room
from taxbreak_fx.models import load, resolve_device
from taxbreak_fx.pipeline import Runner
from taxbreak_fx.recorders.bench import Bench, quiet_gc
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import Stage
from taxbreak_fx.workload import Workload

CLAIM = (
    "a profiled step's host time is not the step's: every profiler setting inflates T_host beyond 1.05, "
    "median over processes, and no profiler runs while we time"
)
GOAL = 1.05
TURN_S = 120.0  # far beyond what a process needs to start or to take its turn
Device = Literal["cuda", "cpu"]
Row = dict[str, Any]
CPU, CUDA = ProfilerActivity.CPU, ProfilerActivity.CUDA
MORE: dict[str, dict[str, Any]] = {
    "+ record_shapes": {"record_shapes": True},
    "+ memory + stack": {"record_shapes": True, "profile_memory": True, "with_stack": True},
}
SETTINGS: dict[Device, dict[str, dict[str, Any]]] = {
    "cuda": {"CUDA activities only": {"activities": [CUDA]}, "CPU + CUDA": {"activities": [CPU, CUDA]}}
    | {name: {"activities": [CPU, CUDA], **more} for name, more in MORE.items()},
    "cpu": {"CPU": {"activities": [CPU]}} | {name: {"activities": [CPU], **more} for name, more in MORE.items()},
}
NONE = "no profiler"  # the same three blocks of steps without a session
CONTROL = "our timing stage"


def one_setting(workload: Workload, device: Device, name: str, steps: int) -> Row:
    """Median T_host of ``steps`` steps before, within and after one session of a setting; microseconds."""
    bench = Bench(workload, device, 0.0)

    def block() -> float:
        return statistics.median(bench.timed(bench.eager)[1] for _ in range(steps))

    with torch.no_grad(), quiet_gc():
        block()  # warms up
        before = block()
        with contextlib.nullcontext() if name == NONE else profile(**SETTINGS[device][name]):
            within = block()
        after = block()
    return {"before_us": before, "profiled_us": within, "after_us": after,
            "inflation": within / before, "afterwards": after / before}  # fmt: skip


def our_timing(workload: Workload, device: Device) -> Row:
    """How many profilers our timing stage starts, how many of one per setting the same counter sees; the machine."""
    begin = torch.autograd.profiler.profile._start_trace  # where both of torch's profiler classes begin a session
    with mock.patch.object(torch.autograd.profiler.profile, "_start_trace", autospec=True, side_effect=begin) as starts:
        runner = Runner(workload, device, 1.0)
        host, timing = runner.run(Stage(kind="host")), runner.run(Stage(kind="timing", variant="eager"))
        while_timing = starts.call_count
        for setting in SETTINGS[device].values():
            with torch.no_grad(), profile(**setting):
                workload.run()
        counted = starts.call_count - while_timing
    failure = host.failure or timing.failure
    if failure:
        sys.exit(f"profiler_inflation: our own stage failed: {failure}")
    machine = msgspec.to_builtins(host.value())["machine"]
    return {"while_timing": while_timing, "counted": counted, "machine": machine}


def process(pipe: Connection, device: Device, name: str, steps: int) -> None:
    """A fresh process: loads the model, says so, and measures when told to."""
    model, length = ("gpt2", 512) if device == "cuda" else ("gpt2-tiny", 32)
    workload = load(ReviewRequest(model=model, phase="prefill", device=device, seq_len=length), device)
    if device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other at every op would time the machine's other work
    pipe.send(None)
    pipe.recv()
    own = name == CONTROL
    found = with_room(lambda: our_timing(workload, device) if own else one_setting(workload, device, name, steps))
    pipe.send(found)


class Child:
    """One fresh process and the pipe to it."""

    def __init__(self, device: Device, name: str, steps: int) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would inherit what the parent has set up
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=process, args=(theirs, device, name, steps), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here

    def receive(self) -> Any:
        """What the process sends next.  Exits with a message when it ended or hangs."""
        try:
            if self._pipe.poll(TURN_S):
                return self._pipe.recv()
            ending = f"was silent for {TURN_S:.0f} s"
        except EOFError:
            ending = "ended early (its error is above)"
        sys.exit(f"profiler_inflation: the process of {self.name!r} {ending}")

    def turn(self) -> Row:
        """Let it measure while the others idle, and wait until it is gone."""
        self._pipe.send(None)
        found: Row = self.receive()
        self._process.join(TURN_S)
        if self._process.is_alive():
            sys.exit(f"profiler_inflation: the process of {self.name!r} does not end")
        return found


def over_processes(rows: list[Row], name: str) -> Row:
    """One setting in one row: medians over its processes, and every process's own values."""
    own = [row for row in rows if row["setting"] == name]
    line: Row = {"setting": name, "processes": len(own)}
    for field in ("before_us", "profiled_us", "after_us", "inflation", "afterwards"):
        line[field] = statistics.median(row[field] for row in own)
    for field in ("inflation", "afterwards"):
        line[f"each {field}"] = ", ".join(f"{row[field]:.3f}" for row in own)
    return line


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--processes", type=int, default=2, help="fresh processes per setting")
    parser.add_argument("--steps", type=int, default=40, help="steps per block: plain, profiled, plain")
    options = parser.parse_args()
    if min(options.processes, options.steps) < 1:
        parser.error("--processes and --steps must be at least 1")
    device = resolve_device(options.device)
    began = time.perf_counter()
    names = [NONE, *SETTINGS[device]]
    turns = [name for number in range(options.processes) for name in (reversed(names) if number % 2 else names)]
    children = [Child(device, name, options.steps) for name in [CONTROL, *turns]]
    for child in children:
        child.receive()  # loaded: nothing else runs once the turns begin
    started = time.perf_counter() - began
    control, *found = [child.turn() for child in children]
    seconds = time.perf_counter() - began
    if control["counted"] != (known := len(SETTINGS[device])):
        sys.exit(f"profiler_inflation: counted {control['counted']} of {known} known profilers")
    rows = [{"setting": name, **row} for name, row in zip(turns, found, strict=True)]
    settings = [over_processes(rows, name) for name in names]
    value = min(line["inflation"] for line in settings if line["setting"] != NONE)
    result = {
        "claim": CLAIM,
        "goal": GOAL,
        "unit": "smallest over settings of the median over processes of profiled / plain T_host",
        "value": value,
        "met": value > GOAL and control["while_timing"] == 0,
        "profilers_while_timing": control["while_timing"],
        "profilers_counted_as_control": control["counted"],
        "steps_per_block": options.steps,
        "seconds": seconds,
        "machine": control["machine"],
        "settings": settings,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "profiler_inflation.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    print(tabulate(settings, headers="keys", floatfmt=".4g"))
    print(f"profilers started by our timing stage: {control['while_timing']} (control: {known} of {known} counted)")
    print(f"{len(children)} processes, {started:.1f} s until all were up, {seconds:.1f} s in all")
    print(f"{CLAIM}: {value:.3f} (goal > {GOAL}), {'met' if result['met'] else 'NOT met'}")


if __name__ == "__main__":
    main()
