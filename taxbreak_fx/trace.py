"""Read a Chrome trace written by torch.profiler: device activity, the API calls that launched it, and their sites.

Pure: bytes in, records out.  Host durations in a profiled run are inflated, so none leaves this module; the one traced
host-to-device time is the launch latency (API entry to kernel start), for which there is no other clock.
"""

from __future__ import annotations

import bisect
from typing import Any, Literal

import msgspec

from taxbreak_fx.errors import FormatError
from taxbreak_fx.recording import Activity, Launch, TracedStep

DEVICE_CATEGORIES: dict[str, Literal["kernel", "memcpy", "memset"]] = {
    "kernel": "kernel",
    "gpu_memcpy": "memcpy",
    "gpu_memset": "memset",
}
API_CATEGORIES = ("cuda_runtime", "cuda_driver")
SYNC_APIS = ("Synchronize",)
_NONE = -1  # no correlation id: such an API call launched nothing, and nobody knows who issued such an activity
Span = tuple[float, float, str]


def read_events(data: bytes, name: str) -> list[dict[str, Any]]:
    """The complete events of a Chrome trace.  Raises ``FormatError`` when it is none."""
    try:
        events = msgspec.json.decode(data)["traceEvents"]
        return [event for event in events if event.get("ph") == "X"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{name} is not a Chrome trace of torch.profiler ({error}); export one with prof.export_chrome_trace"
        ) from error


def spans(events: list[dict[str, Any]], prefix: str) -> list[Span]:
    """(start, end, name after ``prefix``) of the host ranges with that prefix, by start; microseconds."""
    found = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]), str(event["name"])[len(prefix) :])
        for event in events
        if event.get("cat") in ("cpu_op", "user_annotation") and str(event["name"]).startswith(prefix)
    ]
    return sorted(found)


def traced_steps(events: list[dict[str, Any]], steps: list[Span], sites: list[Span]) -> list[TracedStep]:
    """One ``TracedStep`` per range in ``steps``; a launch belongs to the site range that its API call lies in.

    Device activity whose API call is not in the trace belongs to the step that began last before it, and to no site.
    """
    apis = sorted((e for e in events if e.get("cat") in API_CATEGORIES), key=_start)
    device: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") in DEVICE_CATEGORIES and _correlation(event) != _NONE:
            device.setdefault(_correlation(event), []).append(event)
    issuers = {_correlation(api) for api in apis} - {_NONE}
    orphans = [e for e in events if e.get("cat") in DEVICE_CATEGORIES and _correlation(e) not in issuers]
    starts = [_start(api) for api in apis]
    begins = [step[0] for step in steps] + [float("inf")]
    result = []
    for (begin, end, _), next_begin in zip(steps, begins[1:], strict=True):
        inside = apis[bisect.bisect_left(starts, begin) : bisect.bisect_right(starts, end)]
        ranges = [site for site in sites if begin <= site[0] <= end]
        lost = [_activity(e, None, None) for e in orphans if begin <= _start(e) < next_begin]
        result.append(_step(inside, device, ranges, lost))
    return result


def _step(
    apis: list[dict[str, Any]], device: dict[int, list[dict[str, Any]]], ranges: list[Span], lost: list[Activity]
) -> TracedStep:
    site_starts = [start for start, _, _ in ranges]
    activities: list[Activity] = list(lost)
    launches: list[Launch] = []
    syncs: list[tuple[str, int | None]] = []
    flights: list[tuple[float, float]] = []
    for api in apis:
        at, name = _start(api), str(api["name"])
        index = bisect.bisect_right(site_starts, at) - 1
        site = int(ranges[index][2]) if index >= 0 and ranges[index][1] >= at else None
        issued = sorted(device.get(_correlation(api), []), key=_start)
        if issued:
            first = issued[0]
            flights.append((at, max(_start(event) + float(event["dur"]) for event in issued)))
            kind: Literal["kernel", "graph", "memop"] = (
                "graph" if "GraphLaunch" in name else "kernel" if first["cat"] == "kernel" else "memop"
            )
            for event in issued:
                activities.append(_activity(event, len(launches), site))
            launches.append(
                Launch(api=name, kind=kind, site=site, latency_us=_start(first) - at, activities=len(issued))
            )
        if any(sync in name for sync in SYNC_APIS) or name in ("cudaMemcpy", "cuMemcpyDtoH_v2"):
            syncs.append((name, site))
    activities.sort(key=lambda activity: activity.start_us)
    return TracedStep(
        activities=activities, launches=launches, syncs=syncs, sites=len(ranges), deepest_queue=deepest_queue(flights)
    )


def deepest_queue(flights: list[tuple[float, float]]) -> int:
    """The most launches in flight at one time, from (issued, finished) of each; same clock, any unit."""
    finished = sorted(end for _, end in flights)
    issued = sorted(start for start, _ in flights)
    return max((count - bisect.bisect_right(finished, at) for count, at in enumerate(issued, 1)), default=0)


def _activity(event: dict[str, Any], launch: int | None, site: int | None) -> Activity:
    args = event.get("args", {})
    signature = (
        ""
        if event["cat"] != "kernel"
        else (
            f"grid {args.get('grid')} block {args.get('block')} smem {args.get('shared memory')} "
            f"regs {args.get('registers per thread')}"
        )
    )
    return Activity(
        kind=DEVICE_CATEGORIES[event["cat"]],
        name=str(event["name"]),
        start_us=_start(event),
        duration_us=float(event["dur"]),
        stream=int(args.get("stream", 0) or 0),
        launch=launch,
        site=site,
        signature=signature,
    )


def _start(event: dict[str, Any]) -> float:
    return float(event["ts"])


def _correlation(event: dict[str, Any]) -> int:
    return int(event.get("args", {}).get("correlation", _NONE))


def kernel_latencies(events: list[dict[str, Any]]) -> list[float]:
    """Launch API entry to kernel start of every kernel of a trace, in microseconds."""
    apis = {_correlation(event): event for event in events if event.get("cat") in API_CATEGORIES}
    apis.pop(_NONE, None)
    kernels = [event for event in events if event.get("cat") == "kernel"]
    return [_start(k) - _start(apis[_correlation(k)]) for k in kernels if _correlation(k) in apis]


def kernel_durations(events: list[dict[str, Any]]) -> list[float]:
    """Duration on the device of every kernel of a trace, in microseconds."""
    return [float(event["dur"]) for event in events if event.get("cat") == "kernel"]
