"""A Triton kernel that does nothing: what is left of a launch when there is no work.  CUDA only."""

from __future__ import annotations

from typing import Any

import triton


@triton.jit  # type: ignore[untyped-decorator]
def null_kernel() -> None:
    """Does nothing."""
    pass


def launch_null_kernel() -> None:
    """Launch it once on the current stream."""
    null_kernel[(1,)]()


def compiled_null_kernel() -> Any:
    """Triton's compiled kernel; its ``function`` is the driver's handle."""
    kernel = null_kernel[(1,)]()
    if kernel.function is None:
        kernel._init_handles()
    return kernel
