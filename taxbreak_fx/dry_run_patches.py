"""The one room that reaches into torch to make Inductor plan for a GPU that is absent.

Every patch says why it is needed.  They were checked on the torch releases in ``CHECKED`` and hold for the length of
one ``with``; another release may keep its questions to the driver elsewhere, so it is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from taxbreak_fx.absent_gpu import AbsentGpu
from taxbreak_fx.errors import CaptureError

CHECKED = ("2.11", "2.13")


@dataclass(frozen=True)
class Patch:
    """``names`` of the object at ``where`` (``module`` or ``module:attribute.path``) become what ``make`` returns."""

    where: str
    names: tuple[str, ...]
    make: Callable[[AbsentGpu, Any], Any]
    reason: str


class _Nowhere:
    """Stands for ``torch.cuda.device``: a context in which another device would be current."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Nowhere:
        return self

    def __exit__(self, *_: Any) -> None: ...


class _OnCpu(TorchDispatchMode):
    """What would be made on ``cuda`` inside is made on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def moved(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        return func(*map(moved, args), **{name: moved(value) for name, value in (kwargs or {}).items()})


def _answer(value: Callable[[AbsentGpu], Any]) -> Callable[[AbsentGpu, Any], Any]:
    """A function that ignores its arguments and answers for the absent GPU."""
    return lambda gpu, old: lambda *_, **__: value(gpu)


def _static(value: Callable[[AbsentGpu], Any]) -> Callable[[AbsentGpu, Any], Any]:
    """The same as a static method, for the classes through which Inductor reaches devices."""
    return lambda gpu, old: staticmethod(lambda *_, **__: value(gpu))


def _driver(gpu: AbsentGpu, old: Any) -> Any:
    from triton.backends.compiler import GPUTarget

    arch = 10 * gpu.major + gpu.minor
    return types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, gpu.warp_size),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
        get_device_interface=lambda: torch.cuda,
        get_benchmarker=lambda: None,
    )


def _folded_on_cpu(gpu: AbsentGpu, old: Any) -> Any:
    def deduce(folder: Any, node: torch.fx.Node) -> Any:
        with _OnCpu():  # type: ignore[no-untyped-call]
            return old(folder, node)

    return deduce


def _pads(gpu: AbsentGpu, old: Any) -> Any:
    """Whether Inductor pads a product that it may pad, where it would time both on the device.

    As torch does, only what arithmetic bounds comes into question; of that, padded is what has rows that do not begin
    on 16 bytes, which cuBLAS multiplies by slow kernels.  Seen on an H200 (torch 2.11.0+cu130): the head of GPT-2's
    prefill, (512 × 768) × (768 × 50,257) in bfloat16, takes 422 µs in eager and, padded by Inductor, 66 µs.
    """

    def should_pad(match: Any, mat1: torch.Tensor, mat2: torch.Tensor, op: Any, input: Any = None) -> bool:
        m, k, n = mat1.shape[-2], mat1.shape[-1], mat2.shape[-1]
        tflops = gpu.single_tflops if mat1.dtype.itemsize >= 4 else gpu.half_tflops
        # Half: torch takes caches to give the other half of the bandwidth that arithmetic needs.
        if m * n * k / (m * k + k * n + m * n) <= 0.5 * 1e3 * tflops / gpu.memory_gb_s:
            return False
        rows = [k if mat1.stride(-1) == 1 else m, n if mat2.stride(-1) == 1 else k, n]
        return any(int(length) * mat1.dtype.itemsize % 16 for length in rows)

    return should_pad


_INTERFACE = "torch._dynamo.device_interface:CudaInterface"
_PADDING = "torch._inductor.fx_passes.pad_mm"
_ASKED = "Inductor plans by what the device is"
PATCHES = (
    Patch("torch.cuda", ("is_available", "is_bf16_supported", "is_tf32_supported"), _answer(lambda gpu: True), _ASKED),
    Patch("torch.cuda", ("device_count",), _answer(lambda gpu: 1), _ASKED),
    Patch("torch.cuda", ("current_device",), _answer(lambda gpu: 0), _ASKED),
    Patch("torch.cuda", ("get_device_properties",), _answer(lambda gpu: gpu), _ASKED),
    Patch("torch.cuda", ("get_device_capability",), _answer(lambda gpu: gpu.capability), _ASKED),
    Patch("torch.cuda", ("get_device_name",), _answer(lambda gpu: gpu.name), _ASKED),
    Patch("torch.cuda", ("is_initialized",), _answer(lambda gpu: False), "so that no state is asked of the device"),
    Patch(
        "torch.cuda",
        ("_lazy_init", "synchronize", "set_rng_state"),
        _answer(lambda gpu: None),
        "there is no driver to start, to wait for or to seed",
    ),
    Patch(
        "torch.cuda",
        ("get_rng_state",),
        _answer(lambda gpu: torch.zeros(16, dtype=torch.uint8)),
        "tracing keeps the random state",
    ),
    Patch("torch.cuda", ("device",), lambda gpu, old: _Nowhere, "compiling makes the device current"),
    Patch(
        _INTERFACE,
        ("is_available", "is_triton_capable", "is_bf16_supported"),
        _static(lambda gpu: True),
        _ASKED,
    ),
    Patch(_INTERFACE, ("device_count",), _static(lambda gpu: 1), _ASKED),
    Patch(_INTERFACE, ("current_device", "get_raw_stream"), _static(lambda gpu: 0), _ASKED),
    Patch(_INTERFACE, ("get_device_properties",), _static(lambda gpu: gpu), _ASKED),
    Patch(_INTERFACE, ("get_compute_capability",), _static(lambda gpu: 10 * gpu.major + gpu.minor), _ASKED),
    Patch(
        _INTERFACE,
        ("raise_if_triton_unavailable", "synchronize"),
        _static(lambda gpu: None),
        "Triton compiles nothing here, and there is nothing to wait for",
    ),
    Patch(_INTERFACE, ("device",), lambda gpu, old: _Nowhere, "compiling makes the device current"),
    Patch(f"{_INTERFACE}.Worker", ("get_device_properties",), _static(lambda gpu: gpu), _ASKED),
    Patch(f"{_INTERFACE}.Worker", ("current_device",), _static(lambda gpu: 0), _ASKED),
    Patch("triton.runtime.driver:driver", ("_active",), _driver, "kernels are written for the driver's target"),
    Patch(
        "torch.utils._triton",
        ("triton_hash_with_backend",),
        _answer(lambda gpu: "dry run"),
        "cache keys name the backend, which asks the driver",
    ),
    *(
        Patch(module, ("has_triton",), _answer(lambda gpu: True), "it looks for a driver that Triton can use")
        for module in (
            "torch.utils._triton",
            "torch._inductor.utils",
            "torch._inductor.scheduler",
            "torch._inductor.compile_fx",
            _PADDING,
        )
    ),
    Patch(_PADDING, ("_should_pad",), _pads, "padding products to better shapes is decided by timing them"),
    Patch(
        "torch._subclasses.fake_tensor:FakeTensorMode",
        ("avoid_device_init",),
        lambda gpu, old: property(lambda mode: True),
        "is_available() answers yes here: tensors made from numbers must still stay off the device",
    ),
    Patch(
        "torch.fx.experimental.proxy_tensor",
        ("CONSTANT_NUMEL_LIMIT",),
        lambda gpu, old: -1,
        "tracing would compute constants of one element on the device",
    ),
    Patch(
        "torch._inductor.fx_passes.joint_graph:UniformValueConstantFolder",
        ("_deduce_value",),
        _folded_on_cpu,
        "folding computes constants on the device: the CPU gives the same ones",
    ),
)

CONFIG = {
    # A plan for an absent GPU must not be found by, nor come from, a compilation for a present one.
    "force_disable_caches": True,
    # No pool of compilers: nothing is compiled.
    "compile_threads": 1,
}


def check_version() -> None:
    """Raises ``CaptureError`` on a torch release on which the patches were not checked."""
    release = ".".join(str(torch.__version__).split(".")[:2])
    if release not in CHECKED:
        raise CaptureError(
            f"the dry run of Inductor is not checked on torch {torch.__version__}: "
            f"it covers {' and '.join(CHECKED)}; install one of these to predict compiled variants"
        )


@contextlib.contextmanager
def pretended_to_inductor(gpu: AbsentGpu) -> Iterator[None]:
    """Inside, Inductor believes that ``gpu`` is device 0.  Raises ``CaptureError`` as ``check_version`` does."""
    check_version()
    interfaces = _with_interface()
    hints = importlib.import_module("torch._inductor.runtime.hints")
    hints.DeviceProperties.create.cache_clear()  # what a compilation before remembered of the device, and after us
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(interfaces)
            for patch in PATCHES:
                owner = _object(patch.where)
                for name in patch.names:
                    if hasattr(owner, name):  # what a release does not have, it does not ask
                        new = patch.make(gpu, getattr(owner, name))
                        stack.enter_context(mock.patch.object(owner, name, new))
            stack.enter_context(torch._inductor.config.patch(CONFIG))
            yield
    finally:
        hints.DeviceProperties.create.cache_clear()


def _with_interface() -> contextlib.AbstractContextManager[Any]:
    """A torch that sees no CUDA device lists no interface to one: inside, it does."""
    interface = importlib.import_module("torch._dynamo.device_interface")
    list(interface.get_registered_device_interfaces())  # fills the list on its first call
    listed = dict.fromkeys(("cuda", "cuda:0"), interface.CudaInterface)
    return mock.patch.dict(interface.device_interfaces, listed)


def _object(where: str) -> Any:
    module, _, path = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found
