"""Device times of a profile from the rows of reviews."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from taxbreak_fx.families import classify_op
from taxbreak_fx.hardware import PROFILE_VERSION, DeviceCosts, FamilyGrid, MatrixRate, Point, Profile
from taxbreak_fx.hardware_costs import MATRIX_FAMILIES, device_us
from taxbreak_fx.hardware_shapes import work_of
from taxbreak_fx.predicted import FakeOp
from taxbreak_fx.variant_record import Node

ALIKE = 4.0  # calls of one row whose bytes differ by a greater factor have no mean that stands for them
RATED_FLOPS = 1e9  # smaller products tell nothing of the rate at which a device multiplies


class RowCall(NamedTuple):
    """One site of the fake step with the row of the review that holds it; ``ops``: its leaf ops that launch."""

    site: int
    node: Node
    ops: tuple[FakeOp, ...]


def device_grids(calls: Sequence[RowCall], notes: list[str]) -> list[FamilyGrid]:
    """Device times of the rows whose calls launch one op each; then, of the rows whose calls launch several, that of
    the one family that those do not cover: what the row's calls take beyond their other ops."""
    rows: dict[int, list[RowCall]] = collections.defaultdict(list)
    for call in calls:
        if call.ops and call.node.device_us and call.node.kernels:
            rows[id(call.node)].append(call)
    alone = _merged(_point(same, 0, 0.0) for same in rows.values() if _alike(same) and len(same[0].ops) == 1)
    if not alone:
        return []
    found = Profile(profile_version=PROFILE_VERSION, name="", origin="measured", date="", device=rated(alone))
    rest, families = [], set()
    for same in rows.values():
        unknown = [at for at, op in enumerate(same[0].ops) if not _covers(alone, op)]
        if len(unknown) != 1 or not _alike(same):
            continue
        others = [op for at, op in enumerate(same[0].ops) if at not in unknown]
        taken = sum(_device_us(found, op) for op in others)
        if taken < _us_of(same):
            rest.append(_point(same, unknown[0], taken))
            families.add(_family(same[0].ops[unknown[0]]))
    if families:
        notes.append(f"device times of {', '.join(sorted(families))}: what calls that launch more take beyond the rest")
    return [*alone, *_merged(rest)]


def _alike(same: Sequence[RowCall]) -> bool:
    """Whether calls of one row launch the same ops, of about one size each: their mean then is one point."""
    if len({tuple(op.op for op in call.ops) for call in same}) != 1:
        return False
    sizes = zip(*[[op.read_bytes + op.written_bytes for op in call.ops] for call in same], strict=True)
    return all(max(of) <= ALIKE * min(of) and max(of) > 0 for of in sizes)


def _family(op: FakeOp) -> str:
    family = classify_op(op.op, "cuda", dtype=op.dtype, inputs=op.inputs).family
    return "copy" if family in ("view", "host-sync") else family


def _covers(grids: Sequence[FamilyGrid], op: FakeOp) -> bool:
    return any((grid.family, grid.case) == (_family(op), work_of(op.key).case) for grid in grids)


def _device_us(profile: Profile, op: FakeOp) -> float:
    work, moved = work_of(op.key), op.read_bytes + op.written_bytes
    return device_us(profile, _family(op), op.dtype or "", moved, op.flops or 0.0, work.shape, work.case).us


class _Placed(NamedTuple):
    """A point and the grid that it belongs to."""

    family: str
    dtype: str
    case: str
    point: Point


def _us_of(same: Sequence[RowCall]) -> float:
    """Device time of one call of a row."""
    return (same[0].node.device_us or 0.0) / same[0].node.count


def _point(same: Sequence[RowCall], at: int, less_us: float) -> _Placed:
    """The point of op ``at`` of the row's calls, ``less_us`` being what their other ops take: less than all."""
    node, ops = same[0].node, [call.ops[at] for call in same]
    first, work = ops[0], work_of(ops[0].key)
    shaped = len({work_of(op.key).shape for op in ops}) == 1
    point = Point(
        bytes=statistics.fmean(op.read_bytes + op.written_bytes for op in ops),
        flops=statistics.fmean(op.flops or 0.0 for op in ops),
        us=_us_of(same) - less_us,
        shape=work.shape if shaped else None,
        kernels=max(1.0, (node.kernels or 0) / node.count - (len(same[0].ops) - 1)),
    )
    return _Placed(_family(first), first.dtype or "", work.case, point)


def _merged(points: Iterable[_Placed]) -> list[FamilyGrid]:
    """Grids of the points; equal work met twice is one point, at its median."""
    grids: dict[tuple[str, str, str], dict[tuple[Any, ...], list[Point]]] = {}
    for placed in points:
        at = (placed.point.bytes, placed.point.flops, placed.point.shape)
        grids.setdefault((placed.family, placed.dtype, placed.case), {}).setdefault(at, []).append(placed.point)
    return [
        FamilyGrid(
            family=family,
            dtype=dtype,
            case=case,
            points=tuple(
                Point(
                    bytes=same[0].bytes,
                    flops=same[0].flops,
                    us=statistics.median(point.us for point in same),
                    shape=same[0].shape,
                    kernels=statistics.fmean(point.kernels or 0.0 for point in same),
                )
                for _, same in sorted(work.items(), key=lambda item: (item[0][0], item[0][1]))
            ),
        )
        for (family, dtype, case), work in sorted(grids.items())
    ]


def rated(grids: Sequence[FamilyGrid]) -> DeviceCosts:
    """The grids with the best rates that a call of the reviews reached: below what the device can do."""
    best: dict[str, float] = {}
    for grid in grids:
        for point in grid.points:
            if grid.family in MATRIX_FAMILIES and point.flops >= RATED_FLOPS:
                best[grid.dtype] = max(best.get(grid.dtype, 0.0), point.flops / point.us / 1e6)
    points = [point for grid in grids for point in grid.points]
    return DeviceCosts(
        copy_gb_s=max(point.bytes / point.us / 1e3 for point in points),
        null_us=min(point.us / max(1.0, point.kernels or 1.0) for point in points),
        rates=tuple(MatrixRate(dtype=dtype, tflops=rate) for dtype, rate in sorted(best.items())),
        grids=tuple(grids),
    )
