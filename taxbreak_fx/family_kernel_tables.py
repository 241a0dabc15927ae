"""Kernel-name rules, first match first: which family and library a device kernel belongs to, by its demangled name.

What a rule may look at, and why, is told in ``family_kernels``.
"""

from __future__ import annotations

from taxbreak_fx.family_kernels_aten import ATEN_KERNEL_RULES
from taxbreak_fx.family_types import KernelRule

_CPP = r"[<(]"
_TEMPLATE = r"<"
_CONVOLUTION = r"xmma_(fprop|dgrad|wgrad)|implicit_gemm|implicit_convolve|explicit_convolve|cutlass__\w+_cudnn|winograd"
_CUBLAS = (
    r"^(gemv\w*|(internal::)?gemvx::\w+|gemmk1_kernel|gemm_kernel[12]x\d\w*|gemmSN_\w+|gemmBatched\w*|gemmcn_\w+|"
    r"[sdch]gemm_\w+|splitKreduce_kernel|dot_kernel|reduce_1Block_kernel|scal_kernel\w*|axpy_kernel\w*|nrm2_kernel|"
    r"asum_kernel|ger_kernel\w*|(batch_|batched_|kernel_)?trsm_\w+|trsv_\w+|trmv_\w+|syrk_\w+)$"
)
# Its factorizations work on an array of pointers to const: float* const*.
_CUBLAS_BATCHED = r"^(getrf|getri|getrs|geqr2|geqrSolve|laswp)\w*$"
_CUSOLVER = (
    r"^(cusolver\w*|getrf\w*|getf2\w*|getrs\w*|potrf\w*|potf2\w*|potrs\w*|geqrf\w*|geqr2\w*|orgqr\w*|ormqr\w*|"
    r"ormtr\w*|orm2r\w*|syevb?j?\w*|sytrd\w*|sytd2\w*|gesvd\w*|gebrd\w*|gebal\w*|laswp\w*|larf\w*|lansy\w*|"
    r"stedc\w*|steqr\w*|lacpy_kernel|lascl_kernel|(batched_)?svd_\w+|(xxtrf4?|xx|potrf)_(re)?set_info\w*|"
    r"(copy|set)_info_kernel|adjust_pivot_kernel|ipiv_\w+|create_pivot\w*|batch_(FnrmA|eye|symmetrize)_\w+|"
    r"offA_stage\d|colperm_kernel|(column|row)_rotate_batch\w*|pegasus\w+|cuds_\w+|scale_max|find_nan_kernel|"
    r"shift_right_kernel|blocksize_decision_kernel|unblocked_\w+_kernel|kernel::\w+|bound_blocks_T|reduce_scaling|"
    r"batch_small_\w+|restore_quasitriangular_matrix|scale_consistently)(::|$)"
)

# First match wins.  Prefixed namespaces come before loose words.
KERNEL_RULES: tuple[KernelRule, ...] = (
    # ---- Triton kernels that Inductor wrote: the prefix is its kernel category
    KernelRule(
        "triton.pointwise",
        r"^triton_(poi|for)_",
        "elementwise",
        "Triton/Inductor",
        "Inductor's prefix for pointwise (poi) and foreach (for) kernels",
    ),
    KernelRule(
        "triton.reduction",
        r"^triton_(red|per)_",
        "reduction",
        "Triton/Inductor",
        "Inductor's prefix for looped (red) and persistent (per) reductions",
    ),
    KernelRule(
        "triton.other_reduction",
        r"^triton_unk_",
        "reduction",
        "Triton/Inductor",
        "Inductor's prefix for kernels of several categories: cooperative and mixed-order reductions",
    ),
    KernelRule("triton.scan", r"^triton_spl_", "sort/scan", "Triton/Inductor", "Inductor's prefix for split scans"),
    KernelRule(
        "triton.template.attention",
        r"^triton_tem_.*(flex_attention|flex_decoding)",
        "attention",
        "Triton/Inductor",
        "Inductor's Triton template (tem) of flex attention",
    ),
    KernelRule(
        "triton.template.grouped",
        r"^triton_tem_.*grouped_mm",
        "grouped-gemm",
        "Triton/Inductor",
        "Inductor's Triton template (tem) of a grouped gemm",
    ),
    KernelRule(
        "triton.template.convolution",
        r"^triton_tem_.*convolution",
        "convolution",
        "Triton/Inductor",
        "Inductor's Triton template (tem) of a convolution",
    ),
    KernelRule(
        "triton.template.gemm", r"^triton_tem_", "gemm", "Triton/Inductor", "Inductor's Triton template (tem) of a gemm"
    ),
    # ---- communication
    KernelRule("nccl", r"^nccl(Dev)?Kernel", "collective", "NCCL", "NCCL's kernel names start with ncclDevKernel"),
    KernelRule(
        "symmetric_memory",
        r"(one_shot|two_shot|multimem)_(all_reduce|all_gather|reduce)\w*kernel|"
        r"reduce_scatter_kernel",
        "collective",
        "ATen",
        "torch's own symmetric-memory kernel",
        _CPP,
    ),
    # ---- attention
    KernelRule(
        "flash.aten",
        r"^pytorch_flash::|^flash_(fwd|bwd)_\w*kernel$",
        "attention",
        "FlashAttention-in-ATen",
        "the FlashAttention that torch compiles in; 'cutlass' in its arguments is only its building blocks",
        _TEMPLATE,
    ),
    KernelRule(
        "flash.package",
        r"^flash::",
        "attention",
        "FlashAttention",
        "the flash-attn package, outside torch: its namespace is flash, torch's is pytorch_flash",
    ),
    KernelRule(
        "flash.package3",
        r"^cutlass::device_kernel$",
        "attention",
        "FlashAttention",
        "FlashAttention 3: a CUTLASS launcher whose argument is a kernel of namespace flash",
        r"device_kernel<flash::",
    ),
    KernelRule(
        "efficient_attention",
        r"^fmha_cutlass|PyTorchMemEffAttention",
        "attention",
        "CUTLASS-in-ATen",
        "memory-efficient attention, a CUTLASS kernel that torch compiles in",
    ),
    KernelRule(
        "cudnn.sdpa",
        r"^cudnn_generated_.*(sdpa|mha|fmha)|^cudnn::.*(sdpa|mha|fmha)",
        "attention",
        "cuDNN",
        "a kernel that cuDNN generated for attention; 'wgmma' in its name is the instruction it uses",
    ),
    # ---- cuDNN, before the gemm names that its convolutions contain
    KernelRule(
        "cudnn.norm",
        r"^cudnn::(\w+::)*bn_|^cudnn_generated_.*(norm|bn)_|^cudnn::.*[nN]orm",
        "normalization",
        "cuDNN",
        "cuDNN's normalization",
    ),
    KernelRule(
        "cudnn.rnn",
        r"^(cudnn::)?(\w+::)*(LSTM_|GRU_|RNN_|elemWiseRNNcell|persistRNN|rnn::)",
        "recurrent",
        "cuDNN",
        "cuDNN's recurrent cell",
    ),
    KernelRule("cudnn.softmax", r"^cudnn::.*softmax", "softmax", "cuDNN", "cuDNN's softmax"),
    KernelRule(
        "cudnn.layout",
        r"^cudnn::(\w+::)*(nchwToNhwc|nhwcToNchw|nhwcToFoldedNhwc|foldedNhwc|genericTranspose|"
        r"scalePackedTensor|nhwcAddPadding|setTensor)\w*",
        "copy",
        "cuDNN",
        "cuDNN's layout conversion",
    ),
    KernelRule(
        "cudnn.reduction",
        r"^cudnn::(\w+::)*lean_reduction_kernel",
        "reduction",
        "cuDNN",
        "cuDNN's reduction over split key-value blocks, seen after its attention kernels in decode steps",
    ),
    KernelRule("cudnn.pool", r"^cudnn::.*pool", "reduction", "cuDNN", "cuDNN's pooling"),
    KernelRule(
        "cudnn.conv",
        rf"^cudnn::cnn::|cudnn.*(conv|fprop|dgrad|wgrad)|{_CONVOLUTION}",
        "convolution",
        "cuDNN",
        "cuDNN's convolution; 'gemm' in its name is the implicit gemm it is computed as",
    ),
    KernelRule(
        "cudnn.conv_cutlass",
        r"^cutlass::Kernel2?$",
        "convolution",
        "cuDNN",
        "a CUTLASS kernel that cuDNN ships: the forward or gradient convolution is named in its argument",
        r"Kernel2?<cutlass_\w*(fprop|dgrad|wgrad)",
    ),
    KernelRule("cudnn.other", r"cudnn", "unknown", "cuDNN", "cuDNN's, but the name does not say what it computes"),
    # ---- cuSPARSE, before cuBLAS: its 2:4 kernels are xmma gemms by name
    KernelRule(
        "cusparselt",
        r"xmma_sparse_gemm|^cusparseLt|sptensorop",
        "gemm",
        "cuSPARSELt",
        "the 2:4 sparse gemm that cuSPARSELt ships",
    ),
    KernelRule(
        "cusparse",
        r"^cusparse::|^((csr|coo|bsr)\w*|convert_CooToCsr)_kernel$",
        "gemm",
        "cuSPARSE",
        "cuSPARSE's namespace, or a kernel named after a sparse format",
        _CPP,
    ),
    # ---- MAGMA and cuBLAS
    KernelRule(
        "magma",
        r"^\w+$",
        "linalg",
        "MAGMA",
        "MAGMA, compiled into torch: its types are among the kernel's parameters",
        r"\bmagma_\w+_t\b",
    ),
    KernelRule(
        "cublas.batched",
        _CUBLAS_BATCHED,
        "linalg",
        "cuBLAS",
        "a batched factorization or solve of cuBLAS: it takes an array of pointers, cuSOLVER's take one matrix",
        r"\*const\*",
    ),
    KernelRule(
        "cublas.nvjet",
        r"^nvjet_",
        "gemm",
        "cuBLAS",
        "Hopper's gemm kernel; cuBLAS and cuBLASLt share it, so the name does not say which was called",
    ),
    KernelRule("cublaslt", r"^cublasLt::", "gemm", "cuBLASLt", "cuBLASLt's namespace (split-K reduction, epilogue)"),
    KernelRule(
        "cublas.cutlass",
        r"^cutlass_\d+_\w*gemm|^cutlass::Kernel2?$",
        "gemm",
        "cuBLAS",
        "a CUTLASS kernel that cuBLAS ships: its name is the generator's, cutlass_<arch>_..., not a template",
        r"^cutlass_\d+_|Kernel2?<cutlass_\d+_",
    ),
    KernelRule(
        "cublas.xmma",
        r"^(sm\d+_)?xmma_gemm|^(volta|turing|ampere|hopper|maxwell|sm\d+)_\w*gemm",
        "gemm",
        "cuBLAS",
        "an architecture-named gemm (ampere_*gemm*, sm80_xmma_gemm*): cuBLAS's own kernels",
    ),
    KernelRule("cublas.namespace", r"^cublas::", "gemm", "cuBLAS", "cuBLAS's namespace"),
    KernelRule(
        "cublas.kernel", _CUBLAS, "gemm", "cuBLAS", "a vector, small-matrix or split-K kernel of cuBLAS", _TEMPLATE
    ),
    # ---- CUTLASS compiled into torch: the argument is a template, not a generator's name
    KernelRule(
        "cutlass.grouped",
        r"^cutlass::(device_kernel|Kernel2?)$",
        "grouped-gemm",
        "CUTLASS-in-ATen",
        "ATen's grouped gemm: a CUTLASS kernel over a group problem shape",
        r"GroupProblemShape|GemmGrouped|PtrArray|GroupedGemm",
    ),
    KernelRule(
        "cutlass.grouped_mangled",
        r"^_ZN7cutlass13device_kernelIN2at4cuda6detail\w*GroupProblem",
        "grouped-gemm",
        "CUTLASS-in-ATen",
        "ATen's grouped gemm, its name left mangled because it is longer than the profiler demangles",
    ),
    KernelRule(
        "cutlass.grouped_setup",
        r"^at::cuda::detail::prepare_grouped_gemm_data$",
        "grouped-gemm",
        "CUTLASS-in-ATen",
        "fills the pointer tables of ATen's grouped gemm",
    ),
    KernelRule(
        "cutlass.gemm",
        r"^cutlass::(device_kernel|Kernel2?)$",
        "gemm",
        "CUTLASS-in-ATen",
        "a CUTLASS gemm template that torch compiles in (fp8 rowwise, 2:4 sparse)",
        r"[gG]emm",
    ),
    *ATEN_KERNEL_RULES,
    # ---- fft and linear algebra: short plain names, so last
    KernelRule(
        "cufft",
        r"^((regular|vector|prime|composite_\d?way|multi_bluestein)_fft(_\w+)?|bluestein_\w+|"
        r"[sdh]pRadix\w+(::\w+)?|cufft\w*(::\w+)?)$",
        "fft",
        "cuFFT",
        "cuFFT's kernel names",
        _CPP,
    ),
    KernelRule(
        "cufft.real",
        r"^(pre|post)process_kernel$",
        "fft",
        "cuFFT",
        "cuFFT's step between real and complex data; its parameters say so",
        r"real_complex_args_t",
    ),
    KernelRule(
        "cusolver",
        _CUSOLVER,
        "linalg",
        "cuSOLVER",
        "LAPACK's routine names and cuSOLVER's helpers, as observed around them on an H200 (CUDA 13.0)",
        _CPP,
    ),
    KernelRule(
        "cusolver.template",
        r"^(kernel|epilogue)$",
        "linalg",
        "cuSOLVER",
        "cuSOLVER's kernel template; its parameter type names the LAPACK routine",
        r"<(getrf|sytrd)\w*_params",
    ),
)
