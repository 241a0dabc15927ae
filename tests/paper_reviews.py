"""Reviews by hand for the tests of benchmarks/paper: of the step that a cell names, with the numbers of
``sample_review``."""

from __future__ import annotations

from pathlib import Path

import msgspec
from sample_review import breakdown, interval, sample_review

from benchmarks.paper.cells import Cell
from taxbreak_fx.model import Review, Variant


def eager(kernels: int = 20, wall: float = 1000.0, host: float = 880.0, device: float = 220.0) -> Variant:
    """Eager with T_Orchestration ``host`` µs (ΔCT 200, ΔKT 80) and without rows."""
    return msgspec.structs.replace(
        sample_review().variant("eager"), kernels=kernels, launches=kernels, t_wall_us=interval(wall, wall, wall),
        device_active_us=device, breakdown=breakdown(host - 280.0, 200.0, 80.0, device), nodes=[],
    )  # fmt: skip


def answer(cell: Cell, variant: Variant | None = None) -> Review:
    """A review of the step that ``cell`` names, with eager and whatever else it asks for."""
    sample, request = sample_review(), cell.request
    options = {"attn_implementation": request.attn_implementation or "sdpa", "weights": "random"}
    options |= {"cache": request.cache} if request.phase == "decode" else {}
    options |= {"experts_implementation": str(request.experts_implementation)} if request.experts_implementation else {}
    step = msgspec.structs.replace(
        sample.step, phase=request.phase, batch=request.batch, seq_len=request.seq_len, dtype=request.dtype,
        options=options,
    )  # fmt: skip
    others = [v for v in sample.variants if v.name in cell.variants and v.name != "eager"]
    variants = [variant or eager(), *others] if len(cell.variants) == 1 else sample.variants
    comparisons = sample.comparisons if len(cell.variants) > 1 else []
    return msgspec.structs.replace(sample, model=request.model, step=step, variants=variants, comparisons=comparisons)


def keep(folder: Path, one: Cell, review: Review) -> None:
    (folder / "paper").mkdir(exist_ok=True)
    review.save(folder / "paper" / f"{one.name}.json")
