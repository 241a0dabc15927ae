"""Matrix products and attention: which library serves them, per device and dtype.

A row is one rule; its ``ops`` are base names without overload, in namespace ``aten`` unless another is written.
In-place (``add_``) and ``_foreach_`` forms need no entry: ``families`` derives them from the base name.
The CUDA rows are what an H200 showed with torch 2.11 (tests/data/observed_h200.json); the CPU rows were checked with
``ONEDNN_VERBOSE`` and ``MKL_VERBOSE``.
"""

from __future__ import annotations

from taxbreak_fx.family_conditions import SEMI_STRUCTURED, SEMI_STRUCTURED_CUTLASS, SPARSE, UNFUSED_BIAS
from taxbreak_fx.family_types import BF16, FP16, FP32, FP64, INTEGER, OpRule

MATMUL = """mm bmm baddbmm matmul addbmm mv addmv dot vdot inner einsum tensordot chain_matmul bilinear
    linalg_matmul linalg_multi_dot _trilinear inductor._mm_plus_mm _mm_plus_mm matmul_backward
    linear_backward _foreach_mm _native._foreach_mm_native_0 affine_grid_generator"""
LINEAR = "linear"
ADDMM = "addmm bias_addmm _addmm_activation"
# Those that also take a sparse operand.
SPARSE_OR_DENSE = "mm bmm baddbmm matmul mv addmv addmm"
SCALED_MM = "_scaled_mm _scaled_mm_v2 _int_mm"
PACKED_MM = """_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_with_scales_and_zeros
    _weight_int4pack_mm_for_cpu _dyn_quant_matmul_4bit _mixed_dtypes_linear"""
GROUPED = "_grouped_mm transformers.grouped_mm_fallback _scaled_grouped_mm _scaled_grouped_mm_v2"
SDPA = "scaled_dot_product_attention"
MULTI_HEAD = "_native_multi_head_attention _transformer_encoder_layer_fwd"

PRODUCT_RULES: tuple[OpRule, ...] = (
    # ---- matrix multiplication
    OpRule("cuda.gemm.cublas", "gemm", "cuda", "cuBLAS", "ATen calls cuBLAS's gemm, gemv or dot", MATMUL),
    OpRule(
        "cuda.linear.cublas",
        "gemm",
        "cuda",
        "cuBLAS",
        "without a bias linear is matmul, on cuBLAS; with a bias it is addmm, whose leaf op is on cuBLASLt",
        LINEAR,
    ),
    OpRule(
        "cuda.addmm.cublaslt",
        "gemm",
        "cuda",
        "cuBLASLt",
        "ATen gives a contiguous bias row, (n) or (1, n), to cuBLASLt; observed for bf16, fp16, fp32 and fp64, one-row "
        "products included",
        ADDMM,
    ),
    OpRule(
        "cuda.addmm.cublas",
        "gemm",
        "cuda",
        "cuBLAS",
        "ATen copies the bias and calls cublasGemmEx: cuBLASLt gets it only as one contiguous row, with beta 1 and "
        "more than one input and output feature; observed for matrix, column and strided biases, beta 0.5, one feature",
        ADDMM,
        when=UNFUSED_BIAS,
    ),
    OpRule(
        "cuda.gemm.cusparse",
        "gemm",
        "cuda",
        "cuSPARSE",
        "a product with a sparse operand is cuSPARSE's; observed for mm, mv and addmm on CSR and bmm on COO",
        SPARSE_OR_DENSE,
        when=SPARSE,
    ),
    OpRule(
        "cuda.gemm.cusparselt",
        "gemm",
        "cuda",
        "cuSPARSELt",
        "the 2:4 sparse tensor class hands its products to cuSPARSELt; observed for mm in fp16",
        f"{SPARSE_OR_DENSE} {LINEAR}",
        when=SEMI_STRUCTURED,
    ),
    OpRule(
        "cuda.gemm.semi_structured_cutlass",
        "gemm",
        "cuda",
        "CUTLASS-in-ATen",
        "the 2:4 sparse tensor class made for CUTLASS uses torch's CUTLASS kernels; from torch's source, not observed",
        f"{SPARSE_OR_DENSE} {LINEAR}",
        when=SEMI_STRUCTURED_CUTLASS,
    ),
    OpRule(
        "cuda.scaled_mm.cublaslt",
        "gemm",
        "cuda",
        "cuBLASLt",
        "low-precision gemm on cublasLtMatmul; observed for int8 and for fp8 scaled per tensor and per row (CUDA 13; "
        "older ones give rowwise scales to ATen's CUTLASS kernel)",
        SCALED_MM,
    ),
    OpRule("cuda.packed_mm.aten", "gemm", "cuda", "ATen", "ATen's own int4/int8 weight kernels", PACKED_MM),
    OpRule(
        "cuda.grouped_mm.cutlass",
        "grouped-gemm",
        "cuda",
        "CUTLASS-in-ATen",
        "on Hopper bf16 and fp8 run ATen's CUTLASS grouped gemm",
        GROUPED,
    ),
    OpRule(
        "cuda.grouped_mm.cublas",
        "grouped-gemm",
        "cuda",
        "cuBLAS",
        "outside bf16 and fp8 ATen falls back to one cuBLAS gemm per group",
        GROUPED,
        FP32 | FP16,
    ),
    OpRule(
        "cpu.gemm.mkl",
        "gemm",
        "cpu",
        "MKL/OpenBLAS",
        "fp32, fp64 and complex gemm go to the BLAS torch links",
        f"{MATMUL} {LINEAR} {ADDMM}",
    ),
    OpRule(
        "cpu.gemm.onednn",
        "gemm",
        "cpu",
        "oneDNN",
        "bf16 matmul runs oneDNN where the CPU has bf16 instructions; one-row products stay in ATen",
        f"{MATMUL} {LINEAR} {ADDMM}",
        BF16,
    ),
    OpRule(
        "cpu.gemm.aten",
        "gemm",
        "cpu",
        "ATen",
        "fp16 needs AVX512-FP16 for oneDNN, integers have no BLAS: ATen's own loop",
        f"{MATMUL} {LINEAR} {ADDMM}",
        FP16 | INTEGER,
    ),
    OpRule("cpu.scaled_mm.onednn", "gemm", "cpu", "oneDNN", "quantized gemm is oneDNN's", SCALED_MM),
    OpRule("cpu.packed_mm.aten", "gemm", "cpu", "ATen", "ATen's own int4/int8 weight kernels", PACKED_MM),
    OpRule(
        "cpu.grouped_mm.mkl",
        "grouped-gemm",
        "cpu",
        "MKL/OpenBLAS",
        "no grouped kernel on the CPU: ATen loops over groups, one BLAS gemm each",
        GROUPED,
    ),
    OpRule(
        "cpu.grouped_mm.onednn",
        "grouped-gemm",
        "cpu",
        "oneDNN",
        "no grouped kernel on the CPU: ATen loops over groups, one oneDNN matmul each",
        GROUPED,
        BF16,
    ),
    OpRule(
        "cpu.grouped_mm.aten",
        "grouped-gemm",
        "cpu",
        "ATen",
        "ATen loops over groups; fp16 needs AVX512-FP16 for oneDNN",
        GROUPED,
        FP16,
    ),
    OpRule(
        "mkl.linear",
        "gemm",
        "any",
        "MKL/OpenBLAS",
        "Inductor packed the weight for MKL",
        "mkl._mkl_linear mkl._mkl_reorder_linear_weight",
    ),
    OpRule(
        "onednn.linear",
        "gemm",
        "any",
        "oneDNN",
        "the op is a oneDNN primitive with a fused epilogue",
        """mkldnn._linear_pointwise mkldnn_linear mkldnn._reorder_linear_weight onednn.qlinear_pointwise
           onednn.qlinear_prepack onednn.linear_dynamic_fp16 onednn.linear_relu_dynamic_fp16
           onednn.linear_prepack_fp16""",
    ),
    # ---- attention
    OpRule(
        "cuda.sdpa.cudnn",
        "attention",
        "cuda",
        "cuDNN",
        "torch's SDPA policy decides at run time; on Hopper fp16 and bf16 it puts cuDNN first, then FlashAttention, "
        "memory-efficient, math",
        SDPA,
    ),
    OpRule(
        "cuda.sdpa.efficient",
        "attention",
        "cuda",
        "CUTLASS-in-ATen",
        "cuDNN and FlashAttention take no fp32: torch's SDPA policy leaves memory-efficient attention",
        SDPA,
        FP32,
    ),
    OpRule(
        "cuda.sdpa.math",
        "attention",
        "cuda",
        "cuBLAS",
        "no fused kernel takes fp64: torch's SDPA policy leaves plain matmuls and softmax",
        SDPA,
        FP64,
    ),
    OpRule(
        "cuda.multi_head.cublas",
        "attention",
        "cuda",
        "cuBLAS",
        "fused module fast path: projections on cuBLAS around an SDPA chosen at run time",
        MULTI_HEAD,
    ),
    OpRule(
        "cpu.sdpa.aten",
        "attention",
        "cpu",
        "ATen",
        "ATen's flash attention for the CPU; it calls MKL/OpenBLAS gemms inside",
        f"{SDPA} {MULTI_HEAD}",
    ),
    OpRule(
        "attention.cudnn",
        "attention",
        "any",
        "cuDNN",
        "the op is cuDNN's attention",
        "_scaled_dot_product_cudnn_attention _cudnn_attention_forward _scaled_dot_product_cudnn_attention_backward",
    ),
    OpRule(
        "attention.flash",
        "attention",
        "any",
        "FlashAttention-in-ATen",
        "the FlashAttention that torch compiles in",
        """_scaled_dot_product_flash_attention _flash_attention_forward _flash_attention_backward
           _flash_attention_forward_no_dropout_inplace _scaled_dot_product_flash_attention_backward""",
    ),
    OpRule(
        "attention.efficient",
        "attention",
        "any",
        "CUTLASS-in-ATen",
        "memory-efficient attention, torch's CUTLASS",
        """_scaled_dot_product_efficient_attention _efficient_attention_forward _efficient_attention_backward
           _scaled_dot_product_efficient_attention_backward""",
    ),
    OpRule(
        "attention.flash_cpu",
        "attention",
        "any",
        "ATen",
        "ATen's flash attention for the CPU; it calls MKL/OpenBLAS gemms inside",
        """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
           _scaled_dot_product_fused_attention_overrideable""",
    ),
    OpRule(
        "cuda.attention.math",
        "attention",
        "cuda",
        "cuBLAS",
        "SDPA as plain matmuls and softmax",
        "_scaled_dot_product_attention_math",
    ),
    OpRule(
        "cpu.attention.math",
        "attention",
        "cpu",
        "MKL/OpenBLAS",
        "SDPA as plain matmuls and softmax",
        "_scaled_dot_product_attention_math",
    ),
    OpRule(
        "attention.triton",
        "attention",
        "any",
        "Triton/Inductor",
        "Triton attention",
        "_triton_scaled_dot_attention _triton_multi_head_attention higher_order.flex_attention",
    ),
    OpRule(
        "attention.aten",
        "attention",
        "any",
        "ATen",
        "ATen's own attention helper",
        "_transform_bias_rescale_qkv _fill_mem_eff_dropout_mask_",
    ),
)
