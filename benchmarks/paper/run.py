"""Measure what is missing of the paper's cells, in order of value; then rewrite every claim's result and the docs.

    python -m benchmarks.paper.run [--budget-s 1500] [--out benchmarks/results] [--jobs 1] [--only CELL ...]
        [--list] [--summarise] [--retry]

The launch floor first, where OUT has none.  A cell's review is saved the moment it is done, a cell that cannot be
measured leaves its reason; another run skips both, but for --retry: failed cells again, and those without a trace.  No
cell is begun that, at the pace of the longest one so far with its model, would outlast the budget.  With --jobs, cells
are compiled side by side and take turns on the device; one that found too little memory is tried once more alone.
Needs a CUDA device, but for --list and --summarise.
docs/paper.md and docs/results.md are rewritten where OUT is benchmarks/results itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.paper import (
    attention,
    claim,
    cpu_claim,
    dense_and_moe,
    document,
    experts,
    extension,
    generate,
    gpt2_batches,
    kernels_per_token,
    launch_floor,
    rq5,
)
from benchmarks.paper.cells import CELLS, RESULTS, Cell, Store, measure
from taxbreak_fx.supervisor import Event

CLAIMS = (
    launch_floor,
    gpt2_batches,
    kernels_per_token,
    dense_and_moe,
    attention,
    cpu_claim,
    experts,
    generate,
    rq5,
    extension,
)
FIRST_CELL_S = 60.0  # what a cell is taken to need before one was measured
FLOOR_S = 240.0  # what the launch floor may take


class Budget:
    """Hands out cells in order, leaving out those that do not fit into what is left of the time.

    A cell is taken to need as long as the longest so far with its model and experts.
    """

    def __init__(
        self, cells: Iterable[Cell], budget_s: float, clock: Callable[[], float], tell: Callable[[str], None]
    ) -> None:
        self._cells, self._budget_s, self._clock, self._tell = list(cells), budget_s, clock, tell
        self._lock, self._began = threading.Lock(), clock()
        self._needed: dict[tuple[str, str | None], float] = {}

    def next(self) -> Cell | None:
        """The next cell, or None when none is left or fits."""
        with self._lock:
            left = self._budget_s - (self._clock() - self._began)
            for one in self._cells:
                if self._needed.get((one.model, one.experts), FIRST_CELL_S) <= left:
                    self._cells.remove(one)
                    return one
            if self._cells:
                names = ", ".join(one.name for one in self._cells)
                self._tell(f"not begun, what is left of {self._budget_s:.0f} s is too short: {names}")
                self._cells.clear()
            return None

    def again(self, cells: Iterable[Cell]) -> None:
        """Hand these out too."""
        with self._lock:
            self._cells += cells

    def took(self, one: Cell, seconds: float) -> None:
        """A cell is done."""
        with self._lock:
            key = one.model, one.experts
            self._needed[key] = max(self._needed.get(key, 0.0), seconds)


def measure_missing(
    cells: Iterable[Cell],
    store: Store,
    budget_s: float,
    changes: dict[str, Any] | None = None,
    jobs: int = 1,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Measure the missing ones of ``cells`` within ``budget_s`` seconds; the names of those that were tried.

    Cells side by side share the device's memory: one that found too little is tried once more when it is alone.
    """
    budget = Budget(store.missing(cells), budget_s, clock, tell)
    done: list[str] = []
    crowded: list[Cell] = []

    def work() -> None:
        while (one := budget.next()) is not None:
            started = clock()
            reason = measure(one, store, _progress(one.name), changes)
            budget.took(one, clock() - started)
            if jobs > 1 and one.name not in done and reason is not None and "out of memory" in reason:
                store.forget(one)
                crowded.append(one)
            done.append(one.name)
            tell(f"{one.name}: {f'failed: {reason}' if reason else 'done'} after {clock() - started:.0f} s")

    if jobs == 1:  # in this thread, so that Ctrl-C reaches the review that is running
        work()
        return done
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work) for _ in range(jobs)]:
            future.result()
    budget.again(crowded)
    work()
    return done


def _progress(name: str) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        if event.kind == "failed":
            print(f"{name}: {event.stage} {event.variant or ''}: {event.message}", file=sys.stderr, flush=True)

    return tell


def measure_floor(folder: Path) -> None:
    """FOLDER/launch_floor.json, where it is not there yet; a failure is told and costs the cells nothing."""
    if (folder / "launch_floor.json").exists():
        return
    script = Path(__file__).parent.parent / "launch_floor.py"
    try:
        done = subprocess.run([sys.executable, str(script), "--out", str(folder)], timeout=FLOOR_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"launch floor: not done within {FLOOR_S:.0f} s", file=sys.stderr)
        return
    if done.returncode:
        print(f"launch floor: ended with exit code {done.returncode}", file=sys.stderr)


def summarise(folder: Path) -> None:
    """Every claim's result file; the docs too, where these are the committed ones."""
    for one in CLAIMS:
        result = one.compute(Store(folder))
        claim.write(one.NAME, result, folder)
        value = "null" if result.value is None else f"{result.value:.4g}"
        met = {True: "met", False: "NOT met", None: f"not answered: {result.reason}"}[result.met]
        print(f"{one.NAME}: {value} (goal {result.goal:g} {result.unit}), {met}", flush=True)
    if folder.resolve() == RESULTS.resolve():
        document.main([])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing and is asked for, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--budget-s", type=float, default=1500.0, help="seconds after which no cell is begun")
    parser.add_argument("--pairs-s", type=float, default=2.0, help="seconds of timed steps per variant")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds one stage may take")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--only", nargs="*", choices=sorted(CELLS), default=None, metavar="CELL")
    parser.add_argument("--retry", action="store_true", help="try cells again that failed, or have no trace")
    parser.add_argument("--list", action="store_true", help="name the cells that are missing, and stop")
    parser.add_argument("--summarise", action="store_true", help="measure nothing")
    options = parser.parse_args(argv)
    store = Store(options.out)
    cells = [CELLS[name] for name in (CELLS if options.only is None else options.only)]
    if options.retry:
        for one in cells:
            store.forget(one)
    if options.list:
        print(*(one.name for one in store.missing(cells)), sep="\n")
        return
    if not options.summarise:
        import torch

        if not torch.cuda.is_available():
            sys.exit("benchmarks.paper.run: needs a CUDA device; without one: --list or --summarise")
        began = time.monotonic()
        measure_floor(options.out)
        changes = {"budget_s": options.pairs_s, "timeout_s": options.timeout}
        measure_missing(cells, store, options.budget_s - (time.monotonic() - began), changes, options.jobs)
    summarise(options.out)


if __name__ == "__main__":
    main()
