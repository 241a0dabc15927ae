"""Kernel-name rules, first match first: which family and library a device kernel belongs to, by its demangled name.

What a rule may look at, and why, is told in ``family_kernels``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from taxbreak_fx.family_types import VENDOR_LIBRARIES
from taxbreak_fx.model import Classification


@dataclass(frozen=True)
class KernelRule:
    """Kernels whose head matches ``head`` and, if given, whose whole identity matches ``inside``."""

    code: str
    head: str
    family: str
    library: str
    reason: str
    inside: str = ""

    def matches(self, head: str, identity: str) -> bool:
        """Whether both patterns are found (``re.search``)."""
        return bool(re.search(self.head, head) and re.search(self.inside, identity))

    def classification(self) -> Classification:
        """The answer this rule gives."""
        i_lib = self.library in VENDOR_LIBRARIES
        return Classification(family=self.family, library=self.library, i_lib=i_lib, code=self.code, reason=self.reason)


_CPP = r"[<(]"
_TEMPLATE = r"<"
# Spelt out: index_elementwise_kernel and _scatter_gather_elementwise_kernel are index kernels.
_ELEMENTWISE = (
    r"^(at::native::(\w+::)*)?(vectorized_|unrolled_|vectorized_templated_|legacy_)?elementwise_kernel"
    r"(_with_index|_manual_unroll|_for_multi_outputs)?$"
)
_FOREACH = r"^at::native::(\w+::)*multi_tensor_apply_kernel$"
# some of ATen's kernels live in an anonymous namespace outside at::native
_IN_ATEN = r"at::native|\(anonymous namespace\)::"
_CONVOLUTION = r"xmma_(fprop|dgrad|wgrad)|implicit_gemm|implicit_convolve|explicit_convolve|cutlass__\w+_cudnn|winograd"
_CUBLAS = (
    r"^(gemv\w*|(internal::)?gemvx::\w+|gemmk1_kernel|gemm_kernel[12]x\d\w*|gemmSN_\w+|gemmBatched\w*|splitKreduce_kernel|"
    r"dot_kernel|reduce_1Block_kernel|scal_kernel\w*|axpy_kernel\w*|nrm2_kernel|asum_kernel|ger_kernel\w*|"
    r"(batched_)?trsm_\w+|trsv_\w+|syrk_\w+)$"
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
        r"^cusparse::|^(csr|coo|bsr)\w*_kernel$",
        "gemm",
        "cuSPARSE",
        "cuSPARSE's namespace, or a kernel named after a sparse format",
        _CPP,
    ),
    # ---- cuBLAS
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
    # ---- ATen
    KernelRule(
        "aten.copy",
        _ELEMENTWISE,
        "copy",
        "ATen",
        "ATen's elementwise template with a copy or cast functor",
        r"direct_copy_kernel_cuda|float\w*_copy_kernel_cuda",
    ),
    KernelRule("aten.copy_foreach", _FOREACH, "copy", "ATen", "ATen's foreach template with a copy functor", r"Copy<"),
    KernelRule(
        "aten.elementwise",
        rf"{_ELEMENTWISE}|{_FOREACH}",
        "elementwise",
        "ATen",
        "ATen's elementwise template; its functor is in the arguments",
        _IN_ATEN,
    ),
    KernelRule(
        "aten.cat",
        r"^at::native::.*(CatArrayBatchedCopy|chunk_cat|split_with_sizes_copy|roll_cuda|"
        r"reflection_pad|replication_pad|flip|im2col|col2im|pixel_shuffle)",
        "copy",
        "ATen",
        "ATen's kernel that moves blocks unchanged",
    ),
    KernelRule(
        "aten.random",
        r"^at::native::.*(distribution_|dropout|randperm|[mM]ultinomial|philox|uniform|poisson)",
        "random",
        "ATen",
        "ATen's random-number kernel",
    ),
    KernelRule(
        "aten.norm",
        r"^at::native::.*([lL]ayer_?[nN]orm|RowwiseMoments|[bB]atch_?[nN]orm|[gG]roup_?[nN]orm|"
        r"rms_?norm|ComputeFusedParams|GammaBeta|ComputeInternalGradients)",
        "normalization",
        "ATen",
        "ATen's normalization kernel",
    ),
    KernelRule(
        "aten.softmax",
        r"^(at::native::.*)?(cunn_\w*[sS]oft[mM]ax|softmax_warp|masked_softmax)",
        "softmax",
        "ATen",
        "ATen's softmax kernel",
        _IN_ATEN,
    ),
    KernelRule(
        "aten.sort_scan",
        r"^at::native::.*([sS]ort|topk::|[tT]opK|tensor_kernel_scan|_scan|gatherMedian|"
        r"gatherKth|computeMode|fill_reverse_indices|fill_index_and_segment|compute_mode)",
        "sort/scan",
        "ATen",
        "ATen's sort, top-k or scan kernel",
    ),
    KernelRule(
        "aten.index",
        r"^at::native::.*(index|gather|scatter|[eE]mbedding|masked_select|compute_cuda_kernel|"
        r"compute_grad_weight|krn_partial|upsample|grid_sampler|searchsorted|bucketize)",
        "index",
        "ATen",
        "ATen's indexing, gather, scatter or interpolation kernel",
    ),
    KernelRule(
        "aten.nonzero",
        r"^at::native::.*(write_indices|flag_kernel)",
        "sort/scan",
        "ATen",
        "the last step of ATen's nonzero",
    ),
    KernelRule("aten.attention", r"^at::native::.*rescale_qkv", "attention", "ATen", "ATen's own attention helper"),
    KernelRule(
        "aten.conv",
        r"^at::native::.*(conv_depthwise|convolution|vol2col)",
        "convolution",
        "ATen",
        "ATen's own depthwise or unfolding convolution",
    ),
    KernelRule(
        "aten.packed_mm",
        r"^at::native::.*(tinygemm|int4|int8|mixed_mm|gemm)",
        "gemm",
        "ATen",
        "ATen's own low-bit gemm",
    ),
    KernelRule("aten.rnn", r"^at::native::.*(lstm_cell|gru_cell)", "recurrent", "ATen", "ATen's fused recurrent cell"),
    KernelRule(
        "aten.reduce",
        r"^at::(native|cuda)::.*(reduce_kernel|kernelHistogram|pool|_loss|cdist|pdist|segment_reduce|"
        r"ctc_)",
        "reduction",
        "ATen",
        "ATen's reduction kernel",
    ),
    KernelRule(
        "aten.fill",
        r"^at::native::.*(triu_tril|triu|tril|eye|fill_diagonal|linspace|arange|_assert_async|"
        r"amp_)",
        "elementwise",
        "ATen",
        "ATen's kernel that computes each output element on its own",
    ),
    KernelRule(
        "aten.other",
        r"^at::(native|cuda)::",
        "unknown",
        "ATen",
        "ATen's namespace, but no rule knows what it computes; add one with register_family(..., on='kernel')",
    ),
    # ---- CUB and Thrust, as ATen wraps them
    KernelRule(
        "cub.reduce",
        r"(cub|thrust)::.*(DeviceReduce|DeviceSegmentedReduce|Reduce\w*Kernel|Histogram)",
        "reduction",
        "ATen",
        "a CUB reduction inside ATen",
    ),
    KernelRule(
        "cub.sort_scan",
        r"(cub|thrust)::.*(Scan|RadixSort|MergeSort|SegmentedSort|Select|Compact|Partition|"
        r"UniqueByKey|RunLength|Upsweep|Onesweep)",
        "sort/scan",
        "ATen",
        "a CUB sort, scan or select inside ATen",
    ),
    KernelRule(
        "thrust.sort_scan",
        r"^thrust::",
        "sort/scan",
        "ATen",
        "a Thrust sort, scan or unique inside ATen",
        r"__(merge_sort|radix_sort|scan|copy_if|unique|set_operations|partition)",
    ),
    KernelRule("thrust.reduce", r"^thrust::", "reduction", "ATen", "a Thrust reduction inside ATen", r"__reduce"),
    KernelRule(
        "thrust.transform",
        r"(thrust|cub)::",
        "elementwise",
        "ATen",
        "a Thrust transform or fill inside ATen",
        r"parallel_for|for_each|transform|uninitialized_fill",
    ),
    # ---- fft and linear algebra: short plain names, so last
    KernelRule(
        "cufft",
        r"^(regular_fft|vector_fft|composite_\d?way_fft|multi_bluestein_fft|bluestein_\w+|"
        r"[sdh]pRadix\w+(::\w+)?|cufft\w*(::\w+)?)$",
        "fft",
        "cuFFT",
        "cuFFT's kernel names",
        _CPP,
    ),
    KernelRule(
        "cusolver",
        r"^(cusolver\w*|getrf\w*|getf2\w*|getrs\w*|potrf\w*|potf2\w*|potrs\w*|geqrf\w*|geqr2\w*|"
        r"orgqr\w*|ormqr\w*|ormtr\w*|orm2r\w*|syevj?\w*|sytrd\w*|sytd2\w*|gesvd\w*|gebrd\w*|laswp\w*|larf\w*|"
        r"lansy\w*|stedc\w*)(::|$)",
        "linalg",
        "cuSOLVER",
        "LAPACK's routine names: cuSOLVER",
        _CPP,
    ),
)
