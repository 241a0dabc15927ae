"""Every measurement that needs a GPU, in order of value, in sittings of any length.

    python -m benchmarks.everything [--out build/results] [--budget-s 1500] [--jobs 2] [--only STEP ...]
        [--again STEP ...] [--list]

Each step is a command of its own with its log in OUT/logs/STEP.txt; what it measures lies under OUT as it would under
benchmarks/results.  OUT/everything.json says how each step ended.  Another run goes on where this one stopped: steps
that ended well or failed are left out (but for --again), one that ran out of time goes on with what it has already.
Nothing under benchmarks/results is touched: look at OUT, then copy.  Needs a CUDA device, but for --list.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

JOURNAL = "everything.json"
LEAST_S = 20.0  # with less than this left, nothing is begun
TAXBREAK = (sys.executable, "-c", "import sys; from taxbreak_fx.cli import entry; sys.exit(entry())")
Ended = Literal["done", "failed", "out of time"]


class Step(NamedTuple):
    """A command and the seconds it may take; ``goes_on``: run again, it keeps what it has measured; ``summary``: it
    only tells what lies there, in every sitting anew."""

    command: tuple[str, ...]
    limit_s: float
    goes_on: bool = False
    no_gpu: bool = False
    summary: bool = False


class Entry(msgspec.Struct, frozen=True):
    """How a step ended last; seconds of that run."""

    ended: Ended
    exit_code: int | None
    seconds: float
    date: str


def _script(name: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, f"benchmarks/{name}.py", "--out", "{out}", *options)


def _module(name: str, *options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *options)


def steps(jobs: int) -> dict[str, Step]:
    """By name, the most valuable first.  ``{out}`` stands for the folder, ``{left}`` for the seconds that are left."""
    return {
        "spine": Step(
            _script("spine", "--timeout", "240", "--jobs", str(jobs), "--journals", "{out}/spine"), 3600.0, goes_on=True
        ),
        "closure": Step(_script("closure"), 60.0, summary=True),
        "calibrate": Step(
            (*TAXBREAK, "calibrate", "--out", "{out}/profile.json", "--name", "h200", "--budget", "260"), 330.0
        ),
        "timeline-accuracy": Step(_script("timeline_accuracy", "--journals", "{out}/journals"), 3600.0, goes_on=True),
        "prediction-reviews": Step(_script("prediction_accuracy", "--measure"), 3600.0, goes_on=True),
        "gpu-tests": Step(_module("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"), 400.0),
        "ct-direct": Step(_script("ct_direct"), 120.0),
        "ground-truth": Step(_script("ground_truth"), 240.0),
        "known-delay": Step(_script("known_delay"), 150.0),
        "analysis-cost": Step(_script("analysis_cost"), 300.0),
        "repeatability": Step(_script("repeatability", "--processes", "10"), 600.0),
        "launch-floor": Step(_script("launch_floor"), 240.0),
        "profiler-inflation": Step(_script("profiler_inflation"), 240.0),
        "paper": Step(
            _module("benchmarks.paper.run", "--out", "{out}", "--jobs", str(jobs), "--budget-s", "{left}"),
            36000.0,
            goes_on=True,
        ),
        # What is predicted is told with no GPU in sight, from the reviews that lie there by now.
        "prediction-accuracy": Step(_script("prediction_accuracy"), 1200.0, no_gpu=True, summary=True),
        "whatif-accuracy": Step(_script("whatif_accuracy", "--reviews", "{out}"), 1200.0, no_gpu=True, summary=True),
    }


def sitting(
    known: Mapping[str, Step],
    out: Path,
    budget_s: float,
    again: Sequence[str] = (),
    jobs: int = 1,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[str], None] = print,
) -> dict[str, Entry]:
    """Run what is not done yet, each step at most for its limit and for what is left; the journal, kept after each.

    A step that does not go on is only begun while its whole limit is left.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    path = out / JOURNAL
    journal = msgspec.json.decode(path.read_bytes(), type=dict[str, Entry]) if path.exists() else {}
    began = clock()
    for name, step in known.items():
        before = journal.get(name)
        ended = before is not None and before.ended != "out of time"
        if ended and name not in again and not step.summary:
            continue
        left = budget_s - (clock() - began)
        if left < (LEAST_S if step.goes_on else min(step.limit_s, budget_s)):
            tell(f"{name}: not begun, {max(left, 0):.0f} s left")
            continue
        journal[name] = entry = _run(name, step, out, min(left, step.limit_s), jobs, clock)
        _replace(path, msgspec.json.format(msgspec.json.encode(journal)) + b"\n")
        tell(f"{name}: {entry.ended} after {entry.seconds:.0f} s")
    return journal


def _run(name: str, step: Step, out: Path, limit_s: float, jobs: int, clock: Callable[[], float]) -> Entry:
    """One step.  Its process gets SIGINT where the time is over, upon which reviews keep what they have."""
    words = {"{out}": str(out), "{left}": f"{max(LEAST_S, limit_s - LEAST_S):.0f}"}
    command = [_filled(word, words) for word in step.command]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if step.no_gpu else {}), **_few_compilers(jobs)}
    date, started = time.strftime("%Y-%m-%dT%H:%M:%S%z"), clock()
    with open(out / "logs" / f"{name}.txt", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _stop(process)
            return Entry("out of time", None, clock() - started, date)
        except BaseException:
            _stop(process)
            raise
    return Entry("failed" if code else "done", code, clock() - started, date)


def _few_compilers(jobs: int) -> dict[str, str]:
    """With reviews side by side, those that compile leave cores to the one that measures."""
    return {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // (jobs + 1)))} if jobs > 1 else {}


def _stop(process: subprocess.Popen[Any]) -> None:
    process.send_signal(2)
    try:
        process.wait(LEAST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _filled(word: str, words: Mapping[str, str]) -> str:
    for mark, value in words.items():
        word = word.replace(mark, value)
    return word


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def main() -> None:
    """One sitting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/results"))
    parser.add_argument("--budget-s", type=float, default=1500.0, help="seconds this sitting may take")
    parser.add_argument("--jobs", type=int, default=2, help="reviews side by side, where a step allows it")
    parser.add_argument("--only", nargs="*", choices=list(steps(1)), metavar="STEP")
    parser.add_argument("--again", nargs="*", choices=list(steps(1)), default=(), metavar="STEP")
    parser.add_argument("--list", action="store_true", help="name the steps, and stop")
    options = parser.parse_args()
    known = {name: step for name, step in steps(options.jobs).items() if options.only is None or name in options.only}
    if options.list:
        print(*known, sep="\n")
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit("benchmarks.everything: needs a CUDA device; without one: --list")
    journal = sitting(known, options.out, options.budget_s, options.again, options.jobs)
    left = [name for name in known if name not in journal or journal[name].ended == "out of time"]
    print(f"left: {', '.join(left) or 'nothing'}")


if __name__ == "__main__":
    main()
