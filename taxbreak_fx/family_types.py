"""The vocabulary of the op tables: families, libraries, dtype groups, and what one rule is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FAMILIES = (
    "gemm",
    "grouped-gemm",
    "attention",
    "convolution",
    "recurrent",
    "normalization",
    "softmax",
    "elementwise",
    "reduction",
    "index",
    "copy",
    "sort/scan",
    "random",
    "fft",
    "linalg",
    "collective",
    "custom-triton",
    "view",
    "host-sync",
    "unknown",
)

# The paper's I_lib is 1 for these and only these: closed or separately shipped libraries behind an API of their own.
VENDOR_LIBRARIES = frozenset(
    {
        "cuBLAS",
        "cuBLASLt",
        "cuDNN",
        "NCCL",
        "cuSPARSE",
        "cuSPARSELt",
        "cuSOLVER",
        "cuFFT",
        "oneDNN",
        "MKL/OpenBLAS",
    }
)
LIBRARIES = (
    *sorted(VENDOR_LIBRARIES),
    "CUTLASS-in-ATen",
    "FlashAttention-in-ATen",
    "FlashAttention",
    "Triton/Inductor",
    "Triton",
    "Gloo",
    "CUDA runtime",
    "ATen",
    "unknown",
)

INTEGER = frozenset({"int8", "int16", "int32", "int64", "uint8", "bool"})
BF16, FP16 = frozenset({"bfloat16"}), frozenset({"float16"})
FP32, FP64 = frozenset({"float32"}), frozenset({"float64"})


@dataclass(frozen=True)
class OpRule:
    """``ops`` (space-separated base names) on ``device`` are of ``family`` and done by ``library``, for ``reason``.

    ``dtypes`` narrows the rule; one rule per op and device has ``None``, and answers for every other dtype.
    """

    code: str
    family: str
    device: Literal["cuda", "cpu", "any"]
    library: str
    reason: str
    ops: str
    dtypes: frozenset[str] | None = None
