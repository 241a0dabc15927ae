"""A hardware profile as a short table for the terminal."""

from __future__ import annotations

from tabulate import tabulate

from taxbreak_fx.hardware import Profile

_ROWS = (
    ("launch call, queued", "launch.launch_us", "µs"),
    ("launch call, in steps", "launch.context_us", "µs"),
    ("L, launch → kernel start", "launch.latency_us", "µs"),
    ("g, between kernels", "launch.gap_us", "µs"),
    ("s, sync return", "launch.sync_us", "µs"),
    ("Python per dispatching call", "python.site_glue_us", "µs"),
    ("Triton launcher", "compiled.triton_us", "µs"),
    ("… per argument", "compiled.triton_argument_us", "µs"),
    ("guards, fixed", "compiled.guards_us", "µs"),
    ("… per guard", "compiled.guard_us", "µs"),
    ("CUDA graph trees, fixed", "compiled.cudagraph_us", "µs"),
    ("copy bandwidth", "device.copy_gb_s", "GB/s"),
    ("kernel that does nothing", "device.null_us", "µs"),
)


def profile_text(profile: Profile) -> str:
    """Title, the main numbers with units or why they are missing, ΔFT by family, and how much else is there."""
    lines = [profile.title]
    score = profile.host_score
    rows = [["host score", "–" if score is None else f"{score.us:.1f}", "µs", ""]]
    for title, name, unit in _ROWS:
        section, _, field = name.partition(".")
        value = getattr(getattr(profile, section), field)
        shown, why = ("–", profile.why_missing(name)[:60]) if value is None else (f"{value:.3g}", "")
        rows.append([title, shown, unit, why])
    rows += [[f"matrix rate, {rate.dtype}", f"{rate.tflops:.3g}", "TFLOP/s", ""] for rate in profile.device.rates]
    rows += [
        [f"ΔFT of {row.family}", f"{row.ft_us:.3g}", "µs", f"{row.calls} calls"]
        for row in profile.families
        if row.tensors is None
    ]
    rows += [[f"ΔCT of {row.library}, {row.family}", f"{row.ct_us:.3g}", "µs", ""] for row in profile.libraries]
    lines.append(tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=("left", "right", "left", "left")))
    points = sum(len(grid.points) for grid in profile.device.grids)
    lines.append(
        f"{len(profile.ops)} calls, {len(profile.graphs)} graph sizes, {points} device times, "
        f"{len(profile.device.attention)} attention cases, {len(profile.unmeasured)} entries missing"
    )
    lines += [f"note: {note}" for note in profile.notes]
    return "\n".join(lines) + "\n"
