"""What a site of the step, a replay or a device activity is: its family and library, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Sequence

from taxbreak_fx.families import classify_kernel, classify_op
from taxbreak_fx.family_inputs import inputs_of
from taxbreak_fx.recording import Activity, Replay, Site
from taxbreak_fx.variant_record import Classification


def site_op(site: Site) -> str:
    """The name a site is shown by: its composite ops, or the kernel or function it calls."""
    if site.target.startswith(("triton:", "cpp:", "extern:")) or not site.ops:
        return site.target
    ops = [op for op in site.ops if classify_op(op, "cuda").family != "view"] or list(site.ops)
    return "+".join(dict.fromkeys(ops[:3]))


def site_kind(site: Site, device: str) -> Classification:
    """What a site is: decided by its leaf ops where they were seen, a library op before a native one before a view."""
    if site.target.startswith(("triton:", "cpp:")):
        return classify_op(site.target, device, dtype=site.dtype)
    leaves = [
        classify_op(key.split("(", 1)[0], device, dtype=site.dtype, inputs=inputs_of(key)) for key in site.leaf_keys
    ]
    working = [kind for kind in leaves if kind.family not in ("view", "copy")] or [
        k for k in leaves if k.family != "view"
    ]
    if working:
        return next((kind for kind in working if kind.i_lib), working[0])
    return leaves[0] if leaves else classify_op(site_op(site), device, dtype=site.dtype)


def replay_kind(replay: Replay, device: str) -> Classification:
    """What a leaf's replay is; its key tells the inputs."""
    return classify_op(replay.op, device, dtype=replay.dtype, inputs=inputs_of(replay.key))


def kernel_kind(activity: Activity, triton_kernels: Sequence[str]) -> Classification:
    """What a device activity is, by its name, or by the author's Triton kernels where the name says nothing."""
    found = classify_kernel(activity.name, activity.kind)
    if found.family == "unknown" and activity.name in triton_kernels:
        return classify_op(f"triton:{activity.name}", "cuda")
    return found


def is_wrapper_line(site: Site) -> bool:
    """Whether the site is a line of an Inductor wrapper that works: a kernel, an extern call or an allocation."""
    return site.target.startswith(("triton:", "cpp:", "extern:")) or "empty_strided" in site.target


def short_kernel(name: str) -> str:
    """A kernel's name without return type and arguments, cut at 120 characters."""
    text = re.sub(r"^void ", "", name)
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and position and not text[:position].endswith(("operator", "::", " ")):
            text = text[:position]
            break
    return text[:120]
