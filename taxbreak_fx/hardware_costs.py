"""What a hardware profile says of one call, launch or kernel.  Pure functions; microseconds.

Every answer names its basis, so that a sum can say how much of it rests on fallbacks.  What the profile does not cover
raises ``UncoveredError``: nothing silently costs 0.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from taxbreak_fx.errors import UncoveredError
from taxbreak_fx.family_inputs import TensorInput, inputs_of, parse_inputs
from taxbreak_fx.hardware import FamilyGrid, OpCost, Point, Profile
from taxbreak_fx.hardware_peaks import matrix_rate
from taxbreak_fx.kinds import site_kind
from taxbreak_fx.record import Record
from taxbreak_fx.recording import Site
from taxbreak_fx.timeline import QUEUE_DEPTH, Floors

# Whose work is bound by the matrix units where it is bound by arithmetic at all.
MATRIX_FAMILIES = ("gemm", "grouped-gemm", "attention", "convolution")
COLUMNS = 4  # measured (n, k) nearest to a product's own, between which its efficiency is interpolated
Basis = Literal["call", "target", "ops", "family and tensors", "family", "library"]
DeviceBasis = Literal["shape", "size", "efficiency"]


class Call(Record, frozen=True, kw_only=True):
    """A call as costs are looked up: its Python target, its leaf ops without inputs, what it is, its tensors."""

    target: str
    ops: tuple[str, ...]
    family: str
    library: str
    tensors: int


class Cost(Record, frozen=True, kw_only=True):
    """``us`` and what it rests on, from the most to the least specific: see ``host_us`` and ``library_us``."""

    us: float
    basis: Basis


class DeviceCost(Record, frozen=True, kw_only=True):
    """Device time of one call.  ``kernels``: of the nearest measured point, None where unknown.

    ``basis``: "shape" (between products of measured shapes), "size" (between measured sizes), "efficiency" (one number
    for all sizes).  ``dtype``: whose measurements were used; another than the call's where its own are missing.
    """

    us: float
    kernels: float | None
    basis: DeviceBasis
    dtype: str


def tensors_in(key: str) -> int:
    """How many tensors the leaf op of ``key`` takes, those in lists and options too; 1 where the text tells nothing."""
    text = inputs_of(key)
    inputs = parse_inputs(text) if text is not None else None
    if inputs is None:
        return 1
    return len(inputs.tensors) + sum(isinstance(value, TensorInput) for value in inputs.options.values())


def call_of(site: Site, device: str = "cuda") -> Call:
    """The call of a recorded site."""
    kind = site_kind(site, device)
    return Call(
        target=site.target,
        ops=tuple(key.partition("(")[0] for key in site.leaf_keys) or site.ops,
        family=kind.family,
        library=kind.library,
        tensors=max((tensors_in(key) for key in site.leaf_keys), default=0),
    )


def host_us(profile: Profile, call: Call) -> Cost:
    """ΔFT of one call in context.  The first of these that the profile has:

    call: same target with the same leaf ops; target: same target, leaf ops nearest in number, mean over calls;
    ops: sum over its leaf ops of the calls that dispatch only that op; family and tensors: median of the family's calls
    with as many tensors, else the next fewer, else the next more; family: median of the family.

    Raises ``UncoveredError`` naming the call.
    """
    cost = _of_call(profile, call, lambda entry: entry.ft_us)
    if cost is not None:
        return cost
    rows = [row for row in profile.families if row.family == call.family]
    counted = {row.tensors: row.ft_us for row in rows if row.tensors is not None}
    if counted:
        fewer = [count for count in counted if count <= call.tensors]
        return Cost(us=counted[max(fewer) if fewer else min(counted)], basis="family and tensors")
    if rows:
        return Cost(us=rows[0].ft_us, basis="family")
    raise UncoveredError(_uncovered(profile, [_shown(call)], "host time"), ("host time", _shown(call)))


def library_us(profile: Profile, call: Call) -> Cost:
    """ΔCT of one call that a vendor library works for.  The first of these that the profile has:

    call, target, ops: as ``host_us``; family: the library's calls for that family; library: median of all its calls.

    Raises ``UncoveredError`` naming the call.
    """
    cost = _of_call(profile, call, lambda entry: entry.ct_us)
    if cost is not None:
        return cost
    rows = [row for row in profile.libraries if row.library == call.library]
    for row in rows:
        if row.family == call.family:
            return Cost(us=row.ct_us, basis="family")
    if rows:
        return Cost(us=statistics.median(row.ct_us for row in rows), basis="library")
    what = f"{_shown(call)} by {call.library}"
    raise UncoveredError(_uncovered(profile, [what], "library time"), ("library time", what))


def uncovered(profile: Profile, calls: Iterable[Call]) -> list[str]:
    """Those of ``calls`` whose host time the profile does not know, each once; empty: all are covered."""
    missing: dict[str, None] = {}
    for call in calls:
        try:
            host_us(profile, call)
        except UncoveredError:
            missing[_shown(call)] = None
    return list(missing)


def require_covered(profile: Profile, calls: Iterable[Call]) -> None:
    """Raise ``UncoveredError`` naming every call whose host time the profile does not know."""
    missing = uncovered(profile, calls)
    if missing:
        raise UncoveredError(_uncovered(profile, missing, "host time"))


def activities(profile: Profile, call: Call) -> tuple[float | None, float | None]:
    """Kernels, and copies and fills, of one call as traced, each None where the profile has none of such calls.

    Looked up as ``host_us`` does: the same call, the same target, or the sum over its leaf ops.
    """
    found = (_of_call(profile, call, lambda entry: entry.kernels), _of_call(profile, call, lambda entry: entry.memops))
    kernels, memops = (None if cost is None else cost.us for cost in found)
    return kernels, memops


def _of_call(profile: Profile, call: Call, value: Callable[[OpCost], float | None]) -> Cost | None:
    own = [(entry, us) for entry in profile.ops if entry.target == call.target and (us := value(entry)) is not None]
    same = [pair for pair in own if pair[0].ops == call.ops]
    if same:
        return Cost(us=_mean(same), basis="call")
    if own:
        least = min(abs(len(entry.ops) - len(call.ops)) for entry, _ in own)
        near = [pair for pair in own if abs(len(pair[0].ops) - len(call.ops)) == least]
        return Cost(us=_mean(near), basis="target")
    total = 0.0
    for op in call.ops:
        rows = [(entry, us) for entry in profile.ops if entry.ops == (op,) and (us := value(entry)) is not None]
        if not rows:
            return None
        total += _mean(rows)
    return Cost(us=total, basis="ops") if call.ops else None


def _mean(pairs: Sequence[tuple[OpCost, float]]) -> float:
    """Over calls, not over entries."""
    return sum(us * entry.calls for entry, us in pairs) / sum(entry.calls for entry, _ in pairs)


def _shown(call: Call) -> str:
    return f"{call.target} ({'+'.join(call.ops) or 'no op'}, {call.family})"


def _uncovered(profile: Profile, what: Sequence[str], kind: str) -> str:
    known = ", ".join(sorted({row.family for row in profile.families})) or "none"
    return (
        f"profile {profile.name} knows no {kind} of {', '.join(what)}; its families: {known}; "
        "add the family to the profile, or calibrate again"
    )


def python_us(profile: Profile, sites: int, modules: int, functions: int) -> float:
    """Python outside the calls that dispatch: site_glue_us × sites + module_glue_us × modules + function_glue_us ×
    functions (``PythonCosts``)."""
    number = profile.number
    return (
        number("python.site_glue_us") * sites
        + number("python.module_glue_us") * modules
        + number("python.function_glue_us") * functions
    )


def floors(profile: Profile) -> Floors:
    """L, g, s and the queue's depth, for the simulator.  Raises ``UncoveredError`` where one is missing."""
    number = profile.number
    return Floors(
        latency_us=number("launch.latency_us"),
        gap_us=number("launch.gap_us"),
        graph_gap_us=number("launch.graph_gap_us"),
        sync_us=number("launch.sync_us"),
        idle_sync_us=profile.launch.idle_sync_us,
        queue_depth=profile.launch.queue_depth or QUEUE_DEPTH,
    )


def triton_us(profile: Profile, arguments: int) -> float:
    """Triton's launcher without the launch call: triton_us + triton_argument_us × arguments."""
    return profile.number("compiled.triton_us") + profile.number("compiled.triton_argument_us") * arguments


def guards_us(profile: Profile, guards: int) -> float:
    """Guards of one compiled frame: guards_us + guard_us × guards."""
    return profile.number("compiled.guards_us") + profile.number("compiled.guard_us") * guards


def cudagraph_us(profile: Profile, copied_inputs: int) -> float:
    """CUDA graph trees per graph, without the replay: cudagraph_us + cudagraph_input_us × inputs that are copied."""
    number = profile.number
    return number("compiled.cudagraph_us") + number("compiled.cudagraph_input_us") * copied_inputs


def graph_us(profile: Profile, nodes: int) -> tuple[float, float]:
    """Host time of a graph's replay call, and from its entry to the first node's start.

    Linear in the nodes between measured points; beyond the last it goes on with the slope of the last two, and is never
    less than the first point.
    """
    points = sorted(profile.graphs, key=lambda point: point.nodes)
    firsts = [(float(point.nodes), point.first_node_us) for point in points if point.first_node_us is not None]
    if not points or not firsts:
        raise UncoveredError(
            f"profile {profile.name} knows no launch of a CUDA graph: {profile.why_missing('graphs')}; calibrate again"
        )
    return _line([(float(point.nodes), point.host_us) for point in points], nodes), _line(firsts, nodes)


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear through ``points`` (by x); constant below the first, the last slope beyond the last."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = min(bisect.bisect_left([p[0] for p in points], x), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return max(points[0][1], y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def roofline_us(profile: Profile, family: str, dtype: str, bytes: float, flops: float) -> float:
    """The least time that the device's rates allow: max(bytes ÷ copy bandwidth, flops ÷ matrix rate of the dtype).

    Arithmetic counts for the families of ``MATRIX_FAMILIES`` only, and where ``matrix_rate`` knows the dtype's.
    """
    by_bytes = bytes / (profile.number("device.copy_gb_s") * 1e3)
    rate = matrix_rate(profile, dtype)
    if family not in MATRIX_FAMILIES or rate is None:
        return by_bytes
    return max(by_bytes, flops / (rate * 1e6))


def device_us(
    profile: Profile,
    family: str,
    dtype: str,
    bytes: float,
    flops: float = 0.0,
    shape: tuple[int, ...] | None = None,
    case: str = "",
) -> DeviceCost:
    """Device time of one call's kernels.

    ``shape`` (m, n, k) of a product and points with shapes: its time is interpolated log-log along m in each measured
    (n, k), brought to its own size by the roofline, and averaged over the ``COLUMNS`` nearest of those aligned as it is
    (of all, where none is) with weights 1 ÷ squared distance in (log n, log k).  Else: log-log between points by
    roofline time.  Below the smallest point its time stands, since a kernel of no size has its latency; what goes
    beyond the largest is added at the best efficiency of the family's points (``_best``), since the largest may be no
    more than latency itself.  Never less than ``device.null_us``.

    Looked up by family, dtype and case; else by family and dtype; else another dtype of the family, the same case
    first.  Raises ``UncoveredError`` naming the family and the dtype.
    """
    grid = _grid(profile, family, dtype, case)
    ideal = roofline_us(profile, family, dtype, bytes, flops)
    least = profile.number("device.null_us")
    if not grid.points:
        assert grid.efficiency is not None  # by its own invariant
        return DeviceCost(us=max(least, ideal / grid.efficiency), kernels=None, basis="efficiency", dtype=grid.dtype)

    def ideal_of(point: Point) -> float:
        return roofline_us(profile, family, grid.dtype, point.bytes, point.flops)

    shaped = [point for point in grid.points if point.shape is not None and shape is not None]
    if shape is not None and len(shape) == 3 and shaped:
        us, nearest = _by_shape(shaped, shape, ideal, ideal_of)
        return DeviceCost(us=max(least, us), kernels=nearest.kernels, basis="shape", dtype=grid.dtype)
    points = [(ideal_of(point), point) for point in grid.points]
    us, nearest = _by_size(points, min(ideal, max(at for at, _ in points)))
    us += max(0.0, ideal - max(at for at, _ in points)) / _best(profile, family)
    return DeviceCost(us=max(least, us), kernels=nearest.kernels, basis="size", dtype=grid.dtype)


def _best(profile: Profile, family: str) -> float:
    """The best share of the roofline among the family's points, of any dtype and case; at most 1.

    Points whose work the device could do while an empty kernel runs show latency and no rate.  A family that has no
    others moves bytes like the best of those that are not bound by arithmetic, whatever it is itself.
    """
    least = profile.number("device.null_us")
    shares: dict[str, float] = {}
    for grid in profile.device.grids:
        for point in grid.points:
            ideal = roofline_us(profile, grid.family, grid.dtype, point.bytes, point.flops)
            if ideal >= least:
                shares[grid.family] = max(ideal / point.us, shares.get(grid.family, 0.0))
    others = [share for name, share in shares.items() if name not in MATRIX_FAMILIES]
    return min(1.0, shares.get(family) or max(others, default=1.0))


def _grid(profile: Profile, family: str, dtype: str, case: str) -> FamilyGrid:
    grids = [grid for grid in profile.device.grids if grid.family == family]
    if not grids:
        known = ", ".join(sorted({grid.family for grid in profile.device.grids})) or "none"
        why = profile.why_missing(f"device.{family}")
        raise UncoveredError(
            f"profile {profile.name} knows no device time of {family} in {dtype} ({why}); its families: {known}; "
            "add the family to the profile, or calibrate again",
            ("device time", f"{family} in {dtype} ({why})"),
        )
    return min(grids, key=lambda grid: (grid.dtype != dtype, grid.case != case, grid.case != ""))


def _by_size(points: Sequence[tuple[float, Point]], ideal: float) -> tuple[float, Point]:
    """Log-log between points by roofline time; points of the same time are one, at their geometric mean."""
    merged: dict[float, list[Point]] = {}
    for at, point in points:
        merged.setdefault(at, []).append(point)
    curve = sorted((at, _geometric([point.us for point in same])) for at, same in merged.items())
    nearest = min(points, key=lambda pair: abs(math.log(max(pair[0], 1e-9) / max(ideal, 1e-9))))[1]
    return _log_log(curve, ideal), nearest


def _log_log(curve: Sequence[tuple[float, float]], x: float) -> float:
    """Through the points of ``curve``; the first value below them, proportional to x beyond them."""
    if x <= curve[0][0]:
        return curve[0][1]
    if x >= curve[-1][0]:
        return curve[-1][1] * x / curve[-1][0]
    right = bisect.bisect_right([at for at, _ in curve], x)
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    if x0 <= 0:  # a call that moves nothing has no logarithm
        return y1
    share = math.log(x / x0) / math.log(x1 / x0)
    return math.exp(math.log(y0) * (1 - share) + math.log(y1) * share)


def _by_shape(
    points: Sequence[Point], shape: tuple[int, ...], ideal: float, ideal_of: Callable[[Point], float]
) -> tuple[float, Point]:
    m, n, k = shape
    columns: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        assert point.shape is not None
        columns.setdefault((point.shape[1], point.shape[2]), []).append(point)
    # Rows that do not begin on 16 bytes take other, slower kernels, however near the shape.
    alike = [at for at in columns if _aligned(*at) == _aligned(n, k)] or list(columns)
    ranked = sorted((math.hypot(math.log(n / at[0]), math.log(k / at[1])), at) for at in alike)
    total = weights = 0.0
    for distance, at in ranked[:COLUMNS]:
        column = sorted(columns[at], key=_rows)
        # Efficiency, not time, carries over from one (n, k) to another.
        slowness = _log_log_flat([(_rows(point), point.us / ideal_of(point)) for point in column], m)
        if distance == 0.0:
            total, weights = math.log(slowness), 1.0
            break
        total += math.log(slowness) / distance**2
        weights += 1 / distance**2
    nearest = min(columns[ranked[0][1]], key=lambda point: abs(math.log(_rows(point) / m)))
    return ideal * math.exp(total / weights), nearest


def _aligned(n: int, k: int) -> bool:
    """Whether rows of n and of k elements of two bytes are whole 16 bytes."""
    return n % 8 == 0 and k % 8 == 0


def _rows(point: Point) -> int:
    assert point.shape is not None
    return point.shape[0]


def _log_log_flat(curve: Sequence[tuple[float, float]], x: float) -> float:
    """Through the points of ``curve``, constant on both sides of them."""
    clamped = min(max(x, curve[0][0]), curve[-1][0])
    return curve[-1][1] if clamped == curve[-1][0] else _log_log(curve, clamped)


def _geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))
