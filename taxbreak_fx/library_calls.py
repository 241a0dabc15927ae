"""What the vendor libraries themselves say they were asked to do, from their own loggers.

cuBLAS, cuBLASLt and cuDNN call back with the name of each API function entered.  The callbacks slow everything down, so
they are on for one counted step only, never while timing, and the loggers are silenced again afterwards.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

from taxbreak_fx.errors import MeasurementError

_BLAS_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_LT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
_CUDNN_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_CUDNN_INFO_MASK = 1 << 3  # CUDNN_SEV_INFO_EN: API logging

# Calls that compute; set-up calls (handles, streams, workspaces, heuristics) are no work of the step.
_CUBLAS_WORK = re.compile(
    r"cublas(?!Lt|Set|Get|Create|Destroy|Logger)\w*(Gemm|gemm|Gemv|gemv|Dot|dot|trsm|Trsm|axpy)\w*"
)
_LT_WORK = re.compile(r"cublasLtMatmul$")
_CUDNN_WORK = re.compile(r"cudnnBackendExecute|cudnn\w*(Forward|Backward)\w*")


class _Heard:
    """Function names heard from each library, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def counts(self) -> dict[str, int]:
        """Working calls per library; a cuBLAS call that runs on cuBLASLt inside is one call, of cuBLAS."""
        found: collections.Counter[str] = collections.Counter({"cublas": 0, "cublaslt": 0, "cudnn": 0})
        found.update(library for library, _ in self.calls)
        return dict(found)


def count_library_calls(step: Callable[[], Any]) -> dict[str, int]:
    """Run ``step`` once and return how many working calls each library received.

    Raises ``MeasurementError`` when the positive control (one matrix product) is not heard.
    """
    heard = _Heard()
    with _listening(heard):
        control = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
        torch.cuda.synchronize()
        torch.mm(control, control)
        torch.cuda.synchronize()
        if not heard.calls:
            raise MeasurementError("the libraries' loggers did not report a known matrix product")
        heard.calls.clear()
        step()
        torch.cuda.synchronize()
        return heard.counts()


@contextlib.contextmanager
def _listening(heard: _Heard) -> Iterator[None]:
    """Callbacks registered and loggers on; what the libraries also print goes to a temporary file."""
    libraries = {name: _loaded(name) for name in ("libcublas.so", "libcublasLt.so", "libcudnn.so")}

    def on_blas(message: bytes) -> None:
        text = message.decode(errors="replace")
        match = _CUBLAS_WORK.search(text)
        if match:
            heard.calls.append(("cublas", match.group(0)))

    def on_lt(level: int, function: bytes, message: bytes) -> None:
        name = (function or b"").decode(errors="replace")
        if _LT_WORK.search(name) and level == 5:
            heard.calls.append(("cublaslt", name))

    executing = False  # whether the last cuDNN message was an execution: those that follow at once are nested in it

    def on_cudnn(severity: int, user: Any, debug: Any, message: bytes) -> None:
        nonlocal executing
        match = _CUDNN_WORK.search((message or b"").decode(errors="replace").split("\n", 1)[0])
        if match and not executing:
            heard.calls.append(("cudnn", match.group(0)))
        executing = match is not None

    blas, lt, cudnn = _BLAS_CALLBACK(on_blas), _LT_CALLBACK(on_lt), _CUDNN_CALLBACK(on_cudnn)
    with _quiet_stdout():
        if libraries["libcublas.so"] is not None:
            libraries["libcublas.so"].cublasSetLoggerCallback(blas)
            libraries["libcublas.so"].cublasLoggerConfigure(1, 0, 0, None)
        if libraries["libcublasLt.so"] is not None:
            libraries["libcublasLt.so"].cublasLtLoggerSetCallback(lt)
            libraries["libcublasLt.so"].cublasLtLoggerSetMask(31)
        if libraries["libcudnn.so"] is not None:
            libraries["libcudnn.so"].cudnnSetCallback(ctypes.c_uint(_CUDNN_INFO_MASK), None, cudnn)
        try:
            yield
        finally:
            if libraries["libcublas.so"] is not None:
                libraries["libcublas.so"].cublasLoggerConfigure(0, 0, 0, None)
                libraries["libcublas.so"].cublasSetLoggerCallback(None)
            if libraries["libcublasLt.so"] is not None:
                libraries["libcublasLt.so"].cublasLtLoggerSetMask(0)
                libraries["libcublasLt.so"].cublasLtLoggerSetCallback(None)
            if libraries["libcudnn.so"] is not None:
                libraries["libcudnn.so"].cudnnSetCallback(ctypes.c_uint(0), None, None)


def _loaded(name: str) -> Any:
    """The library of that name that this process has mapped, or None."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rsplit(" ", 1)[-1].strip()
            if os.path.basename(path).startswith(name):
                return ctypes.CDLL(path)
    return None


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """The process's stdout goes to a temporary file: cuBLASLt prints beside calling back."""
    sys.stdout.flush()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
