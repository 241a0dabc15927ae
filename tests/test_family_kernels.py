"""Families of kernels: names that lie are seen through."""

from __future__ import annotations

import pytest
from kernel_names import KERNEL_NAMES

from taxbreak_fx.errors import UsageError
from taxbreak_fx.families import classify_kernel, kernel_identity

VENDORS = {"cuBLAS", "cuBLASLt", "cuDNN", "NCCL", "cuSPARSE", "cuSPARSELt", "cuSOLVER", "cuFFT"}


@pytest.mark.parametrize(
    ("name", "family", "library"), [(name, *expected) for expected, names in KERNEL_NAMES.items() for name in names]
)
def test_kernel(name: str, family: str, library: str) -> None:
    known = classify_kernel(name)
    assert (known.family, known.library, known.i_lib) == (family, library, library in VENDORS)
    assert known.code not in ("", "unknown") and known.reason


@pytest.mark.parametrize(
    "name",
    [
        "my_fused_norm",
        "dot_kernel",
        "flash_fwd_kernel",
        "gemm_kernel",
        "getrf",
        "vllm::rms(int)",
        "kernel",
        "lacpy_kernel",
        "kernel<int>(int)",
        "trsm_kernel",
        "postprocess_kernel<float>(int)",
    ],
)
def test_a_name_that_no_rule_knows_is_unknown(name: str) -> None:
    known = classify_kernel(name)
    assert (known.family, known.library, known.code) == ("unknown", "unknown", "unknown")
    assert "register_family(" in known.reason


def test_a_known_namespace_names_the_library_even_if_the_work_is_unknown() -> None:
    known = classify_kernel("void at::native::brand_new_kernel<float>(int)")
    assert (known.family, known.library, known.i_lib) == ("unknown", "ATen", False)
    known = classify_kernel("cudnn_generated_brand_new_thing_0")
    assert (known.family, known.library, known.i_lib) == ("unknown", "cuDNN", True)


def test_transfers_are_no_kernels() -> None:
    copy = classify_kernel("Memcpy HtoD (Pageable -> Device)", "memcpy")
    assert (copy.family, copy.library, copy.i_lib) == ("copy", "CUDA runtime", False)
    assert classify_kernel("Memset (Device)", "memset").code == "memset"


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("void  f<A<int> >(int,  float)", "f<A<int>>(int,float)"),
        ("f<A<int>>(int, float)", "f<A<int>>(int,float)"),
        ("std::enable_if<!(false), void>::type g::kernel<unsigned int>(P<int>)", "g::kernel<unsigned int>(P<int>)"),
        ("void (anonymous namespace)::h<int>(int)", "(anonymous namespace)::h<int>(int)"),
        ("void a::(anonymous namespace)::k<a::f(T&)::{lambda()#1}>(int)",
         "a::(anonymous namespace)::k<a::f(T&)::{lambda()#1}>(int)"),
        ("nvjet_tst_64x8", "nvjet_tst_64x8"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD (Pageable -> Device)"),
    ],
)  # fmt: skip
def test_kernel_identity(name: str, identity: str) -> None:
    assert kernel_identity(name) == identity
    assert kernel_identity(identity) == identity


def test_identity_keeps_add_and_mul_apart() -> None:
    template = "void at::native::vectorized_elementwise_kernel<4, at::native::{}<float>, std::array<char*, 3ul> >(int)"
    assert kernel_identity(template.format("CUDAFunctor_add")) != kernel_identity(template.format("MulFunctor"))


def test_unknown_kind_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match=r"'event'.*kernel, memcpy, memset"):
        classify_kernel("add", "event")
