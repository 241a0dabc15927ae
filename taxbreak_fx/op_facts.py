"""What an op's shapes say of its work: bytes moved, floating-point operations, kernels and copies it launches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from taxbreak_fx.families import classify_op, launches_nothing

# Names in the aten namespace, without overload: not every release has every op.

# Argument 0 is a table of which only the chosen rows are read: as much as is returned.
_SELECT = {"embedding", "index", "index_select", "gather", "take_along_dim", "masked_select"}
# Argument 0 keeps what is not written; the last tensor argument is what is written into it.
_SCATTER = {"index_put_", "index_copy_", "scatter_", "masked_scatter_"}
_SCATTER_ADD = {"index_add_", "scatter_add_", "scatter_reduce_"}
# Argument 0 is written whole and never read.
_OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_"}
_ATTENTION = {
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
}
_COPIES = {"clone", "copy_", "_to_copy"}
# One kernel whatever the shapes.  Reductions, products, sorts and scans may take several: those are not decided here.
_ONE_KERNEL = ("elementwise", "copy", "softmax", "index")
_ONE_KERNEL_OPS = {"native_layer_norm", "_fused_rms_norm", "embedding"}
# Written in ATen as several ops, which a dispatch mode does not see: softmax, comparison with −∞, all along a row, a
# zero, and where.  So observed on an H200 (torch 2.11.0+cu130).
_SAFE_SOFTMAX, _SAFE_SOFTMAX_KERNELS = "_safe_softmax", 5


def _name(func: Any) -> str:
    namespace, _, name = str(func._schema.name).partition("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in arguments or results, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def touched(tensor: torch.Tensor) -> int:
    """Bytes that the tensor addresses, each element of an expanded one once."""
    if tensor.layout is not torch.strided:
        return tensor.numel() * tensor.itemsize
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size if stride or not size else 1 for size, stride in sizes) * tensor.itemsize


def device_of(args: Any, kwargs: Any, result: Any) -> str:
    """``cuda`` or ``cpu``: where the op runs; a CPU scalar may take part in a CUDA op."""
    kinds = {tensor.device.type for tensor in tensors_of((args, kwargs, result))}
    return "cuda" if "cuda" in kinds else "cpu"


def works(func: Any, args: Any, result: Any) -> bool:
    """Whether the op touches any element at all: views, empty allocations and empty results do not."""
    if func.is_view or launches_nothing(str(func)):
        return False
    made = tensors_of(result) or tensors_of(args)
    return any(tensor.numel() for tensor in made)


def traffic(func: Any, args: Any, kwargs: Any, result: Any, top_k: int | None = None) -> tuple[int, int]:
    """Bytes read and written by the op if every element it addresses is moved once.

    ``top_k``: experts per token, by which the expert weights that a grouped product reads are estimated.
    """
    if not works(func, args, result):
        return 0, 0
    name = _name(func)
    mutated = {id(tensor): tensor for tensor in _mutated(func, args, kwargs)}
    # What an in-place op returns is what it wrote, though not always the same Python object.
    storages = {tensor.untyped_storage()._cdata for tensor in mutated.values()}
    fresh = [tensor for tensor in tensors_of(result) if tensor.untyped_storage()._cdata not in storages]
    read = {id(tensor): touched(tensor) for tensor in tensors_of((args, kwargs))}
    written = {id(tensor): touched(tensor) for tensor in (*mutated.values(), *fresh)}
    first = id(args[0]) if args and isinstance(args[0], torch.Tensor) else None
    if name in _SELECT and first is not None:
        read[first] = sum(written.values())
    elif name in _SCATTER or name in _SCATTER_ADD:
        amount = touched(tensors_of(args)[-1])
        written, read[first or 0] = {0: amount}, amount if name in _SCATTER_ADD else 0
    elif name in _OVERWRITE or func._overloadname == "out":
        read |= dict.fromkeys(mutated, 0)
    elif name == _SAFE_SOFTMAX:
        scores, mask = touched(args[0]), result.numel()  # one byte per element of the mask
        return 2 * scores + mask + touched(result), mask + 2 * touched(result)
    elif name == "_grouped_mm":
        read[id(args[1])] = round(touched(args[1]) * _experts_share(args[0], args[1], top_k))
    return sum(read.values()), sum(written.values())


def _mutated(func: Any, args: Any, kwargs: Any) -> Iterable[torch.Tensor]:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_of(args[position] if position < len(args) else kwargs.get(argument.name))


def _experts_share(tokens: torch.Tensor, weights: torch.Tensor, top_k: int | None) -> float:
    """The share of experts that uniform routing hits: 1 − (1 − k/E)^T for T tokens that choose k of E each."""
    if weights.dim() != 3 or tokens.dim() != 2:
        return 1.0
    experts, chosen = weights.shape[0], top_k or 1
    return float(1.0 - (1.0 - min(1.0, chosen / experts)) ** (tokens.shape[0] / chosen))


def flops(func: Any, args: Any, kwargs: Any, result: Any) -> int | None:
    """Floating-point operations by torch's own flop counter, two per multiply-add; None where it has no formula.

    Attention and grouped products are counted here: the counter of some torch releases knows neither grouped-query
    attention nor ``_grouped_mm``.  A causal attention counts like a full one, as it does there.
    """
    name = _name(func)
    if name in _ATTENTION:
        query, key, value = args[:3]
        pairs = math.prod(query.shape[:3]) * key.shape[2]
        return int(2 * pairs * (query.shape[3] + value.shape[3]))
    if name == "_grouped_mm" and args[0].dim() == 2 and args[1].dim() == 3:
        return int(2 * math.prod(args[0].shape) * args[1].shape[2])
    formula = flop_registry.get(func.overloadpacket)
    return None if formula is None else int(formula(*args, **kwargs, out_val=result))


def launches(func: Any, args: Any, kwargs: Any, result: Any) -> tuple[int | None, int]:
    """Kernels that the op launches on CUDA (None: not decided by its shapes) and device copies without a kernel."""
    if device_of(args, kwargs, result) != "cuda" or not works(func, args, result):
        return 0, 0
    name = _name(func)
    if name == "_local_scalar_dense":
        return 0, 1  # one element to the host
    if name == "nonzero":
        return None, 1  # how many there are, to the host
    if name in _COPIES:
        return _copy_launches(name, args, result)
    if name == _SAFE_SOFTMAX:
        return _SAFE_SOFTMAX_KERNELS, 0
    family = classify_op(str(func), "cuda").family
    one = family in _ONE_KERNEL and not func._schema.name.startswith("aten::_foreach_")
    return (1 if one or name in _ONE_KERNEL_OPS else None), 0


def _copy_launches(name: str, args: Any, result: Any) -> tuple[int, int]:
    """A copy between equal layouts of one dtype is a memcpy; one that reorders or casts, a kernel (ATen's copy_)."""
    target, source = (args[0], args[1]) if name == "copy_" else (result, args[0])
    if target.device.type != source.device.type:
        # Reordering and casts happen on the GPU's side of the transfer.
        return int(target.dtype != source.dtype), 1
    alike = target.dtype == source.dtype and target.shape == source.shape and target.stride() == source.stride()
    dense = alike and touched(target) == target.numel() * target.itemsize and _gapless(target)
    return (0, 1) if dense else (1, 0)


def _gapless(tensor: torch.Tensor) -> bool:
    sizes = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    expected = 1
    for stride, size in sizes:
        if stride != expected:
            return False
        expected *= size
    return True
