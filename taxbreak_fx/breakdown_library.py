"""ΔCT of a variant on CUDA: by the libraries' own entry points where they were timed, and by subtraction beside it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from taxbreak_fx.breakdown_cpu import MIN_NATIVE_OPS
from taxbreak_fx.breakdown_wait import QUEUED, may_fill_queue
from taxbreak_fx.decompose import base_of, dispatch_bases, library_direct, library_time
from taxbreak_fx.draft import Draft
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import inputs_of
from taxbreak_fx.kinds import kernel_kind, replay_kind, site_kind
from taxbreak_fx.recording import LibrarySite, Recording, Replay, ReplayTrace, Trace
from taxbreak_fx.variant_record import FamilyLibrary

NO_CALLS = "no library call was made: observed by the libraries' own loggers"
DIRECT = "direct: the libraries' entry points, timed in the running step"
UNSITED = "outside recorded calls"
NO_LIBRARY_OP = "no op recorded there is known to call a library"


@dataclass
class LibraryTerm:
    """ΔCT in all and per site index, in microseconds, with its source or the reason it is missing."""

    total: float | None
    source: str
    missing: str = ""
    sites: dict[int, float] = field(default_factory=dict)
    families: list[FamilyLibrary] = field(default_factory=list)


@dataclass
class _Estimate:
    """One of the two ways; ``sites`` holds None for what lies outside the recorded calls.

    ``unplaced`` says why calls that belong to a site may be under None.
    """

    sites: dict[int | None, float] = field(default_factory=dict)
    calls: dict[int | None, int] = field(default_factory=dict)
    missing: str = ""
    unplaced: str = ""

    @property
    def total(self) -> float | None:
        return None if self.missing else sum(self.sites.values())


def library_term(draft: Draft, eager: Recording | None) -> LibraryTerm:
    """ΔCT: 0 where the libraries report no call; else direct; else subtractive, with why it is not direct."""
    timing, trace = draft.timing, draft.recording.trace
    assert trace is not None
    heard = _beyond_loggers(draft) if timing.library is None else any(site.calls for site in timing.library.sites)
    if trace.library_calls is not None and not any(trace.library_calls.values()) and not heard:
        return LibraryTerm(0.0, NO_CALLS)
    direct, subtractive = _direct(draft, trace), _subtractive(draft, trace, eager)
    families = _families(draft, direct, subtractive)
    if not direct.missing:
        sites = {site: us for site, us in direct.sites.items() if site is not None}
        return LibraryTerm(direct.total, DIRECT, sites=sites, families=families)
    if not subtractive.missing:
        sites = {site: us for site, us in subtractive.sites.items() if site is not None}
        return LibraryTerm(subtractive.total, f"subtractive: {direct.missing}", sites=sites, families=families)
    return LibraryTerm(None, f"none: {direct.missing}", missing=subtractive.missing)


def _beyond_loggers(draft: Draft) -> bool:
    """Whether the step has an op of a library that was not listened to, cuFFT for one: its silence says nothing."""
    trace = draft.recording.trace
    listened = (trace.library_calls or {}).keys() if trace is not None else ()
    leaves = [(key, site.dtype) for site in draft.timing.sites for key in site.leaf_keys]
    kinds = [classify_op(key.split("(", 1)[0], "cuda", dtype=d, inputs=inputs_of(key)) for key, d in leaves]
    return any(kind.i_lib and kind.library.lower() not in listened for kind in kinds)


def _direct(draft: Draft, trace: Trace) -> _Estimate:
    """Entry → exit of every outermost library call, minus the launches made inside.

    A library launches through a runtime of its own, unheard: a site's unheard launches are those of its trace that
    were not heard beside the library calls.  Where calls lie in no site, they are the launches of library kernels.
    """
    timing, launch_us = draft.timing, draft.recording.launch_us
    if timing.library is None:
        return _Estimate(missing=timing.library_failure or "library calls were not timed")
    if launch_us is None:
        return _Estimate(missing=draft.recording.calibration.unmeasured["launch_us"])
    if may_fill_queue(trace, sum(launch.kind != "memop" for launch in trace.step.launches)):
        return _Estimate(missing=QUEUED)  # a launch inside a library call waits there, and that is T_wait
    scale = draft.host.median / timing.library.host_us
    aligned = timing.graph_launch_us is None and trace.step.sites == len(timing.sites)
    found = _Estimate(unplaced="" if aligned else "the traced step met other calls than the timed one")
    loose: list[LibrarySite] = []
    for entry in timing.library.sites:
        if entry.site is None or not aligned:
            loose.append(entry)
        elif entry.calls or entry.own_us:
            traced = sum(launch.kind == "kernel" and launch.site == entry.site for launch in trace.step.launches)
            unheard = traced - entry.launches_inside - entry.launches_beside if entry.calls else 0
            if unheard < 0:
                target = timing.sites[entry.site].target
                return _Estimate(missing=f"{target}: more launches were heard than its trace shows")
            found.sites[entry.site] = library_direct(entry.own_us * scale, unheard, launch_us)
            found.calls[entry.site] = entry.calls
    calls, own_us = sum(entry.calls for entry in loose), sum(entry.own_us for entry in loose)
    if calls or own_us:
        # Kernels whose names the tables do not know may have been heard all the same: then none is unheard.
        kernels = _library_launches(trace, None if aligned else "any") if calls else 0
        unheard = max(0, kernels - sum(entry.launches_inside for entry in loose))
        found.sites[None] = library_direct(own_us * scale, unheard, launch_us)
        found.calls[None] = calls
    return found


def _library_launches(trace: Trace, where: str | None) -> int:
    """Launches of library kernels, by the kernels' names: those in no site, or any of the step's own launches."""
    launches = {
        activity.launch
        for activity in trace.step.activities
        if activity.launch is not None and kernel_kind(activity, trace.triton_kernels).i_lib
    }
    chosen = [trace.step.launches[index] for index in launches]
    return sum(launch.kind == "kernel" and (where == "any" or launch.site is None) for launch in chosen)


def _subtractive(draft: Draft, trace: Trace, eager: Recording | None) -> _Estimate:
    """Σ over library ops of T_dispatch − T_dispatch_base, from the leaf replays (paper)."""
    recording, timing = draft.recording, draft.timing
    if timing.graph_launch_us is not None:
        if trace.library_calls is None:
            why = trace.library_failure or "no reason known"
            return _Estimate(missing=f"library calls inside a graphed variant were not counted: {why}")
        return _Estimate(missing=f"library calls inside a graphed variant: {trace.library_calls}")
    launch_us = recording.launch_us
    if launch_us is None:
        return _Estimate(missing=recording.calibration.unmeasured["launch_us"])
    leaves = _leaves(recording)
    bases = _bases(recording, eager, launch_us)
    found = _Estimate()
    for index, site in enumerate(timing.sites):
        for key in site.leaf_keys:
            op = key.split("(", 1)[0]
            if not classify_op(op, "cuda", dtype=site.dtype, inputs=inputs_of(key)).i_lib:
                continue
            if key not in leaves:
                return _Estimate(missing=f"the replay of {op} failed: {_why(recording, key)}")
            if not bases:
                return _Estimate(missing="no framework-native launching op to subtract (T_dispatch_base)")
            replay, traced = leaves[key]
            assert replay.host_us is not None
            cost = library_time(replay.host_us, traced.launches, launch_us, base_of(bases, replay.tensors))
            found.sites[index] = found.sites.get(index, 0.0) + cost
            found.calls[index] = found.calls.get(index, 0) + 1
    return found


def _families(draft: Draft, direct: _Estimate, subtractive: _Estimate) -> list[FamilyLibrary]:
    """Both estimates per family of the sites that call libraries.

    Direct, a family of which nothing was heard is a measured 0; subtractive, one without a library op is unknown.
    """

    def family(site: int | None) -> str:
        return UNSITED if site is None else site_kind(draft.timing.sites[site], "cuda").family

    def total(estimate: _Estimate, name: str) -> float:
        return sum(us for site, us in estimate.sites.items() if family(site) == name)

    replayed = {family(site) for site in subtractive.sites}
    found = []
    for name in dict.fromkeys(family(site) for site in (*direct.sites, *subtractive.sites)):
        counted = direct.calls if not direct.missing else subtractive.calls
        unheard = direct.missing or ("" if name == UNSITED else direct.unplaced)
        unknown = subtractive.missing or ("" if name in replayed else NO_LIBRARY_OP)
        found.append(
            FamilyLibrary(
                family=name,
                calls=sum(count for site, count in counted.items() if family(site) == name),
                direct_us=None if unheard else total(direct, name),
                subtractive_us=None if unknown else total(subtractive, name),
                unmeasured={key: why for key, why in (("direct_us", unheard), ("subtractive_us", unknown)) if why},
            )
        )
    return found


def _leaves(recording: Recording) -> dict[str, tuple[Replay, ReplayTrace]]:
    """Leaf replays that have both a time and a trace, by key."""
    if recording.timing is None or recording.trace is None:
        return {}
    traced = {r.key: r for r in recording.trace.replays if r.level == "leaf" and r.failure is None}
    return {
        r.key: (r, traced[r.key])
        for r in recording.timing.replays
        if r.level == "leaf" and r.host_us is not None and r.key in traced
    }


def _bases(recording: Recording, eager: Recording | None, launch_us: float) -> dict[int, float]:
    """T_dispatch_base from the variant's own native ops; where it has few (Inductor), from eager's.

    Eager's were replayed at another time: they are brought to the host's speed during this variant's pairs.
    """
    own = list(_leaves(recording).values())
    native = [replay for replay, traced in own if traced.launches and not replay_kind(replay, "cuda").i_lib]
    if len(native) >= MIN_NATIVE_OPS or eager is None or eager.timing is None or recording.timing is None:
        return dispatch_bases(own, launch_us)
    bases = dispatch_bases(list(_leaves(eager).values()), eager.launch_us or launch_us)
    drift = statistics.median(recording.timing.base_host_us) / statistics.median(eager.timing.host_us)
    return {tensors: base * drift for tensors, base in bases.items()}


def _why(recording: Recording, key: str) -> str:
    timed = recording.timing.replays if recording.timing else []
    traced = recording.trace.replays if recording.trace else []
    failures = [(r.key, r.failure) for r in timed] + [(r.key, r.failure) for r in traced]
    return next((failure for own, failure in failures if own == key and failure), "not replayed")
