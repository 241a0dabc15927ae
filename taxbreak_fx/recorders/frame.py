"""What surrounds a compiled graph, by subtraction: guards and AOT wrapper (method.md, third table)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from taxbreak_fx.recorders.bench import (
    MAX_PAIRS,
    MAX_SETTLING_STEPS,
    MIN_PAIRS,
    WARMUP_PAIRS,
    Bench,
    one_line,
    quiet_gc,
)
from taxbreak_fx.recording import Frame

T = TypeVar("T")


class _Null:
    """A backend whose callables return what their first call computed, so that only the surroundings take time."""

    def __init__(self) -> None:
        self.aot = False
        self.compiled = 0
        self.aot_failure: str | None = None

    def __call__(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.compiled += 1
        plain, wrapped = _remember(gm.forward), self._wrap(gm, example_inputs)

        def run(*args: Any) -> Any:
            return wrapped(*args) if self.aot and wrapped is not None else plain(*args)

        return run

    def _wrap(self, gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any] | None:
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
            return make_boxed_func(_remember(graph.forward))

        try:
            wrapped: Callable[..., Any] = aot_autograd(fw_compiler=compiler, keep_inference_input_mutations=True)(
                gm, example_inputs
            )
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            self.aot_failure = one_line(error)
            return None
        return wrapped


def _remember(forward: Callable[..., Any]) -> Callable[..., Any]:
    box: list[Any] = []

    def run(*args: Any) -> Any:
        if not box:
            box.append(forward(*args))
        return box[0]

    return run


def measure_frame(bench: Bench) -> Frame:
    """Guards and AOT wrapper of the workload under torch.compile, in microseconds per step."""
    null = _Null()
    workload = bench.workload
    compiled = torch.compile(workload.call, backend=null)

    failure: str | None = None

    def host_us() -> float:
        bench.snapshot.restore()
        bench.sync()
        started = time.perf_counter_ns()
        output = compiled(*workload.args, **workload.kwargs)
        elapsed = (time.perf_counter_ns() - started) / 1e3
        del output
        return elapsed

    def skipping_us() -> float | None:
        nonlocal failure
        if failure is None:
            try:
                with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                    return host_us()
            except RuntimeError as error:  # guards choose between compilations: skipping them runs the wrong one
                failure = one_line(error)
                bench.snapshot.restore()
        return None

    def aot_us() -> float:
        null.aot = True
        try:
            return host_us()
        finally:
            null.aot = False

    def behind_eager(timed: Callable[[], T]) -> T:
        """Each call meets the caches as an eager step leaves them, and as the variants meet them in their pairs: what
        is timed first after such a step is slower than the same behind it, and would be charged to guards."""
        bench.step(bench.eager)
        return timed()

    rows: list[tuple[float, float | None, float, float]] = []
    try:
        with torch.no_grad(), quiet_gc():
            for _ in range(MAX_SETTLING_STEPS):
                known = null.compiled
                host_us(), aot_us()
                if null.compiled == known:
                    break
            for _ in range(WARMUP_PAIRS):
                host_us(), aot_us(), skipping_us()
            deadline = time.perf_counter() + bench.budget_s / 3
            while len(rows) < MIN_PAIRS or (len(rows) < MAX_PAIRS and time.perf_counter() < deadline):
                full, without, wrapped = behind_eager(host_us), behind_eager(skipping_us), behind_eager(aot_us)
                rows.append((full, without, wrapped, behind_eager(lambda: bench.timed(bench.eager)[1])))
    finally:
        torch._dynamo.reset()
        bench.snapshot.restore()
    skipped = [(full, without) for full, without, _, _ in rows if without is not None]
    return Frame(
        guards_us=statistics.median(full - without for full, without in skipped) if failure is None else None,
        guards_failure=failure,
        aot_us=None if null.aot_failure else statistics.median(wrapped - full for full, _, wrapped, _ in rows),
        aot_failure=null.aot_failure,
        eager_us=statistics.median(row[3] for row in rows),
    )
