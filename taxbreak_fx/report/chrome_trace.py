"""The timelines in Chrome's trace format, for Perfetto (ui.perfetto.dev) and chrome://tracing.

One process per variant.  Thread 1 is the host by term: its slices bear the term's name, because Perfetto gives one
colour to one name.  Thread 2 is the host by op family; every stream of the device is a thread of its own, and an arrow
leads from each launch call to the work that it launched.  Times are microseconds from the start of the step.

Perfetto drops a slice that overlaps the one before it in its thread, and a flow whose id is no number (v52).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from taxbreak_fx.errors import FormatError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.content import headline
from taxbreak_fx.report.format import plain
from taxbreak_fx.report.lanes import HOST_TERMS, DeviceSpan, HostSpan, HostTerm, lanes, no_timeline
from taxbreak_fx.report.predicted import shown_name
from taxbreak_fx.timeline_store import restored

FLOWS = 1 << 24  # more launches than one step has: flows are told apart over all variants
BY_TERM, BY_OP, STREAMS = 1, 2, 10  # thread ids; streams follow one another from the last
# Names of colours that chrome://tracing knows.
COLOURS: dict[HostTerm, str] = {
    "ft": "terrible", "ct": "thread_state_iowait", "launch": "bad", "blocked": "grey", "sync": "generic_work",
}  # fmt: skip


def chrome_trace(review: Review) -> str:
    """The trace as JSON, ending in a newline.  Raises ``FormatError`` for a review without any timeline."""
    events: list[dict[str, Any]] = []
    missing = []
    for variant in review.variants:
        if variant.timeline is None:
            missing.append(plain(f"{variant.name}: {no_timeline(variant)}"))
        else:
            events += _process(variant, len({event["pid"] for event in events}) + 1)
    if not events:
        raise FormatError(f"the review has no timeline to draw ({'; '.join(missing) or 'no variants'})")
    about = {
        "step": headline(review),
        "times": "durations measured; begins simulated from them (docs/method.md, Timeline)",
        "tool": plain(f"taxbreak_fx {review.tool_version}"),
        "without timeline": missing,
    }
    trace = {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}
    return json.dumps(trace, separators=(",", ":")) + "\n"


def _process(variant: Variant, pid: int) -> Iterator[dict[str, Any]]:
    assert variant.timeline is not None
    found = lanes(restored(variant.timeline))
    streams = {s: STREAMS + n for n, s in enumerate(sorted({piece.stream for piece in found.device}))}
    yield _name(pid, 0, "process_name", plain(shown_name(variant)))
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    yield _name(pid, BY_TERM, "thread_name", "host, by term")
    yield _name(pid, BY_OP, "thread_name", "host, by op family")
    for stream, thread in streams.items():
        yield _name(pid, thread, "thread_name", f"device, stream {stream}")
    launched = {piece.launch for piece in found.device}
    shown = _apart(found.device)
    for index, span in enumerate(found.host):
        args = {"family": plain(span.family), "source": fmt.source(span.source)}
        term = {"name": HOST_TERMS[span.term], "cat": "host", "cname": COLOURS[span.term], "args": _plain(args)}
        yield {"ph": "X", "pid": pid, "tid": BY_TERM, **_lasting(span.begin_us, span.begin_us + span.us), **term}
        if index in launched:
            yield {**_flow(pid, index), "ph": "s", "tid": BY_TERM, "ts": _us(span.begin_us)}
    yield from _by_op(pid, found.host)
    for piece, until_us in zip(found.device, shown, strict=True):
        thread, where = streams[piece.stream], found.host[piece.launch].source
        args = {"kind": piece.kind, "source": fmt.source(where), "duration": fmt.microseconds(piece.us)}
        yield {
            "ph": "X", "pid": pid, "tid": thread, **_lasting(piece.begin_us, until_us),
            "name": plain(piece.family), "cat": "device", "args": _plain(args),
        }  # fmt: skip
        if piece.launch in launched:  # an arrow to a graph ends at its first node
            launched.discard(piece.launch)
            yield {**_flow(pid, piece.launch), "ph": "f", "bp": "e", "tid": thread, "ts": _us(piece.begin_us)}


def _by_op(pid: int, host: list[HostSpan]) -> Iterator[dict[str, Any]]:
    """The host's bars with the terms of one place joined."""
    first = 0
    for index in range(1, len(host) + 1):
        if index < len(host) and (host[index].family, host[index].source) == (host[first].family, host[first].source):
            continue
        begin, last = host[first].begin_us, host[index - 1]
        args = _plain({"source": fmt.source(last.source)})
        yield {
            "ph": "X", "pid": pid, "tid": BY_OP, **_lasting(begin, last.begin_us + last.us),
            "name": plain(last.family), "cat": "host", "args": args,
        }  # fmt: skip
        first = index


def _apart(device: list[DeviceSpan]) -> list[float]:
    """Until when each bar is drawn: to its end, or to the begin of the next on its stream, which nodes of a CUDA graph
    may overlap."""
    until, following = [], dict[int, float]()
    for piece in reversed(device):
        until.append(min(piece.begin_us + piece.us, following.get(piece.stream, math.inf)))
        following[piece.stream] = piece.begin_us
    return until[::-1]


def _flow(pid: int, launch: int) -> dict[str, Any]:
    return {"pid": pid, "name": "launch", "cat": "launch", "id": pid * FLOWS + launch}


def _name(pid: int, thread: int, kind: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": thread, "name": kind, "args": {"name": name}}


def _plain(args: dict[str, str]) -> dict[str, str]:
    return {name: plain(value) for name, value in args.items()}


def _lasting(begin_us: float, end_us: float) -> dict[str, float]:
    """A slice's place, rounded so that one that begins where another ends does not overlap it."""
    begin = _us(begin_us)
    return {"ts": begin, "dur": _us(max(0.0, _us(end_us) - begin))}


def _us(us: float) -> float:
    """Nanoseconds are the finest that the viewers keep."""
    return round(us, 3)
