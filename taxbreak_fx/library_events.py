"""Calls into vendor libraries, launches and synchronisations, as timed: which they are, and what they cost.

Pure functions over recorded ``LibraryEvent``s; ``interpose`` records them.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from taxbreak_fx.record import Record

Library = Literal[
    "cublas", "cublaslt", "cudnn", "cusparse", "cusparselt", "cusolver", "cufft", "nccl", "launch", "sync", "memop"
]

LAUNCHES = (
    "cudaLaunchKernel",
    "__cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cudaLaunchCooperativeKernel",
    "cudaGraphLaunch",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel",
    "cuGraphLaunch",
)
SYNCS = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cuCtxSynchronize",
    "cuStreamSynchronize",
    "cuEventSynchronize",
)
MEMOP_PREFIXES = ("cudaMemcpy", "cudaMemset", "cuMemcpy", "cuMemset")
# The longer prefix first: cublasLt is not cuBLAS.
LIBRARY_PREFIXES: tuple[tuple[str, Library], ...] = (
    ("cublasLt", "cublaslt"),
    ("cublas", "cublas"),
    ("cudnn", "cudnn"),
    ("cusparseLt", "cusparselt"),
    ("cusparse", "cusparse"),
    ("cusolver", "cusolver"),
    ("cufft", "cufft"),
    ("nccl", "nccl"),
)
# A trailing * matches any ending, so a function that a later release adds is covered too.
PATTERNS = (
    *(f"{prefix}*" for prefix, _ in LIBRARY_PREFIXES if not prefix.endswith("Lt")),
    *LAUNCHES,
    *SYNCS,
    *(f"{prefix}*" for prefix in MEMOP_PREFIXES),
)

# Entry points that ask the device for work.  All others (handles, descriptors, streams, modes, workspace sizes,
# heuristics, plans, analyses) are set-up: their time is library time as well.
_WORKING: Final[dict[str, re.Pattern[str]]] = {
    "cublas": re.compile(r"cublas(?!Set|Get|Create|Destroy|Init|Shutdown|Logger|Alloc|Free|Xt)\w+"),
    "cublaslt": re.compile(r"cublasLt(Matmul|MatrixTransform)"),
    "cudnn": re.compile(
        r"cudnn(?!Set|Get|Create|Destroy|Find)(BackendExecute|\w*(Forward|Backward)\w*|\w*Tensor|CTCLoss\w*)"
    ),
    "cusparse": re.compile(
        r"cusparse(?!\w*(Set|Get|Create|Destroy|Logger|[bB]ufferSize|Descr|_workEstimation|_preprocess|_analysis))\w+"
    ),
    "cusparselt": re.compile(r"cusparseLt(Matmul|MatmulSearch|SpMMACompress2?|SpMMAPrune2?)"),
    "cusolver": re.compile(r"cusolver(?!\w*(Set|Get|Create|Destroy|Logger|[bB]ufferSize))\w+"),
    "cufft": re.compile(r"cufft(Xt)?Exec\w*"),
    "nccl": re.compile(
        r"nccl(AllReduce|Broadcast|Bcast|Reduce|ReduceScatter|AllGather|Send|Recv|AlltoAll|Gather|Scatter)"
    ),
}


class LibraryEvent(Record, frozen=True, kw_only=True):
    """One call.  Times are those of ``time.perf_counter_ns`` (CLOCK_MONOTONIC) in µs; ``thread`` is the native thread
    id; ``depth`` counts the timed calls of the same thread under way at entry."""

    name: str
    library: Library
    start_us: float
    end_us: float
    thread: int
    depth: int

    @property
    def us(self) -> float:
        return self.end_us - self.start_us


class Cost(NamedTuple):
    """What timing adds to one call, in µs: to the event's own duration, and around it (to whatever encloses it)."""

    inside: float
    outside: float


class LibraryCharge(Record, frozen=True, kw_only=True):
    """One outermost library call and what of it is the library's.

    ``own_us`` has the launches heard inside and the cost of timing removed; ``launches`` counts those heard.
    """

    name: str
    library: Library
    thread: int
    start_us: float
    own_us: float
    working: bool
    launches: int


def library_of(name: str) -> Library | None:
    """The library or role of an imported function; None for one of no interest."""
    if name in LAUNCHES:
        return "launch"
    if name in SYNCS:
        return "sync"
    if name.startswith(MEMOP_PREFIXES):
        return "memop"
    return next((library for prefix, library in LIBRARY_PREFIXES if name.startswith(prefix)), None)


def is_working(name: str) -> bool:
    """Whether the function is a vendor-library entry point that asks for device work, as against set-up."""
    pattern = _WORKING.get(library_of(name) or "")
    return pattern is not None and pattern.fullmatch(name) is not None


def outermost(events: Sequence[LibraryEvent]) -> list[LibraryEvent]:
    """Library calls that no other library call of the same thread encloses, in the order given.

    Launches, synchronisations and copies are no library calls: neither are they returned nor do they enclose.
    """
    return [events[index] for index in _outermost(events, _parents(events))]


def net_us(events: Sequence[LibraryEvent], cost: tuple[float, float]) -> list[float]:
    """The duration of each event without what timing it and the calls inside it cost, in µs.

    net(e) = duration(e) − cost_inside − (cost_inside + cost_outside) × timed calls nested in e.
    """
    inside, outside = cost
    nested = _nested(_parents(events))
    return [event.us - inside - (inside + outside) * count for event, count in zip(events, nested, strict=True)]


def enclosed(events: Sequence[LibraryEvent], chosen: Sequence[bool]) -> list[bool]:
    """Whether each event lies inside another, ``chosen`` one of its thread, at any depth.  Events in order of entry."""
    found: list[bool] = []
    for parent in _parents(events):
        found.append(parent is not None and (chosen[parent] or found[parent]))
    return found


def is_library(event: LibraryEvent) -> bool:
    """Whether the event is a call into a vendor library, as against a launch, a synchronisation or a copy."""
    return event.library not in ("launch", "sync", "memop")


def library_charges(events: Sequence[LibraryEvent], cost: tuple[float, float]) -> list[LibraryCharge]:
    """What each outermost library call costs (direct ΔCT, docs/method.md), one record per call.

    own_us = net(call) − Σ net(outermost launches heard inside), by ``net_us``.

    Synchronisations and copies inside a call stay in it: on a drained stream they cost the host no waiting.
    """
    parents = _parents(events)
    net = net_us(events, cost)

    launches: dict[int, list[int]] = collections.defaultdict(list)
    top = set(_outermost(events, parents))
    for index, event in enumerate(events):
        ancestors = list(_ancestors(index, parents))
        if event.library == "launch" and not any(events[a].library == "launch" for a in ancestors):
            for ancestor in ancestors:
                if ancestor in top:
                    launches[ancestor].append(index)
    return [
        LibraryCharge(
            name=events[index].name,
            library=events[index].library,
            thread=events[index].thread,
            start_us=events[index].start_us,
            own_us=net[index] - sum(net[launch] for launch in launches[index]),
            working=is_working(events[index].name),
            launches=len(launches[index]),
        )
        for index in sorted(top)
    ]


def _parents(events: Sequence[LibraryEvent]) -> list[int | None]:
    """For each event the index of the innermost event of its thread that encloses it.  Events in order of entry."""
    open_calls: dict[int, list[int]] = collections.defaultdict(list)
    parents: list[int | None] = []
    for index, event in enumerate(events):
        stack = open_calls[event.thread]
        while stack and events[stack[-1]].end_us <= event.start_us:
            stack.pop()
        parents.append(stack[-1] if stack else None)
        stack.append(index)
    return parents


def _ancestors(index: int, parents: Sequence[int | None]) -> Iterator[int]:
    above = parents[index]
    while above is not None:
        yield above
        above = parents[above]


def _nested(parents: Sequence[int | None]) -> list[int]:
    """How many events each one encloses, at any depth."""
    counts = [0] * len(parents)
    for index in range(len(parents)):
        for ancestor in _ancestors(index, parents):
            counts[ancestor] += 1
    return counts


def _outermost(events: Sequence[LibraryEvent], parents: Sequence[int | None]) -> list[int]:
    libraries = [is_library(event) for event in events]
    return [
        index
        for index, library in enumerate(libraries)
        if library and not any(libraries[ancestor] for ancestor in _ancestors(index, parents))
    ]
