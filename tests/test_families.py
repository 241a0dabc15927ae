"""Families of ops: every op that real models dispatch is known; what users and plugins register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taxbreak_fx import families
from taxbreak_fx.errors import TaxbreakError, UsageError
from taxbreak_fx.families import (
    FAMILIES,
    LIBRARIES,
    classify_kernel,
    classify_op,
    launches_nothing,
    register_family,
)
from taxbreak_fx.family_kernel_tables import KERNEL_RULES
from taxbreak_fx.family_ops import OWN_RULES
from taxbreak_fx.family_products import PRODUCT_RULES
from taxbreak_fx.family_solvers import SOLVER_RULES
from taxbreak_fx.family_types import Condition, OpRule

RULES = (*PRODUCT_RULES, *SOLVER_RULES, *OWN_RULES)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No installed plugin, and nothing that a test registers outlives it."""
    monkeypatch.setattr(families, "_registered_ops", {})
    monkeypatch.setattr(families, "_registered_kernels", {})
    monkeypatch.setattr(families, "_plugins_loaded", True)
    families._classify_kernel.cache_clear()
    yield
    families._classify_kernel.cache_clear()


# ---- every op of the model families


class OpRecorder(TorchDispatchMode):
    """Collects the ops that are dispatched, and those called views whose output shares no input's storage."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()
        self.false_views: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        self.ops.add(name)
        if launches_nothing(name) and "empty" not in name:
            inputs = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if torch.is_tensor(leaf)}
            outputs = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(result) if torch.is_tensor(leaf)}
            if not outputs <= inputs:
                self.false_views.add(name)
        return result


CASES = [(name, None) for name in tiny_models.MODELS if name not in tiny_models.MOE_MODELS] + [
    (name, experts) for name in tiny_models.MOE_MODELS for experts in ("eager", "grouped_mm", "batched_mm")
]


@pytest.mark.parametrize(("name", "experts"), CASES)
def test_every_op_of_a_model_is_known(name: str, experts: str | None) -> None:
    dtype = torch.bfloat16 if experts == "grouped_mm" else torch.float32
    module = tiny_models.build(name, experts_implementation=experts, dtype=dtype)
    # inference_mode shows the composite ops that a model calls, no_grad the leaf ops below autograd
    for level, grad_mode in (("composite", torch.inference_mode), ("leaf", torch.no_grad)):
        for cache in ("static", "dynamic"):
            for phase, call in tiny_models.steps(module, cache=cache):  # type: ignore[arg-type]
                with grad_mode(), OpRecorder() as recorder:
                    call()
                where = f"{level} {cache} {phase}"
                assert not recorder.false_views, where
                for device in ("cpu", "cuda"):
                    found = {op: classify_op(op, device) for op in recorder.ops}
                    assert [op for op, known in found.items() if known.family == "unknown"] == [], where
                    assert {"gemm", "attention", "elementwise", "view"} <= {c.family for c in found.values()}, where
                assert ("aten.linear.default" in recorder.ops) == (level == "composite"), where
                assert ("aten._grouped_mm.default" in recorder.ops) == (experts == "grouped_mm"), where


def test_eager_attention_is_known() -> None:
    module = tiny_models.build("llama", attn_implementation="eager")
    for grad_mode, op in ((torch.inference_mode, "aten.softmax.int"), (torch.no_grad, "aten._softmax.default")):
        _, call = next(iter(tiny_models.steps(module)))
        with grad_mode(), OpRecorder() as recorder:
            call()
        assert op in recorder.ops
        assert [op for op in recorder.ops if classify_op(op, "cpu").family == "unknown"] == []


# ---- ops

OPS = [
    # op, device, dtype, family, library
    ("aten.mm.default", "cuda", None, "gemm", "cuBLAS"),
    ("aten::mm", "cuda", "bfloat16", "gemm", "cuBLAS"),
    ("mm", "cuda", None, "gemm", "cuBLAS"),
    ("extern:mm", "cuda", None, "gemm", "cuBLAS"),
    ("extern_kernels.bmm", "cuda", None, "gemm", "cuBLAS"),
    ("extern:bias_addmm", "cuda", None, "gemm", "cuBLASLt"),
    ("aten.baddbmm.default", "cuda", None, "gemm", "cuBLAS"),
    ("aten.matmul.default", "cuda", None, "gemm", "cuBLAS"),
    ("aten.linear.default", "cuda", None, "gemm", "cuBLAS"),
    ("aten.einsum.default", "cuda", None, "gemm", "cuBLAS"),
    ("aten.addmm.out", "cuda", None, "gemm", "cuBLASLt"),
    ("aten._scaled_mm.default", "cuda", None, "gemm", "cuBLASLt"),
    ("aten._grouped_mm.default", "cuda", "bfloat16", "grouped-gemm", "CUTLASS-in-ATen"),
    ("aten._grouped_mm.default", "cuda", "torch.float32", "grouped-gemm", "cuBLAS"),
    ("transformers::grouped_mm_fallback", "cuda", "float32", "grouped-gemm", "cuBLAS"),
    ("aten.convolution.default", "cuda", None, "convolution", "cuDNN"),
    ("aten.cudnn_convolution.default", "cuda", None, "convolution", "cuDNN"),
    ("aten.conv1d.default", "cuda", None, "convolution", "cuDNN"),
    ("aten.scaled_dot_product_attention.default", "cuda", None, "attention", "cuDNN"),
    ("aten.scaled_dot_product_attention.default", "cuda", "c10::BFloat16", "attention", "cuDNN"),
    ("aten.scaled_dot_product_attention.default", "cuda", "float32", "attention", "CUTLASS-in-ATen"),
    ("aten._scaled_dot_product_cudnn_attention.default", "cuda", None, "attention", "cuDNN"),
    ("aten._scaled_dot_product_flash_attention.default", "cuda", None, "attention", "FlashAttention-in-ATen"),
    ("aten._flash_attention_forward.default", "cuda", None, "attention", "FlashAttention-in-ATen"),
    ("aten._scaled_dot_product_efficient_attention.default", "cuda", None, "attention", "CUTLASS-in-ATen"),
    ("aten._efficient_attention_forward.default", "cuda", None, "attention", "CUTLASS-in-ATen"),
    ("aten.layer_norm.default", "cuda", None, "normalization", "ATen"),
    ("aten._fused_rms_norm.default", "cuda", None, "normalization", "ATen"),
    ("aten.rms_norm.default", "cuda", None, "normalization", "ATen"),
    ("aten.cudnn_batch_norm.default", "cuda", None, "normalization", "cuDNN"),
    ("aten._softmax.default", "cuda", None, "softmax", "ATen"),
    ("aten.add_.Tensor", "cuda", None, "elementwise", "ATen"),
    ("aten._foreach_mul_.Scalar", "cuda", None, "elementwise", "ATen"),
    ("aten._foreach_norm.Scalar", "cuda", None, "reduction", "ATen"),
    ("prims.add.default", "cuda", None, "elementwise", "ATen"),
    ("prims.convert_element_type.default", "cuda", None, "copy", "ATen"),
    ("aten.embedding.default", "cuda", None, "index", "ATen"),
    ("aten.topk.default", "cuda", None, "sort/scan", "ATen"),
    ("aten.nonzero.default", "cuda", None, "sort/scan", "ATen"),
    ("aten._local_scalar_dense.default", "cuda", None, "host-sync", "ATen"),
    ("aten.bernoulli_.float", "cuda", None, "random", "ATen"),
    ("aten.lstm.input", "cuda", None, "recurrent", "cuDNN"),
    ("aten._fft_r2c.default", "cuda", None, "fft", "cuFFT"),
    ("aten.linalg_cholesky_ex.default", "cuda", None, "linalg", "cuSOLVER"),
    ("aten._cslt_sparse_mm.default", "cuda", None, "gemm", "cuSPARSELt"),
    ("_c10d_functional.all_reduce.default", "cuda", None, "collective", "NCCL"),
    ("_c10d_functional.all_reduce_.default", "cuda", None, "collective", "NCCL"),
    ("_c10d_functional.all_reduce.default", "cpu", None, "collective", "Gloo"),
    ("higher_order.triton_kernel_wrapper_mutation", "cuda", None, "custom-triton", "Triton"),
    ("higher_order.triton_kernel_wrapper_functional", "cuda", None, "custom-triton", "Triton"),
    ("triton:triton_poi_fused_add_0", "cuda", None, "elementwise", "Triton/Inductor"),
    ("triton:my_fused_norm", "cuda", None, "custom-triton", "Triton"),
    # a user's Triton kernel may carry the name of a library's
    ("triton:flash_fwd_kernel", "cuda", None, "custom-triton", "Triton"),
    # names from Inductor on the CPU: grouped_mm, bmm and embedding are neighbours of these loops, not their content
    ("cpp:cpp_fused__grouped_mm_ge_masked_fill_mul_silu_split_transpose_unsqueeze_9", "cpu", None, "elementwise",
     "Triton/Inductor"),
    ("cpp:cpp_fused_add_embedding_mean_mul_pow_rsqrt_0", "cpu", None, "reduction", "Triton/Inductor"),
    ("cpp:cpp_fused__softmax_6", "cpu", None, "reduction", "Triton/Inductor"),
    ("cpp:cpp_fused_add_native_layer_norm_view_7", "cpu", None, "reduction", "Triton/Inductor"),
    ("cpp:cpp_fused_add_arange_cat_cumsum_expand_ne_slice_sub_unsqueeze_1", "cpu", None, "elementwise",
     "Triton/Inductor"),
    # On the CPU: what ONEDNN_VERBOSE and MKL_VERBOSE showed for torch 2.13 (x86, AVX512-BF16 but no AVX512-FP16)
    ("aten.linear.default", "cpu", "float32", "gemm", "MKL/OpenBLAS"),
    ("aten.linear.default", "cpu", "bfloat16", "gemm", "oneDNN"),
    ("aten.mm.default", "cpu", "float16", "gemm", "ATen"),
    ("aten.mm.default", "cpu", "int64", "gemm", "ATen"),
    ("aten._grouped_mm.default", "cpu", "float32", "grouped-gemm", "MKL/OpenBLAS"),
    ("aten._grouped_mm.default", "cpu", "bfloat16", "grouped-gemm", "oneDNN"),
    ("aten.conv2d.default", "cpu", "float32", "convolution", "oneDNN"),
    ("aten.conv2d.default", "cpu", "float64", "convolution", "MKL/OpenBLAS"),
    ("aten.lstm.input", "cpu", "float32", "recurrent", "oneDNN"),
    ("aten.gelu.default", "cpu", "float32", "elementwise", "oneDNN"),
    ("aten.gelu.default", "cuda", "float32", "elementwise", "ATen"),
    ("aten.addr.default", "cuda", None, "elementwise", "ATen"),
    ("aten.outer.default", "cpu", "float32", "elementwise", "ATen"),
    ("aten._cudnn_ctc_loss.default", "cuda", None, "reduction", "cuDNN"),
    ("aten.cudnn_grid_sampler.default", "cuda", None, "index", "cuDNN"),
    ("aten.cudnn_affine_grid_generator.default", "cuda", None, "index", "cuDNN"),
    ("aten.linalg_lu_solve.default", "cuda", None, "linalg", "cuBLAS"),
    ("aten.scaled_dot_product_attention.default", "cpu", None, "attention", "ATen"),
    ("aten._scaled_dot_product_flash_attention_for_cpu.default", "cpu", None, "attention", "ATen"),
    ("mkldnn._linear_pointwise.default", "cpu", None, "gemm", "oneDNN"),
    ("mkl._mkl_linear.default", "cpu", None, "gemm", "MKL/OpenBLAS"),
    ("aten.fft_fft.default", "cpu", None, "fft", "MKL/OpenBLAS"),
]  # fmt: skip
VENDORS = {
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


@pytest.mark.parametrize(("op", "device", "dtype", "family", "library"), OPS)
def test_op(op: str, device: str, dtype: str | None, family: str, library: str) -> None:
    known = classify_op(op, device, dtype=dtype)
    assert (known.family, known.library) == (family, library)
    assert known.i_lib == (library in VENDORS)
    assert known.code not in ("", "unknown") and known.reason


def test_cpu_attention_says_that_it_calls_a_gemm() -> None:
    assert "MKL" in classify_op("aten.scaled_dot_product_attention.default", "cpu").reason


def test_sdpa_on_cuda_says_that_the_policy_decides() -> None:
    assert "policy decides at run time" in classify_op("aten::scaled_dot_product_attention", "cuda").reason


def test_unknown_op_says_what_to_register() -> None:
    known = classify_op("mylib::attention.default", "cuda")
    assert (known.family, known.library, known.code, known.i_lib) == ("unknown", "unknown", "unknown", False)
    assert "register_family('mylib.attention'" in known.reason


def test_unknown_device_is_the_users_mistake() -> None:
    assert classify_op("aten.mm.default", "cuda:1").library == "cuBLAS"
    with pytest.raises(UsageError, match=r"'xpu'.*cuda, cpu"):
        classify_op("aten.mm.default", "xpu")


NOTHING = """view.default t.default transpose.int permute.default expand.default unsqueeze.default squeeze.dim
    squeeze_.dim slice.Tensor select.int split.Tensor chunk.default narrow.default detach.default detach_.default
    alias.default as_strided.default unbind.int sym_size.int empty.memory_format empty_like.default new_empty.default
    _unsafe_view.default lift_fresh.default _assert_tensor_metadata.default inductor._reinterpret_tensor
    prims.broadcast_in_dim.default"""
SOMETHING = """reshape.default flatten.using_ints contiguous.default to.dtype clone.default add.Tensor zeros.default
    copy_.default view_copy.default item.default dropout.default mylib.view"""


@pytest.mark.parametrize("op", NOTHING.split())
def test_launches_nothing(op: str) -> None:
    name = op if op.startswith(("inductor", "prims")) else f"aten.{op}"
    assert launches_nothing(name)
    assert classify_op(name, "cuda").family == "view"


@pytest.mark.parametrize("op", SOMETHING.split())
def test_launches_something(op: str) -> None:
    assert not launches_nothing(op if op.startswith("mylib") else f"aten.{op}")


def test_ops_that_may_launch_say_so() -> None:
    assert classify_op("aten.reshape.default", "cuda").family == "view"
    assert "else one copy kernel" in classify_op("aten.reshape.default", "cuda").reason
    assert classify_op("aten.to.dtype", "cuda").family == "copy"
    assert "only if" in classify_op("aten.to.dtype", "cuda").reason


# ---- the tables themselves


def test_rules_are_well_formed() -> None:
    codes = [rule.code for rule in (*RULES, *KERNEL_RULES)]
    assert len(codes) == len(set(codes))
    for rule in (*RULES, *KERNEL_RULES):
        assert rule.family in FAMILIES and rule.library in LIBRARIES and rule.reason, rule.code


def test_two_rules_for_one_op_are_refused() -> None:
    mine = OpRule("mine", "gemm", "cuda", "ATen", "because", "mm")
    with pytest.raises(ValueError, match=r"aten\.mm on cuda is claimed by rules cuda\.gemm\.cublas and mine"):
        families._build_table((*RULES, mine))


def test_rules_with_the_same_condition_are_refused_and_others_are_not() -> None:
    one, two = Condition("x", lambda inputs: True), Condition("y", lambda inputs: True)
    families._build_table((*RULES, OpRule("a", "gemm", "cuda", "ATen", "r", "mm", when=one)))
    with pytest.raises(ValueError, match=r"aten\.mm on cuda is claimed by rules a and b"):
        families._build_table([OpRule(code, "gemm", "cuda", "ATen", "r", "mm", when=one) for code in "ab"])
    table = families._build_table(
        [OpRule(code, "gemm", "cuda", "ATen", "r", "mm", when=when) for code, when in (("a", one), ("b", two))]
    )
    assert len(table["aten.mm", "cuda"]) == 2


def test_every_op_has_one_rule_that_answers_for_any_dtype_and_inputs() -> None:
    for (op, device), rules in families._TABLE.items():
        general = [rule.code for rule in rules if rule.dtypes is None and rule.when is None]
        assert len(general) == 1, (op, device, general)


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="the tables name ops of torch 2.13")
def test_every_op_in_the_tables_exists() -> None:
    names = [name.split("::", 1) for name in torch._C._dispatch_get_all_op_names()]
    known = {name.split(".")[0] for namespace, name in names if namespace == "aten"}
    not_ops = {"bias_addmm", "_mm_plus_mm"}  # Inductor's names for extern kernels
    aten = {op for rule in RULES for op in rule.ops.split() if "." not in op}
    missing = {op for op in aten - not_ops if op not in known and f"{op}_" not in known}
    assert missing == set()


# ---- registration

ENTRY: dict[str, Any] = {"family": "attention", "library": "MyLib", "i_lib": True, "reason": "calls mylib"}


def test_registered_op() -> None:
    register_family("mylib::attention", **ENTRY, device="cuda")
    known = classify_op("mylib.attention.default", "cuda")
    assert (known.family, known.library, known.i_lib, known.reason) == ("attention", "MyLib", True, "calls mylib")
    assert known.code == "registered:mylib::attention"
    assert classify_op("mylib.attention.default", "cpu").family == "unknown"
    register_family("mylib.attention", **ENTRY, device="cpu")
    register_family("mylib.as_view", **ENTRY | {"family": "view"})
    assert launches_nothing("mylib.as_view.default") and not launches_nothing("mylib.attention.default")


def test_registered_kernel() -> None:
    assert classify_kernel("my_attention_kernel_64").family == "unknown"
    register_family(r"^my_attention_kernel", **ENTRY, on="kernel")
    assert classify_kernel("my_attention_kernel_64").library == "MyLib"
    assert classify_op("triton:my_attention_kernel_64", "cuda").library == "MyLib"
    # an author knows his own kernel better than a rule that reads its name
    register_family(r"^nvjet_mine", **ENTRY, on="kernel")
    assert classify_kernel("nvjet_mine_64").library == "MyLib"
    assert classify_kernel("nvjet_tst_64").library == "cuBLAS"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: register_family("aten.mm", **ENTRY), r"aten\.mm on cuda has a rule already \(cuda\.gemm\.cublas\)"),
        (lambda: register_family("aten.add_", **ENTRY), r"aten\.add_ on cuda has a rule already"),
        (
            lambda: [register_family("m.f", **ENTRY) for _ in "12"],
            r"m\.f on cuda has a rule already \(registered:m\.f\)",
        ),
        (lambda: [register_family("^k", **ENTRY, on="kernel") for _ in "12"], r"'\^k' is registered already"),
        (lambda: register_family("(", **ENTRY, on="kernel"), r"'\(' is no regular expression"),
        (lambda: register_family("k", **ENTRY, on="kernel", device="cpu"), "kernels run on cuda"),
        (lambda: register_family("m.f", **ENTRY, device="tpu"), "'tpu'"),
        (lambda: register_family("m.f", **ENTRY | {"family": "magic"}), "no family 'magic'.*gemm"),
        (lambda: register_family("m.f", **ENTRY | {"family": "unknown"}), "no family 'unknown'"),
        (lambda: register_family("m.f", **ENTRY | {"reason": ""}), "non-empty"),
        (lambda: register_family("m.f", **ENTRY, on="graph"), "'graph'"),  # type: ignore[arg-type]
    ],
)
def test_bad_registration_is_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def install(monkeypatch: pytest.MonkeyPatch, *plugins: Callable[[Any], None]) -> None:
    """Pretend that ``plugins`` are the installed entry points, of packages mylib0, mylib1, ..."""
    entries = []
    for number, plugin in enumerate(plugins):
        entry = EntryPoint(name=f"plugin{number}", value=f"mylib{number}:register", group=families.ENTRY_POINT_GROUP)
        package = SimpleNamespace(name=f"mylib{number}")
        entries.append(SimpleNamespace(load=lambda plugin=plugin: plugin, dist=package, value=entry.value))
    monkeypatch.setattr(families, "entry_points", lambda group: entries if group == "taxbreak_fx.families" else [])
    monkeypatch.setattr(families, "_plugins_loaded", False)


def test_a_plugin_is_called_once_and_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def plugin(register: Any) -> None:
        calls.append(register)
        register("mylib.op", **ENTRY)

    install(monkeypatch, plugin)
    assert calls == []
    assert classify_op("mylib.op.default", "cuda").library == "MyLib"
    assert classify_kernel("nvjet_tst").library == "cuBLAS"
    assert calls == [register_family]


def test_a_failing_plugin_is_named_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def good(register: Any) -> None:
        register("mylib.op", **ENTRY)

    def bad(register: Any) -> None:
        register("mylib.other", **ENTRY)
        raise RuntimeError("no libmine.so")

    install(monkeypatch, good, bad)
    for _ in range(2):  # it fails again: nothing was swallowed, and the good plugin is no duplicate of itself
        with pytest.raises(TaxbreakError, match=r"^package mylib1 .*: no libmine\.so$"):
            classify_op("aten.mm.default", "cuda")
        assert families._registered_ops == {}


def test_a_plugin_that_registers_a_duplicate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda register: register("aten.mm", **ENTRY))
    with pytest.raises(TaxbreakError, match=r"package mylib0 .*aten\.mm on cuda has a rule already"):
        launches_nothing("aten.view.default")
