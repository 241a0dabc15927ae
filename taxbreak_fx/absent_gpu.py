"""A GPU that is not there: what is known of it, and what torch must not ask a driver for while it is pretended."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from taxbreak_fx.errors import DeviceError, UsageError
from taxbreak_fx.native import cpp_library_path


@dataclass(frozen=True)
class AbsentGpu:
    """What ``torch.cuda.get_device_properties`` says of a GPU, under torch's names; sizes in bytes.

    ``half_tflops``, ``single_tflops`` and ``memory_gb_s`` are its rates: dense products in half and single precision,
    10¹² FLOP/s, and memory, 10⁹ B/s.
    """

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int
    regs_per_multiprocessor: int
    max_threads_per_multi_processor: int
    max_threads_per_block: int
    warp_size: int
    shared_memory_per_block: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    half_tflops: float
    single_tflops: float
    memory_gb_s: float
    gcnArchName: str = ""
    is_integrated: bool = False

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        return self.major, self.minor


# NVIDIA's H200 datasheet (memory and rates), H100/H200 white paper (SMs, L2) and the CUDA C++ programming guide's table
# for compute capability 9.0 (the rest).
H200 = AbsentGpu(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141_000_000_000,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
    L2_cache_size=60 * 2**20,
    half_tflops=989.0,
    single_tflops=67.0,
    memory_gb_s=4800.0,
)
GPUS = {"h200": H200}


def gpu(target: str) -> AbsentGpu:
    """The GPU of that name.  Raises ``UsageError`` for one that is not known."""
    if target not in GPUS:
        raise UsageError(f"no GPU {target!r} to pretend; known: {', '.join(GPUS)}")
    return GPUS[target]


@functools.cache
def stand_in_guard() -> ctypes.CDLL | None:
    """Give a torch without CUDA the device guard that fake CUDA tensors need; None for one with CUDA, which has it.

    It stays for the life of the process.  Raises ``MeasurementError`` when it cannot be built.
    """
    if torch.backends.cuda.is_built():
        return None
    root = Path(torch.__file__).parent
    library = cpp_library_path("absent_cuda", root / "include", root / "lib", "c10", torch.__version__)
    return ctypes.CDLL(str(library))


def _converting() -> Callable[..., torch.nn.Module]:
    """``Module._apply``, by which ``.to(device)`` and ``.bfloat16()`` convert, for parameters that are fake.

    torch's own exchanges the insides of each parameter, and refuses those that anything refers to weakly, as the mode
    does to all of its tensors.  This one puts another parameter in its place; one that is shared stays shared.
    """
    made: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    depth = 0

    def converted(own: torch.nn.Parameter, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Parameter:
        if id(own) not in made:
            with torch.no_grad():
                new = fn(own)
            made[id(own)] = own, own if new is own else torch.nn.Parameter(new, own.requires_grad)
        return made[id(own)][1]

    def apply(
        module: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> torch.nn.Module:
        nonlocal depth
        depth += 1
        try:
            for child in module.children() if recurse else ():
                child._apply(fn)  # which a class may have made its own
            for name, own in module._parameters.items():
                module._parameters[name] = None if own is None else converted(own, fn)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else fn(buffer)
        finally:
            depth -= 1
            if not depth:
                made.clear()
        return module

    return apply


@contextlib.contextmanager
def pretending(target: AbsentGpu) -> Iterator[FakeTensorMode]:
    """Tensors made inside are fake, on ``cuda`` too; what eager code asks of the GPU is answered for ``target``.

    Raises ``DeviceError`` where a real CUDA device would answer instead, ``MeasurementError`` when this torch needs a
    device guard that cannot be built.
    """
    if torch.cuda.is_available():
        raise DeviceError("a CUDA device is visible where one is to be pretended: hide it with CUDA_VISIBLE_DEVICES=")
    stand_in_guard()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with contextlib.ExitStack() as stack:
        for name, answer in (
            ("get_device_capability", target.capability),  # grouped_mm asks
            ("mem_get_info", (target.total_memory, target.total_memory)),  # models asks before it builds
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", _converting()))
        stack.enter_context(mode)
        yield mode
