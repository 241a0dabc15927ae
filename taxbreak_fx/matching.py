"""Isolated replays beside the step: how their kernels meet the step's, and what they cost, per family."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Mapping, Sequence

from taxbreak_fx.kinds import short_kernel, site_kind
from taxbreak_fx.recording import Activity, InSitu, Replay, ReplayTrace, Site, Timing, Trace
from taxbreak_fx.variant_record import FamilyReplay

TIERS = ("exact", "name", "substring", "most common", "unmatched")
KernelId = tuple[str, str]


def match_tier(step: Sequence[KernelId], replayed: Sequence[KernelId]) -> str:
    """The tier by which the step's kernels meet the replay's: exact name and launch signature first."""
    if not replayed:
        return "unmatched"
    if sorted(step) == sorted(replayed):
        return "exact"
    names, known = [name for name, _ in step], [name for name, _ in replayed]
    if sorted(names) == sorted(known):
        return "name"
    if all(any(short_kernel(a) in b or short_kernel(b) in a for b in known) for a in names):
        return "substring"
    return "most common"


def site_tier(site: Site, activities: list[Activity], traced: Mapping[tuple[str, str], ReplayTrace]) -> str | None:
    """How the site's kernels meet those of its replays; None when the site launched no kernel."""
    own = [(a.name, a.signature) for a in activities if a.kind == "kernel"]
    if not own:
        return None
    call = traced.get(("call", site.call_key or ""))
    replays = [call] if call else [r for key in site.leaf_keys if (r := traced.get(("leaf", key)))]
    return match_tier(own, [kernel for replay in replays for kernel in replay.kernels])


def family_replays(timing: Timing, trace: Trace | None, t_sys_us: float | None) -> list[FamilyReplay]:
    """Isolated replay beside the step, per family of its calls; families with most unique calls first.

    Without a ``trace`` the step ran on the CPU device, where nothing is launched and no kernels are matched.
    """
    clock = timing.in_situ
    hot: dict[tuple[str, str], Replay] = {(r.level, r.key): r for r in timing.replays}
    traced: dict[tuple[str, str], ReplayTrace] = {(r.level, r.key): r for r in trace.replays} if trace else {}
    by_site: dict[int | None, list[Activity]] = collections.defaultdict(list)
    # A traced step that met other calls has nothing to match.
    if trace is not None and trace.step.sites == len(timing.sites):
        for activity in trace.step.activities:
            by_site[activity.site].append(activity)
    members: dict[str, list[int]] = collections.defaultdict(list)
    for index, site in enumerate(timing.sites):
        if site.call_key or site.leaf_keys:
            members[site_kind(site, "cpu" if trace is None else "cuda").family].append(index)
    ok = {key: replay for key, replay in traced.items() if replay.failure is None}
    rows = [
        _family_replay(family, [(i, timing.sites[i]) for i in indices], clock, hot, ok, by_site, t_sys_us)
        for family, indices in members.items()
    ]
    return sorted(rows, key=lambda row: row.unique_ops, reverse=True)


def _family_replay(
    family: str,
    sites: list[tuple[int, Site]],
    clock: InSitu | None,
    hot: Mapping[tuple[str, str], Replay],
    traced: Mapping[tuple[str, str], ReplayTrace],
    by_site: dict[int | None, list[Activity]],
    t_sys_us: float | None,
) -> FamilyReplay:
    keys = {("call", s.call_key) if s.call_key else ("leaf", k) for _, s in sites for k in (s.leaf_keys or ("",))}
    failed = sum(key not in hot or hot[key].host_us is None for key in keys)
    tiers: collections.Counter[str] = collections.Counter()
    seen: set[object] = set()
    hot_us, in_situ_us = 0.0, 0.0
    for index, site in sites:
        key = site.call_key or site.leaf_keys
        if key not in seen:
            seen.add(key)
            tier = site_tier(site, by_site[index], traced)
            if tier:
                tiers[tier] += 1
        replay = hot.get(("call", site.call_key or ""))
        if clock is not None and replay is not None and replay.host_us is not None:
            hot_us += replay.host_us
            in_situ_us += clock.site_us[index]
    leaves = [traced.get(("leaf", key)) for _, site in sites for key in set(site.leaf_keys)]
    latencies = [leaf.latency_us for leaf in leaves if leaf is not None and leaf.latency_us is not None]
    bare = [
        replay.host_us - replay.boxing_us
        for key in {key for _, site in sites for key in site.leaf_keys}
        if (replay := hot.get(("leaf", key))) is not None
        and replay.host_us is not None
        and replay.boxing_us is not None
    ]
    reasons = {}
    if not bare:
        reasons["leaf_us"] = "no ATen op of the family was replayed, or what boxing costs was not measured"
    ratio = hot_us / in_situ_us if in_situ_us > 0 else None
    if ratio is None:
        reasons["hot_over_in_situ"] = "only the uncompiled step's calls are replayed by their own Python targets"
    residual = statistics.median(latencies) - t_sys_us if latencies and t_sys_us is not None else None
    if residual is None:
        reasons["kt_fw_us"] = "the family launches nothing" if not latencies else "T_sys not measured"
    return FamilyReplay(
        family=family,
        unique_ops=len(keys),
        failed=failed,
        hot_over_in_situ=ratio,
        kt_fw_us=residual,
        leaf_us=statistics.median(bare) if bare else None,
        tiers=dict(tiers),
        unmeasured=reasons,
    )
