"""From a recording on the CPU device to a breakdown: host and device are one thread, nothing is launched."""

from __future__ import annotations

import statistics

from taxbreak_fx.decompose import hdbi, orchestration
from taxbreak_fx.draft import Draft, put_coverage
from taxbreak_fx.families import classify_op
from taxbreak_fx.ft_parts import put_cpu_parts
from taxbreak_fx.nodes import CPU_TIERS, SiteCost, host_only_nodes
from taxbreak_fx.recording import InSitu, Replay, Site, Timing


def decompose_cpu(draft: Draft) -> None:
    """T_host = ΔFT + ΔCT + T_DeviceActive: an op's dispatch cost is the op at its smallest valid shape."""
    timing = draft.timing
    for name in ("launch_us", "launches", "graph_launches", "kernels", "memops", "library_calls"):
        draft.put(name, None, "the CPU device launches nothing")
    draft.fields["t_wait_us"] = 0.0
    draft.fields["issue_us"] = draft.host.median
    draft.term("kt_us", None, "the CPU device launches nothing")
    clock = draft.clock
    if clock is None:
        reason = timing.in_situ_failure or "no in-situ times"
        for name in ("device_active_us", "device_sum_us"):
            draft.put(name, None, reason)
        for name in ("ft_us", "ct_us", "orchestration_us", "hdbi", "closure_error"):
            draft.term(name, None, reason)
        put_coverage(draft)
        return
    costs = cpu_site_costs(timing, clock)
    device = sum(cost.device_us for cost in costs)
    ct = sum(cost.ct_us for cost in costs)
    host = draft.host.median
    ft = host - ct - device
    draft.fields.update(device_active_us=device, device_sum_us=device)
    draft.term("ct_us", ct, "")
    draft.term("ft_us", ft, "")
    total = orchestration(ft, ct, 0.0)
    draft.term("orchestration_us", total, "")
    draft.term("hdbi", hdbi(device, total) if device >= 0 else None, "negative_residual: device time is below zero")
    put_coverage(draft)
    put_cpu_parts(draft, ft, costs)
    draft.nodes = host_only_nodes(timing, costs)


def cpu_site_costs(timing: Timing, clock: InSitu) -> list[SiteCost]:
    """Per site: framework, library and device time on the CPU device, in microseconds.

    Framework time of an op is its smallest-shape replay (else its family's median, else the native median, else it
    stays in the device time: flagged in ``tier``); what a library op costs above the native median at that shape is
    ΔCT; the rest of the in-situ time is device time.  View-only ops have none.  A fused C++ kernel call is device time
    altogether.
    """
    smallest = {r.key: r for r in timing.replays if r.level == "smallest"}
    by_family: dict[str, list[float]] = {}
    native: list[float] = []
    for replay in smallest.values():
        kind = classify_op(replay.op, "cpu", dtype=replay.dtype)
        if replay.host_us is not None and kind.family not in ("view", "host-sync"):
            by_family.setdefault(kind.family, []).append(replay.host_us)
            if not kind.i_lib:
                native.append(replay.host_us)
    base = statistics.median(native) if native else None
    return [
        _cpu_site(site, us, smallest, by_family, base) for site, us in zip(timing.sites, clock.site_us, strict=True)
    ]


def _cpu_site(
    site: Site, in_situ_us: float, smallest: dict[str, Replay], by_family: dict[str, list[float]], base: float | None
) -> SiteCost:
    if site.target.startswith("cpp:"):
        return SiteCost(0.0, 0.0, in_situ_us, "measured")
    dispatch, library, tiers = 0.0, 0.0, []
    for key in site.leaf_keys:
        op = key.split("(", 1)[0]
        kind = classify_op(op, "cpu", dtype=site.dtype)
        if kind.family in ("view", "host-sync"):
            continue
        replay = smallest.get(key)
        if replay is not None and replay.host_us is not None:
            cost, tier = replay.host_us, "smallest shape"
        elif by_family.get(kind.family):
            cost, tier = statistics.median(by_family[kind.family]), "family median"
        elif base is not None:
            cost, tier = base, "native median"
        else:
            tiers.append("not replayed")
            continue
        tiers.append(tier)
        over = cost - base if kind.i_lib and base is not None else 0.0
        library += over
        dispatch += cost - over
    if not tiers:
        return SiteCost(in_situ_us, 0.0, 0.0, None)
    return SiteCost(dispatch, library, in_situ_us - dispatch - library, max(tiers, key=CPU_TIERS.index))
