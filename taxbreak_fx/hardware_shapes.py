"""What of an op's inputs its device time is looked up by: the shape of a product, and the case of a family's grid."""

from __future__ import annotations

import math

from taxbreak_fx.family_inputs import TensorInput, inputs_of, parse_inputs
from taxbreak_fx.record import Record

BATCHED, PREFILL, DECODE = "batched", "prefill", "decode"
_BATCHED_OPS = {"bmm": 0, "baddbmm": 1}
_PRODUCT_OPS = {"mm": 0, "addmm": 1, "_addmm_activation": 1}


class Work(Record, frozen=True, kw_only=True):
    """``shape``: (m, n, k) of a plain product, else None.  ``case``: as in ``hardware.FamilyGrid``."""

    shape: tuple[int, int, int] | None = None
    case: str = ""


def work_of(key: str) -> Work:
    """The work of the op ``key`` = ``op(inputs)``, by the op's name in any spelling; plain where nothing is known.

    Products: (m, k) · (k, n), ``linear`` with its weight (n, k).  Attention: ``decode`` for one query, else
    ``prefill``.
    """
    name = key.partition("(")[0].removeprefix("extern:").removeprefix("torch.ops.").removeprefix("aten.")
    name = name.partition(".")[0]
    text = inputs_of(key)
    inputs = parse_inputs(text) if text is not None else None
    tensors = inputs.tensors if inputs is not None else ()
    if name in _BATCHED_OPS:
        return Work(case=BATCHED)
    if "scaled_dot_product" in name and tensors and len(tensors[0].shape) >= 2:
        return Work(case=DECODE if tensors[0].shape[-2] == 1 else PREFILL)
    if name == "linear" and len(tensors) >= 2 and len(tensors[1].shape) == 2:
        (n, k), m = tensors[1].shape, math.prod(tensors[0].shape[:-1])
        return _product(m, n, k)
    if name in _PRODUCT_OPS:
        return _matrices(tensors[_PRODUCT_OPS[name] :])
    return Work()


def _matrices(tensors: tuple[TensorInput, ...]) -> Work:
    if len(tensors) < 2 or len(tensors[0].shape) != 2 or len(tensors[1].shape) != 2:
        return Work()
    (m, k), (_, n) = tensors[0].shape, tensors[1].shape
    return _product(m, n, k)


def _product(m: int, n: int, k: int) -> Work:
    """An empty product has no place in a grid of logarithms."""
    return Work(shape=(m, n, k)) if m and n and k else Work()
