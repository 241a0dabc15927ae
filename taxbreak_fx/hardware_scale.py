"""A hardware profile, or the host times of a measured variant, as another host would have them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from taxbreak_fx.errors import UsageError
from taxbreak_fx.hardware import Profile
from taxbreak_fx.machine import HostScore
from taxbreak_fx.model import Variant
from taxbreak_fx.record import Record

S = TypeVar("S", bound=Record)


def scaled(profile: Profile, host_score: HostScore) -> Profile:
    """``profile`` as a host with ``host_score`` would have it: every host time × host_score ÷ the profile's own score.

    Scaled are ops, families, libraries, Python, compiled code, the calls that launch, copy and synchronise an idle
    device, and the replay call of graphs; not L, g, s, T_sys and the first node of a graph, which the device and its
    link decide.

    Raises ``UsageError`` when either score is missing, zero, or of another version of the reference workload.
    """
    own = profile.host_score
    if own is None:
        raise UsageError(f"profile {profile.name} has no host score ({profile.why_missing('host_score')}): not scaled")
    if own.version != host_score.version:
        raise UsageError(
            f"profile {profile.name} has host score version {own.version}, this host {host_score.version}: "
            "calibrate again"
        )
    if own.us <= 0 or host_score.us <= 0:
        raise UsageError(f"host scores must be positive, not {own.us:g} and {host_score.us:g}")
    factor = host_score.us / own.us
    launch = profile.launch
    return msgspec.structs.replace(
        profile,
        host_score=host_score,
        host_factor=factor * (profile.host_factor or 1.0),
        launch=msgspec.structs.replace(
            launch,
            launch_us=_times(launch.launch_us, factor),
            idle_us=_times(launch.idle_us, factor),
            context_us=_times(launch.context_us, factor),
            idle_sync_us=_times(launch.idle_sync_us, factor),
            memop_us=_times(launch.memop_us, factor),
        ),
        graphs=tuple(msgspec.structs.replace(p, host_us=p.host_us * factor) for p in profile.graphs),
        ops=tuple(
            msgspec.structs.replace(op, ft_us=op.ft_us * factor, ct_us=_times(op.ct_us, factor)) for op in profile.ops
        ),
        families=tuple(msgspec.structs.replace(row, ft_us=row.ft_us * factor) for row in profile.families),
        libraries=tuple(msgspec.structs.replace(row, ct_us=row.ct_us * factor) for row in profile.libraries),
        python=_all_times(profile.python, factor, ("glue_error",)),
        compiled=_all_times(profile.compiled, factor, ()),
    )


def on_host(variant: Variant, factor: float) -> Variant:
    """The host times of ``variant`` that a profile is made of, × ``factor``: T_host and what it consists of, ΔFT, its
    parts and ΔCT, of the whole and of every node.  What the device and its link decide stays as it is; sums of both
    are null."""
    host, terms = variant.t_host_us, variant.breakdown
    if host is not None:
        low, median, high = (us * factor for us in (host.low, host.median, host.high))
        host = msgspec.structs.replace(host, low=low, median=median, high=high)
    if terms is not None:
        parts = {name: us * factor for name, us in terms.ft_parts.items()}
        ft_us, ct_us = _times(terms.ft_us, factor), _times(terms.ct_us, factor)
        sums = ("orchestration_us", "hdbi", "hdbi_untraced")
        terms = msgspec.structs.replace(
            terms,
            ft_us=ft_us,
            ct_us=ct_us,
            ft_parts=parts,
            unmeasured=terms.unmeasured | dict.fromkeys(sums, "not told of a host at another speed"),
            **dict.fromkeys(sums),
        )
    return msgspec.structs.replace(
        variant,
        t_host_us=host,
        t_wait_us=_times(variant.t_wait_us, factor),
        issue_us=_times(variant.issue_us, factor),
        launch_us=_times(variant.launch_us, factor),
        breakdown=terms,
        nodes=[
            msgspec.structs.replace(node, ft_us=_times(node.ft_us, factor), ct_us=_times(node.ct_us, factor))
            for node in variant.nodes
        ],
    )


def _times(us: float | None, factor: float) -> float | None:
    return None if us is None else us * factor


def _all_times(section: S, factor: float, beside: tuple[str, ...]) -> S:
    changed = {name: _times(getattr(section, name), factor) for name in section.__struct_fields__ if name not in beside}
    return msgspec.structs.replace(section, **changed)
