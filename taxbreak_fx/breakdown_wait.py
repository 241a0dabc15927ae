"""T_wait of a variant on CUDA, and the clocked times without it: what is left of them is issue time."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from taxbreak_fx.decompose import wait_time
from taxbreak_fx.draft import Draft
from taxbreak_fx.recording import InSitu, Timing, Trace

QUEUE_DEPTH = 1_000  # launches that certainly fit the device's launch queue (about 1,024): fewer cannot block the host
QUEUED = "launches may have waited for room in the launch queue while they were timed"


def take_wait(draft: Draft, trace: Trace, launches: int) -> tuple[float | None, str]:
    """T_wait in microseconds, or the reason it is unknown; it is taken out of the draft's clock and spans.

    0 where nothing can block: no sync in the step, and its launches cannot fill the queue.  Else the blocking calls
    themselves, which were timed, are charged what they cost beyond an idle device.  Where they were not, or where the
    launches of a step may block too, its recorded calls are compared with a drained pass, the difference of two long
    times; what blocks between them is then still known by the blocking calls alone.
    """
    timing = draft.timing
    outside = sorted({name for name, site in trace.step.syncs if site is None})
    filling = may_fill_queue(trace, launches)
    if not trace.step.syncs and not filling:
        return 0.0, ""
    graphed = timing.graph_launch_us is not None
    if graphed and filling:
        return None, "the step may fill the launch queue inside a graphed variant"
    if not filling and timing.library is not None and not timing.library.unpriced:
        return _take_blocked(draft, in_sites=True), ""
    if (graphed or outside) and timing.library is None:
        where = f"outside every recorded call ({', '.join(outside)})" if outside else "inside a graphed variant"
        return None, f"the step blocks {where}: {timing.library_failure or 'its blocking calls were not timed'}"
    if (graphed or outside) and timing.library is not None and timing.library.unpriced:
        names = ", ".join(timing.library.unpriced)
        return None, f"the step blocks in {names}, whose cost on an idle device was not measured"
    if timing.in_situ is None or timing.drained is None:
        return None, f"the step blocks and could not be drained: {timing.in_situ_failure or 'no in-situ times'}"
    if trace.step.sites != len(timing.in_situ.site_us):
        return None, "the traced step met other calls than the timed one: its work depends on data"
    assert draft.clock is not None  # since the timing has one
    blocking = _blocking_sites(timing, trace, filling)
    # On the draft's clock, as T_host and the parts of ΔFT are: the passes may have met the host at another speed.
    wait = wait_time(draft.clock, timing.drained, blocking)
    draft.clock = _without_wait(draft.clock, timing.drained, blocking)
    return wait + (_take_blocked(draft, in_sites=False) if outside else 0.0), ""


def _take_blocked(draft: Draft, in_sites: bool) -> float:
    """Σ of the blocked time of the timed blocking calls, each taken from where it lies; without ``in_sites`` of those
    only that lie in no site."""
    library, spans = draft.timing.library, draft.spans
    assert library is not None
    scale = draft.host.median / library.host_us
    blocked = [(entry, entry.blocked_us * scale) for entry in library.sites if in_sites or entry.site is None]
    if draft.clock is not None:
        site_us = list(draft.clock.site_us)
        for entry, us in blocked:
            if entry.site is not None:
                site_us[entry.site] -= us
        draft.clock = msgspec.structs.replace(draft.clock, site_us=site_us)
    if spans is not None:
        around = sum(us for entry, us in blocked if entry.around)
        glue = sum(us for entry, us in blocked if entry.site is None and not entry.around)
        sites = sum(us for entry, us in blocked if entry.site is not None)
        draft.spans = msgspec.structs.replace(
            spans,
            around_us=None if spans.around_us is None else spans.around_us - around,
            glue_us=spans.glue_us - glue,
            sites_us=spans.sites_us - sites,
        )
    return sum(us for _, us in blocked)


def _blocking_sites(timing: Timing, trace: Trace, filling: bool) -> Sequence[int]:
    """The sites that may block: those with a sync inside, or all of them when the launches can fill the queue."""
    if filling:
        return range(len(timing.sites))
    return sorted({site for _, site in trace.step.syncs if site is not None})


def may_fill_queue(trace: Trace, launches: int) -> bool:
    """Whether launches may have blocked on a full queue: enough of them, and the traced queue at least half as deep.

    The traced host is up to twice as slow, so its queue is shallower than the real one.
    """
    deepest = trace.step.deepest_queue
    return launches >= QUEUE_DEPTH and (deepest is None or deepest >= QUEUE_DEPTH // 2)


def _without_wait(clock: InSitu, drained: InSitu, blocking: Sequence[int]) -> InSitu:
    """``clock`` with the blocking sites as they are on an idle device."""
    scale = clock.host_us / drained.host_us
    site_us = list(clock.site_us)
    for index in blocking:
        site_us[index] = drained.site_us[index] * scale
    return msgspec.structs.replace(clock, site_us=site_us)
