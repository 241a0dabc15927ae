"""What a recorder yields: raw, per variant, before any arithmetic.  ``decompose`` turns it into a ``Breakdown``.

A recorder may be interrupted between stages, so a ``Recording`` is assembled from the stage results that exist:
``Timing`` (un-instrumented), ``Trace`` (profiled: counts, identities, device times) and ``Frame`` (the costs around a
compiled graph, shared by all compiled variants).
"""

from __future__ import annotations

from typing import Literal

from taxbreak_fx.machine import Calibration, Machine
from taxbreak_fx.model import GraphInfo, StepInfo
from taxbreak_fx.record import Percentiles, Record, SourceLine
from taxbreak_fx.variant_record import GraphSkip, OutputCheck


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

    ``site_us``: mean per site over the middle half of the passes.  ``drained``: the device was idle before every site,
    and the clock stopped while it drained.  ``host_us``: median un-instrumented T_host of steps interleaved with the
    clocked ones.  ``probe_us``: what observing one site cost, before removal.
    """

    drained: bool
    site_us: list[float]
    host_us: float
    probe_us: float
    steps: int


class Spans(Record, frozen=True, kw_only=True):
    """The whole step by the clock of the in-situ passes, cost of the clock removed: these add up to the clocked step.

    ``around_us``: outside the graph callables that Dynamo calls (None: the step has none).  ``runtime_us``: inside
    those, around the code that Inductor wrote (None: there is none).  ``glue_us``: in the code around the sites.
    ``sites_us``: in the sites.  ``host_us``: median un-instrumented T_host of the interleaved steps.

    ``gaps_us``: what lies before the first site, between each two, and behind the last, which is the first three again
    by place (None: not read).  ``passes_us``: every clocked step as read, with the un-instrumented T_host before and
    after it; what is chosen among them can be judged from these.  ``faults``: pages of memory that a plain step, and a
    clocked one, had to get from the system, in the median.
    """

    around_us: float | None
    runtime_us: float | None
    glue_us: float
    sites_us: float
    host_us: float
    gaps_us: list[float] | None = None
    passes_us: list[tuple[float, float, float]] = []
    faults: tuple[float, float] | None = None


class LibrarySite(Record, frozen=True, kw_only=True):
    """Vendor-library calls and blocking calls that began in one place of the step, un-instrumented; microseconds.

    ``site``: None for what began in no site; then ``around`` tells whether outside the graph callables.  ``own_us``:
    outermost library calls, entry → exit, without the launches heard inside.  ``blocked_us``: blocking calls beyond
    what they cost on an idle device.  ``calls``: library calls that ask for work.  ``launches_inside``: launches heard
    inside library calls; ``launches_beside``: heard outside them; ``launch_us``: time inside both.  What a library
    launches through a runtime of its own is not heard: that host time is still in ``own_us``.  ``graph_us``: time
    inside graph launches.
    """

    site: int | None
    around: bool
    own_us: float
    blocked_us: float
    calls: int
    launches_inside: int
    launches_beside: int
    launch_us: float
    graph_us: float


class LibraryTimes(Record, frozen=True, kw_only=True):
    """The places of a step that called a library, blocked or launched; ``host_us``: T_host of interleaved plain steps.

    ``cost_us``: what timing one call cost, before removal.  ``unpriced``: blocking calls whose cost on an idle device
    was not measured, so that all their time stands as blocked.
    """

    sites: list[LibrarySite]
    host_us: float
    cost_us: float
    unpriced: list[str] = []


class Replay(Record, frozen=True, kw_only=True):
    """One unique call, repeated alone with its real tensors: un-instrumented hot-loop host time per call.

    ``level``: ``call`` repeats the op's own Python target, ``leaf`` the ATen overload (with boxing), ``smallest`` the
    ATen overload at its smallest valid shape (CPU device).  A failed replay has a reason and no time.  ``boxing_us``:
    what the OpOverload path from Python added to a leaf's time, in microseconds per call.  ``tensors``: how many
    tensors the call takes (those in a list each) and returns.
    """

    key: str
    level: Literal["call", "leaf", "smallest"]
    op: str
    dtype: str | None
    host_us: float | None
    boxing_us: float | None = None
    tensors: int = 1
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
    ``graph_first_node_us``: per graph launch of the step, in order: entry of ``CUDAGraph.replay`` on a drained stream
    until the host sees the flag of a kernel put before the graph's first node (of a twin of the variant), median over
    steps; the flag's way to the host is still in it.  ``graph_span_us``: likewise, start of the graph's first node
    until the end of its last one, in the capture that the pairs timed.  None: the variant is not graphed, or the
    reason beside it.
    ``preempted``: how often the scheduler took the CPU away inside the pairs' steps.  ``launch_us``: a null kernel's
    launch call, at the time of the pairs; None: not measured then.  ``reference_us``: rounds of the host's reference
    workload, before and after the pairs.
    """

    variant: str
    wall_us: list[float]
    host_us: list[float]
    base_wall_us: list[float]
    base_host_us: list[float]
    preempted: int = 0
    launch_us: float | None = None
    reference_us: list[float] = []
    compile_s: float | None
    peak_memory_bytes: int | None
    sites: list[Site]
    spans: Spans | None
    in_situ: InSitu | None
    drained: InSitu | None
    in_situ_failure: str | None = None
    library: LibraryTimes | None = None
    library_failure: str | None = None
    replays: list[Replay] = []
    graph_launch_us: float | None
    graph_first_node_us: list[float] | None = None
    graph_first_node_failure: str | None = None
    graph_span_us: list[float] | None = None
    graph_span_failure: str | None = None
    output_check: OutputCheck | None
    output_failure: str | None = None
    output_floor: float
    graphs: list[GraphInfo] = []
    graph_skips: list[GraphSkip] = []
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

    ``guards_us`` = t(null) − t(null, guards skipped); None where guards choose between several compilations of one
    function and cannot be skipped.  ``aot_us`` = t(AOT(null)) − t(null).  ``eager_us``: T_host of eager steps
    interleaved with these, by which they are brought to the host's speed at another time.
    """

    guards_us: float | None
    guards_failure: str | None = None
    aot_us: float | None
    aot_failure: str | None = None
    eager_us: float


class HostFacts(Record, frozen=True, kw_only=True):
    """What is known before the first variant: machine (T_sys not yet traced), the workload's name and its step."""

    machine: Machine
    model: str
    step: StepInfo


class LaunchFloor(Record, frozen=True, kw_only=True):
    """T_sys of a null kernel launched by Triton, and by a bare loop in C (traced, microseconds), or why it is null.

    ``null_us``: duration of a null kernel behind others, traced.
    """

    t_sys_us: Percentiles | None
    failure: str | None
    bare_us: Percentiles | None = None
    bare_failure: str | None = None
    null_us: float | None = None
    null_failure: str | None = None


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

    @property
    def launch_us(self) -> float | None:
        """What a null kernel's launch call costs the host, in microseconds: beside the variant, else as calibrated."""
        beside = self.timing.launch_us if self.timing is not None else None
        return self.calibration.launch_us if beside is None else beside
