"""``generate`` as a whole, un-instrumented: with the loop whose steps are reviewed, and with transformers' own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from taxbreak_fx.errors import CaptureError
from taxbreak_fx.generate_record import GenerateRaw
from taxbreak_fx.recorders.bench import Bench, quiet_gc

MIN_ROUNDS, MAX_ROUNDS = 6, 20


def time_generate(bench: Bench) -> GenerateRaw:
    """Rounds of four runs, the order of own and theirs alternating, until the budget is spent.

    Raises ``CaptureError`` for a workload that generates nothing.
    """
    generation, tokens = bench.workload.generation, bench.workload.tokens
    if generation is None:
        raise CaptureError("the step is not of a generation")
    own, theirs, own_first, theirs_first = ([] for _ in range(4))  # type: ignore[var-annotated]
    per_token: list[list[float]] = []
    with torch.no_grad(), generation.outside(), quiet_gc():
        equal = bool(torch.equal(generation.own(tokens), generation.theirs(tokens)))
        generation.own(1), generation.theirs(1)
        deadline = time.perf_counter() + bench.budget_s
        while len(own) < MIN_ROUNDS or (len(own) < MAX_ROUNDS and time.perf_counter() < deadline):
            marks: list[int] = []

            def whole(marks: list[int] = marks) -> None:
                started = _wall(bench, lambda: generation.own(tokens, marks), own)
                per_token.append([(b - a) / 1e3 for a, b in zip([started, *marks], marks, strict=False)])

            def other() -> None:
                _wall(bench, lambda: generation.theirs(tokens), theirs)

            runs = (whole, other) if len(own) % 2 else (other, whole)
            for run in runs:
                run()
            firsts = [(own_first, generation.own), (theirs_first, generation.theirs)]
            for series, call in firsts if len(own_first) % 2 else reversed(firsts):
                _wall(bench, lambda call=call: call(1), series)  # type: ignore[misc]
    bench.snapshot.restore()
    return GenerateRaw(
        own_us=own,
        theirs_us=theirs,
        own_first_us=own_first,
        theirs_first_us=theirs_first,
        token_us=per_token,
        tokens_equal=equal,
    )


def _wall(bench: Bench, run: Callable[[], Any], series: list[float]) -> int:
    """Append T_wall of ``run`` to ``series``, microseconds; returns when it began, on ``perf_counter_ns``."""
    bench.sync()
    started = time.perf_counter_ns()
    found = run()
    bench.sync()
    series.append((time.perf_counter_ns() - started) / 1e3)
    del found
    return started
