"""What a recorder yields: raw, per variant, before any arithmetic.  ``decompose`` turns it into a ``Breakdown``.

A recorder may be interrupted between stages, so a ``Recording`` is assembled from the stage results that exist:
``Timing`` (un-instrumented), ``Trace`` (profiled: counts, identities, device times) and ``Frame`` (the costs around a
compiled graph, shared by all compiled variants).
"""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.model import Calibration, GraphInfo, Machine, OutputCheck, Percentiles, Record, SourceLine, StepInfo


class Site(Record, frozen=True, kw_only=True):
    """One call in a step, in issue order.

    ``ops``: the composite ATen ops it dispatches (empty: none, the call is Python).  ``graph``: the ordinal of the
    graph call it belongs to, 0 outside graphs.  ``call_key`` and ``leaf_keys`` name the replays that stand for the call
    and for each of its leaf ATen ops.
    """

    target: str
    ops: tuple[str, ...] = ()
    source: SourceLine | None = None
    module_path: str | None = None
    graph: int = 0
    dtype: str | None = None
    call_key: str | None = None
    leaf_keys: tuple[str, ...] = ()


class InSitu(Record, frozen=True, kw_only=True):
    """Clock reads around every site of the step, with the clock's own calibrated cost removed; microseconds.

    ``site_us``: median per site.  ``gap_us``: median between the end of site k and the start of site k+1.  ``drained``:
    the device was idle before every site, and the clock stopped while it drained.  ``host_us``: median un-instrumented
    T_host of steps interleaved with the clocked ones.  ``probe_us``: what observing one site cost, before removal.
    """

    drained: bool
    site_us: list[float]
    gap_us: list[float]
    host_us: float
    probe_us: float
    steps: int


class Replay(Record, frozen=True, kw_only=True):
    """One unique call, repeated alone with its real tensors: un-instrumented hot-loop host time per call.

    ``level``: ``call`` repeats the op's own Python target, ``leaf`` the ATen overload (with boxing), ``smallest`` the
    ATen overload at its smallest valid shape (CPU device).  A failed replay has a reason and no time.
    """

    key: str
    level: Literal["call", "leaf", "smallest"]
    op: str
    dtype: str | None
    host_us: float | None
    failure: str | None = None


class ReplayTrace(Record, frozen=True, kw_only=True):
    """The traced side of a replay: its kernels as (identity, launch signature), its launch calls, and the median launch
    API entry to kernel start on an idle stream, in microseconds (None: it launched nothing)."""

    key: str
    level: Literal["call", "leaf"]
    op: str
    kernels: list[tuple[str, str]]
    launches: int
    latency_us: float | None
    failure: str | None = None


class Timing(Record, frozen=True, kw_only=True):
    """Un-instrumented times of one variant, paired with eager in the same process; microseconds, one entry per pair.

    ``graph_launch_us``: host time of the step's ``CUDAGraph.replay`` calls, summed, on a drained stream.
    """

    variant: str
    wall_us: list[float]
    host_us: list[float]
    base_wall_us: list[float]
    base_host_us: list[float]
    compile_s: float | None
    peak_memory_bytes: int | None
    sites: list[Site]
    in_situ: InSitu | None
    drained: InSitu | None
    in_situ_failure: str | None = None
    replays: list[Replay] = []
    graph_launch_us: float | None
    output_check: OutputCheck | None
    output_failure: str | None = None
    output_floor: float
    graphs: list[GraphInfo] = []
    notes: list[str] = []


class Activity(Record, frozen=True, kw_only=True):
    """One device activity of the traced step: ``launch`` indexes the launch that issued it, ``site`` the call.

    ``launch`` is None where the trace lacks the API call.
    """

    kind: Literal["kernel", "memcpy", "memset"]
    name: str
    start_us: float
    duration_us: float
    stream: int
    launch: int | None
    site: int | None
    signature: str


class Launch(Record, frozen=True, kw_only=True):
    """One launch-type API call of the traced step.  ``latency_us``: API entry to the start of its first activity."""

    api: str
    kind: Literal["kernel", "graph", "memop"]
    site: int | None
    latency_us: float
    activities: int


class TracedStep(Record, frozen=True, kw_only=True):
    """One step of a trace.

    ``syncs``: (blocking API, site) in order; ``sites``: how many site ranges were seen; ``deepest_queue``: the most
    launches that were issued and not finished at one time, None where that is unknown.
    """

    activities: list[Activity]
    launches: list[Launch]
    syncs: list[tuple[str, int | None]]
    sites: int
    deepest_queue: int | None = None


class Trace(Record, frozen=True, kw_only=True):
    """The traced step of a variant: counts, identities and device times; never host times.

    ``graph_latency_us``: API entry to first node start of each graph launch of the step on a drained stream.
    ``triton_kernels``: names of the author's Triton kernels in the process; a device kernel's name alone cannot tell.
    """

    variant: str
    step: TracedStep
    graph_latency_us: list[float]
    library_calls: dict[str, int] | None
    library_failure: str | None = None
    replays: list[ReplayTrace] = []
    triton_kernels: list[str] = []
    notes: list[str] = []


class Frame(Record, frozen=True, kw_only=True):
    """Host cost around a compiled graph, measured by subtraction with backends that compute nothing; microseconds.

    ``guards_us`` = t(null) − t(null, guards skipped); ``frame_us`` = t(null, guards skipped): eval frame, bytecode and
    the Python between graphs; ``aot_us`` = t(AOT(null)) − t(null).  Where guards cannot be skipped (``guards_us`` is
    None: they choose between several compilations of one function), ``frame_us`` is t(null), guards included.
    """

    guards_us: float | None
    guards_failure: str | None = None
    frame_us: float
    aot_us: float | None
    aot_failure: str | None = None


class HostFacts(Record, frozen=True, kw_only=True):
    """What is known before the first variant: machine (T_sys not yet traced), the workload's name and its step."""

    machine: Machine
    model: str
    step: StepInfo


class LaunchFloor(Record, frozen=True, kw_only=True):
    """T_sys of a null kernel (traced, microseconds), or the reason it is null."""

    t_sys_us: Percentiles | None
    failure: str | None


class Recording(Record, frozen=True, kw_only=True):
    """All that is known of one variant on one machine; ``failures`` maps a stage to the reason it has no result.

    In ``scope`` "captured graphs" the times begin at the graphs' own callables: there is no frame to measure in them.
    """

    variant: str
    device: Literal["cuda", "cpu"]
    calibration: Calibration
    timing: Timing | None
    trace: Trace | None
    frame: Frame | None
    failures: dict[str, str]
    scope: Literal["step", "captured graphs"] = "step"
