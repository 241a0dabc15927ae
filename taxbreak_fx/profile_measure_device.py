"""The device alone: kernel times on a grid of sizes, and what attention becomes.  All device times are traced.

Weights of a product are cold and its other operands warm, as in a model: repeats take turns among copies of the weight
that together do not fit the cache.  The other families meet warm operands where these fit, as after the kernel that
wrote them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from taxbreak_fx import trace
from taxbreak_fx.hardware import AttentionChoice, FamilyGrid, MatrixRate, Point
from taxbreak_fx.recorders.bench import one_line
from taxbreak_fx.recorders.tracing import named_range, profiled

RANGE = "taxbreak.grid."
REPEATS = 6
MOST_COPIES = 64
MOST_OUTPUT = 1 << 30
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROWS = (1, 8, 32, 128, 512, 2_048, 8_192)
WEIGHTS = (  # (n, k): GPT-2's, then squares, gated MLPs, narrow key heads and vocabularies
    (768, 768),
    (2_304, 768),
    (3_072, 768),
    (768, 3_072),
    (1_024, 1_024),
    (512, 2_048),
    (2_048, 2_048),
    (8_192, 2_048),
    (2_048, 8_192),
    (4_096, 4_096),
    (14_336, 4_096),
    (4_096, 14_336),
    (50_257, 768),
    (128_256, 2_048),
    (8_192, 8_192),
)
FEW_WEIGHTS = ((768, 768), (2_048, 2_048), (8_192, 2_048), (2_048, 8_192), (4_096, 4_096))
SIZES = tuple(4**power * 1_024 for power in range(9))  # elements: 1,024 … 67 million
BATCHES = ((12, 128, 128, 64), (12, 512, 512, 64), (12, 512, 64, 512), (32, 1, 512, 64), (96, 2_048, 2_048, 64))
QUERIES, KEYS = (128, 512, 2_048), (128, 528, 2_048)
_ROW = 1_024


@dataclass(frozen=True)
class Case:
    """One call to time on the device, over one set of operands after the other; else as ``Point``."""

    family: str
    dtype: str
    case: str
    bytes: float
    flops: float
    shape: tuple[int, ...] | None
    function: Callable[..., Any]
    operands: Sequence[tuple[Any, ...]]

    def run(self, number: int) -> Any:
        """Repeat ``number``."""
        return self.function(*self.operands[number % len(self.operands)])


# Microseconds and kernels of every repeat of every case, or why there are none; None: no profiler can tell.
Timer = Callable[[Sequence[Callable[[int], Any]]], list[list[tuple[float, int]] | str]]


@torch.no_grad()
def traced_times(runs: Sequence[Callable[[int], Any]]) -> list[list[tuple[float, int]] | str]:
    """For each call its repeats, as (device time of its activities in microseconds, kernels), or why it has none."""
    results: list[list[tuple[float, int]] | str] = [[] for _ in runs]
    for index, run in enumerate(runs):
        try:
            run(0)
            torch.cuda.synchronize()
        except Exception as error:  # too large, or not made for this GPU: costs this point only
            results[index] = one_line(error)

    def all_runs() -> None:
        for index, run in enumerate(runs):
            if isinstance(results[index], str):
                continue
            for number in range(REPEATS):
                with named_range(f"{RANGE}{index}"):
                    run(number)
            torch.cuda.synchronize()

    events = profiled(all_runs)
    ranges = trace.spans(events, RANGE)
    for (_, _, name), step in zip(ranges, trace.traced_steps(events, ranges, []), strict=True):
        found = results[int(name)]
        if isinstance(found, list) and step.activities:
            kernels = sum(activity.kind == "kernel" for activity in step.activities)
            found.append((sum(activity.duration_us for activity in step.activities), kernels))
    return [found or "the trace holds no device activity of it" for found in results]


def grids(groups: Iterable[Iterable[Case]], timer: Timer) -> tuple[list[FamilyGrid], dict[str, str], list[str]]:
    """The grids of all groups, timed group by group, so that only one lies in memory at a time.

    Also: the reason for each family without a single point, and a note for every point that is missing.
    """
    points: dict[tuple[str, str, str], list[Point]] = {}
    lost: dict[str, str] = {}
    notes: list[str] = []
    for group in groups:
        cases = list(group)
        for case, times in zip(cases, timer([case.run for case in cases]), strict=True):
            if isinstance(times, str):
                lost.setdefault(f"device.{case.family}", times)
                notes.append(f"no {case.family} point in {case.dtype} of {case.bytes:.3g} bytes: {times}")
                continue
            point = Point(
                bytes=case.bytes,
                flops=case.flops,
                us=statistics.median(us for us, _ in times),
                shape=case.shape,
                kernels=statistics.median(kernels for _, kernels in times),
            )
            points.setdefault((case.family, case.dtype, case.case), []).append(point)
    found = [FamilyGrid(family=f, dtype=d, case=c, points=tuple(own)) for (f, d, c), own in points.items()]
    families = {grid.family for grid in found}
    return found, {name: why for name, why in lost.items() if name.partition(".")[2] not in families}, notes


def all_groups(device: str, l2_bytes: int, largest: int = SIZES[-1]) -> Iterator[Iterator[Case]]:
    """The whole grid; ``largest``: elements of the largest tensor of the families that stream memory."""
    for dtype in ("bfloat16", "float32"):
        yield streaming_cases(device, dtype, [size for size in SIZES if size <= largest])
    for weight in WEIGHTS:
        yield product_cases(device, "bfloat16", weight, ROWS, l2_bytes)
    for dtype in ("float16", "float32"):
        for weight in FEW_WEIGHTS:
            yield product_cases(device, dtype, weight, ROWS[::2], l2_bytes)
    yield batched_cases(device, "bfloat16")
    yield grouped_cases(device, "bfloat16", l2_bytes)
    yield attention_cases(device, "bfloat16")
    yield convolution_cases(device, "bfloat16")


def streaming_cases(device: str, dtype: str, sizes: Sequence[int]) -> Iterator[Case]:
    """Families that are bound by memory, over the number of elements, in rows of 1,024."""
    kind = DTYPES[dtype]
    width = kind.itemsize
    for size in sizes:
        x, y = torch.ones(size // _ROW, _ROW, device=device, dtype=kind), torch.ones(_ROW, device=device, dtype=kind)
        other, index = torch.ones_like(x), torch.arange(size // _ROW, device=device)

        def case(family: str, moved: float, function: Callable[..., Any], *operands: Any, dtype: str = dtype) -> Case:
            return Case(family, dtype, "", moved, 0.0, None, function, [operands])

        yield case("elementwise", 3 * size * width, torch.add, x, other)
        yield case("elementwise", 2 * size * width, F.silu, x)
        yield case("copy", 2 * size * width, torch.Tensor.contiguous, x.t())
        yield case("copy", 2 * size * width, torch.clone, x)
        yield case("copy", size * (width + _other(kind).itemsize), torch.Tensor.to, x, _other(kind))
        yield case("reduction", size * width + size // _ROW * width, torch.mean, x, -1)
        yield case("softmax", 2 * size * width, torch.softmax, x, -1)
        yield case("normalization", 2 * size * width, F.layer_norm, x, (_ROW,), y, y)
        yield case("index", 2 * size * width + 8 * size // _ROW, F.embedding, index, x)
        yield case("random", size * width, torch.rand_like, x)
        if size <= 1 << 22:  # a sort of more takes longer than a calibration has
            yield case("sort/scan", size * width, torch.topk, x, 8)
            yield case("sort/scan", 2 * size * width, torch.cumsum, x, -1)


def _other(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.float32 else torch.float32


def product_cases(
    device: str, dtype: str, weight: tuple[int, int], rows: Sequence[int], l2_bytes: int
) -> Iterator[Case]:
    """x (m, k) · wᵀ with w (n, k), over m; the weight is cold."""
    kind, (n, k) = DTYPES[dtype], weight
    ring = [torch.ones(n, k, device=device, dtype=kind) for _ in range(_copies(n * k * kind.itemsize, l2_bytes))]
    for m in rows:
        if m * n * kind.itemsize > MOST_OUTPUT:
            continue
        x = torch.ones(m, k, device=device, dtype=kind)
        moved = float(m * k + n * k + m * n) * kind.itemsize
        operands = [(x, w) for w in ring]
        yield Case("gemm", dtype, "", moved, 2.0 * m * n * k, (m, n, k), F.linear, operands)


def _copies(weight_bytes: int, l2_bytes: int) -> int:
    """Enough copies of a weight that the cache has lost one when its turn comes again."""
    return max(1, min(MOST_COPIES, math.ceil(2 * l2_bytes / weight_bytes)))


def batched_cases(device: str, dtype: str) -> Iterator[Case]:
    """Batches of small products, as in attention without a fused kernel and in batched experts; operands warm."""
    kind = DTYPES[dtype]
    for b, m, n, k in BATCHES:
        x, y = torch.ones(b, m, k, device=device, dtype=kind), torch.ones(b, k, n, device=device, dtype=kind)
        moved = float(b) * (m * k + k * n + m * n) * kind.itemsize
        yield Case("gemm", dtype, "batched", moved, 2.0 * b * m * n * k, None, torch.bmm, [(x, y)])


def grouped_cases(device: str, dtype: str, l2_bytes: int) -> Iterator[Case]:
    """Tokens sorted by expert through ``grouped_mm``, equally many for each expert that is hit."""
    kind = DTYPES[dtype]
    for experts, k, n in ((64, 2_048, 2_048), (64, 1_024, 2_048), (8, 4_096, 14_336)):
        ring = [
            torch.ones(experts, k, n, device=device, dtype=kind)
            for _ in range(_copies(experts * k * n * kind.itemsize, l2_bytes))
        ]
        for tokens in (8, 64, 512, 4_096, 16_384):
            hit = min(experts, tokens)
            x = torch.ones(tokens, k, device=device, dtype=kind)
            ends = torch.tensor([min(e + 1, hit) * (tokens // hit) for e in range(experts)], device=device)
            operands = [(x, w, ends.to(torch.int32)) for w in ring]
            moved = float(tokens * k + hit * k * n + tokens * n) * kind.itemsize
            yield Case("grouped-gemm", dtype, "", moved, 2.0 * tokens * k * n, None, _grouped, operands)


def _grouped(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch._grouped_mm(x, weights, offs=ends)


def attention_cases(device: str, dtype: str) -> Iterator[Case]:
    """``scaled_dot_product_attention``; 4 · batch · heads · queries · keys · head size operations, causal or not."""
    kind = DTYPES[dtype]
    prefills = [(b, h, q, q, d) for b, h, d in ((1, 12, 64), (1, 32, 64), (8, 12, 64), (1, 32, 128)) for q in QUERIES]
    decodes = [(b, h, 1, kv, d) for b, h, d in ((1, 12, 64), (1, 32, 64), (32, 32, 64), (1, 32, 128)) for kv in KEYS]
    for b, h, q, kv, d in (*prefills, *decodes):
        query = torch.ones(b, h, q, d, device=device, dtype=kind)
        key = torch.ones(b, h, kv, d, device=device, dtype=kind)
        operands = [(query, key, torch.ones_like(key), None, 0.0, q > 1)]
        moved = 2.0 * b * h * (q + kv) * d * kind.itemsize
        case, flops = "decode" if q == 1 else "prefill", 4.0 * b * h * q * kv * d
        yield Case("attention", dtype, case, moved, flops, None, F.scaled_dot_product_attention, operands)


def convolution_cases(device: str, dtype: str) -> Iterator[Case]:
    """(batch, channels, size, filters, kernel, stride): patches, and 3 × 3 kernels on images."""
    kind = DTYPES[dtype]
    for b, c, size, f, kernel, stride in (
        (1, 3, 224, 768, 16, 16),
        (16, 3, 224, 768, 16, 16),
        (1, 64, 56, 64, 3, 1),
        (8, 256, 14, 256, 3, 1),
        (32, 128, 28, 128, 3, 1),
    ):
        x = torch.ones(b, c, size, size, device=device, dtype=kind)
        w = torch.ones(f, c, kernel, kernel, device=device, dtype=kind)
        out = ((size - kernel) // stride + 1) ** 2 * b * f
        moved = float(x.numel() + w.numel() + out) * kind.itemsize
        yield Case(
            "convolution", dtype, "", moved, 2.0 * out * c * kernel * kernel, None, F.conv2d, [(x, w, None, stride)]
        )


def bandwidths(device: str, elements: int, timer: Timer) -> dict[str, float]:
    """``copy_gb_s``, ``read_gb_s`` and ``write_gb_s`` from float32 tensors of so many elements, far more than a cache
    holds; what could not be timed is missing."""
    x, y = torch.ones(elements, device=device), torch.ones(elements, device=device)
    runs: dict[str, tuple[float, Callable[[int], Any]]] = {
        "copy_gb_s": (8.0 * elements, lambda _: y.copy_(x)),
        "read_gb_s": (4.0 * elements, lambda _: x.sum()),
        "write_gb_s": (4.0 * elements, lambda _: y.fill_(1.5)),
    }
    times = timer([run for _, run in runs.values()])
    return {
        name: moved / statistics.median(us for us, _ in found) / 1e3
        for (name, (moved, _)), found in zip(runs.items(), times, strict=True)
        if not isinstance(found, str)
    }


def matrix_rates(found: Iterable[FamilyGrid]) -> list[MatrixRate]:
    """The best rate of each dtype among the products of the grid: operations ÷ microsecond ÷ 1e6."""
    best: dict[str, float] = {}
    for grid in found:
        if grid.family == "gemm":
            rate = max(point.flops / point.us / 1e6 for point in grid.points)
            best[grid.dtype] = max(best.get(grid.dtype, 0.0), rate)
    return [MatrixRate(dtype=dtype, tflops=rate) for dtype, rate in sorted(best.items())]


class _Ops(TorchDispatchMode):
    """Names of the ops dispatched below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Attention:
    dtype: str
    head_dim: int
    mask: str
    decode: bool
    grouped: bool
    run: Callable[[int], Any]


def attention_choices(device: str, timer: Timer) -> list[AttentionChoice]:
    """The op that each case of ``scaled_dot_product_attention`` becomes, with its kernels; what fails is missing."""
    cases = list(_attention_table(device))
    found = []
    for case, times in zip(cases, timer([case.run for case in cases]), strict=True):
        if isinstance(times, str):
            continue
        with torch.no_grad(), _Ops() as ops:
            case.run(0)
        found.append(
            AttentionChoice(
                dtype=case.dtype,
                head_dim=case.head_dim,
                mask=case.mask,
                phase="decode" if case.decode else "prefill",
                grouped=case.grouped,
                op=next((name for name in ops.names if "scaled_dot_product" in name), "math"),
                kernels=statistics.median(kernels for _, kernels in times),
                us=statistics.median(us for us, _ in times),
            )
        )
    return found


def _attention_table(device: str, heads: int = 8, keys: int = 256) -> Iterator[_Attention]:
    for dtype, kind in DTYPES.items():
        for head_dim in (64, 80, 96, 128, 256):
            for decode in (False, True):
                queries = 1 if decode else keys
                for mask in ("none", "bool", "float") if decode else ("none", "causal", "bool", "float"):
                    for grouped in (False, True):
                        query = torch.ones(2, heads, queries, head_dim, device=device, dtype=kind)
                        key = torch.ones(2, heads // (4 if grouped else 1), keys, head_dim, device=device, dtype=kind)
                        options: dict[str, Any] = {"is_causal": mask == "causal", "enable_gqa": grouped}
                        if mask in ("bool", "float"):
                            allowed = torch.ones(2, 1, queries, keys, device=device, dtype=torch.bool)
                            options["attn_mask"] = allowed if mask == "bool" else allowed.to(kind)

                        def run(_: int, q: Any = query, k: Any = key, options: dict[str, Any] = options) -> Any:
                            return F.scaled_dot_product_attention(q, k, k, **options)

                        yield _Attention(dtype, head_dim, mask, decode, grouped, run)
