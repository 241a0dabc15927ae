"""Claim: library time heard at the entry points agrees with library time by subtraction, op by op, in one process.

    python benchmarks/ct_direct.py [--out benchmarks/results] [--rounds 12]

Each op is replayed hot through its ATen overload.  direct = outermost entry points, entry → exit, less their launches;
subtractive = T_dispatch − T_dispatch_base (native ops with as many tensors).  A launch costs what a null kernel's does
at that moment, in a loop in C: hosts change speed between a calibration and its use (H200, 2026-11-23: 4.1 µs at the
start of a process whose ops then ran as where it takes 2.8).  A composite (linear) is heard whole and subtracted from
at its leaf, as in a review.  All in turns, by rounds.
Writes OUT/ct_direct.json = {claim, goal, unit, value, met, machine, rows}.  CUDA only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from tabulate import tabulate

from taxbreak_fx import trace
from taxbreak_fx.calibrate import calibrate_host, describe_machine
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.decompose import base_of, dispatch_time, library_direct, library_time
from taxbreak_fx.interpose import Interposer
from taxbreak_fx.launch_path import LaunchLoop
from taxbreak_fx.library_events import Cost, library_charges
from taxbreak_fx.null_kernel import null_image
from taxbreak_fx.recorders.tracing import profiled
from taxbreak_fx.replay import tensors_of

CLAIM = "direct and subtractive library time of the same op agree"
GOAL = 0.15
CALLS = 20
LAUNCHES = 60

# (name, m, k, n): GPT-2 (768, 3072) at 512 tokens and at 1, Llama-3.2-1B (2048, 8192, 512) at 512 and at 1.
SHAPES = (
    ("gpt2 qkv prefill", 512, 768, 2304),
    ("gpt2 mlp up prefill", 512, 768, 3072),
    ("gpt2 mlp down prefill", 512, 3072, 768),
    ("gpt2 qkv decode", 1, 768, 2304),
    ("gpt2 mlp up decode", 1, 768, 3072),
    ("gpt2 head decode", 1, 768, 50257),
    ("llama q prefill", 512, 2048, 2048),
    ("llama kv prefill", 512, 2048, 512),
    ("llama mlp up prefill", 512, 2048, 8192),
    ("llama mlp down prefill", 512, 8192, 2048),
    ("llama q decode", 1, 2048, 2048),
    ("llama mlp down decode", 1, 8192, 2048),
)


class Case(NamedTuple):
    """A call, and the leaf that it dispatches where it is a composite."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    leaf: Case | None = None

    def __call__(self) -> Any:
        return self.function(*self.args)

    @property
    def tensors(self) -> int:
        """As a review counts them."""
        return tensors_of(self.function, self.args, {})


def ops() -> dict[str, Case]:
    """Library ops by name, through their ATen overloads."""
    aten = torch.ops.aten
    found: dict[str, Case] = {}
    for name, m, k, n in SHAPES:
        for dtype in (torch.bfloat16, torch.float32) if name.startswith("gpt2") else (torch.bfloat16,):
            x, w, b = _made(m, k, dtype=dtype), _made(k, n, dtype=dtype), _made(n, dtype=dtype)
            short = str(dtype)[6:]
            found[f"mm {name} {short}"] = Case(aten.mm.default, (x, w))
            if m > 1:
                found[f"addmm {name} {short}"] = Case(aten.addmm.default, (b, x, w))
    x, w, b = _made(4, 128, 768), _made(3072, 768), _made(3072)
    leaf = Case(aten.addmm.default, (b, x.view(512, 768), w.t()))
    found["linear gpt2 mlp up"] = Case(aten.linear.default, (x, w, b), leaf)
    q = _made(12, 512, 64)
    found["bmm gpt2 heads"] = Case(aten.bmm.default, (q, q.transpose(1, 2)))
    h = _made(1, 12, 512, 64)
    found["sdpa cuDNN gpt2"] = Case(aten._scaled_dot_product_cudnn_attention.default, (h, h, h, None, False))
    image, kernel = _made(1, 3, 224, 224), _made(768, 3, 16, 16)
    sizes = ([16, 16], [0, 0], [1, 1], False, [0, 0], 1)
    found["conv2d vit patches"] = Case(aten.convolution.default, (image, kernel, None, *sizes))
    return found


def natives() -> dict[str, Case]:
    """Framework-native ops with one launch each: the base of the subtraction."""
    aten = torch.ops.aten
    x, y, bias, mask = _made(512, 768), _made(512, 768), _made(768), _made(512, 768, dtype=torch.bool)
    return {
        "tanh": Case(aten.tanh.default, (x,)),
        "gelu": Case(aten.gelu.default, (x,)),
        "sum": Case(aten.sum.default, (x,)),
        "softmax": Case(aten._softmax.default, (x, -1, False)),
        "add": Case(aten.add.Tensor, (x, y)),
        "mul": Case(aten.mul.Tensor, (x, y)),
        "embedding": Case(aten.embedding.default, (x, torch.arange(16, device="cuda"))),
        "addcmul": Case(aten.addcmul.default, (bias, x, y)),
        "where": Case(aten.where.self, (mask, x, y)),
        "lerp": Case(aten.lerp.Tensor, (x, y, y)),
        "layer_norm": Case(aten.native_layer_norm.default, (x, [768], bias, bias, 1e-5)),
    }


def _made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype, device="cuda")


def hot_us(op: Case) -> float:
    """Host microseconds per call, un-instrumented, device idle before."""
    torch.cuda.synchronize()
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        op()
    return (time.perf_counter_ns() - started) / 1e3 / CALLS


class Heard(NamedTuple):
    """Per call of an op: own time of its library calls, launches heard beside and inside them, and their time; µs."""

    own_us: float
    beside: int
    inside: int
    launch_us: float


def heard(op: Case, interposer: Interposer, cost: Cost) -> Heard:
    """The library calls of an op, without any profiler."""
    torch.cuda.synchronize()
    with interposer.listening() as events:
        for _ in range(CALLS):
            op()
    charges = library_charges(events.events, cost)
    inside = sum(charge.launches for charge in charges) // CALLS
    launches = [event.us - cost.inside for event in events.events if event.library == "launch"]
    own_us = sum(charge.own_us for charge in charges) / CALLS
    return Heard(own_us, len(launches) // CALLS - inside, inside, sum(launches) / CALLS)


class Round(NamedTuple):
    """One op in one round; microseconds.  ``bases_us``: native ops' whole calls, by how many tensors they take."""

    bases_us: dict[int, list[float]]
    total_us: float
    heard: Heard
    launch_us: float

    def base_us(self, tensors: int) -> float:
        """T_dispatch_base of an op with so many tensors."""
        bases = {count: statistics.median(us) for count, us in self.bases_us.items()}
        return dispatch_time(base_of(bases, tensors), 1, self.launch_us)


def compared(rounds: list[Round], launches: int, tensors: int) -> dict[str, float]:
    """Both estimates of one op, medians over rounds; launches neither heard beside nor inside are the library's own."""
    direct = [library_direct(r.heard.own_us, launches - r.heard.beside - r.heard.inside, r.launch_us) for r in rounds]
    subtractive = [library_time(r.total_us, launches, r.launch_us, r.base_us(tensors)) for r in rounds]
    one, other = statistics.median(direct), statistics.median(subtractive)
    return {
        "total_us": statistics.median(r.total_us for r in rounds),
        "base_us": statistics.median(r.base_us(tensors) for r in rounds),
        "launch_us": statistics.median(r.launch_us for r in rounds),
        "direct_us": one,
        "subtractive_us": other,
        "difference_us": other - one,
        "disagreement": other / one - 1,
    }


def measure(rounds: int) -> tuple[list[dict[str, Any]], Any]:
    """One row per library op, and the machine."""
    calibration = calibrate_host("cuda")
    loop = LaunchLoop()  # raises where there is no compiler or no driver
    null = loop.kernel(null_image(), torch.cuda.current_stream().cuda_stream)
    library, native, interposer = ops(), natives(), Interposer()
    for op in (*library.values(), *native.values()):
        op()
    interposer.control()
    cost = interposer.cost_us()

    def launch_us() -> float:
        return statistics.median(loop.host_us(null, LAUNCHES, LAUNCHES))

    timed: dict[str, list[Round]] = {name: [] for name in library}
    launched: dict[str, list[tuple[float, float, float]]] = {name: [] for name in native}
    for _ in range(rounds):
        for name, op in library.items():
            bases: dict[int, list[float]] = {}
            for other in native.values():
                bases.setdefault(other.tensors, []).append(hot_us(other))
            timed[name].append(Round(bases, hot_us(op.leaf or op), heard(op, interposer, cost), launch_us()))
        for name, op in native.items():
            launched[name].append((hot_us(op), heard(op, interposer, cost).launch_us, launch_us()))
    interposer.close()
    rows: list[dict[str, Any]] = []
    for name, found in launched.items():  # what the base is made of; a launch's cost as heard
        total, launch = (statistics.median(column) for column in list(zip(*found, strict=True))[:2])
        base = statistics.median(dispatch_time(us, 1, null_us) for us, _, null_us in found)
        rows.append({"op": f"native {name}", "launches": 1, "total_us": total, "launch_us": launch, "base_us": base})
    for name, op in library.items():
        launches = launches_of(op)  # by the profiler, which leaves the process slower: after all timing
        rows.append({"op": name, "launches": launches} | compared(timed[name], launches, (op.leaf or op).tensors))
    return rows, describe_machine("cuda", calibration, None)


def launches_of(op: Case) -> int:
    """Kernel launches of one call, traced."""

    def run() -> None:
        torch.cuda.synchronize()
        op()
        torch.cuda.synchronize()

    return len(trace.kernel_latencies(profiled(run)))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("ct_direct needs a CUDA device: vendor libraries are called only there")
    with torch.no_grad():
        rows, machine = with_room(lambda: measure(options.rounds))
    value = statistics.median(abs(row["disagreement"]) for row in rows if "disagreement" in row)
    result = {
        "claim": CLAIM,
        "goal": GOAL,
        "unit": "median of |subtractive ÷ direct − 1| over ops",
        "value": value,
        "met": value <= GOAL,
        "machine": msgspec.to_builtins(machine),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ct_direct.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    print(f"{CLAIM}: {value:.3f} (goal ≤ {GOAL}), {'met' if result['met'] else 'NOT met'}")


if __name__ == "__main__":
    main()
