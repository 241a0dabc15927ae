"""The op tables, second half: ops that ATen's own code carries out, and ops that launch nothing."""

from __future__ import annotations

from taxbreak_fx.family_types import OpRule

_OWN = "ATen's own code, no library behind it"
_VIEW = "changes sizes, strides or metadata on the host; no kernel"

# Launch no kernel and copy nothing, whatever their arguments.
VIEW = """view view_as view_as_real view_as_complex t numpy_T mT mH matrix_H adjoint transpose permute swapaxes
    swapdims movedim moveaxis expand expand_as broadcast_to broadcast_tensors unsqueeze squeeze unflatten slice
    slice_inverse select narrow split split_with_sizes chunk tensor_split hsplit vsplit dsplit unbind unfold
    unsafe_split unsafe_split_with_sizes unsafe_chunk diagonal linalg_diagonal detach alias as_strided real imag
    _unsafe_view _reshape_alias _reshape_from_tensor _conj _neg_view conj lift_fresh atleast_1d atleast_2d atleast_3d
    meshgrid empty empty_like empty_strided empty_permuted new_empty new_empty_strided empty_quantized resize resize_as
    set set_data data requires_grad size stride numel dim storage_offset sym_size sym_stride sym_numel
    sym_storage_offset sym_is_contiguous is_contiguous is_complex is_floating_point is_signed is_conj is_neg
    is_inference is_leaf is_pinned is_same_size is_set_to is_coalesced is_distributed output_nr get_device can_cast
    result_type promote_types _has_same_storage_numel _has_compatible_shallow_copy_type _debug_has_internal_overlap
    _version _is_zerotensor _efficientzerotensor retain_grad retains_grad _assert_tensor_metadata _assert_scalar
    _functional_assert_scalar sym_constrain_range sym_constrain_range_for_size _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _print _make_dep_token record_stream _shape_as_tensor _fused_sdp_choice
    _nnpack_available _use_cudnn_ctc_loss _use_cudnn_rnn_flatten_weight cudnn_is_acceptable values indices _values
    _indices crow_indices col_indices ccol_indices row_indices sparse_dim dense_dim _nnz sparse_coo_tensor
    sparse_csr_tensor sparse_compressed_tensor _sparse_coo_tensor_unsafe _sparse_csr_tensor_unsafe
    _sparse_compressed_tensor_unsafe _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors
    _cufft_get_plan_cache_size _cufft_set_plan_cache_max_size _cufft_get_plan_cache_max_size _cufft_clear_plan_cache
    _nested_view_from_buffer _nested_view_from_jagged _nested_get_values _nested_get_offsets _nested_get_lengths
    _nested_get_ragged_idx _nested_get_jagged_dummy _nested_get_min_seqlen _nested_get_max_seqlen prims.view_of
    prims.broadcast_in_dim prims.collapse_view prims.split_dim prims.squeeze prims.transpose prims.as_strided
    prims.empty_strided prims.empty prims.empty_permuted prims.view_of_dtype prims._make_token prims._sink_tokens
    inductor._reinterpret_tensor inductor._alloc_from_pool inductor.resize_storage_bytes_
    inductor_prims.inductor_reserve_rng_state inductor_prims.inductor_force_stride_order
    profiler._record_function_enter profiler._record_function_enter_new profiler._record_function_exit"""

RESHAPE = "reshape reshape_as flatten ravel positive resolve_conj resolve_neg lift"
MAY_COPY = """contiguous to type_as chalf _autocast_to_reduced_precision _autocast_to_full_precision resize_as_sparse
    pin_memory _pin_memory to_dense"""
COPY = """clone copy _copy_from _copy_from_and_resize _to_copy _to_cpu cat concat concatenate stack _stack hstack
    vstack dstack column_stack row_stack block_diag tile repeat pad constant_pad_nd _pad_enum _pad_circular
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle roll flip fliplr flipud rot90 fft_fftshift
    fft_ifftshift im2col col2im lift_fresh_copy _lazy_clone _cast_Float _cast_Half _cast_Double _cast_Int _cast_Long
    _cast_Byte _cast_Char _cast_Short _chunk_cat pad_sequence _pack_padded_sequence _pad_packed_sequence narrow_copy
    view_copy expand_copy permute_copy transpose_copy t_copy unsqueeze_copy squeeze_copy slice_copy select_copy
    split_copy split_with_sizes_copy unbind_copy unfold_copy as_strided_copy alias_copy detach_copy diagonal_copy
    view_as_real_copy view_as_complex_copy _reshape_copy _conj_copy _neg_view_copy to_mkldnn to_sparse _to_sparse
    to_sparse_csr _to_sparse_csr to_sparse_csc to_sparse_bsr to_sparse_bsc _to_dense coalesce
    _coalesce _nested_from_padded nested_to_padded_tensor to_padded_tensor _jagged_to_padded_dense_forward
    _padded_dense_to_jagged_forward prims.convert_element_type prims.device_put prims.copy_to prims.clone
    prims.copy_strided prims.collapse prims.reshape prims.rev prims.cat prims.resize"""

ELEMENTWISE = """abs absolute acos acosh add _add_relu addcdiv addcmul addr ger outer
    angle arange arccos arccosh arcsin arcsinh
    arctan arctan2 arctanh asin asinh atan atan2 atanh bartlett_window bitwise_and bitwise_left_shift bitwise_not
    bitwise_or bitwise_right_shift bitwise_xor blackman_window ceil celu clamp clamp_max clamp_min clip complex
    conj_physical _conj_physical copysign cos cosh cross linalg_cross deg2rad diff digamma div divide elu elu_backward
    eq erf erfc erfinv exp exp2 expm1 eye fft_fftfreq fft_rfftfreq fill fill_diagonal fix float_power floor
    floor_divide fmax fmin fmod frac frexp full full_like gcd ge gelu_backward glu glu_backward gradient greater
    greater_equal gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma
    igammac isclose isfinite isinf isnan isneginf isposinf isreal kaiser_window kron lcm ldexp le leaky_relu
    leaky_relu_backward lerp less less_equal lgamma linspace log log10 log1p log2 log_sigmoid log_sigmoid_forward
    logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit logspace lt masked_fill maximum minimum
    mish mul multiply mvlgamma nan_to_num ne neg negative new_full new_ones new_zeros nextafter not_equal ones
    ones_like polar polygamma pow prelu _prelu_kernel rad2deg range reciprocal relu relu6 remainder round rrelu rsqrt
    rsub scalar_tensor selu sgn sigmoid sigmoid_backward sign signbit silu silu_backward sin sinc sinh softplus
    softplus_backward softshrink special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0
    special_bessel_y1 special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2
    special_expit special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1
    special_i1e special_log1p special_log_ndtr special_logit special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri
    special_polygamma special_psi special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
    special_sinc special_spherical_bessel_j0 special_xlog1py special_xlogy special_zeta sqrt square sub subtract tan
    tanh tanh_backward threshold threshold_backward tril tril_indices triu triu_indices true_divide trunc vander where
    xlogy zero zeros zeros_like cartesian_prod combinations rrelu_with_noise _masked_scale
    quantize_per_tensor quantize_per_channel dequantize fake_quantize_per_tensor_affine
    fake_quantize_per_channel_affine int_repr __and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__
    __ilshift__ __irshift__ _fused_adam _fused_adamw _fused_sgd _fused_adagrad
    _amp_foreach_non_finite_check_and_unscale _amp_update_scale _assert_async _functional_assert_async prims.fma
    prims.iota prims.bessel_i0 prims.bessel_i0e prims.bessel_i1 prims.bessel_i1e prims.bessel_j0 prims.bessel_j1
    prims.cbrt prims.erf_inv prims.erfcx prims.ndtri prims.shift_left prims.shift_right_arithmetic
    prims.spherical_bessel_j0 prims.zeta prims.maximum_value prims.minimum_value inductor_prims.fma onednn.qadd
    onednn.qadd_relu onednn.qmul"""
REDUCTION = """all any amax amin aminmax _aminmax argmax argmin sum mean prod max min nansum nanmean median nanmedian
    std std_mean var var_mean norm _foreach_norm native_norm frobenius_norm nuclear_norm norm_except_dim
    linalg_vecdot
    linalg_vector_norm linalg_norm linalg_matrix_norm linalg__powsum logsumexp special_logsumexp count_nonzero histc
    bincount histogram histogramdd trace dist cdist _cdist_forward _euclidean_dist pdist _pdist_forward
    pairwise_distance cosine_similarity cov corrcoef sum_to_size trapezoid trapz avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d
    segment_reduce mse_loss l1_loss smooth_l1_loss huber_loss kl_div nll_loss nll_loss_nd nll_loss_forward nll_loss2d
    nll_loss2d_forward cross_entropy_loss binary_cross_entropy binary_cross_entropy_with_logits ctc_loss _ctc_loss
    poisson_nll_loss margin_ranking_loss hinge_embedding_loss cosine_embedding_loss triplet_margin_loss
    multi_margin_loss multilabel_margin_loss soft_margin_loss hash_tensor _sparse_sum _sparse_csr_sum _sparse_csr_prod
    _is_all_true _is_any_true _weight_norm _weight_norm_interface _choose_qparams_per_tensor prims.xor_sum
    inductor_prims.prepare_softmax_online inductor_prims._low_memory_max_pool_with_offsets"""
NORMALIZATION = """layer_norm native_layer_norm native_layer_norm_backward rms_norm _fused_rms_norm
    _fused_rms_norm_backward group_norm native_group_norm instance_norm native_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training _native_batch_norm_legit_functional _batch_norm_no_update
    _batch_norm_with_update batch_norm_stats batch_norm_elemt batch_norm_gather_stats
    batch_norm_gather_stats_with_counts batch_norm_update_stats native_batch_norm_backward renorm"""
SOFTMAX = """softmax _softmax log_softmax _log_softmax _safe_softmax _masked_softmax special_softmax
    special_log_softmax _softmax_backward_data _log_softmax_backward_data _sparse_softmax _sparse_log_softmax"""
INDEX = """index index_select index_add index_copy index_fill index_put index_reduce _index_put_impl _unsafe_index
    _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate embedding embedding_bag _embedding_bag
    _embedding_bag_forward_only embedding_renorm embedding_dense_backward gather scatter scatter_add scatter_reduce
    take take_along_dim put masked_select masked_scatter one_hot repeat_interleave select_scatter slice_scatter
    diagonal_scatter as_strided_scatter diag diag_embed diagflat bucketize searchsorted max_unpool2d max_unpool3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler grid_sampler_2d grid_sampler_3d sparse_mask
    prims.as_strided_scatter inductor_prims._low_memory_max_pool_offsets_to_indices inductor_prims._unsafe_index_put_"""
SORT_SCAN = """sort argsort msort topk kthvalue mode cumsum cumprod cummax cummin _cummax_helper _cummin_helper
    logcumsumexp _logcumsumexp cumulative_trapezoid quantile nanquantile isin"""
SELECT = """nonzero nonzero_numpy nonzero_static argwhere unique_consecutive unique_dim unique_dim_consecutive _unique
    _unique2"""
RANDOM = """rand rand_like randn randn_like randint randint_like random randperm uniform normal normal_functional
    log_normal bernoulli binomial cauchy exponential geometric poisson multinomial _standard_gamma _sample_dirichlet
    native_dropout _fused_dropout _cudnn_init_dropout_state _philox_uniform _philox_normal _philox_key_split
    _philox_key_fold_in rrelu_with_noise_functional prims.normal prims.uniform rngprims.philox_rand
    inductor_prims.inductor_seed inductor_prims.inductor_seeds inductor_prims.inductor_lookup_seed
    inductor_prims.inductor_random inductor_prims.inductor_randint inductor_prims.inductor_rand_eager_offset
    inductor_prims.inductor_rand_eager_offsets"""
DROPOUT = "dropout feature_dropout alpha_dropout feature_alpha_dropout"
HOST_SYNC = """item _local_scalar_dense is_nonzero equal allclose _linalg_check_errors prims.item"""

OWN_RULES: tuple[OpRule, ...] = (
    OpRule("view", "view", "any", "ATen", _VIEW, VIEW),
    OpRule("view.may_copy", "view", "any", "ATen", "a view where the strides allow it, else one copy kernel", RESHAPE),
    OpRule(
        "copy.may_skip",
        "copy",
        "any",
        "ATen",
        "copies only if dtype, device or layout differ from what is asked, else returns its input",
        MAY_COPY,
    ),
    OpRule("copy", "copy", "any", "ATen", "moves data unchanged, up to a cast", COPY),
    OpRule("cuda.elementwise", "elementwise", "cuda", "ATen", _OWN, ELEMENTWISE),
    OpRule(
        "cpu.elementwise",
        "elementwise",
        "cpu",
        "ATen",
        "ATen's own loop; transcendental functions may call MKL's vector math inside",
        ELEMENTWISE,
    ),
    OpRule("reduction", "reduction", "any", "ATen", _OWN, REDUCTION),
    OpRule("normalization", "normalization", "any", "ATen", _OWN, NORMALIZATION),
    OpRule("softmax", "softmax", "any", "ATen", _OWN, SOFTMAX),
    OpRule("index", "index", "any", "ATen", "reads or writes at computed positions; " + _OWN, INDEX),
    OpRule("sort_scan", "sort/scan", "any", "ATen", "ATen's own kernels (CUB on CUDA)", SORT_SCAN),
    OpRule(
        "sort_scan.dynamic",
        "sort/scan",
        "any",
        "ATen",
        "a scan that compacts (CUB on CUDA); its output size is data-dependent, so it waits for the device",
        SELECT,
    ),
    OpRule("random", "random", "any", "ATen", "draws random numbers with ATen's generators", RANDOM),
    OpRule(
        "random.dropout", "random", "any", "ATen", "draws a mask in training, returns its input in eval mode", DROPOUT
    ),
    OpRule(
        "host_sync", "host-sync", "any", "ATen", "brings a value to the host: the host waits for the device", HOST_SYNC
    ),
    OpRule(
        "triton.user",
        "custom-triton",
        "any",
        "Triton",
        "a Triton kernel of the model's author",
        "higher_order.triton_kernel_wrapper_mutation higher_order.triton_kernel_wrapper_functional",
    ),
)
