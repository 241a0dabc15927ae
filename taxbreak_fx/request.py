"""What a user asked for, as plain data: it crosses the process boundary between the supervisor and its worker."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

from taxbreak_fx.errors import UsageError
from taxbreak_fx.record import Record

CUDA_VARIANTS = ("eager", "dynamo", "inductor", "reduce-overhead", "cudagraphs", "eager-graph")
CPU_VARIANTS = ("eager", "dynamo", "inductor")
DEFAULT_TIMEOUT_S = 180.0


class ReviewRequest(Record, frozen=True, kw_only=True):
    """One ``taxbreak review``.  ``model`` is a registry name, a local directory, a hub id or ``file.py:factory``.

    ``timeout_s`` bounds one stage of one variant; ``budget_s`` is the time spent on the timed pairs of a variant.
    Empty ``variants`` means all that the device supports.  ``tokens`` are generated in phase ``generate``; ``token``:
    the one whose step is reviewed (0: the prefill's).
    """

    model: str
    phase: Literal["prefill", "decode", "generate"] = "decode"
    batch: int = 1
    seq_len: int = 512
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    cache: Literal["static", "dynamic"] = "static"
    attn_implementation: str | None = None
    experts_implementation: str | None = None
    device: Literal["auto", "cuda", "cpu"] = "auto"
    variants: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    budget_s: float = 6.0
    weights: bool = False
    trust_remote_code: bool = False
    seed: int = 0
    tokens: int = 0
    token: int = 0


def closest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean a, b?"`` for the known names nearest to ``name``, or the whole list when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(names)}"


def check_variants(names: Iterable[str], device: Literal["cuda", "cpu"]) -> tuple[str, ...]:
    """The variants to run on ``device``, eager first.  Raises ``UsageError`` for a name the device does not support."""
    supported = CUDA_VARIANTS if device == "cuda" else CPU_VARIANTS
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in CUDA_VARIANTS:
            raise UsageError(f"unknown variant {name!r}{closest(name, supported)}")
        if name not in supported:
            raise UsageError(f"variant {name!r} needs a CUDA device; on {device}: {', '.join(supported)}")
    return ("eager", *(name for name in (chosen or supported) if name != "eager"))
