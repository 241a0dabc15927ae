"""What the ops of a call launch on the device, and how long that takes, from a hardware profile; microseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from taxbreak_fx import hardware_costs as costs
from taxbreak_fx.errors import UncoveredError
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import TensorInput, parse_inputs
from taxbreak_fx.family_types import VENDOR_LIBRARIES
from taxbreak_fx.hardware import Profile
from taxbreak_fx.hardware_shapes import BATCHED, work_of
from taxbreak_fx.predict_layout import Launch
from taxbreak_fx.predicted import FakeOp
from taxbreak_fx.variant_record import Classification

COPY = "copy"
_DYNAMIC = "sort_scan.dynamic"
_TO_HOST = "device=device(type='cpu')"


class Activities(NamedTuple):
    """Launches of one call.  ``assumed``: how many of its ops are taken to launch one kernel, for want of a count."""

    launches: tuple[Launch, ...]
    assumed: int


class Launcher:
    """Answers from one profile, and remembers: a step repeats its calls in every layer."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._us: dict[tuple[str, int, int, int | None], float] = {}
        self._known: dict[tuple[costs.Call, tuple[FakeOp, ...]], Activities] = {}

    def of(self, call: costs.Call, ops: Sequence[FakeOp]) -> Activities:
        """What ``call`` launches for its leaf ``ops``.

        How many kernels an op launches follows from its shapes, else from the grid's nearest product (or attention of
        its phase), else from what the profile counted for the call, else from the nearest point of the family's grid;
        else it is taken to be one.
        Device time is the grid's (``hardware_costs.device_us``), shared equally among an op's kernels, copies and
        fills.  Raises ``UncoveredError`` for a family whose device time the profile does not know.
        """
        own = tuple(_placeless(op) for op in ops if _launching(op))
        key = (call, own)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._activities(call, own)
        return found

    def counted(self, call: costs.Call, ops: Sequence[FakeOp]) -> list[FakeOp]:
        """``ops`` with the kernels and copies that each launches in ``call``."""
        own = tuple(op for op in ops if _launching(op))
        counts, _ = self._counts(call, own)
        return [
            msgspec.structs.replace(op, kernels=kernels, memops=memops)
            for op, (kernels, memops) in zip(own, counts, strict=True)
        ]

    def _activities(self, call: costs.Call, ops: tuple[FakeOp, ...]) -> Activities:
        counts, assumed = self._counts(call, ops)
        launches: list[Launch] = []
        for op, (kernels, memops) in zip(ops, counts, strict=True):
            if not kernels + memops:
                continue  # the profile counted calls like this one, and they launched nothing
            us = self._device_us(op) / (kernels + memops)
            call_us = launch_call_us(self._profile, kind_of(op).library in VENDOR_LIBRARIES)
            copies = [Launch(kind="memop", us=us, launch_us=0.0)] * memops
            work = [Launch(kind="kernel", us=us, launch_us=call_us)] * kernels
            # A result goes to the host when it is there; a library's scratch is filled before.
            launches += [*work, *copies] if waits(op) else [*copies, *work]
        return Activities(tuple(launches), assumed)

    def _counts(self, call: costs.Call, ops: tuple[FakeOp, ...]) -> tuple[list[tuple[int, int]], int]:
        """Kernels and copies of each op, and how many kernels were assumed."""
        open_ops = [op for op in ops if op.kernels is None]
        kernels, memops = costs.activities(self._profile, call) if open_ops else (None, None)
        given: dict[int, int] = {}
        for index, op in enumerate(ops):
            if op.kernels is None and (shaped := self._grid_kernels(op, shaped=True)) is not None:
                given[index] = shaped
        left = [index for index, op in enumerate(ops) if op.kernels is None and index not in given]
        assumed = 0
        if left and kernels is not None:
            rest = round(kernels) - sum(op.kernels or 0 for op in ops) - sum(given.values())
            given |= dict(zip(left, _shares(max(rest, 0), len(left)), strict=True))
        else:
            for index in left:
                near = self._grid_kernels(ops[index], shaped=False)
                given[index] = near or 1
                assumed += near is None
        more = 0
        if open_ops and memops is not None:
            more = max(0, round(memops) - sum(op.memops for op in ops))
        first = next((index for index, op in enumerate(ops) if op.kernels is None), None)
        return [
            (given.get(index, op.kernels or 0), op.memops + (more if index == first else 0))
            for index, op in enumerate(ops)
        ], assumed

    def _grid_kernels(self, op: FakeOp, shaped: bool) -> int | None:
        """Kernels of the nearest measured point.  ``shaped``: only of a product with its shape, or of a grid for just
        this case of the family (one query or many), where the number hangs on it."""
        cost = self._cost(op)
        if cost.kernels is None or (shaped and cost.basis != "shape" and not self._own_case(op)):
            return None
        return max(1, round(cost.kernels))

    def _own_case(self, op: FakeOp) -> bool:
        case, family = work_of(op.key).case, kind_of(op).family
        own = (family, op.dtype, case)
        return bool(case) and any((g.family, g.dtype, g.case) == own for g in self._profile.device.grids)

    def _device_us(self, op: FakeOp) -> float:
        key = (op.key, op.read_bytes, op.written_bytes, op.flops)
        if key not in self._us:
            self._us[key] = self._cost(op).us
        return self._us[key]

    def _cost(self, op: FakeOp) -> costs.DeviceCost:
        family = kind_of(op).family
        if family in ("host-sync", "view"):
            family = COPY  # all that it does on the device
        work = work_of(op.key)
        return costs.device_us(
            self._profile,
            family,
            op.dtype or "float32",
            op.read_bytes + op.written_bytes,
            float(op.flops or 0),
            work.shape,
            work.case,
        )


def kind_of(op: FakeOp) -> Classification:
    """What a leaf op is on CUDA."""
    return classify_op(op.op, "cuda", dtype=op.dtype, inputs=op.inputs)


def waits(op: FakeOp) -> bool:
    """Whether the host waits for the device in this op: for its value, or for the size of its result."""
    if op.device != "cuda":
        return False
    kind = kind_of(op)
    return kind.family == "host-sync" or kind.code == _DYNAMIC or (bool(op.memops) and _TO_HOST in op.inputs)


def launch_call_us(profile: Profile, library: bool) -> float:
    """Host time of one launch call: ``launch_us`` of a library's own, since that is what profiles take off its time;
    ``context_us`` of ATen's, else ``launch_us`` too."""
    if not library and profile.launch.context_us is not None:
        return profile.launch.context_us
    return profile.number("launch.launch_us")


def flops_of(op: str, inputs: str, outputs: str | None) -> int | None:
    """Floating-point operations of a product, attention or convolution by the text of its inputs, two per multiply-add;
    None for any other op, or where the text does not tell."""
    key, parsed = f"{op}({inputs})", parse_inputs(inputs)
    work = work_of(key)
    if work.shape is not None:
        return 2 * math.prod(work.shape)
    tensors = parsed.tensors if parsed is not None else ()
    if work.case == BATCHED and len(tensors) >= 2:
        first, second = tensors[-2:]
        return 2 * math.prod(first.shape) * second.shape[-1]
    if "scaled_dot_product" in op and len(tensors) >= 3:
        query, keys, values = tensors[:3]
        return 2 * math.prod(query.shape[:-1]) * keys.shape[-2] * (query.shape[-1] + values.shape[-1])
    if "grouped_mm" in op and len(tensors) >= 2:
        return 2 * math.prod(tensors[0].shape) * tensors[1].shape[-1]
    if "convolution" in op and len(tensors) >= 2 and outputs is not None:
        made = parse_inputs(outputs)
        result = made.tensors[0] if made is not None and made.tensors else None
        return _convolution(tensors[1], result)
    return None


def _convolution(weight: TensorInput, result: TensorInput | None) -> int | None:
    return None if result is None else 2 * math.prod(result.shape) * math.prod(weight.shape[1:])


def _shares(total: int, among: int) -> list[int]:
    """``total`` in ``among`` whole parts, the first ones the larger."""
    each, more = divmod(total, among)
    return [each + (index < more) for index in range(among)]


def _launching(op: FakeOp) -> bool:
    return op.device == "cuda" and (op.kernels != 0 or op.memops > 0)


def _placeless(op: FakeOp) -> FakeOp:
    """The op without where it was called, so that like calls are one."""
    return msgspec.structs.replace(op, site=None)


def require_moved(what: str, read: int | None, written: int | None) -> int:
    """Bytes that a launch moves.  Raises ``UncoveredError`` where that is not known."""
    if read is None or written is None:
        raise UncoveredError(f"what {what} reads and writes is not known, so its device time is not either")
    return read + written
