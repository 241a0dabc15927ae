"""What the vendor libraries themselves say they were asked to do, from their own loggers.

cuBLAS, cuBLASLt and cuDNN call back with the name of each API function entered; so do cuSPARSE, cuSPARSELt and
cuSOLVER, though not from every function.  cuFFT and NCCL have no such logger.  The callbacks slow everything down, so
they are on for one observed step only, never while timing, and the loggers are silenced again afterwards.
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
from typing import Any, NamedTuple

import torch

from taxbreak_fx.errors import MeasurementError

_BLAS_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_LEVEL_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
_CUDNN_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_CUDNN_INFO_MASK = 1 << 3  # CUDNN_SEV_INFO_EN: API logging
_API_TRACE, _ALL_LEVELS = 5, 31  # the level of a message about an entered function, and the mask of all levels

# Calls that compute; set-up calls (handles, descriptors, workspaces, heuristics) are no work of the step.
_CUBLAS_WORK = re.compile(
    r"cublas(?!Lt|Set|Get|Create|Destroy|Logger)\w*"
    r"(Gemm|gemm|Gemv|gemv|Dot|dot|[Tt]rsm|trmm|axpy|getr[fsi]|matinv|geqrf|gels|geam|dgmm|syrk|herk|nrm2|scal)\w*"
)
_CUDNN_WORK = re.compile(r"cudnn(BackendExecute|CTCLoss|(?!Get|Set|Create|Destroy)\w*(Forward|Backward))\w*")
_HELPER = r"(?!\w*(Create|Destroy|Get|Set|Logger|[bB]uffer|Estimation|[aA]nalysis|preprocess|Init|Version|Plan))"


class _LevelLogger(NamedTuple):
    """A library whose logger takes ``(level, function, message)`` callbacks: its file, and its calls that compute."""

    library: str
    file: str
    prefix: str
    work: re.Pattern[str]


# cublasLtTSTMatmul and the like are what cuBLAS calls inside: no call of the step's.
_LEVEL_LOGGERS = (
    _LevelLogger("cuBLASLt", "libcublasLt.so", "cublasLtLogger", re.compile(r"^cublasLtMatmul$")),
    _LevelLogger("cuSPARSE", "libcusparse.so", "cusparseLogger", re.compile(rf"^cusparse{_HELPER}\w+$")),
    _LevelLogger("cuSPARSELt", "libcusparseLt.so", "cusparseLtLogger", re.compile(r"^cusparseLtMatmul(Search)?$")),
    _LevelLogger("cuSOLVER", "libcusolver.so", "cusolverDnLogger", re.compile(rf"^cusolver{_HELPER}\w+$")),
)
# Their loggers report every working function, so that their silence means no call.
COMPLETE = frozenset({"cuBLAS", "cuBLASLt", "cuDNN"})


class LibraryCall(NamedTuple):
    """One working call, by the library's name (as in ``families.LIBRARIES``) and its own function name."""

    library: str
    function: str


class LoggerEars:
    """``calls`` grows while libraries are called; ``hears`` are the libraries whose silence means no call."""

    def __init__(self) -> None:
        self.calls: list[LibraryCall] = []
        self.hears: frozenset[str] = frozenset()
        self._executing = False  # whether cuDNN's last message was an execution: those that follow are nested in it

    def on_blas(self, message: bytes) -> None:
        """cuBLAS's callback; a cuBLAS call that runs on cuBLASLt inside is one call, of cuBLAS."""
        match = _CUBLAS_WORK.search(message.decode(errors="replace"))
        if match:
            self.calls.append(LibraryCall("cuBLAS", match.group(0)))

    def on_level(self, logger: _LevelLogger, level: int, function: bytes | None) -> None:
        """The callback of cuBLASLt and of those whose loggers are made like its own."""
        name = (function or b"").decode(errors="replace")
        if level == _API_TRACE and logger.work.search(name):
            self.calls.append(LibraryCall(logger.library, name))

    def on_cudnn(self, message: bytes | None) -> None:
        """cuDNN's callback."""
        match = _CUDNN_WORK.search((message or b"").decode(errors="replace").split("\n", 1)[0])
        if match and not self._executing:
            self.calls.append(LibraryCall("cuDNN", match.group(0)))
        self._executing = match is not None


def count_library_calls(step: Callable[[], Any]) -> dict[str, int]:
    """Run ``step`` once and return how many working calls each library received, by its name in lower case.

    Raises ``MeasurementError`` when the positive control (one matrix product) is not heard.
    """
    with listening() as ears:
        step()
        torch.cuda.synchronize()
        found: collections.Counter[str] = collections.Counter({"cublas": 0, "cublaslt": 0, "cudnn": 0})
        found.update(call.library.lower() for call in ears.calls)
        return dict(found)


@contextlib.contextmanager
def listening() -> Iterator[LoggerEars]:
    """Callbacks registered and loggers on; what the libraries also print goes to a temporary file.

    Only libraries that the process has loaded are heard: run the step once before.  Raises ``MeasurementError`` when
    the positive control (one matrix product) is not heard.
    """
    ears = LoggerEars()
    with _quiet_stdout(), contextlib.ExitStack() as registered:
        for register in (_listen_cublas, _listen_cudnn):
            registered.enter_context(register(ears))
        for logger in _LEVEL_LOGGERS:
            registered.enter_context(_listen_level(ears, logger))
        control = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
        torch.mm(control, control)
        torch.cuda.synchronize()
        if not ears.calls:
            raise MeasurementError("the libraries' loggers did not report a known matrix product")
        ears.calls.clear()
        yield ears


@contextlib.contextmanager
def _listen_cublas(ears: LoggerEars) -> Iterator[None]:
    library = _loaded("libcublas.so")
    if library is None:
        yield
        return
    callback = _BLAS_CALLBACK(ears.on_blas)
    library.cublasSetLoggerCallback(callback)
    library.cublasLoggerConfigure(1, 0, 0, None)
    ears.hears |= {"cuBLAS"}
    try:
        yield
    finally:
        library.cublasLoggerConfigure(0, 0, 0, None)
        library.cublasSetLoggerCallback(None)


@contextlib.contextmanager
def _listen_cudnn(ears: LoggerEars) -> Iterator[None]:
    library = _loaded("libcudnn.so")
    if library is None:
        yield
        return
    callback = _CUDNN_CALLBACK(lambda severity, user, debug, message: ears.on_cudnn(message))
    library.cudnnSetCallback(ctypes.c_uint(_CUDNN_INFO_MASK), None, callback)
    ears.hears |= {"cuDNN"}
    try:
        yield
    finally:
        library.cudnnSetCallback(ctypes.c_uint(0), None, None)


@contextlib.contextmanager
def _listen_level(ears: LoggerEars, logger: _LevelLogger) -> Iterator[None]:
    library = _loaded(logger.file)
    if library is None or not hasattr(library, f"{logger.prefix}SetCallback"):
        yield
        return
    callback = _LEVEL_CALLBACK(lambda level, function, message: ears.on_level(logger, level, function))
    getattr(library, f"{logger.prefix}SetCallback")(callback)
    getattr(library, f"{logger.prefix}SetMask")(_ALL_LEVELS)
    ears.hears |= {logger.library} & COMPLETE
    try:
        yield
    finally:
        getattr(library, f"{logger.prefix}SetMask")(0)
        getattr(library, f"{logger.prefix}SetCallback")(None)


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
