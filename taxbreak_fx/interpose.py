"""Every call of torch into a vendor library, a launch or a synchronisation, timed without a profiler.

The import tables of the loaded libraries are patched in process (``csrc/interpose.c``): a call goes through a stub that
reads the clock before and after.  Covered is what an object *imports by name*.  Out of reach is what is looked up at
run time (``dlsym``, ``cudaGetDriverEntryPoint``: Triton's launcher stubs, the driver table that torch fills when it
first needs NVRTC, unless the import was patched before) and what a library links statically: cuBLAS launches its
kernels through a CUDA runtime of its own, so those launches stay inside the call's time (``library_charges``).

Libraries that are loaded later are covered by calling ``Interposer.install`` again; warm the step up first.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import platform
import statistics
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from taxbreak_fx import native
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.library_events import PATTERNS, Cost, Library, LibraryEvent, is_working, library_of, outermost

MACHINES = ("x86_64", "aarch64")
CAPACITY = 1 << 20

# struct event of interpose.c: symbol, thread, depth, unused, start, end (ns of CLOCK_MONOTONIC).
_EVENT = struct.Struct("IIIIQQ")
_REASONS = {
    -1: "more library functions are imported than its table holds",
    -2: "out of memory",
    -3: "the import tables cannot be made writable",
    -4: "a hardware shadow stack forbids exchanging return addresses; run without GLIBC_TUNABLES=glibc.cpu.x86_shstk",
}
_PROBE_ROUNDS, _PROBE_CALLS = 15, 2_000


@dataclass
class Heard:
    """Filled when the listening ends: ``events`` in order of entry, calls that had not returned counted apart.

    ``overflow``: more calls were made than there was room for; the later ones are missing.
    """

    events: list[LibraryEvent] = field(default_factory=list)
    overflow: bool = False
    unfinished: int = 0


class Interposer:
    """Patches the import tables of this process and listens.  One at a time: the tables are the process's own."""

    _installed: Interposer | None = None
    _lock = threading.Lock()

    def __init__(self, capacity: int = CAPACITY, patterns: Iterable[str] = PATTERNS) -> None:
        """``capacity``: events that one listening has room for (32 bytes each)."""
        self._capacity = capacity
        self._patterns = tuple(patterns)
        self._shim: ctypes.CDLL | None = None
        self._listening = False

    def install(self) -> int:
        """Cover every import that is not covered yet; returns how many import slots were added.  Repeatable.

        Raises ``MeasurementError`` on another machine or system, without a compiler, when another interposer is
        installed, when the tables cannot be patched, and when nothing that is loaded imports a wanted function.
        """
        if sys.platform != "linux" or platform.machine() not in MACHINES:
            raise MeasurementError(
                f"library calls are timed on Linux on {' and '.join(MACHINES)} only, "
                f"not on {sys.platform} on {platform.machine()}; use the subtractive estimate"
            )
        shim = self._shim or _load()
        with Interposer._lock:
            if Interposer._installed not in (None, self):
                raise MeasurementError("another interposer is installed in this process; close it first")
            names = (ctypes.c_char_p * (len(self._patterns) + 1))(*(p.encode() for p in self._patterns), None)
            added = int(shim.tbx_install(names))
            if added < 0 or shim.tbx_object_count() == 0:
                shim.tbx_uninstall()
                Interposer._installed = self._shim = None
                reason = _REASONS.get(added, "no loaded library imports a vendor library's functions by name")
                raise MeasurementError(f"library calls cannot be timed: {reason}")
            Interposer._installed, self._shim = self, shim
        return added

    def close(self) -> None:
        """Restore every import slot.  Does nothing when not installed."""
        with Interposer._lock:
            if Interposer._installed is not self:
                return
            shim = self._installed_shim()
            shim.tbx_listen(0)
            if shim.tbx_uninstall() != 0:
                raise MeasurementError(f"library calls cannot be left alone again: {_REASONS[-3]}")
            Interposer._installed = self._shim = None

    def objects(self) -> dict[str, int]:
        """Import slots now covered per patched object, by its path ("" is the program itself)."""
        shim = self._installed_shim()
        return {shim.tbx_object_path(i).decode(): int(shim.tbx_object_slots(i)) for i in range(shim.tbx_object_count())}

    def symbols(self) -> dict[Library, list[str]]:
        """Names covered, per library; a library that nobody imports is missing."""
        found: dict[Library, set[str]] = collections.defaultdict(set)
        for name in self._names():
            library = library_of(name)
            if library is not None:
                found[library].add(name)
        return {library: sorted(names) for library, names in sorted(found.items())}

    def unresolved(self) -> int:
        """Wanted import slots left alone at the last ``install``, since no loaded object defines the function."""
        return int(self._installed_shim().tbx_unresolved())

    @contextlib.contextmanager
    def listening(self) -> Iterator[Heard]:
        """Time all covered calls, on every thread, until the block ends; then the yielded ``Heard`` is filled."""
        heard = Heard()
        with self._recording() as shim:
            yield heard
        names = [(name, library_of(name)) for name in self._names()]
        for symbol, thread, depth, _, start, end in _events(shim):
            name, library = names[symbol]
            if end == 0:
                heard.unfinished += 1
            elif library is not None:
                heard.events.append(
                    LibraryEvent(
                        name=name,
                        library=library,
                        start_us=start / 1e3,
                        end_us=end / 1e3,
                        thread=thread,
                        depth=depth,
                    )
                )
        heard.overflow = bool(shim.tbx_overflowed())

    def cost_us(self) -> Cost:
        """What timing one call costs on this machine, from a function that does nothing, called directly and through
        a stub in turns: medians of rounds.  Hot; inside a step the same code is colder and somewhat dearer.
        """
        calls = min(_PROBE_CALLS, self._capacity)
        inside, whole = [], []
        for _ in range(_PROBE_ROUNDS):
            with self._recording() as shim:
                direct = shim.tbx_probe_ns(calls, 0) / calls
                stubbed = shim.tbx_probe_ns(calls, 1) / calls
            own = threading.get_native_id()
            durations = [
                end - start for symbol, thread, _, _, start, end in _events(shim) if (symbol, thread) == (0, own)
            ]
            inside.append(statistics.fmean(durations) - direct)
            whole.append(stubbed - direct)
        return Cost(
            inside=statistics.median(inside) / 1e3,
            outside=statistics.median(w - i for w, i in zip(whole, inside, strict=True)) / 1e3,
        )

    def control(self) -> None:
        """Positive control: one matrix product on the CUDA device must be heard as one working cuBLAS(Lt) call.

        Raises ``MeasurementError`` when it is not.
        """
        import torch

        x = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
        torch.mm(x, x)  # loads what a first product loads
        torch.cuda.synchronize()
        self.install()
        with self.listening() as heard:
            torch.mm(x, x)
            torch.cuda.synchronize()
        working = [e for e in outermost(heard.events) if e.library in ("cublas", "cublaslt") and is_working(e.name)]
        if len(working) != 1:
            raise MeasurementError(f"one known matrix product was heard as {len(working)} cuBLAS calls")

    @contextlib.contextmanager
    def _recording(self) -> Iterator[ctypes.CDLL]:
        shim = self._installed_shim()
        if self._listening:
            raise MeasurementError("this interposer is listening already; end that first")
        if shim.tbx_reset(self._capacity) != 0:
            raise MeasurementError(f"no memory for {self._capacity} library calls; ask for a smaller capacity")
        self._listening = True
        shim.tbx_listen(1)
        try:
            yield shim
        finally:
            shim.tbx_listen(0)
            self._listening = False

    def _installed_shim(self) -> ctypes.CDLL:
        if self._shim is None:
            raise MeasurementError("the interposer is not installed; call install() first")
        return self._shim

    def _names(self) -> list[str]:
        shim = self._installed_shim()
        return [shim.tbx_symbol_name(index).decode() for index in range(shim.tbx_symbol_count())]


def _load() -> ctypes.CDLL:
    shim = native.load("interpose")
    for name in ("tbx_symbol_name", "tbx_object_path"):
        getattr(shim, name).restype = ctypes.c_char_p
    shim.tbx_events.restype = ctypes.c_void_p
    shim.tbx_count.restype = ctypes.c_uint64
    shim.tbx_reset.argtypes = [ctypes.c_uint64]
    shim.tbx_probe_ns.restype = ctypes.c_int64
    return shim


def _events(shim: ctypes.CDLL) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Symbol, thread, depth, nothing, start and end (ns; 0: still under way) of every recorded call."""
    size = shim.tbx_count() * _EVENT.size
    return _EVENT.iter_unpack(ctypes.string_at(shim.tbx_events(), size)) if size else iter(())
