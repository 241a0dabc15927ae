"""How ΔFT splits into parts, by variant (method.md, third table), and how well the measured pieces close on T_issue.

Parts use the in-situ clock brought to the speed of the timed pairs; the closure error uses it raw, against the T_host
that was interleaved with it.  What no piece explains stays visible as ``unattributed``, with its sign.
"""

from __future__ import annotations

from collections.abc import Callable

from taxbreak_fx.decompose import closure_error
from taxbreak_fx.draft import Draft
from taxbreak_fx.nodes import SiteCost
from taxbreak_fx.recording import Frame, InSitu, Site, Timing

AOT_VARIANTS = ("inductor", "reduce-overhead", "cudagraphs")


def put_parts(draft: Draft, ft: float, issue: float, ct: float, launch: float) -> None:
    """Split ΔFT of a variant on CUDA; all arguments in microseconds."""
    if draft.timing.graph_launch_us is not None:
        _graphed(draft, ft)
    elif draft.recording.variant == "eager":
        _eager(draft, issue, ct, launch)
    else:
        _compiled(draft, ft, ct, launch)


def put_cpu_parts(draft: Draft, ft: float, costs: list[SiteCost]) -> None:
    """Split ΔFT of a variant on the CPU device: what its ops cost to dispatch, and what surrounds them."""
    clock = draft.clock
    assert clock is not None and draft.timing.in_situ is not None
    draft.parts["dispatch"] = sum(cost.ft_us for cost in costs if cost.ft_us is not None)
    if draft.recording.variant == "eager":
        draft.parts["python"] = ft - draft.parts["dispatch"]
        _close(draft, lambda raw: sum(raw.site_us) + sum(raw.gap_us), wait_us=0.0)
        return
    frame = _frame(draft)
    if frame is not None or draft.recording.scope != "step":
        surroundings = _surroundings(draft, frame)
        draft.parts.update(surroundings)
        draft.parts[_wrapper_name(draft)] = gaps_inside_graphs(draft.timing, clock)
        around = sum(surroundings.values())
        _close(draft, lambda raw: around + sum(raw.site_us) + gaps_inside_graphs(draft.timing, raw), wait_us=0.0)
    draft.parts["unattributed"] = ft - sum(draft.parts.values())


def _eager(draft: Draft, issue: float, ct: float, launch: float) -> None:
    """Python glue is what T_issue leaves above the calls that dispatch ops."""
    if draft.clock is None:
        draft.term("closure_error", None, draft.timing.in_situ_failure or "no in-situ times")
        return
    work = sum_sites(draft.timing, draft.clock, lambda site: bool(site.ops))
    draft.parts["ops"] = work - ct - launch
    draft.parts["python"] = issue - work
    _close(draft, lambda raw: sum(raw.site_us) + sum(raw.gap_us), wait_us=draft.host.median - issue)


def _graphed(draft: Draft, ft: float) -> None:
    """A graphed step: guards and frame as measured, the graph's own runtime and input copies as the remainder."""
    frame = draft.recording.frame
    if frame is not None and draft.recording.variant != "eager-graph":
        draft.parts.update(_surroundings(draft, frame))
    name = "graph_wrapper" if draft.recording.variant == "eager-graph" else "cudagraph_runtime"
    draft.parts[name] = ft - sum(draft.parts.values())
    draft.term("closure_error", None, "the graph's runtime is itself the remainder: no independent piece to close")


def _compiled(draft: Draft, ft: float, ct: float, launch: float) -> None:
    """Captured graph or Inductor wrapper: guards, frame and AOT wrapper around the sites and the gaps between them."""
    clock, frame = draft.clock, _frame(draft)
    if clock is None or (frame is None and draft.recording.scope == "step"):
        if clock is None:
            draft.term("closure_error", None, draft.timing.in_situ_failure or "no in-situ times")
        return
    surroundings = _surroundings(draft, frame)
    draft.parts.update(surroundings)
    draft.parts[_wrapper_name(draft)] = gaps_inside_graphs(draft.timing, clock)
    if draft.recording.variant == "inductor":
        triton = [site for site in draft.timing.sites if site.target.startswith("triton:")]
        launched = len(triton) * (draft.recording.calibration.launch_us or 0.0)
        launchers = sum_sites(draft.timing, clock, lambda site: site.target.startswith("triton:"))
        allocations = sum_sites(draft.timing, clock, lambda site: "empty_strided" in site.target)
        draft.parts["triton_launchers"] = launchers - launched
        draft.parts["allocations"] = allocations
        draft.parts["extern_calls"] = sum(clock.site_us) - launchers - allocations - ct - (launch - launched)
    else:
        draft.parts["ops"] = sum(clock.site_us) - ct - launch
    draft.parts["unattributed"] = ft - sum(draft.parts.values())
    around = sum(surroundings.values())
    _close(
        draft,
        lambda raw: around + sum(raw.site_us) + gaps_inside_graphs(draft.timing, raw),
        wait_us=draft.host.median - (ft + ct + launch),
    )


def _close(draft: Draft, pieces: Callable[[InSitu], float], wait_us: float) -> None:
    raw = draft.timing.in_situ
    assert raw is not None
    if draft.recording.scope != "step" and draft.recording.variant != "dynamo":
        draft.term(
            "closure_error", None, "inside a backend, Inductor's runtime around its code has no measure of its own"
        )
        return
    draft.term("closure_error", closure_error(pieces(raw) - wait_us, raw.host_us - wait_us), "")


def _frame(draft: Draft) -> Frame | None:
    frame = draft.recording.frame
    if frame is None and draft.recording.scope == "step":
        draft.term("closure_error", None, draft.recording.failures.get("frame", "frame not measured"))
    return frame


def _surroundings(draft: Draft, frame: Frame | None) -> dict[str, float]:
    """Guards, eval frame and, where the backend goes through AOT autograd, the AOT wrapper; microseconds."""
    if frame is None:  # captured graphs alone: the times begin inside
        return {}
    parts = (
        {"guards_and_frame": frame.frame_us}
        if frame.guards_us is None
        else {"guards": frame.guards_us, "frame": frame.frame_us}
    )
    if draft.recording.variant in AOT_VARIANTS and frame.aot_us is not None:
        parts["aot_wrapper"] = frame.aot_us
    return parts


def _wrapper_name(draft: Draft) -> str:
    return "wrapper" if draft.recording.variant == "inductor" else "node_python"


def gaps_inside_graphs(timing: Timing, clock: InSitu) -> float:
    """Host time between sites of one graph call; between two graphs lie guards, frame and the author's Python."""
    pairs = zip(clock.gap_us, timing.sites[:-1], timing.sites[1:], strict=True)
    return sum(gap for gap, before, after in pairs if before.graph == after.graph)


def sum_sites(timing: Timing, clock: InSitu, chosen: Callable[[Site], bool]) -> float:
    """In-situ time of the chosen sites, in microseconds."""
    return sum(us for us, site in zip(clock.site_us, timing.sites, strict=True) if chosen(site))
