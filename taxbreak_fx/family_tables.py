"""The op tables: which op belongs to which family and library, per device and dtype, and why.

A row is one rule; its ``ops`` are base names without overload, in namespace ``aten`` unless another is written.
In-place (``add_``) and ``_foreach_`` forms need no entry: ``families`` derives them from the base name.
The CUDA rows follow torch 2.11-2.13 on Hopper; the CPU rows were checked with ``ONEDNN_VERBOSE`` and ``MKL_VERBOSE``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FAMILIES = (
    "gemm",
    "grouped-gemm",
    "attention",
    "convolution",
    "recurrent",
    "normalization",
    "softmax",
    "elementwise",
    "reduction",
    "index",
    "copy",
    "sort/scan",
    "random",
    "fft",
    "linalg",
    "collective",
    "custom-triton",
    "view",
    "host-sync",
    "unknown",
)

# The paper's I_lib is 1 for these and only these: closed or separately shipped libraries behind an API of their own.
VENDOR_LIBRARIES = frozenset(
    {
        "cuBLAS",
        "cuBLASLt",
        "cuDNN",
        "NCCL",
        "cuSPARSE",
        "cuSPARSELt",
        "cuSOLVER",
        "cuFFT",
        "oneDNN",
        "MKL/OpenBLAS",
    }
)
LIBRARIES = (
    *sorted(VENDOR_LIBRARIES),
    "CUTLASS-in-ATen",
    "FlashAttention-in-ATen",
    "FlashAttention",
    "Triton/Inductor",
    "Triton",
    "Gloo",
    "CUDA runtime",
    "ATen",
    "unknown",
)

FULL = frozenset({"float32", "float64", "complex64", "complex128"})
HALF = frozenset({"bfloat16", "float16"})
INTEGER = frozenset({"int8", "int16", "int32", "int64", "uint8", "bool"})
BF16, FP16 = frozenset({"bfloat16"}), frozenset({"float16"})
FP32, FP64 = frozenset({"float32"}), frozenset({"float64"})


@dataclass(frozen=True)
class OpRule:
    """``ops`` (space-separated base names) on ``device`` are of ``family`` and done by ``library``, for ``reason``.

    ``dtypes`` narrows the rule; one rule per op and device has ``None``, and answers for every other dtype.
    """

    code: str
    family: str
    device: Literal["cuda", "cpu", "any"]
    library: str
    reason: str
    ops: str
    dtypes: frozenset[str] | None = None


MATMUL = """mm bmm baddbmm matmul addbmm mv addmv dot vdot inner ger outer addr einsum tensordot chain_matmul bilinear
    linalg_matmul linalg_multi_dot linalg_vecdot _trilinear inductor._mm_plus_mm _mm_plus_mm matmul_backward
    linear_backward _foreach_mm _native._foreach_mm_native_0"""
LINEAR = "linear"
ADDMM = "addmm bias_addmm _addmm_activation"
SCALED_MM = "_scaled_mm _scaled_mm_v2 _int_mm"
PACKED_MM = """_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_with_scales_and_zeros
    _weight_int4pack_mm_for_cpu _dyn_quant_matmul_4bit _mixed_dtypes_linear"""
GROUPED = "_grouped_mm transformers.grouped_mm_fallback _scaled_grouped_mm _scaled_grouped_mm_v2"
CONVOLUTION = """conv1d conv2d conv3d convolution _convolution _convolution_mode conv_transpose1d conv_transpose2d
    conv_transpose3d conv_tbc convolution_overrideable thnn_conv2d _slow_conv2d_forward slow_conv3d slow_conv3d_forward
    slow_conv_transpose2d slow_conv_transpose3d slow_conv_dilated2d slow_conv_dilated3d convolution_backward"""
RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
SDPA = "scaled_dot_product_attention"
MULTI_HEAD = "_native_multi_head_attention _transformer_encoder_layer_fwd"
BATCH_NORM = "batch_norm _batch_norm_impl_index"
FFT = """fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2
    fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn _fft_c2c _fft_c2r _fft_r2c stft istft
    prims.fft_c2c prims.fft_c2r prims.fft_r2c"""
LINALG = """cholesky cholesky_inverse cholesky_solve _cholesky_solve_helper det logdet slogdet inverse pinverse geqrf
    qr orgqr ormqr svd lu_solve lu_unpack _lu_with_info _linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet
    _linalg_solve_ex _linalg_svd linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det linalg_eig linalg_eigh
    linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor
    linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve
    linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_svd linalg_svdvals
    linalg_tensorinv linalg_tensorsolve prims.svd"""
TRIANGULAR = "triangular_solve linalg_solve_triangular matrix_power linalg_matrix_power matrix_exp linalg_matrix_exp"
SPARSE_MM = """_sparse_mm _sparse_addmm sparse_sampled_addmm _sparse_sparse_matmul _spsolve hspmm smm sspaddmm
    _sparse_mm_reduce_impl"""
# each in the namespaces of torch's functional collectives
FUNCTIONAL_COLLECTIVES = """all_gather_into_tensor all_gather_into_tensor_coalesced all_gather_into_tensor_out
    all_reduce all_reduce_coalesced all_to_all_single broadcast reduce_scatter_tensor reduce_scatter_tensor_coalesced
    reduce_scatter_tensor_out isend irecv batch_p2p_ops wait_tensor"""
FUNCTIONAL_NAMESPACES = ("_c10d_functional", "c10d_functional", "_c10d_functional_autograd")
PROCESS_GROUP = """c10d._allgather_base_ c10d._reduce_scatter_base_ c10d.allgather_ c10d.allgather_coalesced_
    c10d.allgather_into_tensor_coalesced_ c10d.allreduce_ c10d.allreduce_coalesced_ c10d.alltoall_ c10d.alltoall_base_
    c10d.barrier c10d.broadcast_ c10d.gather_ c10d.monitored_barrier_ c10d.recv_ c10d.recv_any_source_ c10d.reduce_
    c10d.reduce_scatter_ c10d.reduce_scatter_tensor_coalesced_ c10d.scatter_ c10d.send _dtensor.shard_dim_alltoall"""
COLLECTIVES = " ".join(
    [PROCESS_GROUP, *(f"{space}.{op}" for space in FUNCTIONAL_NAMESPACES for op in FUNCTIONAL_COLLECTIVES.split())]
)
SYMMETRIC_MEMORY = """symm_mem.one_shot_all_reduce symm_mem.one_shot_all_reduce_out symm_mem.one_shot_all_reduce_copy
    symm_mem.two_shot_all_reduce_ symm_mem.two_shot_all_reduce_out symm_mem.multimem_all_reduce_
    symm_mem.multimem_all_gather_out symm_mem.multimem_one_shot_all_reduce symm_mem.reduce_scatter_out"""

LIBRARY_RULES: tuple[OpRule, ...] = (
    # ---- matrix multiplication
    OpRule("cuda.gemm.cublas", "gemm", "cuda", "cuBLAS", "ATen calls cublasGemmEx or its batched form", MATMUL),
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
        "the bias goes into cuBLASLt's epilogue; a bias that is not one contiguous row falls back to cuBLAS",
        ADDMM,
    ),
    OpRule(
        "cuda.scaled_mm.cublaslt",
        "gemm",
        "cuda",
        "cuBLASLt",
        "low-precision gemm on cublasLtMatmul; rowwise fp8 scales take ATen's CUTLASS kernel instead",
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
    # ---- convolution, recurrence, batch normalization
    OpRule(
        "cuda.conv.cudnn",
        "convolution",
        "cuda",
        "cuDNN",
        "ATen's backend choice is cuDNN unless the shape is depthwise without a cuDNN kernel",
        CONVOLUTION,
    ),
    OpRule(
        "conv.cudnn",
        "convolution",
        "any",
        "cuDNN",
        "the op is cuDNN's convolution",
        """cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu cudnn_convolution_transpose""",
    ),
    OpRule(
        "conv.depthwise",
        "convolution",
        "any",
        "ATen",
        "ATen's own depthwise kernel",
        "_conv_depthwise2d conv_depthwise3d",
    ),
    OpRule("cpu.conv.onednn", "convolution", "cpu", "oneDNN", "fp32 and bf16 convolutions are oneDNN's", CONVOLUTION),
    OpRule(
        "cpu.conv.mkl",
        "convolution",
        "cpu",
        "MKL/OpenBLAS",
        "oneDNN has no fp64 convolution: ATen unfolds it into a BLAS gemm",
        CONVOLUTION,
        FP64,
    ),
    OpRule(
        "cpu.conv.aten",
        "convolution",
        "cpu",
        "ATen",
        "fp16 needs AVX512-FP16 for oneDNN, integers have none: ATen's own loop",
        CONVOLUTION,
        FP16 | INTEGER,
    ),
    OpRule(
        "onednn.conv",
        "convolution",
        "any",
        "oneDNN",
        "the op is a oneDNN convolution with a fused epilogue",
        """mkldnn._convolution_pointwise mkldnn._convolution_pointwise_ mkldnn._convolution_transpose_pointwise
           mkldnn_convolution mkldnn._reorder_convolution_weight mkldnn._reorder_convolution_transpose_weight
           mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight onednn.qconv_pointwise onednn.qconv_prepack
           onednn.qconv1d_pointwise onednn.qconv2d_pointwise onednn.qconv3d_pointwise""",
    ),
    OpRule("cuda.rnn.cudnn", "recurrent", "cuda", "cuDNN", "ATen hands recurrent layers to cuDNN", RECURRENT),
    OpRule(
        "rnn.cudnn",
        "recurrent",
        "any",
        "cuDNN",
        "the op is cuDNN's",
        "_cudnn_rnn _cudnn_rnn_flatten_weight _cudnn_rnn_backward",
    ),
    OpRule(
        "rnn.aten", "recurrent", "any", "ATen", "ATen's own fused cell", "_thnn_fused_gru_cell _thnn_fused_lstm_cell"
    ),
    OpRule(
        "cpu.rnn.onednn",
        "recurrent",
        "cpu",
        "oneDNN",
        "fp32 and bf16 LSTMs are oneDNN's; other cells are gemms",
        RECURRENT,
    ),
    OpRule(
        "cpu.rnn.mkl",
        "recurrent",
        "cpu",
        "MKL/OpenBLAS",
        "no oneDNN path for fp64: gemms per time step",
        RECURRENT,
        FP64,
    ),
    OpRule(
        "cpu.rnn.aten",
        "recurrent",
        "cpu",
        "ATen",
        "no oneDNN path for fp16: ATen's gemm per time step",
        RECURRENT,
        FP16,
    ),
    OpRule(
        "onednn.rnn",
        "recurrent",
        "any",
        "oneDNN",
        "the op is oneDNN's",
        "mkldnn_rnn_layer mkldnn._reorder_mkldnn_rnn_layer_weight",
    ),
    OpRule(
        "cuda.batch_norm.cudnn",
        "normalization",
        "cuda",
        "cuDNN",
        "ATen picks cuDNN when weight, bias and running statistics are present, else its own kernel",
        BATCH_NORM,
    ),
    OpRule(
        "batch_norm.cudnn",
        "normalization",
        "any",
        "cuDNN",
        "the op is cuDNN's",
        "cudnn_batch_norm cudnn_batch_norm_backward",
    ),
    OpRule("cpu.batch_norm.aten", "normalization", "cpu", "ATen", "ATen's own kernel", BATCH_NORM),
    # ---- fft, linear algebra, sparse
    OpRule("cuda.fft.cufft", "fft", "cuda", "cuFFT", "every transform runs a cuFFT plan", FFT),
    OpRule(
        "cpu.fft.mkl", "fft", "cpu", "MKL/OpenBLAS", "transforms run MKL's DFTI (pocketfft where torch has no MKL)", FFT
    ),
    OpRule(
        "cuda.linalg.cusolver",
        "linalg",
        "cuda",
        "cuSOLVER",
        "factorizations are cuSOLVER's; small batches may take batched cuBLAS",
        LINALG,
    ),
    OpRule(
        "cuda.triangular.cublas",
        "linalg",
        "cuda",
        "cuBLAS",
        "triangular solves and matrix powers are cuBLAS calls",
        TRIANGULAR,
    ),
    OpRule(
        "cpu.linalg.lapack", "linalg", "cpu", "MKL/OpenBLAS", "LAPACK of the BLAS torch links", f"{LINALG} {TRIANGULAR}"
    ),
    OpRule("cuda.sparse.cusparse", "gemm", "cuda", "cuSPARSE", "sparse products are cuSPARSE's", SPARSE_MM),
    OpRule("cpu.sparse.mkl", "gemm", "cpu", "MKL/OpenBLAS", "CSR products use MKL's sparse BLAS", SPARSE_MM),
    OpRule(
        "sparse.cusparselt",
        "gemm",
        "any",
        "cuSPARSELt",
        "2:4 sparse products are cuSPARSELt's",
        "_cslt_sparse_mm _cslt_sparse_mm_search _cslt_compress",
    ),
    OpRule(
        "sparse.cutlass",
        "gemm",
        "any",
        "CUTLASS-in-ATen",
        "2:4 sparse products on torch's CUTLASS kernels",
        "_sparse_semi_structured_linear _sparse_semi_structured_mm _sparse_semi_structured_addmm",
    ),
    # ---- communication
    OpRule(
        "cuda.collective.nccl",
        "collective",
        "cuda",
        "NCCL",
        "CUDA process groups communicate through NCCL",
        COLLECTIVES,
    ),
    OpRule(
        "cpu.collective.gloo",
        "collective",
        "cpu",
        "Gloo",
        "CPU process groups use Gloo, which is not among the vendor libraries that I_lib counts",
        COLLECTIVES,
    ),
    OpRule(
        "collective.symmetric_memory",
        "collective",
        "any",
        "ATen",
        "torch's own symmetric-memory kernels",
        SYMMETRIC_MEMORY,
    ),
    # ---- the one elementwise op that a library takes
    OpRule("cuda.gelu.aten", "elementwise", "cuda", "ATen", "ATen's own kernel", "gelu"),
    OpRule(
        "cpu.gelu.onednn",
        "elementwise",
        "cpu",
        "oneDNN",
        "exact GELU in fp32 and bf16 is oneDNN's eltwise primitive; the tanh approximation is ATen's",
        "gelu",
    ),
    OpRule("cpu.gelu.aten", "elementwise", "cpu", "ATen", "oneDNN takes only fp32 and bf16 here", "gelu", FP16 | FP64),
)
