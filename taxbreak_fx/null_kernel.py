"""Triton kernels that do next to nothing: what is left of a launch when there is no work.  CUDA only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def null_kernel() -> None:
    """Does nothing."""
    pass


@triton.jit(do_not_specialize=["i", "j", "k", "l"])
def many_arguments_kernel(a, b, c, d, e, f, g, h, i, j, k, l):  # type: ignore[no-untyped-def]  # noqa: E741
    """Does nothing with eight pointers and four integers: the driver copies every argument all the same."""
    pass


@triton.jit(do_not_specialize=["value"])
def flag_kernel(flag, value):  # type: ignore[no-untyped-def]
    """Write ``value`` to ``flag`` in the host's memory.

    ``.wt`` writes through the caches to system memory, so the host sees it without waiting for the kernel's end.  No
    fence: nothing else is written that the flag could overtake.  An atomic with system scope would do as well, but over
    PCIe it may cost a read before its write.
    """
    tl.store(flag, value, cache_modifier=".wt")


@triton.jit(do_not_specialize=["rounds", "polls"])
def answer_kernel(question, answer, rounds, polls):  # type: ignore[no-untyped-def]
    """Copy every new ``question`` to ``answer``, both in the host's memory, until question ``rounds``.

    Ends after ``polls`` reads without a new question, so that a host that went away leaves no kernel behind.
    """
    done = 0
    left = polls
    while (done < rounds) & (left > 0):
        asked = tl.load(question, volatile=True)
        fresh = asked > done
        tl.store(answer, asked, mask=fresh, cache_modifier=".wt")
        done = tl.where(fresh, asked, done)
        left = tl.where(fresh, polls, left - 1)


@dataclass(frozen=True)
class Image:
    """A compiled kernel: the binary that a driver loads, the entry's name in it, and the threads of its one block."""

    binary: bytes
    name: str
    threads: int


def launch_null_kernel() -> None:
    """Launch it once on the current stream."""
    null_kernel[(1,)]()


def compiled_null_kernel() -> Any:
    """Triton's compiled kernel; its ``function`` is the driver's handle."""
    kernel = null_kernel[(1,)]()
    if kernel.function is None:
        kernel._init_handles()
    return kernel


def null_image() -> Image:
    """``null_kernel`` as Triton launches it."""
    return _image(null_kernel.warmup(grid=(1,)))


def many_arguments_image() -> Image:
    """``many_arguments_kernel``: eight pointers, four 32-bit integers."""
    return _image(many_arguments_kernel.warmup(*[torch.float32] * 8, *[2] * 4, grid=(1,)))


def flag_image() -> Image:
    """``flag_kernel`` with a pointer to a 32-bit integer and its value."""
    return _image(flag_kernel.warmup(torch.int32, 2, grid=(1,), num_warps=1))


def answer_image() -> Image:
    """``answer_kernel`` in one warp, with two pointers to 32-bit integers and two 32-bit integers."""
    return _image(answer_kernel.warmup(torch.int32, torch.int32, 2, 2, grid=(1,), num_warps=1))


def _image(kernel: Any) -> Image:
    # 32 threads a warp; the kernel was compiled for exactly that many warps.
    return Image(kernel.asm["cubin"], kernel.metadata.name, 32 * kernel.metadata.num_warps)
