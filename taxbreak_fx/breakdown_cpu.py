"""From a recording on the CPU device to a breakdown: host and device are one thread, nothing is launched."""

from __future__ import annotations

import statistics

from taxbreak_fx.decompose import hdbi, no_hdbi, orchestration
from taxbreak_fx.draft import Draft, put_coverage
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import inputs_of
from taxbreak_fx.ft_parts import put_cpu_parts
from taxbreak_fx.kinds import replay_kind
from taxbreak_fx.matching import family_replays
from taxbreak_fx.nodes import CPU_TIERS, SiteCost, host_only_nodes
from taxbreak_fx.recording import InSitu, Recording, Replay, Site, Timing

MIN_NATIVE_OPS = 3  # fewer make no median
NO_WORK = ("view", "host-sync")  # families that compute nothing: all of their time is framework time
NO_BASE = "no framework-native op to subtract (T_dispatch_base): framework and library time cannot be told apart"


def decompose_cpu(draft: Draft, eager: Recording | None) -> None:
    """T_host = ΔFT + ΔCT + T_DeviceActive: an op's dispatch cost is the op at its smallest valid shape.

    ``eager`` supplies the native median where the variant itself ran too few native ops.
    """
    timing = draft.timing
    for name in ("launch_us", "launches", "graph_launches", "kernels", "memops", "library_calls"):
        draft.put(name, None, "the CPU device launches nothing")
    draft.fields["t_wait_us"] = 0.0
    draft.fields["issue_us"] = draft.host.median
    for name in ("kt_us", "hdbi_untraced"):
        draft.term(name, None, "the CPU device launches nothing")
    clock = draft.clock
    if clock is None:
        reason = timing.in_situ_failure or "no in-situ times"
        for name in ("device_active_us", "device_sum_us"):
            draft.put(name, None, reason)
        for name in ("ft_us", "ct_us", "orchestration_us", "hdbi", "closure_error"):
            draft.term(name, None, reason)
        put_coverage(draft)
        return
    costs = cpu_site_costs(timing, clock, native_base(timing, eager.timing if eager else None))
    device = sum(cost.device_us for cost in costs)
    host = draft.host.median
    draft.fields.update(device_active_us=device, device_sum_us=device)
    library = [cost.ct_us for cost in costs if cost.ct_us is not None]
    if len(library) == len(costs):
        ct = sum(library)
        ft = host - ct - device
        draft.term("ct_us", ct, "")
        draft.term("ft_us", ft, "")
        total = orchestration(ft, ct, 0.0)
        put_cpu_parts(draft, ft, costs)
    else:
        for name in ("ct_us", "ft_us", "closure_error"):
            draft.term(name, None, NO_BASE)
        total = host - device  # their sum is known all the same
    draft.term("orchestration_us", total, "")
    draft.term("hdbi", hdbi(device, total), no_hdbi(total, device))
    put_coverage(draft)
    draft.nodes = host_only_nodes(timing, costs, NO_BASE)
    draft.replay = family_replays(timing, None, None)


def native_base(timing: Timing, eager: Timing | None) -> float | None:
    """T_dispatch_base on the CPU device: median smallest-shape time of native ops that work, in microseconds.

    Eager's, brought to the host's speed during this variant's pairs, where the variant has fewer than three; None when
    there are none at all.
    """
    own = _native_times(timing)
    if len(own) >= MIN_NATIVE_OPS or eager is None or eager.variant == timing.variant:
        return statistics.median(own) if own else None
    theirs = _native_times(eager)
    drift = statistics.median(timing.base_host_us) / statistics.median(eager.host_us)
    return statistics.median(theirs) * drift if theirs else None


def _native_times(timing: Timing) -> list[float]:
    smallest = [r for r in timing.replays if r.level == "smallest" and r.host_us is not None]
    kinds = [(r.host_us, replay_kind(r, "cpu")) for r in smallest]
    return [us for us, kind in kinds if us is not None and not kind.i_lib and kind.family not in NO_WORK]


def cpu_site_costs(timing: Timing, clock: InSitu, base: float | None) -> list[SiteCost]:
    """Per site: framework, library and device time on the CPU device, in microseconds.

    Framework time of an op is its smallest-shape replay (else its family's median, else the native median, else it
    stays in the device time: flagged in ``tier``); what a library op costs above the native median ``base`` at that
    shape is ΔCT (None without one); the rest of the in-situ time is device time.  View-only ops have none.  A fused
    C++ kernel call is device time altogether.
    """
    smallest = {r.key: r for r in timing.replays if r.level == "smallest"}
    by_family: dict[str, list[float]] = {}
    for replay in smallest.values():
        kind = replay_kind(replay, "cpu")
        if replay.host_us is not None and kind.family not in NO_WORK:
            by_family.setdefault(kind.family, []).append(replay.host_us)
    return [
        _cpu_site(site, us, smallest, by_family, base) for site, us in zip(timing.sites, clock.site_us, strict=True)
    ]


def _cpu_site(
    site: Site, in_situ_us: float, smallest: dict[str, Replay], by_family: dict[str, list[float]], base: float | None
) -> SiteCost:
    if site.target.startswith("cpp:"):
        return SiteCost(0.0, 0.0, in_situ_us, "measured")
    dispatch, library, split, tiers = 0.0, 0.0, True, []
    for key in site.leaf_keys:
        op = key.split("(", 1)[0]
        kind = classify_op(op, "cpu", dtype=site.dtype, inputs=inputs_of(key))
        if kind.family in NO_WORK:
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
        dispatch += cost
        if kind.i_lib:
            split = split and base is not None
            library += cost - (base or cost)
    if not tiers:
        return SiteCost(in_situ_us, 0.0, 0.0, None)
    tier, device = max(tiers, key=CPU_TIERS.index), in_situ_us - dispatch
    return SiteCost(dispatch - library, library, device, tier) if split else SiteCost(None, None, device, tier)
