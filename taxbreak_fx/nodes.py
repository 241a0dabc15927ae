"""Per-op rows of a variant: the sites of its step, or the kernels of its graphs, grouped by op, line and module.

Every kernel and every launch of the trace lands in exactly one row: what no site issued has rows of its own.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taxbreak_fx.kinds import is_wrapper_line, kernel_kind, short_kernel, site_kind, site_op
from taxbreak_fx.matching import TIERS, site_tier
from taxbreak_fx.record import SourceLine
from taxbreak_fx.recording import Activity, InSitu, ReplayTrace, Site, Timing, Trace
from taxbreak_fx.variant_record import Classification, Node

# How a dispatch cost was found on the CPU device, best first.
CPU_TIERS = ("measured", "smallest shape", "family median", "native median", "not replayed")


class SiteCost(NamedTuple):
    """What one site costs on the CPU device, in microseconds; ``tier`` says how its dispatch cost was found.

    ``ft_us`` and ``ct_us`` are None together where the two cannot be told apart.
    """

    ft_us: float | None
    ct_us: float | None
    device_us: float
    tier: str | None


class _Row(NamedTuple):
    op: str
    kind: Classification
    module_path: str | None
    source: SourceLine | None
    launches: int | None
    kernels: int | None
    ft_us: float | None
    ct_us: float | None
    kt_us: float | None
    device_us: float | None
    tier: str | None
    reasons: dict[str, str]


def device_sum_us(activities: Iterable[Activity]) -> float:
    """Sum of all device activity durations, in microseconds."""
    return sum(activity.duration_us for activity in activities)


def cuda_nodes(
    timing: Timing,
    clock: InSitu | None,
    trace: Trace,
    library: Mapping[int, float],
    launch_us: Mapping[int, float] | None,
    t_sys_us: float | None,
    ct_missing: str = "",
) -> list[Node]:
    """The rows of a traced variant.

    ``clock``: its in-situ times without waits; ``library``: ΔCT per site index; both in microseconds.  ``ct_missing``
    is why ΔCT could not be measured: the rows of library calls then have none either.
    """
    step = trace.step
    rows: list[_Row] = []
    aligned = timing.graph_launch_us is None and step.sites == len(timing.sites)
    by_site: dict[int | None, list[Activity]] = collections.defaultdict(list)
    launches: dict[int | None, int] = collections.Counter(
        launch.site for launch in step.launches if launch.kind == "kernel"
    )
    for activity in step.activities:
        by_site[activity.site if aligned else None].append(activity)
    if aligned:
        traced: dict[tuple[str, str], ReplayTrace] = {(r.level, r.key): r for r in trace.replays if r.failure is None}
        for index, site in enumerate(timing.sites):
            if not (site.ops or by_site[index] or is_wrapper_line(site)):
                continue  # Python only: its time is in ft_parts, above the ops
            in_situ = clock.site_us[index] if clock else None
            unknown = bool(ct_missing) and site_kind(site, "cuda").i_lib
            rows.append(
                _site_row(
                    site,
                    by_site[index],
                    launches[index],
                    in_situ,
                    None if unknown else library.get(index, 0.0),
                    None if launch_us is None else launch_us.get(index, 0.0),
                    t_sys_us,
                    site_tier(site, by_site[index], traced),
                    timing.in_situ_failure,
                    ct_missing,
                )
            )
    rows += _kernel_rows(by_site[None], trace, t_sys_us)
    return _grouped(rows)


def _site_row(
    site: Site,
    activities: list[Activity],
    launches: int,
    in_situ_us: float | None,
    ct_us: float | None,
    launch_us: float | None,
    t_sys_us: float | None,
    tier: str | None,
    failure: str | None,
    ct_missing: str,
) -> _Row:
    reasons: dict[str, str] = {}
    ft: float | None = None
    if in_situ_us is None:
        reasons["ft_us"] = failure or "no in-situ times"
    elif launches and launch_us is None:
        reasons["ft_us"] = "launch cost not measured"
    elif ct_us is None:
        reasons["ft_us"] = ct_missing
    else:
        ft = in_situ_us - ct_us - (launch_us or 0.0)
    if ct_us is None:
        reasons["ct_us"] = ct_missing
    kt = 0.0 if not launches else None if t_sys_us is None else launches * t_sys_us
    if kt is None:
        reasons["kt_us"] = "T_sys not measured"
    kernels = sum(activity.kind == "kernel" for activity in activities)
    return _Row(
        site_op(site),
        site_kind(site, "cuda"),
        site.module_path,
        site.source,
        launches,
        kernels,
        ft,
        ct_us,
        kt,
        device_sum_us(activities),
        tier,
        reasons,
    )


def _kernel_rows(activities: list[Activity], trace: Trace, t_sys_us: float | None) -> list[_Row]:
    """Rows for what no recorded site issued: kernels of graphs, kernels and copies between calls, graph launches."""
    rows = []
    graph = iter(trace.graph_latency_us)
    seen: set[int] = set()
    for activity in activities:
        launch = trace.step.launches[activity.launch] if activity.launch is not None else None
        in_graph = launch is not None and launch.kind == "graph"
        first = launch is not None and activity.launch not in seen and activity.launch is not None
        if first and activity.launch is not None:
            seen.add(activity.launch)
        counted = int(first and launch is not None and launch.kind == "kernel")
        kind = kernel_kind(activity, trace.triton_kernels)
        reasons = {
            "ft_us": "inside a CUDA graph: it has no host time of its own"
            if in_graph
            else "issued between recorded calls",
            "ct_us": "inside a CUDA graph: no library call is made" if in_graph else "issued between recorded calls",
        }
        kt = None if counted and t_sys_us is None else counted * (t_sys_us or 0.0)
        if kt is None:
            reasons["kt_us"] = "T_sys not measured"
        rows.append(
            _Row(
                short_kernel(activity.name),
                kind,
                None,
                None,
                counted,
                int(activity.kind == "kernel"),
                None,
                None,
                kt,
                activity.duration_us,
                None,
                reasons,
            )
        )
    launch_kind = Classification(
        family="graph-launch",
        library="CUDA",
        i_lib=False,
        code="graph_launch",
        reason="one launch call for a whole captured graph",
    )
    for launch in trace.step.launches:
        if launch.kind == "graph":
            latency = next(graph, None)
            reasons = {
                "ft_us": "in ft_parts: the graph's runtime",
                "ct_us": "a graph launch makes no library call",
                "kernels": "counted in the rows of its kernels",
                "device_us": "counted in the rows of its kernels",
            }
            if latency is None:
                reasons["kt_us"] = "graph latency not measured"
            rows.append(_Row(launch.api, launch_kind, None, None, 1, None, None, None, latency, None, None, reasons))
    return rows


def host_only_nodes(timing: Timing, costs: Sequence[SiteCost], undivided: str) -> list[Node]:
    """The rows of a variant on the CPU device, where host and device are one thread.

    ``undivided`` is why a site's framework and library time may be None.
    """
    reasons = dict.fromkeys(("launches", "kernels", "kt_us"), "the CPU device launches nothing")
    reasons |= dict.fromkeys(("ft_us", "ct_us"), undivided)
    rows = [
        _Row(
            site_op(site),
            site_kind(site, "cpu"),
            site.module_path,
            site.source,
            None,
            None,
            cost.ft_us,
            cost.ct_us,
            None,
            cost.device_us,
            cost.tier,
            reasons,
        )
        for site, cost in zip(timing.sites, costs, strict=True)
        if site.ops or is_wrapper_line(site)
    ]
    return _grouped(rows)


def folded(path: str | None) -> str | None:
    """A module path with its layer numbers folded to ``*``, so that like layers share a row."""
    return None if path is None else re.sub(r"(?:^|(?<=\.))\d+(?=\.|$)", "*", path)


def _grouped(rows: Iterable[_Row]) -> list[Node]:
    groups: dict[tuple[str, str, str, str | None, SourceLine | None], list[_Row]] = collections.defaultdict(list)
    for row in rows:
        groups[(row.op, row.kind.family, row.kind.library, folded(row.module_path), row.source)].append(row)
    nodes = [_node(key, members) for key, members in groups.items()]
    return sorted(nodes, key=_weight, reverse=True)


def _weight(node: Node) -> tuple[float, float]:
    return (node.ft_us or 0.0) + (node.ct_us or 0.0) + (node.kt_us or 0.0), node.device_us or 0.0


def _node(key: tuple[str, str, str, str | None, SourceLine | None], rows: list[_Row]) -> Node:
    op, family, library, module_path, source = key
    sums: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in Node.MEASUREMENTS:
        values = [getattr(row, name) for row in rows]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            sums[name] = sum(known)
        else:
            sums[name] = None
            reasons[name] = next(row.reasons.get(name, "not measured") for row in rows if getattr(row, name) is None)
    tiers = [row.tier for row in rows if row.tier is not None]
    weakest = max(tiers, key=lambda tier: (CPU_TIERS if tier in CPU_TIERS else TIERS).index(tier)) if tiers else None
    first = rows[0]
    return Node(
        op=op,
        family=family,
        library=library,
        i_lib=first.kind.i_lib,
        reason=first.kind.reason,
        module_path=module_path,
        source=source,
        count=len(rows),
        match_tier=weakest,
        unmeasured=reasons,
        **sums,
    )
