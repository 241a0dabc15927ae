"""The proof of attribution: spins of known length put into a step, and the terms in which they come out.

Closure alone proves little, since ΔFT is a remainder: a wrong ΔCT closes as well.  So a calibrated spin goes into (a) a
module's forward, (b) a guard, (c) a library's entry point, (d) the launch call, and must come out of the measurement in
(a) ΔFT Python, (b) ΔFT guards, (c) ΔCT, (d) launch, and nowhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import msgspec
import torch

from taxbreak_fx import calibrate
from taxbreak_fx.breakdown import decompose
from taxbreak_fx.call_stack import with_room
from taxbreak_fx.errors import MeasurementError, UsageError
from taxbreak_fx.machine import Calibration
from taxbreak_fx.model import StepInfo, Variant
from taxbreak_fx.native import library_path
from taxbreak_fx.record import Record
from taxbreak_fx.recorders.bench import Bench
from taxbreak_fx.recorders.frame import measure_frame
from taxbreak_fx.recorders.outputs import OutputReference
from taxbreak_fx.recorders.timing import time_variant
from taxbreak_fx.recorders.tracing import trace_variant, traced_floor
from taxbreak_fx.recording import Recording, Trace
from taxbreak_fx.variants import Built
from taxbreak_fx.workload import Workload

SPIN_US = 20.0
BLOCKS = 10  # spins per step: one in each block's forward, guard, product or launch
TOLERANCE = 0.1
MIN_PAIRS, MAX_PAIRS = 4, 20
ENOUGH = 0.025  # standard error of every share at which no more pairs are needed
BUDGET_S = 0.15

Place = Literal["module", "guard", "library", "launch"]
TARGETS: dict[Place, tuple[str, str]] = {
    "module": ("eager", "python"),
    "guard": ("dynamo", "guards"),
    "library": ("eager", "ct"),
    "launch": ("eager", "launch"),
}
PLACES: dict[str, tuple[Place, ...]] = {"cpu": ("module", "guard"), "cuda": ("module", "guard", "library", "launch")}
_ENTRY_POINTS = {
    "library": ("cublasGemmEx",),
    "launch": ("cudaLaunchKernel", "__cudaLaunchKernel", "cudaLaunchKernelExC"),
}


class Delay(Record, frozen=True, kw_only=True):
    """What one injected spin did: median over ``pairs`` of (with − without) per term, as shares of what was injected.

    ``injected_us``: spin length × spins per step.  ``target`` is the term it belongs to.  ``shares`` has every term of
    T_host that is not null: they add up to about 1.
    """

    place: str
    variant: str
    target: str
    injected_us: float
    pairs: int
    shares: dict[str, float]

    @property
    def met(self) -> bool:
        """Whether the target holds 1 ± ``TOLERANCE`` of it, and every other term 0 ± ``TOLERANCE``."""
        return all(abs(share - (name == self.target)) <= TOLERANCE for name, share in self.shares.items())


class _Switch:
    """Turns the spins on and off; ``spin`` is what runs in a module or a guard."""

    def __init__(self) -> None:
        self.on = False

    def spin(self) -> None:
        if self.on:
            until = time.perf_counter_ns() + int(SPIN_US * 1e3)
            while time.perf_counter_ns() < until:
                pass


def known_delay(place: Place, device: Literal["cpu", "cuda"]) -> Delay:
    """Inject the spin in one place, measure the step with and without it in turns, and compare.

    Raises ``UsageError`` where the place does not exist on the device, ``MeasurementError`` where the spin cannot be
    injected.
    """
    if place not in PLACES[device]:
        raise UsageError(f"there is no {place} to delay on {device}; places there: {', '.join(PLACES[device])}")
    variant, target = TARGETS[place]
    switch = _Switch()
    with _injected(place, switch) as flip, torch.no_grad():
        measure = _Measurement(_workload(place, device, switch), variant, device, flip)
        differences: list[dict[str, float]] = []
        while len(differences) < MAX_PAIRS:
            order = (False, True) if len(differences) % 2 else (True, False)
            found = {on: measure.terms(on) for on in order}
            flip(False)
            differences.append(_shares(found[True], found[False]))
            names = set.intersection(*(set(difference) for difference in differences))
            if len(differences) >= MIN_PAIRS and all(
                statistics.stdev(d[name] for d in differences) < ENOUGH * len(differences) ** 0.5 for name in names
            ):
                break
    if target not in names:
        raise MeasurementError(f"{target} of {variant} was not measured: {measure.reason(target)}")
    return Delay(
        place=place,
        variant=variant,
        target=target,
        injected_us=SPIN_US * BLOCKS,
        pairs=len(differences),
        shares={name: statistics.median(d[name] for d in differences) for name in sorted(names)},
    )


class _Terms(NamedTuple):
    """The terms of T_host and eager's T_host meanwhile, microseconds; ``guards_scale``: by what guards, which are
    measured beside other steps, were brought to the speed of these."""

    us: dict[str, float]
    base_us: float
    guards_scale: float


def _shares(spun: _Terms, plain: _Terms) -> dict[str, float]:
    """What each term gained, as a share of what was injected.

    Between the two measurements the host may have changed its speed, a spin's length does not.  So the terms without
    the spin are brought to the speed of the others by the steps without it that were interleaved with both, and a spin
    among the guards came out scaled with them: as much is taken from ``guards``, and ``frame``, which is what surrounds
    the graph less the guards, gets it back.
    """
    injected = SPIN_US * BLOCKS
    names = spun.us.keys() & plain.us.keys()
    shares = {name: (spun.us[name] - plain.us[name] * spun.base_us / plain.base_us) / injected for name in names}
    if "guards" in shares:
        scaled = shares["guards"] * (1 - 1 / spun.guards_scale)
        shares["guards"] -= scaled
        shares["frame"] += scaled
    return shares


class _Bench(Bench):
    """A bench whose eager steps run without the spin, and those of its variants with it while ``on``."""

    def __init__(self, workload: Workload, device: Literal["cpu", "cuda"], flip: Callable[[bool], None]) -> None:
        super().__init__(workload, device, BUDGET_S)
        self.on, self._flip = False, flip

    def spare_eager(self) -> None:
        """Run eager steps without the spin; where it lies in a guard they never meet it."""
        self.eager.prepare = lambda: self._flip(False)  # type: ignore[method-assign]

    def build(self, name: str) -> tuple[Built, float]:
        built, seconds = super().build(name)
        built.prepare = lambda: self._flip(self.on)  # type: ignore[method-assign]
        return built, seconds


class _Measurement:
    """One workload, measured again and again; what delays cannot change (trace, floor) is measured once."""

    def __init__(
        self, workload: Workload, variant: str, device: Literal["cpu", "cuda"], flip: Callable[[bool], None]
    ) -> None:
        self._flip = flip
        self._bench = _Bench(workload, device, flip)
        self._reference = OutputReference(self._bench)
        self._variant, self._device = variant, device
        self._calibration: Calibration = calibrate.calibrate_host(device)
        self._trace: Trace | None = None
        self._last: Variant | None = None
        time_variant(self._bench, variant, self._reference)  # warms what is timed
        if variant == "eager":
            self._bench.spare_eager()
        if device == "cuda":
            # The profiler leaves its process slower: once, before the first of the measurements that are compared.
            self._trace = trace_variant(self._bench, variant)
            floor = traced_floor()
            reasons = {} if floor.t_sys_us else {"t_sys_us": floor.failure or "not measured"}
            self._calibration = msgspec.structs.replace(self._calibration, t_sys_us=floor.t_sys_us, unmeasured=reasons)

    def terms(self, on: bool) -> _Terms:
        """Every term of T_host (launch, ΔCT, T_wait, parts of ΔFT), with the spin or without."""
        self._bench.on = on
        timing = with_room(lambda: time_variant(self._bench, self._variant, self._reference))
        self._flip(on)  # the backends of the next line know no bench
        frame = measure_frame(self._bench) if self._variant != "eager" else None
        recording = Recording(
            variant=self._variant,
            device=self._device,
            calibration=self._calibration,
            timing=timing,
            trace=self._trace,
            frame=frame,
            failures={},
        )
        self._last = decompose(recording, None)
        breakdown = self._last.breakdown
        assert breakdown is not None, self._last.reason
        found = {"launch": self._last.launch_us, "ct": breakdown.ct_us, "wait": self._last.t_wait_us}
        terms = {name: us for name, us in (found | dict(breakdown.ft_parts)).items() if us is not None}
        base_us = statistics.median(timing.base_host_us)
        return _Terms(terms, base_us, 1.0 if frame is None else base_us / frame.eager_us)

    def reason(self, term: str) -> str:
        """Why a term of the last measurement is null."""
        if self._last is None or self._last.breakdown is None:
            return "nothing was measured"
        reasons = {**self._last.unmeasured, **self._last.breakdown.unmeasured}
        return reasons.get(f"{term}_us") or reasons.get("ft_us") or "not part of this variant"


def _workload(place: Place, device: str, switch: _Switch) -> Workload:
    """``BLOCKS`` small modules: each a product for the library's spin, else an addition; a spin in each for (a)."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(64, dtype=dtype, device=device))

    class Product(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mm(x, self.weight)

    class Sum(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight

    class Spinning(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            switch.spin()
            return x + self.weight

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kind = {"module": Spinning, "library": Product}.get(place, Sum)
    step = torch.nn.Sequential(*(kind() for _ in range(BLOCKS))).eval()
    x = torch.ones(64, 64, dtype=dtype, device=device)
    info = StepInfo(phase="forward", batch=64, seq_len=None, dtype=str(dtype)[6:], device=device)
    return Workload(call=step, model=f"known delay in a {place}", step=info, args=(x,))


@contextlib.contextmanager
def _injected(place: Place, switch: _Switch) -> Iterator[Callable[[bool], None]]:
    """Yields what turns the spin on and off."""

    def flip(on: bool) -> None:
        switch.on = on

    if place == "module":
        yield flip
    elif place == "guard":
        with _guarded(switch):
            yield flip
    else:
        with _delayed(_ENTRY_POINTS[place]) as delay:
            yield delay


@contextlib.contextmanager
def _guarded(switch: _Switch) -> Iterator[None]:
    """Every frame that Dynamo compiles meanwhile gets ``BLOCKS`` guards more, which spin and hold."""
    from torch._dynamo import guards

    def spinning(value: Any) -> bool:
        switch.spin()
        return True

    def add(manager: Any, *_: Any) -> None:
        for number in range(BLOCKS):
            try:
                manager.root.add_lambda_guard(spinning, [f"known delay {number}"])
            except TypeError:  # later torch asks for the user's stack as well
                manager.root.add_lambda_guard(spinning, [f"known delay {number}"], None)

    if not hasattr(guards, "guard_manager_testing_hook_fn"):
        raise MeasurementError("this torch has no hook to add a guard by")
    with mock.patch.object(guards, "guard_manager_testing_hook_fn", add):
        yield


@contextlib.contextmanager
def _delayed(names: tuple[str, ...]) -> Iterator[Callable[[bool], None]]:
    """A second copy of the interposer's library under the one that measures; it only spins, in the named functions."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "delay.so"
        shutil.copy(library_path("interpose"), copy)
        shim = ctypes.CDLL(str(copy))
    shim.tbx_symbol_name.restype = ctypes.c_char_p
    shim.tbx_reset.argtypes = [ctypes.c_uint64]
    shim.tbx_delay.argtypes = [ctypes.c_int, ctypes.c_uint64]
    x = torch.ones(64, 64, dtype=torch.bfloat16, device="cuda")
    torch.mm(x, x)  # loads the library
    wanted = (ctypes.c_char_p * (len(names) + 1))(*(name.encode() for name in names), None)
    if shim.tbx_install(wanted) <= 0 or shim.tbx_reset(1) != 0:
        raise MeasurementError(f"no loaded library imports {', '.join(names)}")
    shim.tbx_listen(1)  # with room for one event: every later call is only delayed

    def delay(on: bool) -> None:
        for symbol in range(shim.tbx_symbol_count()):
            if shim.tbx_symbol_name(symbol).decode() in names:
                shim.tbx_delay(symbol, int(SPIN_US * 1e3) if on else 0)

    try:
        yield delay
    finally:
        shim.tbx_listen(0)
        shim.tbx_uninstall()
