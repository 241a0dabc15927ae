"""Host-blocking launch time of a variant on CUDA: as timed in the running step where heard, else as calibrated."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from taxbreak_fx.breakdown_wait import QUEUED, may_fill_queue
from taxbreak_fx.draft import Draft
from taxbreak_fx.recording import Trace


@dataclass
class LaunchTerm:
    """``launch_us`` in all and per site index, in microseconds, or the reason it is missing."""

    total: float | None
    missing: str = ""
    sites: dict[int, float] = field(default_factory=dict)


def launch_term(draft: Draft, trace: Trace, kernels: int, graphs: int) -> LaunchTerm:
    """Σ over launches heard of their own time + a null launch's cost for each other + the step's graph launches.

    Heard are the launches that torch makes through its import table; those that a library or Triton makes by a way of
    its own are not.  Where launches may wait for room in the queue, what was heard holds that wait, which is T_wait's:
    then all cost as calibrated.
    """
    timing, calibration = draft.timing, draft.recording.calibration
    null_us = draft.recording.launch_us
    if kernels and null_us is None:
        return LaunchTerm(None, calibration.unmeasured["launch_us"])
    if graphs and timing.graph_launch_us is None:
        return LaunchTerm(None, timing.in_situ_failure or "graph launches were not timed")
    each = null_us or 0.0
    traced = collections.Counter(launch.site for launch in trace.step.launches if launch.kind == "kernel")
    sites = {site: count * each for site, count in traced.items() if site is not None}
    graph_us = (timing.graph_launch_us or 0.0) if graphs else 0.0
    library = timing.library
    if library is not None and may_fill_queue(trace, kernels + graphs):
        draft.notes.append(f"launches cost as calibrated: {QUEUED}")
        library = None
    if library is None:
        return LaunchTerm(kernels * each + graph_us, sites=sites)
    scale = draft.host.median / library.host_us
    aligned = timing.graph_launch_us is None and trace.step.sites == len(timing.sites)
    heard = sum(entry.launches_inside + entry.launches_beside for entry in library.sites)
    surplus = f"{heard} were heard in a step whose trace shows {kernels}" if heard > kernels else ""
    own_sites = {}
    for entry in library.sites:
        if entry.site is not None and aligned:
            unheard = traced[entry.site] - entry.launches_inside - entry.launches_beside
            own_sites[entry.site] = entry.launch_us * scale + unheard * each
            if unheard < 0:
                surplus = surplus or f"{timing.sites[entry.site].target} was heard to make more than its trace shows"
    if surplus:
        draft.notes.append(f"launches cost as calibrated: {surplus}")
        return LaunchTerm(kernels * each + graph_us, sites=sites)
    sites |= own_sites
    graph_heard = sum(entry.graph_us for entry in library.sites) * scale
    own = sum(entry.launch_us for entry in library.sites) * scale
    return LaunchTerm(own + (kernels - heard) * each + (graph_heard or graph_us if graphs else 0.0), sites=sites)
