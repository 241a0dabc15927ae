"""Convolution, recurrence, transforms, linear algebra, sparse ops and communication: which library serves them.

A row is one rule; its ``ops`` are base names without overload, in namespace ``aten`` unless another is written.
In-place (``add_``) and ``_foreach_`` forms need no entry: ``families`` derives them from the base name.
The CUDA rows are what an H200 showed with torch 2.11 (tests/data/observed_h200.json); the CPU rows were checked with
``ONEDNN_VERBOSE`` and ``MKL_VERBOSE``.
"""

from __future__ import annotations

from taxbreak_fx.family_conditions import (
    BATCHED,
    DEPTHWISE,
    FEW_RIGHT_HAND_SIDES,
    MANY_SMALL_SYSTEMS,
    SMALL_SQUARE_BATCH,
    SMALL_SYSTEMS_WITHOUT_Q,
    SPARSE,
)
from taxbreak_fx.family_types import FP16, FP64, INTEGER, OpRule

CONVOLUTION = """conv1d conv2d conv3d convolution _convolution _convolution_mode conv_transpose1d conv_transpose2d
    conv_transpose3d conv_tbc convolution_overrideable thnn_conv2d _slow_conv2d_forward slow_conv3d slow_conv3d_forward
    slow_conv_transpose2d slow_conv_transpose3d slow_conv_dilated2d slow_conv_dilated3d convolution_backward"""
RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
BATCH_NORM = "batch_norm _batch_norm_impl_index"
FFT = """fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2
    fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn _fft_c2c _fft_c2r _fft_r2c stft istft
    prims.fft_c2c prims.fft_c2r prims.fft_r2c"""
LINALG = """cholesky cholesky_inverse cholesky_solve _cholesky_solve_helper det logdet slogdet inverse pinverse geqrf
    qr orgqr ormqr svd lu_unpack _lu_with_info _linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet
    _linalg_solve_ex _linalg_svd linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det linalg_eig linalg_eigh
    linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor
    linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex
    linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_svd linalg_svdvals
    linalg_tensorinv linalg_tensorsolve prims.svd"""
LU = """_lu_with_info linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_inv linalg_inv_ex inverse linalg_det
    _linalg_det det logdet linalg_slogdet _linalg_slogdet slogdet linalg_solve linalg_solve_ex _linalg_solve_ex"""
LU_SOLVE = "linalg_lu_solve lu_solve"
CHOLESKY_SOLVE = "cholesky_solve _cholesky_solve_helper cholesky_inverse"
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

SOLVER_RULES: tuple[OpRule, ...] = (
    # ---- convolution, recurrence, batch normalization
    OpRule(
        "cuda.conv.cudnn",
        "convolution",
        "cuda",
        "cuDNN",
        "ATen's backend choice is cuDNN; observed in one to three dimensions, dilated, transposed and backward",
        CONVOLUTION,
    ),
    OpRule(
        "cuda.conv.depthwise",
        "convolution",
        "cuda",
        "ATen",
        "ATen keeps depthwise convolutions for its own kernel, but for channels-last ones and fp16 ones of 32 channels "
        "and more; observed for bf16, fp16 and fp32, Mamba's causal conv1d among them",
        "convolution _convolution",
        when=DEPTHWISE,
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
    OpRule(
        "cudnn.loss",
        "reduction",
        "any",
        "cuDNN",
        "the op is cuDNN's CTC loss",
        "_cudnn_ctc_loss",
    ),
    OpRule(
        "cudnn.sampler",
        "index",
        "any",
        "cuDNN",
        "the op is cuDNN's spatial transformer",
        """cudnn_grid_sampler cudnn_grid_sampler_backward cudnn_affine_grid_generator
           cudnn_affine_grid_generator_backward""",
    ),
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
        "factorizations are cuSOLVER's, which calls cuBLAS inside; a batch may take other routines around it",
        LINALG,
    ),
    OpRule(
        "cuda.lu.cublas",
        "linalg",
        "cuda",
        "cuBLAS",
        "ATen factorizes small square batches with cublas<t>getrfBatched; observed at 16 matrices of 8 x 8",
        LU,
        when=SMALL_SQUARE_BATCH,
    ),
    OpRule(
        "cuda.lu_solve.cublas",
        "linalg",
        "cuda",
        "cuBLAS",
        "ATen solves with cublas<t>trsm, or cublas<t>getrsBatched for small matrices; both observed",
        LU_SOLVE,
    ),
    OpRule(
        "cuda.lu_solve.cusolver",
        "linalg",
        "cuda",
        "cuSOLVER",
        "ATen loops cusolverDn<t>getrs over one or two matrices; from its source, not observed",
        "linalg_lu_solve",
        when=FEW_RIGHT_HAND_SIDES,
    ),
    OpRule(
        "cuda.cholesky_solve.magma",
        "linalg",
        "cuda",
        "MAGMA",
        "ATen gives batches to the MAGMA that is compiled into torch, which is not among the vendor libraries that "
        "I_lib counts; observed at 16 matrices of 8 x 8",
        CHOLESKY_SOLVE,
        when=BATCHED,
    ),
    OpRule(
        "cuda.least_squares.cublas",
        "linalg",
        "cuda",
        "cuBLAS",
        "ATen calls cublas<t>gelsBatched or cublas<t>geqrfBatched for many matrices of few rows; observed at 16 "
        "matrices of 8 x 8",
        "linalg_lstsq geqrf",
        when=MANY_SMALL_SYSTEMS,
    ),
    OpRule(
        "cuda.qr_r.cublas",
        "linalg",
        "cuda",
        "cuBLAS",
        "ATen calls cublas<t>geqrfBatched for many matrices of few rows, and nothing after it for R alone; the first "
        "observed in mode 'reduced' at 16 matrices of 8 x 8, the second from its source",
        "linalg_qr",
        when=SMALL_SYSTEMS_WITHOUT_Q,
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
        "cuda.triangular.cusparse",
        "linalg",
        "cuda",
        "cuSPARSE",
        "a triangular solve with a sparse matrix is cusparseSpSM's; observed on CSR",
        "triangular_solve",
        when=SPARSE,
    ),
    OpRule(
        "cpu.linalg.lapack",
        "linalg",
        "cpu",
        "MKL/OpenBLAS",
        "LAPACK of the BLAS torch links",
        f"{LINALG} {LU_SOLVE} {TRIANGULAR}",
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
