"""How ΔFT splits into parts, by variant (method.md, third table), and how well the measured pieces close on T_issue.

Parts use the in-situ clock brought to the speed of the timed pairs; the closure error uses it raw, against the T_host
that was interleaved with it.  What no piece explains stays visible as ``unattributed``, with its sign.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from taxbreak_fx.decompose import closure_error
from taxbreak_fx.draft import Draft
from taxbreak_fx.nodes import SiteCost
from taxbreak_fx.recording import InSitu, Site, Timing

AOT_VARIANTS = ("inductor", "reduce-overhead", "cudagraphs")
_GLUE = {"dynamo": "node_python", "inductor": "wrapper", "eager-graph": "graph_wrapper"}


def put_parts(draft: Draft, ft: float, issue: float, ct: float, launch: float) -> None:
    """Split ΔFT of a variant on CUDA; all arguments in microseconds."""
    if draft.timing.graph_launch_us is not None:
        _graphed(draft, ft, ct + launch)
    elif draft.recording.variant == "eager":
        _eager(draft, issue, ct, launch)
    else:
        _compiled(draft, ft, ct, launch)


def put_cpu_parts(draft: Draft, ft: float, costs: list[SiteCost]) -> None:
    """Split ΔFT of a variant on the CPU device: what its ops cost to dispatch, and what surrounds them."""
    draft.parts["dispatch"] = sum(cost.ft_us for cost in costs if cost.ft_us is not None)
    if draft.recording.variant == "eager":
        draft.parts["python"] = ft - draft.parts["dispatch"]
    else:
        _put_surroundings(draft)
        draft.parts["unattributed"] = ft - sum(draft.parts.values())
    _close(draft, 0.0)


def _eager(draft: Draft, issue: float, ct: float, launch: float) -> None:
    """Python glue is what T_issue leaves above the calls that dispatch ops."""
    if draft.clock is not None:
        work = sum_sites(draft.timing, draft.clock, lambda site: bool(site.ops))
        draft.parts["ops"] = work - ct - launch
        draft.parts["python"] = issue - work
    _close(draft, draft.host.median - issue)


def _graphed(draft: Draft, ft: float, other: float) -> None:
    """A graphed step: what surrounds its graphs, and the runtime that copies their inputs and launches them.

    ``other``: library and launch time, which lies inside the runtime and its calls.
    """
    _put_surroundings(draft, (draft.spans.sites_us if draft.spans is not None else 0.0) - other)
    draft.parts["unattributed"] = ft - sum(draft.parts.values())
    _close(draft, draft.host.median - (ft + other))


def _compiled(draft: Draft, ft: float, ct: float, launch: float) -> None:
    """Captured graph or Inductor wrapper: guards, frame and AOT wrapper around the sites and the glue between them."""
    clock = draft.clock
    if clock is not None:
        _put_surroundings(draft)
        if draft.recording.variant == "inductor":
            triton = [site for site in draft.timing.sites if site.target.startswith("triton:")]
            launched = len(triton) * (draft.recording.launch_us or 0.0)
            launchers = sum_sites(draft.timing, clock, lambda site: site.target.startswith("triton:"))
            allocations = sum_sites(draft.timing, clock, lambda site: "empty_strided" in site.target)
            draft.parts["triton_launchers"] = launchers - launched
            draft.parts["allocations"] = allocations
            draft.parts["extern_calls"] = sum(clock.site_us) - launchers - allocations - ct - (launch - launched)
        else:
            draft.parts["ops"] = sum(clock.site_us) - ct - launch
        draft.parts["unattributed"] = ft - sum(draft.parts.values())
    _close(draft, draft.host.median - (ft + ct + launch))


def _put_surroundings(draft: Draft, beside: float = 0.0) -> None:
    """The clocked spans around the sites: guards and frame, AOT wrapper and runtime, wrapper or node Python.

    ``beside``: what else belongs to the last of them.
    """
    spans, frame, variant = draft.spans, draft.recording.frame, draft.recording.variant
    if spans is None:
        return
    drift = 1.0 if frame is None else statistics.median(draft.timing.base_host_us) / frame.eager_us
    if spans.around_us is not None:
        if frame is None or frame.guards_us is None:
            draft.parts["guards_and_frame"] = spans.around_us
            if frame is None:
                why = draft.recording.failures.get("frame", "not measured")
                draft.notes.append(f"guards are not told from the frame around them: {why}")
        else:
            draft.parts["guards"] = frame.guards_us * drift
            draft.parts["frame"] = spans.around_us - draft.parts["guards"]
    inner = spans.glue_us + beside
    if spans.runtime_us is not None:
        draft.parts["aot_wrapper"] = spans.runtime_us
    elif variant in AOT_VARIANTS and frame is not None and frame.aot_us is not None:
        draft.parts["aot_wrapper"] = frame.aot_us * drift
        inner -= draft.parts["aot_wrapper"]
    draft.parts[_GLUE.get(variant, "cudagraph_runtime")] = inner


def _close(draft: Draft, wait_us: float) -> None:
    """Closure: the clocked spans against the T_host of the steps that were interleaved with them, raw.

    ``wait_us`` is at the speed of the pairs, and is brought back to that of those steps.
    """
    spans = draft.timing.spans
    if spans is None:
        draft.term("closure_error", None, draft.timing.in_situ_failure or "no in-situ times")
        return
    pieces = (spans.around_us or 0.0) + (spans.runtime_us or 0.0) + spans.glue_us + spans.sites_us
    wait_us *= spans.host_us / draft.host.median
    draft.term("closure_error", closure_error(pieces - wait_us, spans.host_us - wait_us), "")


def sum_sites(timing: Timing, clock: InSitu, chosen: Callable[[Site], bool]) -> float:
    """In-situ time of the chosen sites, in microseconds."""
    return sum(us for us, site in zip(clock.site_us, timing.sites, strict=True) if chosen(site))
