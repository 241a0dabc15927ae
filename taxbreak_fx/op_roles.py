"""What a generator of fused kernels could do with an ATen op, and why a CUDA graph could not hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from taxbreak_fx.step_graph import Role
from taxbreak_fx.variant_record import Classification

Sizes = tuple[int, ...]

# Reductions over whole dimensions.  Pooling, medians and histograms are of the same family, yet no such loop.
_REDUCTIONS = {
    "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all", "prod", "var", "var_mean", "std",
    "std_mean", "nansum", "nanmean", "logsumexp", "norm", "linalg_vector_norm", "count_nonzero", "aminmax", "xor_sum",
}  # fmt: skip
_ROWS_BY_DIM = {"_softmax", "_log_softmax", "_safe_softmax"}
_ROWS_BY_SHAPE = {"native_layer_norm", "_fused_rms_norm"}
_BATCH_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training"}
# Reads through an index; what writes through one (scatter, index_put) is no loop over its own result.
_GATHERS = {"embedding", "index", "_unsafe_index", "_unsafe_masked_index", "gather", "index_select", "take"}
_NO_COPY_LOOP = {"to_sparse", "_to_sparse", "_to_dense", "coalesce", "_coalesce", "im2col", "col2im"}
_ASSERTS = {"_assert_scalar", "_assert_async"}  # they check a value on the host
_MASKS = (torch.bool, torch.uint8)


class Facts(NamedTuple):
    """What is known of one call: its arguments by the schema's names, its first tensor and its first result's sizes."""

    arguments: Mapping[str, Any]
    tensors: Sequence[torch.Tensor]
    devices: tuple[str, ...]
    shape: Sizes | None
    input_shape: Sizes | None


class Loop(NamedTuple):
    """An op's role, and the domain it iterates over with the reduced positions in it."""

    role: Role
    domain: Sizes = ()
    reduced: Sizes = ()


def base_name(op: Any) -> str:
    """The op's name without namespace, overload and trailing underscore."""
    return str(op).split(".")[1].removesuffix("_")


def role_of(op: Any, kind: Classification, facts: Facts) -> Loop:
    """The loop that does the work of ``op``; ``extern`` where no generated loop would."""
    name, shape = base_name(op), facts.shape
    if kind.family == "host-sync":
        return Loop("sync")
    if kind.i_lib or shape is None or len(set(facts.devices)) > 1 or data_dependent(op, facts):
        return Loop("extern")
    if kind.family == "view":
        return Loop("alloc")
    if kind.family in ("reduction", "softmax", "normalization"):
        return _reducing(name, facts)
    if name.startswith("_foreach_") or name in _NO_COPY_LOOP:
        return Loop("extern")
    if kind.family in ("elementwise", "copy") or (kind.family == "index" and name in _GATHERS):
        return Loop("pointwise", shape)
    return Loop("extern")


def _reducing(name: str, facts: Facts) -> Loop:
    domain, shape = facts.input_shape, facts.shape
    if domain is None or shape is None:
        return Loop("extern")
    rank = len(domain)
    if name in _ROWS_BY_DIM:
        return Loop("row", domain, _positions(facts.arguments.get("dim"), rank))
    if name in _ROWS_BY_SHAPE:
        normalized = len(facts.arguments["normalized_shape"])
        return Loop("row", domain, tuple(range(rank - normalized, rank)))
    if name == "native_group_norm":
        rows = facts.arguments["N"] * facts.arguments["group"]
        return Loop("row", (rows, math.prod(domain) // rows), (1,)) if rows else Loop("extern")
    if name in _BATCH_NORMS and not facts.arguments.get("training", False):
        return Loop("pointwise", shape)
    if name in _REDUCTIONS and ("dim" in facts.arguments or math.prod(shape) == 1):
        return Loop("reduction", domain, _positions(facts.arguments.get("dim"), rank))
    return Loop("extern")


def _positions(dim: Any, rank: int) -> Sizes:
    """The dimensions that ``dim`` names, all of them where it names none."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
    return tuple(sorted({each % rank for each in dims})) if rank else ()


def data_dependent(op: Any, facts: Facts) -> bool:
    """Whether the shape of the result hangs on values: such an op makes the host wait for them."""
    if base_name(op) in ("index", "index_put", "_unsafe_index_put"):
        return any(tensor.dtype in _MASKS for tensor in facts.tensors[1:])
    return torch.Tag.dynamic_output_shape in op.tags


def unsafe(op: Any, kind: Classification, facts: Facts) -> str | None:
    """Why a CUDA graph cannot hold a call of ``op``, apart from syncs and data-dependent shapes; None: it can."""
    if getattr(torch.Tag, "cudagraph_unsafe", None) in op.tags:
        return "the op is tagged cudagraph_unsafe"
    if base_name(op) in _ASSERTS:
        return "it checks a value on the host"
    if kind.library == "MAGMA":
        return "MAGMA works partly on the host"
    if any(tensor.layout is not torch.strided for tensor in facts.tensors):
        return "it works on a sparse tensor, whose size hangs on the data"
    return None
