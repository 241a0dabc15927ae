"""Demangled kernel names as Kineto prints them (argument lists shortened), under their family and library."""

from __future__ import annotations

KERNEL_NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("gemm", "cuBLAS"): (
        "nvjet_tst_64x8_64x16_4x1_v_bz_TNT",
        "void batch_trsm_left_kernel<float, 64, 4, 3, false, false, true>(cublasTrsmBatchParams2<float>, float)",
        "void sgemm_largek_lds64<true, false, 5, 5, 4, 4, 4, 34>(float*, float const*, float const*, int, int)",
        "nvjet_sm90_hsh_128x64_64x9_2x1_v_bz_bias_TNN",
        # the return type is a template
        "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, __nv_bfloat16, "
        "__nv_bfloat16, float, false, true, true, false, 7, false, cublasGemvParamsEx<int, "
        "cublasGemvTensorStridedBatched<__nv_bfloat16 const>, float> >(cublasGemvParamsEx<int, float>)",
        "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, 128, 16, 4, 4, "
        "false, false, cublasGemvParamsEx<int> >(cublasGemvParamsEx<int>, float, float)",
        "void gemvNSP_kernel<float, float, float, float, 1, 16, 4, 1024, cublasGemvParamsEx<int> >(int)",
        "void splitKreduce_kernel<32, 16, int, float, float, float, float, true, false, false>(int)",
        "void gemmk1_kernel<int, float, 256, 5, false, false, false, false, cublasGemvTensorStridedBatched<float "
        "const> >(cublasGemmk1Params<float>)",
        "void dot_kernel<float, 128, 0, cublasDotParams<cublasGemvTensor<float const> > >(int)",
        "void reduce_1Block_kernel<float, 128, 7, cublasGemvTensorStridedBatched<float> >(float const*)",
        "ampere_sgemm_128x64_tn",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn",
        "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x32_stage4_warpsize2x2x1",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1_execute_segment_k_off",
        # 'cutlass_80_' is the name of a kernel that cuBLAS ships, 'cutlass::' a template that torch compiles
        "cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64_64x6_tn_align8>(cutlass_80_tensoro"
        "p_bf16_s16816gemm_relu_bf16_64x64_64x6_tn_align8::"
        "Params)",
    ),
    ("gemm", "cuBLASLt"): (
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, "
        "false>(cublasLt::cublasSplitKParams<float>, float const*)",
    ),
    ("attention", "cuDNN"): (
        # 'flash' and 'wgmma' in a name of cuDNN's
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x64x64_4x1x1_cga1x1x1_kernel0_0",
    ),
    ("convolution", "cuDNN"): (
        "void cudnn::cnn::conv2d_grouped_direct_kernel<false, true, false, false, 0, 0, int, float>(int)",
        # these say gemm, and are convolutions
        "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_stage3_g1_kernel_cudnn",
        "void implicit_convolve_sgemm<float, float, 128, 5, 5, 3, 3, 3, 1, false, false, true>(int, int)",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688fprop_optimized_tf32_64x64_16x10_nhwc_align4>(cutlass_t"
        "ensorop_s1688fprop_optimized_tf32_64x64_16x10_nhwc_align4::"
        "Params)",
    ),
    ("normalization", "cuDNN"): ("void cudnn::bn_fw_inf_1C11_kernel_NCHW<float, float, true, 1>(float, float)",),
    ("copy", "cuDNN"): (
        "void cudnn::ops::nchwToNhwcKernel<__half, __half, float, false, true, (cudnnKernelDataType_t)0>(int)",
    ),
    ("attention", "FlashAttention-in-ATen"): (
        # cutlass in the arguments, FlashAttention in the head
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::"
        "bfloat16_t, Flash_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t> >, false, true, false, false, "
        "true, true, false, false>(pytorch_flash::Flash_fwd_params)",
        "void pytorch_flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>, "
        "4, 7, true>(pytorch_flash::Flash_fwd_params)",
        "void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, cutlass::half_t> >(Flash_fwd_params)",
    ),
    ("attention", "FlashAttention"): (
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, cutlass::bfloat16_t> >(flash::Flash_fwd_params)",
    ),
    ("attention", "CUTLASS-in-ATen"): (
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t, "
        "cutlass::arch::Sm80, true, 64, 64, 64, true, true>::Params)",
    ),
    ("grouped-gemm", "CUTLASS-in-ATen"): (
        # H200, OLMoE: too long for the profiler to demangle
        "_ZN7cutlass13device_kernelIN2at4cuda6detail25enable_3x_kernel_for_sm9xINS_4gemm6kernel13GemmUniversal"
        "INS5_17GroupProblemShapeIN4cute5tupleIJiiiEEEEE",
        "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::"
        "GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int> >, cutlass::gemm::"
        "collective::CollectiveMma<cutlass::gemm::MainloopSm90ArrayTmaGmmaWarpSpecialized<8> > > > >(Params)",
        "void at::cuda::detail::prepare_grouped_gemm_data<cutlass::bfloat16_t, cutlass::bfloat16_t, cute::"
        "tuple<int> >(cutlass::bfloat16_t*)",
    ),
    ("gemm", "CUTLASS-in-ATen"): (
        "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::"
        "GemmUniversal<cute::tuple<int, int, int>, cutlass::float_e4m3_t> > >(Params)",
    ),
    ("gemm", "cuSPARSELt"): ("sm90_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_sptensorop",),
    ("gemm", "cuSPARSE"): (
        "void cusparse::csrmm_alg2_kernel<cusparse::CsrMMPolicy<256u>, true, false, long, float>(int)",
        "void cusparse::load_balancing_kernel<512u, int>(int)",
    ),
    ("collective", "NCCL"): ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",),
    ("fft", "cuFFT"): (
        "void regular_fft<128u, EPT<16u>, 8u, (padding_t)1, (twiddle_t)0, float>(kernel_arguments_t<unsigned int>)",
        "void vector_fft<64u, 8u, float>(kernel_arguments_t<unsigned int>)",
        "void prime_fft_r2c<127u, EPT<2u>, 1u, 32u, 1u, (padding_t)14>(kernel_arguments_t<unsigned int>)",
        "void regular_fft_factor<128u, EPT<16u>, 32u, 0u, (padding_t)14>(kernel_arguments_t<unsigned int>)",
        "void vector_fft_c2r<128u, EPT<8u>, 2u, 32u, (padding_t)70>(kernel_arguments_t<unsigned int>)",
        "void postprocess_kernel<float, unsigned int, (loadstore_modifier_t)2>(real_complex_args_t<unsigned int>)",
    ),
    ("linalg", "cuSOLVER"): (
        "void getrf_pivot<float, 64>(int, int, float*)",
        "void potrf_cta_lower<float, float, 5>(int, float*)",
        "copy_info_kernel(int, int*)",
        "xxtrf4_set_info_ker(int, int*)",
        "void kernel<getrf_wo_pivot_params_<float, 0, 256, 1, 64, 64, 68, 8, 1, 1> >(int, int, void*, int)",
        "void batched_svd_parallel_jacobi_32x16<float, float>(int, int, int, int, float*)",
        "void unblocked_LDinv_UDinv_kernel<float>(cublasFillMode_t, int, int, int, float*, unsigned long)",
        "void (anonymous namespace)::reduce_scaling<64l>(long, long**, long*)",
    ),
    ("linalg", "cuBLAS"): (  # batched: these take arrays of pointers
        "void getrf_semiwarp<float, float, 3, 1, true>(int, float* const*, int, int*, int*, int)",
        "void laswp_kernel<float, false>(int, float* const*, int, int, int, int const*, int, int, int)",
        "void geqr2_batch_kernel_shmem<float, float, 8, 32>(int, int, int, float* const*, int, float* const*, int)",
    ),
    ("linalg", "MAGMA"): (
        "void trsm_template_batched_lNL_kernel<float, 8, 16>(magma_diag_t, int, int, float, float**, int)",
    ),
    ("elementwise", "ATen"): (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, std::"
        "array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul>)",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, "
        "1ul> >(int, at::native::FillFunctor<float>, std::array<char*, 1ul>)",
        # an add that casts as it loads: no copy
        "void at::native::unrolled_elementwise_kernel<at::native::CUDAFunctor_add<float>, std::array<char*, "
        "3ul>, 4, TrivialOffsetCalculator<2, unsigned int>, at::native::memory::LoadWithCast<2> >(int)",
        # with_index, and no index kernel
        "void (anonymous namespace)::elementwise_kernel_with_index<int, at::native::arange_cuda_out(c10::Scalar "
        "const&, c10::Scalar const&, c10::Scalar const&, at::Tensor&)::{lambda()#1}>(int)",
    ),
    ("copy", "ATen"): (
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::"
        "TensorIteratorBase&)::{lambda()#3}::operator()() const::{lambda()#12}::operator()() const::"
        "{lambda(c10::BFloat16)#1}, std::array<char*, 2ul>, 4>(int)",
        "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16tofloat32_copy_kernel_cuda(at::"
        "TensorIteratorBase&)::{lambda(c10::BFloat16)#1}, std::array<char*, 2ul> >(int)",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::"
        "direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}> >(int)",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<at::native::(anonymous "
        "namespace)::OpaqueType<2u>, unsigned int, 4, 64, 64, 16, 8>(char*)",
    ),
    ("reduction", "cuDNN"): (
        "void cudnn::fusion::lean_reduction_kernel<false, false, false>(cudnn::fusion::Params)",  # H200, decode SDPA
    ),
    ("reduction", "ATen"): (
        # H200, OLMoE
        "void at::cuda::kernelHistogram1D<int, int, long, 1, 2, -1, (at::cuda::CUDAHistogramMemoryType)0, "
        "at::cuda::CUDA_tensor_histogram<int, int, false>(at::Tensor)::{lambda(long)#1}>(int)",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float, "
        "float, float>, unsigned int, float, 4, 4> >(at::native::ReduceOp<float>)",
        "void at_cuda_detail::cub::DeviceReduceSingleTileKernel<at_cuda_detail::cub::DeviceReducePolicy<int> >(int)",
    ),
    ("softmax", "ATen"): (
        "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, c10::BFloat16, float, c10::BFloat16, "
        "at::native::(anonymous namespace)::SoftMaxForwardEpilogue>(c10::BFloat16*, c10::BFloat16 const*, int)",
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 6, false, false>(float*, float const*)",
    ),
    ("normalization", "ATen"): (
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>(int)",
        "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>(long, float)",
    ),
    ("index", "ATen"): (
        "void at::native::index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<at::native::"
        "index_kernel_impl<at::native::OpaqueType<2> >(at::TensorIteratorBase&, c10::ArrayRef<long>)::"
        "{lambda(char*)#1}> >(long)",
        "void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long, long, long, bool)",
        "void at::native::(anonymous namespace)::indexSelectSmallIndex<c10::BFloat16, long, unsigned int, 2, 2, "
        "-2>(int)",
        "void at::native::(anonymous namespace)::indexFuncLargeIndex<c10::BFloat16, long, unsigned int, 2, 2, "
        "-2, true, at::native::ReduceAdd>(int)",
        "void at::native::_scatter_gather_elementwise_kernel<128, 8, at::native::"
        "_cuda_scatter_gather_internal_kernel<true> >(int)",
    ),
    ("sort/scan", "ATen"): (
        "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>(int)",
        "void at::native::bitonicSortKVInPlace<2, -1, 16, 16, float, long, at::native::LTOp<float, true>, "
        "unsigned int>(int)",
        "void at::native::tensor_kernel_scan_innermost_dim<int, std::plus<int> >(int*, int const*)",
        "void at_cuda_detail::cub::detail::scan::DeviceScanKernel<at_cuda_detail::cub::DeviceScanPolicy<int> >(int)",
        "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::"
        "DeviceRadixSortPolicy<long> >(int)",
    ),
    ("random", "ATen"): (
        "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel<unsigned int, 4, "
        "at::native::templates::cuda::uniform_and_transform<float> >(long, at::PhiloxCudaState)",
    ),
    ("elementwise", "Triton/Inductor"): (
        "triton_poi_fused__to_copy_add_0",
        # next to an attention, a gemm and a sort: the prefix decides
        "triton_poi_fused__scaled_dot_product_cudnn_attention_mm_sort_clone_3",
    ),
    ("reduction", "Triton/Inductor"): (
        "triton_red_fused__to_copy_add_embedding_mean_mul_pow_rsqrt_0",
        "triton_per_fused__softmax_2",
    ),
    ("gemm", "Triton/Inductor"): ("triton_tem_fused_addmm_relu_1",),
    ("attention", "Triton/Inductor"): ("triton_tem_fused_flex_attention_0",),
}
