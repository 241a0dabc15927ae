"""Kernel-name rules of ATen's own kernels, and of CUB and Thrust as ATen wraps them; first match first.

What a rule may look at, and why, is told in ``family_kernels``.
"""

from __future__ import annotations

from taxbreak_fx.family_types import KernelRule

# Spelt out: index_elementwise_kernel and _scatter_gather_elementwise_kernel are index kernels.
_ELEMENTWISE = (
    r"^(at::native::(\w+::)*)?(vectorized_|unrolled_|vectorized_templated_|legacy_)?elementwise_kernel"
    r"(_with_index|_manual_unroll|_for_multi_outputs)?$|^at::native::_ele(ment|m)wise_kernel$"
)
_FOREACH = r"^at::native::(\w+::)*multi_tensor_apply_kernel$"
# some of ATen's kernels live in an anonymous namespace outside at::native
_IN_ATEN = r"at::native|\(anonymous namespace\)::"

ATEN_KERNEL_RULES: tuple[KernelRule, ...] = (
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
        r"^at::native::.*(CatArrayBatchedCopy|chunk_cat|split_with_sizes_copy|roll_cuda|_fft_conjugate_copy|"
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
        r"compute_grad_weight|krn_partial|upsample|grid_sampler|searchsorted|bucketize|"
        r"convert_indices|search_end_matrix_indices)",
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
        r"ctc_|coalesceValues)",
        "reduction",
        "ATen",
        "ATen's reduction kernel",
    ),
    KernelRule(
        "aten.jiterator",
        r"^reduction_prod_kernel$",
        "reduction",
        "ATen",
        "ATen's product over a dimension, compiled at run time: so it has a bare name",
    ),
    KernelRule(
        "aten.fill",
        r"^at::native::.*(triu_tril|triu|tril|eye|fill_diagonal|linspace|arange|_assert_async|"
        r"amp_|adjacent_difference)",
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
)
