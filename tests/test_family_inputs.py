"""The inputs of a call, read back from its text, and the conditions on them that decide between libraries."""

from __future__ import annotations

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUSPARSELT

from taxbreak_fx import family_conditions
from taxbreak_fx.capture import signature
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import Inputs, TensorInput, inputs_of, parse_inputs
from taxbreak_fx.family_types import Condition


def test_what_capture_writes_is_read_back() -> None:
    x, scalar, sparse = torch.zeros(3, 4).t(), torch.zeros(()), torch.eye(3).to_sparse()
    found = parse_inputs(signature((x, [scalar, 2], None, "a, (b)=c", slice(0, 2)), {"beta": 0.5, "out": sparse}))
    assert found == Inputs(
        (
            TensorInput("float32", (4, 3), (1, 4)),
            TensorInput("float32", (), ()),
            "2",
            "None",
            "'a, (b)=c'",
            "slice(0, 2, None)",
        ),
        {"beta": "0.5", "out": TensorInput("float32", (3, 3), None, "sparse_coo")},
    )
    assert len(found.tensors) == 2
    device = parse_inputs(signature((2, 3), {"dtype": torch.float32, "device": torch.device("cuda", 0)}))
    assert device == Inputs(("2", "3"), {"dtype": "torch.float32", "device": "device(type='cuda', index=0)"})


def test_a_tensor_that_wraps_others_says_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseSemiStructuredTensor, "_PROTOTYPE_WARNING_SHOWN", True)  # it warns once
    wrapped = SparseSemiStructuredTensorCUSPARSELT(
        torch.Size((128, 128)), torch.zeros(1), None, None, None, None, requires_grad=False
    )
    text = signature((wrapped, torch.nn.Parameter(torch.zeros(2))), {})
    assert text == "float32[128x128](128,1):SparseSemiStructuredTensorCUSPARSELT, float32[2](1)"
    parsed = parse_inputs(text)
    assert parsed is not None
    assert [tensor.wrapper for tensor in parsed.tensors] == ["SparseSemiStructuredTensorCUSPARSELT", None]
    assert classify_op("aten.mm.default", "cuda", inputs=text).library == "cuSPARSELt"


def test_text_that_tells_nothing() -> None:
    assert parse_inputs("") == Inputs()
    assert parse_inputs("float32[s0x4](4,1), 2") is None  # a symbolic size
    assert inputs_of("aten.mm.default(float32[2x2](2,1), 1)") == "float32[2x2](2,1), 1"
    assert inputs_of("aten.relu.default()") == "" and inputs_of("aten.relu.default") is None


PRODUCT = "{0}[64x128](128,1), {0}[128x64](64,1)"
DEPTHWISE = "{0}[2x64x32x32](65536,1024,32,1), {0}[64x1x3x3](9,9,3,1), None, 1, 1, 0, 0, 1, 1, False, 0, 0, 64"
CALLS = [
    # op, inputs, library on CUDA
    ("addmm", "bfloat16[64](1), " + PRODUCT.format("bfloat16"), "cuBLASLt"),
    ("addmm_", "bfloat16[64x64](64,1), " + PRODUCT.format("bfloat16"), "cuBLAS"),
    ("addmm", "bfloat16[64](1), bfloat16[64x128](128,1), bfloat16[128x64](64,1), alpha=2", "cuBLASLt"),
    ("addmm.out", "bfloat16[64](1), " + PRODUCT.format("bfloat16") + ", alpha=1, beta=1, out=bfloat16[64x64](64,1)",
     "cuBLASLt"),
    ("addmm", "bfloat16[64](1), " + PRODUCT.format("bfloat16") + ", beta=0.5", "cuBLAS"),
    ("addmm", "bfloat16[64](0), " + PRODUCT.format("bfloat16"), "cuBLAS"),
    ("addmm", "complex64[64](1), " + PRODUCT.format("complex64"), "cuBLAS"),
    ("addmm", "float32[64](1), float32[64x1](1,1), float32[1x64](64,1)", "cuBLAS"),
    ("mm", "float32[4x4](torch.sparse_coo), float32[4x4](4,1)", "cuSPARSE"),
    ("mm", "float16[8x8](8,1):SparseSemiStructuredTensorCUTLASS, float16[8x8](8,1)", "CUTLASS-in-ATen"),
    ("convolution", DEPTHWISE.format("bfloat16"), "ATen"),
    ("convolution", DEPTHWISE.format("float32"), "ATen"),
    ("convolution", DEPTHWISE.format("float16"), "cuDNN"),  # 64 channels: cuDNN has a kernel
    ("convolution", DEPTHWISE.format("float16").replace("None, 1, 1,", "None, 2, 2,"), "ATen"),  # strided: not for 64
    ("convolution", DEPTHWISE.format("float16").replace("1, 1, False", "2, 2, False"), "ATen"),  # dilated
    ("convolution", DEPTHWISE.format("bfloat16").replace("False", "True"), "cuDNN"),  # transposed
    ("convolution", DEPTHWISE.format("bfloat16").replace("(65536,1024,32,1)", "(65536,1,2048,64)"), "cuDNN"),
    ("convolution", DEPTHWISE.format("bfloat16").replace("[64x1x3x3](9,9,3,1)", "[64x2x3x3](18,9,3,1)"), "cuDNN"),
    ("convolution", "float16[1x64x32](2048,32,1), float16[64x1x4](4,4,1), None, 1, 3, 1, False, 0, 64", "cuDNN"),
    ("convolution", "bfloat16[1x64x32](2048,1,64), bfloat16[64x1x4](4,4,1), None, 1, 3, 1, False, 0, 64", "ATen"),
    ("linalg_lu_factor_ex", "float32[64x64](64,1)", "cuSOLVER"),
    ("linalg_inv_ex", "float32[2x3x8x8](192,64,8,1)", "cuBLAS"),
    ("linalg_inv_ex", "float32[4x256x256](65536,256,1)", "cuSOLVER"),
    ("cholesky_solve", "float32[1x8x8](64,8,1), float32[1x8x8](64,8,1)", "cuSOLVER"),
    ("cholesky_inverse", "float32[2x8x8](64,8,1)", "MAGMA"),
    ("linalg_lstsq", "float32[16x8x9](72,9,1), float32[16x8x8](64,8,1)", "cuSOLVER"),  # more unknowns than equations
    ("linalg_lstsq", "float32[16x9x8](72,8,1), float32[16x9x8](72,8,1)", "cuBLAS"),
    ("linalg_lu_solve", "float32[64x64](1,64), int32[64](1), float32[64x4](4,1)", "cuSOLVER"),
    ("linalg_lu_solve", "float32[200x200](1,200), int32[200](1), float32[200x4](4,1)", "cuBLAS"),
    ("linalg_qr", "float32[16x8x8](64,8,1), 'r'", "cuBLAS"),
    ("linalg_qr", "float32[16x8x8](64,8,1)", "cuSOLVER"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "library"), CALLS)
def test_the_inputs_decide(op: str, inputs: str, library: str) -> None:
    known = classify_op(f"aten.{op}" if "." in op else f"aten.{op}.default", "cuda", inputs=inputs)
    assert known.library == library
    assert "not told" not in known.reason


def test_what_inputs_would_tell_is_said_where_they_are_not_known() -> None:
    for inputs in (None, "float32[s0](1), float32[64x128](128,1), float32[128x64](64,1)"):
        known = classify_op("aten.addmm.default", "cuda", inputs=inputs)
        assert (known.library, known.code) == ("cuBLASLt", "cuda.addmm.cublaslt")
        assert "not told without the call's inputs: cuBLAS where the bias is no contiguous row" in known.reason
        assert "cuSPARSE where an operand is sparse" in known.reason
    assert "not told" not in classify_op("aten.relu.default", "cuda").reason
    assert "not told" not in classify_op("aten.addmm.default", "cpu").reason


def test_missing_inputs_fulfil_no_condition() -> None:
    conditions = [value for value in vars(family_conditions).values() if isinstance(value, Condition)]
    assert len(conditions) == 10
    for text in ("", "None", "1, 2, False", "float32[4](1)", "float32[](), float32[]()"):
        inputs = parse_inputs(text)
        assert inputs is not None
        assert [condition.text for condition in conditions if condition.holds(inputs)] == [], text
