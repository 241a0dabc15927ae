"""The published figures, each typed in once: cited, not measured here.

All are of arXiv 2603.12465.  Those of its abstract are quoted from it; the others come from notes on the paper, which
give neither the number of a table nor that of a figure, so that none is given here.
"""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.record import Record

PAPER = "arXiv 2603.12465"
ABSTRACT, NOTES = f"{PAPER}, abstract", f"{PAPER}, by notes on it; the table is not known"
SETUP = "bf16, eager, 50 warm-up and 150 timed runs, torch 2.10, bare metal, traced with nsys"


class Figure(Record, frozen=True, kw_only=True):
    """A published number or range.  ``shown``: as printed.  ``device``: what it was measured on, where that is told."""

    shown: str
    low: float
    high: float
    unit: str
    source: Literal["arXiv 2603.12465, abstract", "arXiv 2603.12465, by notes on it; the table is not known"]
    device: str | None = None


def _noted(low: float, high: float, unit: str, shown: str = "", device: str | None = "H200") -> Figure:
    text = shown or (f"{low:g}" if low == high else f"{low:g}–{high:g}")
    return Figure(shown=text, low=low, high=high, unit=unit, source=NOTES, device=device)  # type: ignore[arg-type]


def _at(value: float, unit: str, device: str | None = "H200", digits: int | None = None) -> Figure:
    return _noted(value, value, unit, f"{value:,}" if digits is None else f"{value:.{digits}f}", device)


def _abstract(low: float, high: float, unit: str, shown: str) -> Figure:
    return Figure(shown=shown, low=low, high=high, unit=unit, source=ABSTRACT)  # type: ignore[arg-type]


FIGURES: dict[str, Figure] = {
    # Null kernel, launch API entry to kernel start.
    "floor_p5": _at(4.177, "µs"),
    "floor_p50": _at(4.452, "µs"),
    "floor_p95": _at(4.909, "µs"),
    # Launch latency above that floor, by family; Llama-3.2-3B prefill.
    "residual_scan": _at(0.32, "µs", "H100"),
    "residual_elementwise": _noted(0.36, 0.56, "µs", device="H100"),
    "residual_reduction": _at(0.55, "µs", "H100"),
    "residual_gemm": _noted(1.18, 1.88, "µs", "1.18 (nvjet), 1.88 (cuBLAS)", "H100"),
    # GPT-2, sequence length 512, batch 1 to 16.
    "gpt2_orchestration": _noted(5.04, 5.52, "ms"),
    "gpt2_device_1": _at(1.66, "ms"),
    "gpt2_device_16": _at(15.43, "ms"),
    "gpt2_hdbi_1": _at(0.25, "HDBI"),
    "gpt2_hdbi_16": _at(0.74, "HDBI"),
    "gpt2_crossover": _noted(8, 8, "batch", "near 8"),
    # Kernels per decode step at batch 4, sequence length 2048.
    "kernels_llama1b": _at(848, "kernels"),
    "kernels_olmoe": _at(9305, "kernels"),
    "kernels_qwenmoe": _at(6695, "kernels"),
    "kernels_ratio": _abstract(8, 11, "times", "8–11×"),
    # HDBI by kind of step; at which batch and sequence length, the notes do not say.
    "hdbi_dense_prefill": _noted(0.37, 0.41, "HDBI", device=None),
    "hdbi_dense_decode_small": _noted(0.23, 0.23, "HDBI", device=None),
    "hdbi_dense_decode_large": _noted(0.9, 1.0, "HDBI", "> 0.9", None),
    "hdbi_moe_prefill": _noted(0.15, 0.15, "HDBI", "about 0.15", None),
    "hdbi_moe_decode": _noted(0.10, 0.15, "HDBI", "0.10–0.15", None),
    # Llama-3.2-1B, batch 8, sequence length 2048; eager attention, then FlashAttention-2.
    "attention_wall_eager": _at(304, "ms"),
    "attention_wall_flash": _at(95.5, "ms"),
    "attention_orchestration_eager": _at(11.7, "ms"),
    "attention_orchestration_flash": _at(8.9, "ms"),
    "attention_hdbi_eager": _at(0.96, "HDBI", digits=2),
    "attention_hdbi_flash": _at(0.90, "HDBI", digits=2),
    # A host with a faster single thread.
    "cpu_orchestration": _abstract(-0.29, -0.10, "change of T_Orchestration", "−10 … −29 %"),
    "cpu_wall": _abstract(-0.14, 0.0, "change of the wall time", "up to −14 %"),
}
