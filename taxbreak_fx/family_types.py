"""The vocabulary of the tables: families, libraries, dtype groups, and what one rule for ops or kernels is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from taxbreak_fx.family_inputs import Inputs
from taxbreak_fx.variant_record import Classification

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
    "MAGMA",
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
class Condition:
    """What a call's inputs must be like for a rule to apply: in words that follow "where", and as a test of them."""

    text: str
    holds: Callable[[Inputs], bool]


@dataclass(frozen=True)
class OpRule:
    """``ops`` (space-separated base names) on ``device`` are of ``family`` and done by ``library``, for ``reason``.

    ``dtypes`` narrows the rule; one rule per op and device has ``None``, and answers for every other dtype.  ``when``
    narrows it to calls whose inputs are known and fulfil it; such a rule goes before those without.
    """

    code: str
    family: str
    device: Literal["cuda", "cpu", "any"]
    library: str
    reason: str
    ops: str
    dtypes: frozenset[str] | None = None
    when: Condition | None = None


@dataclass(frozen=True)
class KernelRule:
    """Kernels whose head matches ``head`` and, if given, whose whole identity matches ``inside``."""

    code: str
    head: str
    family: str
    library: str
    reason: str
    inside: str = ""

    def matches(self, head: str, identity: str) -> bool:
        """Whether both patterns are found (``re.search``)."""
        return bool(re.search(self.head, head) and re.search(self.inside, identity))

    def classification(self) -> Classification:
        """The answer this rule gives."""
        i_lib = self.library in VENDOR_LIBRARIES
        return Classification(family=self.family, library=self.library, i_lib=i_lib, code=self.code, reason=self.reason)
