"""Small C and C++ sources of this package, built on first use with the system's compiler and cached by content."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from taxbreak_fx.errors import MeasurementError

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O2", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra")
CPP_COMPILERS = ("c++", "g++", "clang++")
CPP_FLAGS = ("-O1", "-std=c++20", "-shared", "-fPIC")
_BUILD_TIMEOUT_S = 60.0


def load(name: str) -> ctypes.CDLL:
    """The shared library of ``csrc/NAME.c``, loaded.  Raises ``MeasurementError`` when it cannot be built or loaded."""
    target = library_path(name)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise MeasurementError(f"{target} cannot be loaded ({error}); delete it and run again") from error


def library_path(name: str) -> Path:
    """Where the library of ``csrc/NAME.c`` lies, built if no earlier run built the same text with the same flags.

    Raises ``MeasurementError`` when there is no compiler or it refuses the source.
    """
    return _built(SOURCES / f"{name}.c", COMPILERS, (*FLAGS, "-ldl"), "")


def cpp_library_path(name: str, include: Path, libraries: Path, link: str, version: str) -> Path:
    """Where the library of ``csrc/NAME.cpp`` lies, built against another package's headers and its library ``link``.

    ``version``: of that package; another one has another build.  Raises ``MeasurementError`` as ``library_path`` does.
    """
    options = (*CPP_FLAGS, f"-I{include}", f"-L{libraries}", f"-l{link}")
    return _built(SOURCES / f"{name}.cpp", CPP_COMPILERS, options, version)


def _built(source: Path, compilers: tuple[str, ...], options: tuple[str, ...], version: str) -> Path:
    said = " ".join((*options, version, platform.machine())).encode()
    digest = hashlib.sha256(source.read_bytes() + said).hexdigest()[:16]
    target = _cache() / f"{source.stem}-{digest}.so"
    if not target.exists():
        _build(source, target, compilers, options)
    return target


def _build(source: Path, target: Path, compilers: tuple[str, ...], options: tuple[str, ...]) -> None:
    compiler = next((path for path in map(shutil.which, compilers) if path), None)
    if compiler is None:
        language = "C++" if source.suffix == ".cpp" else "C"
        raise MeasurementError(f"no {language} compiler ({', '.join(compilers)}) to build {source.name}; install one")
    # Built beside its place and moved there: two processes may build at once, and neither may load half a file.
    partial = target.with_suffix(f".{os.getpid()}")
    # Libraries stand behind the source that needs them.
    flags, libraries = [o for o in options if o[:2] != "-l"], [o for o in options if o[:2] == "-l"]
    command = [compiler, *flags, "-o", str(partial), str(source), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeasurementError(f"{compiler} did not build {source.name}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise MeasurementError(f"{compiler} refused {source.name}: {lines[0] if lines else 'no message'}")
    partial.replace(target)


def _cache() -> Path:
    """A folder of this user's alone: libraries are loaded from it."""
    folders = [Path(tempfile.gettempdir()) / f"taxbreak_fx-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # a container may run under a user number that has neither name nor home
        folders.insert(0, Path.home() / ".cache" / "taxbreak_fx")
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    raise MeasurementError("no folder to build in: neither ~/.cache/taxbreak_fx nor the temporary directory is ours")
