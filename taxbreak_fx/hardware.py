"""A hardware profile: what host work, launches and kernels cost on one machine, for predicting steps on it elsewhere.

``taxbreak calibrate`` measures one; one may be written by hand as well, and says so in ``origin``.  docs/
hardware-profile.md describes every field.  ``hardware_costs`` answers questions from a profile.  No torch here.

Nothing is required of a profile but its head: what it lacks is null or absent, and whoever asks for it is told so.
The rule of versions is that of review.json: a newer minor is read, any other major is refused.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from taxbreak_fx.errors import FormatError, UncoveredError, UsageError
from taxbreak_fx.machine import HostScore, Machine
from taxbreak_fx.record import Record
from taxbreak_fx.request import closest
from taxbreak_fx.schema import write

PROFILE_VERSION = "1.0.0"
FOLDER = Path(__file__).parent / "profiles"
ABSENT = "not in the profile"
BY_HAND = "by hand"
SIGNED = frozenset({"launch.graph_gap_us"})  # nodes of a graph may overlap; every other number is no less than 0


def _positive(name: str, value: float | None) -> None:
    """Raise ``ValueError`` for what would be divided by, or have its logarithm taken, and is not above zero."""
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be above zero, not {value:g}")


class LaunchCosts(Record, frozen=True, kw_only=True):
    """A kernel launch; microseconds.

    ``launch_us``: host-blocking time of the call with others queued, ``idle_us`` on an idle stream, both from a loop in
    C; ``context_us``: the same of ATen's launches in real steps, at the import tables.  ``t_sys_us``: API entry to
    kernel start without a profiler, ``t_sys_traced_us`` with one.  ``latency_us`` (L): return of the call to kernel
    start.  ``gap_us`` (g): between kernels of a stream, ``graph_gap_us`` between nodes of a CUDA graph, below zero
    where they overlap.  ``sync_us`` (s): end of the device's work to return of the synchronisation, ``idle_sync_us``:
    of such a call on an idle device.  ``queue_depth``: launches that a stream takes before the host blocks.
    ``memop_us``: host time of a device-to-device copy call.
    """

    launch_us: float | None = None
    idle_us: float | None = None
    context_us: float | None = None
    t_sys_us: float | None = None
    t_sys_traced_us: float | None = None
    latency_us: float | None = None
    gap_us: float | None = None
    graph_gap_us: float | None = None
    sync_us: float | None = None
    idle_sync_us: float | None = None
    memop_us: float | None = None
    queue_depth: int | None = None


class GraphPoint(Record, frozen=True, kw_only=True):
    """A CUDA graph of ``nodes`` kernels, replayed on a drained stream; microseconds.

    ``host_us``: in the replay call.  ``first_node_us``: its entry until the first node starts (flag kernel, untraced).
    """

    nodes: int
    host_us: float
    first_node_us: float | None = None


class OpCost(Record, frozen=True, kw_only=True):
    """One Python target with the leaf ops it dispatched, in the context of real steps; microseconds per call.

    ``ops``: overload names below autograd, in order.  ``ft_us`` = in-situ time − library time − launch calls.
    ``ct_us``: inside library entry points without launches; None: not measured.  ``tensors``: the most that one of its
    leaf ops takes.  ``calls``: how many calls this is the mean of.  ``kernels`` and ``memops``: device
    activities per call, traced.
    """

    target: str
    ops: tuple[str, ...]
    family: str
    library: str
    tensors: int
    ft_us: float
    ct_us: float | None = None
    kernels: float | None = None
    memops: float | None = None
    calls: int

    def __post_init__(self) -> None:
        _positive("calls", self.calls)


class FamilyCost(Record, frozen=True, kw_only=True):
    """Median ``ft_us`` of the calls of a family with so many tensors (None: with any number); microseconds."""

    family: str
    tensors: int | None = None
    ft_us: float
    calls: int = 0


class LibraryCost(Record, frozen=True, kw_only=True):
    """ΔCT of one call of a library for ops of a family; median over ``calls``, microseconds."""

    library: str
    family: str
    ct_us: float
    calls: int = 0


class PythonCosts(Record, frozen=True, kw_only=True):
    """Python layers; microseconds each.

    Hot, in loops: ``module_us`` of calling an ``nn.Module`` above a plain function, ``function_us`` of a plain call,
    ``torch_us`` of a torch function that dispatches nothing, ``dispatch_us`` of the dispatcher and ATen for a view
    above that, ``overload_us`` of calling an ``OpOverload`` above the torch function.

    In context, fitted to whole steps: Python outside the calls that dispatch = ``site_glue_us`` × such calls +
    ``module_glue_us`` × module calls + ``function_glue_us`` × other function calls; ``glue_error``: mean absolute
    relative error of that over the steps it was fitted to.
    """

    module_us: float | None = None
    function_us: float | None = None
    torch_us: float | None = None
    dispatch_us: float | None = None
    overload_us: float | None = None
    site_glue_us: float | None = None
    module_glue_us: float | None = None
    function_glue_us: float | None = None
    glue_error: float | None = None


class FitStep(Record, frozen=True, kw_only=True):
    """A step that Python costs were fitted to: its counts, and microseconds of its host time by place."""

    name: str
    sites: int
    modules: int
    functions: int
    host_us: float
    sites_us: float
    glue_us: float


class CompiledCosts(Record, frozen=True, kw_only=True):
    """Around and inside compiled graphs; microseconds.

    ``triton_us`` + ``triton_argument_us`` × arguments: one launch through Triton's launcher without the launch call.
    ``extern_us``, ``allocation_us``: an extern call without library and launches, a buffer, in Inductor's wrapper;
    ``wrapper_us``: wrapper code per line of those.  ``guards_us`` + ``guard_us`` × guards: per compiled frame.
    ``frame_us``: eval frame and bytecode around a graph.  ``aot_us``: the runtime wrapper of AOT autograd.
    ``cudagraph_us`` + ``cudagraph_input_us`` × inputs that are copied: CUDA graph trees per graph without the replay.
    """

    triton_us: float | None = None
    triton_argument_us: float | None = None
    extern_us: float | None = None
    allocation_us: float | None = None
    wrapper_us: float | None = None
    guards_us: float | None = None
    guard_us: float | None = None
    frame_us: float | None = None
    aot_us: float | None = None
    cudagraph_us: float | None = None
    cudagraph_input_us: float | None = None


class MatrixRate(Record, frozen=True, kw_only=True):
    """The best rate at which the device multiplies matrices of a dtype."""

    dtype: str
    tflops: float

    def __post_init__(self) -> None:
        _positive("tflops", self.tflops)


class Point(Record, frozen=True, kw_only=True):
    """One call on the device: bytes read and written, floating-point operations, microseconds of its kernels summed.

    ``shape``: (m, n, k) of a product.  ``kernels``: how many it launched.
    """

    bytes: float
    flops: float = 0.0
    us: float
    shape: tuple[int, ...] | None = None
    kernels: float | None = None

    def __post_init__(self) -> None:
        _positive("us of a point", self.us)
        _positive("work of a point", max(self.bytes, self.flops))


class FamilyGrid(Record, frozen=True, kw_only=True):
    """Device times of a family and dtype; ``case`` tells variants of it apart (``batched``, ``decode``).

    Without points, ``efficiency`` (of the roofline, 0 … 1) speaks for all sizes: for profiles written by hand.
    """

    family: str
    dtype: str
    case: str = ""
    points: tuple[Point, ...] = ()
    efficiency: float | None = None

    def __post_init__(self) -> None:
        _positive("efficiency", self.efficiency)
        if not self.points and self.efficiency is None:
            raise ValueError(f"{self.family} in {self.dtype} has neither points nor an efficiency")


class AttentionChoice(Record, frozen=True, kw_only=True):
    """Which op ``scaled_dot_product_attention`` becomes, and the kernels of one call.

    ``mask``: ``none``, ``causal``, ``bool`` or ``float``.  ``grouped``: fewer key heads than query heads.
    """

    dtype: str
    head_dim: int
    mask: str
    phase: Literal["prefill", "decode"]
    grouped: bool
    op: str
    kernels: float
    us: float


class DeviceCosts(Record, frozen=True, kw_only=True):
    """The device alone.  GB/s count 1e9 bytes, read and written together for a copy.  ``null_us``: duration of a kernel
    that does nothing, traced."""

    copy_gb_s: float | None = None
    read_gb_s: float | None = None
    write_gb_s: float | None = None
    l2_bytes: int | None = None
    memory_bytes: int | None = None
    null_us: float | None = None
    rates: tuple[MatrixRate, ...] = ()
    grids: tuple[FamilyGrid, ...] = ()
    attention: tuple[AttentionChoice, ...] = ()

    def __post_init__(self) -> None:
        for name in ("copy_gb_s", "read_gb_s", "write_gb_s"):
            _positive(name, getattr(self, name))


class Profile(Record, frozen=True, kw_only=True):
    """One machine.  ``date``: ISO 8601.  ``unmeasured``: dotted name of what is missing → why.

    ``host_factor``: by how much ``hardware_scale.scaled`` multiplied host times; None: they are as measured.
    """

    profile_version: str
    name: str
    origin: Literal["measured", "by hand"]
    date: str
    machine: Machine | None = None
    host_score: HostScore | None = None
    host_factor: float | None = None
    launch: LaunchCosts = LaunchCosts()
    graphs: tuple[GraphPoint, ...] = ()
    ops: tuple[OpCost, ...] = ()
    families: tuple[FamilyCost, ...] = ()
    libraries: tuple[LibraryCost, ...] = ()
    python: PythonCosts = PythonCosts()
    fit_steps: tuple[FitStep, ...] = ()
    compiled: CompiledCosts = CompiledCosts()
    device: DeviceCosts = DeviceCosts()
    notes: tuple[str, ...] = ()
    unmeasured: dict[str, str] = {}

    @property
    def title(self) -> str:
        """Name, origin and scaling in a few words, for every report that uses the profile."""
        scaled = "" if self.host_factor is None else f", host times × {self.host_factor:.3g}"
        return f"{self.name} ({'written by hand' if self.origin == BY_HAND else 'measured'} {self.date[:10]}{scaled})"

    def why_missing(self, name: str) -> str:
        """Why the entry ``name`` (``launch.gap_us``, ``device``) is missing, or else the section that it is of."""
        section = name.partition(".")[0]
        return self.unmeasured.get(name) or self.unmeasured.get(section) or ABSENT

    def number(self, name: str) -> float:
        """The number at ``section.field``.  Raises ``UncoveredError`` where the profile has none."""
        section, _, field = name.partition(".")
        value: float | None = getattr(getattr(self, section), field)
        if value is None:
            raise UncoveredError(f"profile {self.name} has no {name}: {self.why_missing(name)}; calibrate again")
        return value


class _Header(msgspec.Struct):
    profile_version: str


def encode(profile: Profile) -> bytes:
    """Indented UTF-8 JSON with a final newline.  Raises ``FormatError`` for what ``decode`` would refuse."""
    content = msgspec.to_builtins(profile)
    wrong = _wrong_number(content, "$")
    if wrong is not None:
        raise FormatError(f"profile cannot be written: {wrong}; mend what measured it")
    try:
        return msgspec.json.format(msgspec.json.encode(msgspec.convert(content, Profile)), indent=2) + b"\n"
    except msgspec.ValidationError as error:
        raise FormatError(f"profile cannot be written: {error}; mend what built it") from error


def decode(data: bytes, name: str) -> Profile:
    """The profile in ``data``; ``name`` (a file name) opens the error line.

    Raises ``FormatError`` for malformed JSON, another major version, a field of the wrong type, or a number that is
    negative or not finite.
    """
    try:
        version = msgspec.json.decode(data, type=_Header).profile_version
        if version.split(".")[0] != PROFILE_VERSION.split(".")[0]:
            raise FormatError(
                f"{name}: profile_version {version!r} cannot be read, this taxbreak_fx reads "
                f"{PROFILE_VERSION.split('.')[0]}.x ({PROFILE_VERSION}): calibrate again"
            )
        profile = msgspec.json.decode(data, type=Profile)
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise FormatError(f"{name}: {text}; the file is no hardware profile (docs/hardware-profile.md)") from error
    wrong = _wrong_number(content, "$")
    if wrong is not None:
        raise FormatError(f"{name}: {wrong}; mend the file or calibrate again")
    return profile


def _wrong_number(value: Any, path: str) -> str | None:
    """What is wrong with the first number in ``value`` that no cost can be: negative, or not finite.

    The machine's own record is left out: it is quoted as a review has it, signs included.
    """
    if isinstance(value, bool) or path == "$.machine":
        return None
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return f"the number at {path} is not finite"
        return f"the number at {path} is negative ({value:g})" if value < 0 and path[2:] not in SIGNED else None
    if isinstance(value, dict):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return None
    return next((wrong for place, item in items if (wrong := _wrong_number(item, place)) is not None), None)


def save(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write ``profile`` to ``path`` in one step.  Raises ``FormatError`` as ``encode``, else as ``schema.write``."""
    write(path, encode(profile))


def load(path: str | os.PathLike[str]) -> Profile:
    """The profile in the file at ``path``.  Raises ``FormatError`` when it cannot be read or is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); give the path of a profile.json") from error
    return decode(data, str(path))


def built_in() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def find(name: str) -> Profile:
    """The built-in profile called ``name``, or the one in the file of that path (it has a slash or ends in ``.json``).

    Raises ``UsageError`` for an unknown name, ``FormatError`` as ``load``.
    """
    if "/" in name or os.sep in name or name.endswith(".json"):
        return load(name)
    if name not in built_in():
        near = closest(name, built_in()) if built_in() else "; no profile is built in"
        raise UsageError(f"no hardware profile {name!r}{near}; or give the path of a profile.json")
    return load(FOLDER / f"{name}.json")
