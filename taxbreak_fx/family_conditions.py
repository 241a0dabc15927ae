"""Conditions on a call's inputs by which ATen chooses between libraries, where op and dtype cannot tell.

Each was observed on an H200 (torch 2.11, tests/data/observed_h200.json) unless it says that it follows ATen's source
alone.  A condition holds only of inputs that are there to be read: what is missing decides nothing.
"""

from __future__ import annotations

import math

from taxbreak_fx.family_inputs import Inputs, TensorInput
from taxbreak_fx.family_types import FP16, FP32, FP64, Condition

_BIAS_DTYPES = {"bfloat16", *FP16, *FP32, *FP64}


def _dense(inputs: Inputs) -> bool:
    return all(tensor.layout == "strided" and tensor.wrapper is None for tensor in inputs.tensors)


def _sparse(inputs: Inputs) -> bool:
    return any(tensor.layout != "strided" for tensor in inputs.tensors)


def _wrapped_by(name: str, inputs: Inputs) -> bool:
    return any(tensor.wrapper == name for tensor in inputs.tensors)


def _unfused_bias(inputs: Inputs) -> bool:
    """``addmm(bias, (m x k), (k x n))``: the opposite of ``isInputCompliesAddmmCudaLt`` (ATen's Blas.cpp)."""
    if len(inputs.tensors) < 3 or not _dense(inputs):
        return False
    bias, _, right = inputs.tensors[:3]
    k, n = right.shape
    one_row = bias.shape in ((n,), (1, n)) and bias.stride is not None and bias.stride[-1] == 1
    scaled = float(str(inputs.options.get("beta", 1))) != 1.0
    return scaled or not one_row or k == 1 or n == 1 or bias.dtype not in _BIAS_DTYPES


def _channels_last(tensor: TensorInput) -> bool:
    """``is_channels_last_strides`` (c10's MemoryFormat.h): channels innermost, then width to batch."""
    shape, stride = tensor.shape, tensor.stride
    if stride is None or len(shape) not in (4, 5) or stride[1] == 0:
        return False
    least = 0
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[dim] == 0 or stride[dim] < least or (dim == 0 and least == stride[1]):
            return False
        least = stride[dim] * max(1, shape[dim])
    return True


def _depthwise(inputs: Inputs) -> bool:
    """``convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)``.

    One filter per input channel, not transposed, and not a case that ``use_cudnn_depthwise`` (ATen's Convolution.cpp)
    gives to cuDNN.  One-dimensional ones run as two-dimensional ones of height 1.
    """
    if len(inputs.tensors) < 2 or not _dense(inputs) or "False" not in inputs.args:
        return False  # with no False, the convolution is transposed or its arguments are not these
    data, weight = inputs.tensors[:2]
    if len(data.shape) < 3 or data.shape[1] < 2 or weight.shape[1] != 1 or weight.shape[0] % data.shape[1]:
        return False
    sides = [int(arg) for arg in inputs.args[3 : inputs.args.index("False")] if isinstance(arg, str)]
    if "True" in inputs.args[: inputs.args.index("False")] or len(sides) % 3:
        return False
    stride, dilation = sides[: len(sides) // 3], sides[-len(sides) // 3 :]
    return not (
        _channels_last(data) or _channels_last(weight) or _half_depthwise_on_cudnn(data, weight, stride, dilation)
    )


def _half_depthwise_on_cudnn(data: TensorInput, weight: TensorInput, stride: list[int], dilation: list[int]) -> bool:
    if data.dtype != "float16" or weight.dtype != "float16" or len(data.shape) > 4 or data.shape[1] < 32:
        return False
    batch, channels, width = data.shape[0], data.shape[1], data.shape[-1]
    height, step, filters = (1 if len(data.shape) == 3 else data.shape[2]), stride[-1], weight.shape[-1]
    if any(side != 1 for side in dilation) or (height != 1 and stride[0] != step):
        return False
    if height == 1 and step == 1:
        return True
    if (1 if len(weight.shape) == 3 else weight.shape[2]) != filters or filters not in (1, 3, 5) or width < 7:
        return False
    if step != 2:
        return step == 1
    if batch == 1:
        return filters != 1 or width <= 28
    if filters == 1:
        return batch <= 16 and channels >= 128 and width <= 7
    return channels >= 512 or (channels >= 256 and width >= 28)


def _batch(tensor: TensorInput) -> int:
    return math.prod(tensor.shape[:-2])


def _batched(inputs: Inputs) -> bool:
    return bool(inputs.tensors) and _batch(inputs.tensors[0]) > 1


def _small_square_batch(inputs: Inputs) -> bool:
    """``lu_factor`` in ATen's BatchLinearAlgebra.cpp."""
    if not _batched(inputs):
        return False
    matrix = inputs.tensors[0]
    rows, columns = matrix.shape[-2:]
    return rows == columns and (rows <= 16 or (rows <= 128 and _batch(matrix) <= 16))


def _many_small_systems(inputs: Inputs) -> bool:
    """``geqrf_kernel`` and ``lstsq_kernel`` in ATen's BatchLinearAlgebra.cpp."""
    if not inputs.tensors or len(inputs.tensors[0].shape) < 2:
        return False
    matrix = inputs.tensors[0]
    rows, columns = matrix.shape[-2:]
    solves = len(inputs.tensors) > 1  # linalg_lstsq; geqrf has no right-hand side, and may be wider than high
    return rows <= 256 and _batch(matrix) >= max(2, rows // 16) and (not solves or rows >= columns)


def _small_systems_without_q(inputs: Inputs) -> bool:
    """``linalg_qr(A, mode)``: mode ``r`` leaves out ``orgqr``, which is cuSOLVER's."""
    return "'r'" in inputs.args and _many_small_systems(inputs)


def _few_right_hand_sides(inputs: Inputs) -> bool:
    """``linalg_lu_solve(LU, pivots, B)``: ``lu_solve_kernel`` in ATen's BatchLinearAlgebra.cpp."""
    if len(inputs.tensors) < 3 or len(inputs.tensors[2].shape) < 2:
        return False
    matrix, _, right = inputs.tensors[:3]
    size, sides = matrix.shape[-1], right.shape[-1]
    if _batch(right) > 2 or size == sides:
        return False
    return 8 < size <= 32 or (32 < size <= 64 and sides <= 64) or (64 < size <= 128 and sides <= 2)


SPARSE = Condition("an operand is sparse", _sparse)
SEMI_STRUCTURED = Condition(
    "an operand is 2:4 sparse", lambda inputs: _wrapped_by("SparseSemiStructuredTensorCUSPARSELT", inputs)
)
SEMI_STRUCTURED_CUTLASS = Condition(
    "an operand is 2:4 sparse for CUTLASS", lambda inputs: _wrapped_by("SparseSemiStructuredTensorCUTLASS", inputs)
)
UNFUSED_BIAS = Condition(
    "the bias is no contiguous row, beta is not 1, or there is one output or input feature", _unfused_bias
)
DEPTHWISE = Condition("it is depthwise in a form that ATen keeps", _depthwise)
BATCHED = Condition("there are several matrices", _batched)
SMALL_SQUARE_BATCH = Condition("there are several small square matrices", _small_square_batch)
MANY_SMALL_SYSTEMS = Condition("there are many matrices of few rows", _many_small_systems)
SMALL_SYSTEMS_WITHOUT_Q = Condition("there are many matrices of few rows and mode is 'r'", _small_systems_without_q)
FEW_RIGHT_HAND_SIDES = Condition("there are one or two matrices and few right-hand sides", _few_right_hand_sides)
