"""Predicted × observed libraries: attribution per op, the rules of a mismatch, the control, the command's exit codes.

The ears and the profiler are fakes here: a script says which calls are heard, and which kernels run, during which op.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from taxbreak_fx import verify
from taxbreak_fx.cli import main
from taxbreak_fx.errors import CaptureError, MeasurementError, UsageError
from taxbreak_fx.families import classify_op
from taxbreak_fx.library_calls import _LEVEL_LOGGERS, COMPLETE, LibraryCall, LoggerEars
from taxbreak_fx.models import load
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.verify import OUTSIDE, Seen, Step, Verification, compare, control, verify_steps, verify_workload
from taxbreak_fx.verify_probes import probe_steps
from taxbreak_fx.verify_text import verification_json, verification_text
from taxbreak_fx.workload import Workload

GEMM, LT, CUDNN = LibraryCall("cuBLAS", "cublasGemmEx"), LibraryCall("cuBLASLt", "cublasLtMatmul"), "cuDNN"
ATEN_KERNEL = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)"
FLASH_KERNEL = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>(pytorch_flash::Flash_fwd_params)"
FFT_KERNEL = "void regular_fft<128u, EPT<8u>>(kernel_arguments_t<unsigned int>)"
POTRF_KERNEL = "void potrf_alg2_cta_upper<float, float, 5>(int, int)"


class Script(TorchDispatchMode):
    """Ears that hear ``calls[op]`` during each run of an op, and a profiler that sees ``kernels[op]``."""

    def __init__(self, calls: dict[str, list[LibraryCall]], kernels: dict[str, list[str]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[LibraryCall] = []
        self.hears = COMPLETE
        self._heard, self._kernels = calls, kernels or {}
        self._ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._ran.append(str(func))
        self.calls += self._heard.get(str(func), [])
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def listen(self) -> Iterator[Script]:
        self._ran.clear()
        self.calls.clear()
        with self:
            yield self

    def profile(self, run: Callable[[], None]) -> list[dict[str, Any]]:
        """The trace of ``run``: op k occupies 10 µs from 10 k, and launches its kernels then."""
        run()
        events: list[dict[str, Any]] = [event("cpu_op", verify._WHOLE, 0.0, 10.0 * len(self._ran) + 1)]
        for index, op in enumerate(self._ran):
            events.append(event("cpu_op", f"{verify._OP}{index}", 10.0 * index, 9.0))
            for number, kernel in enumerate(self._kernels.get(op, [ATEN_KERNEL])):
                ids = {"correlation": 100 * index + number}
                events.append(event("cuda_runtime", "cudaLaunchKernel", 10.0 * index + 1 + number, 0.5, **ids))
                events.append(event("kernel", kernel, 10.0 * index + 3 + number, 0.5, **ids))
        return events


def event(category: str, name: str, at: float, duration: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": at, "dur": duration, "args": args}


def verified(script: Script, *steps: Step, mislabel: str | None = None) -> Verification:
    return verify_steps("test", steps, mislabel, script.listen, script.profile)


def linear_step() -> Step:
    x, weight, bias = torch.ones(3, 4), torch.ones(5, 4), torch.ones(5)
    return Step("linear", lambda: torch.nn.functional.linear(x, weight, bias).relu().relu())


def test_calls_belong_to_the_op_that_made_them() -> None:
    script = Script({"aten.addmm.default": [LT]}, {"aten.t.default": []})
    found = verified(script, linear_step())
    assert [(check.op, check.runs, check.observed) for check in found.checks] == [
        ("aten.t.default", 1, ()),
        ("aten.addmm.default", 1, ("cuBLASLt",)),
        ("aten.relu.default", 2, ()),  # equal runs are one row
    ]
    assert (found.ops, found.calls, found.mismatches) == (4, 1, [])
    assert found.checks[1].functions == ("cublasLtMatmul",) and found.checks[1].kernels == (ATEN_KERNEL,)
    assert [check.evidence for check in found.checks] == ["silence", "logger", "silence"]
    assert found.control.found
    assert (found.control.op, found.control.library, found.control.mislabelled) == (
        "aten.addmm.default", "cuBLASLt", "ATen",
    )  # fmt: skip


def seen(
    op: str, *calls: LibraryCall, kernels: tuple[str, ...] = (), dtype: str = "bfloat16", empty: bool = False
) -> Seen:
    return Seen("step", op, "", dtype, calls, empty, kernels)


def call(library: str) -> LibraryCall:
    return LibraryCall(library, "f")


# op run -> whether it is a mismatch; predictions: mm cuBLAS, addmm cuBLASLt, relu ATen, solve cuSOLVER, fft cuFFT
CASES: dict[str, tuple[Seen, bool]] = {
    "product heard": (seen("aten.mm.default", GEMM, kernels=("nvjet_hsh_64x8",)), False),
    "product unheard": (seen("aten.mm.default", kernels=("nvjet_hsh_64x8",)), True),
    "other product library": (seen("aten.mm.default", LT), True),
    "cuBLAS where cuBLASLt was predicted": (seen("aten.addmm.default", GEMM), True),
    "both where one was predicted": (seen("aten.mm.default", GEMM, LT), True),
    "native op silent": (seen("aten.relu.default", kernels=(ATEN_KERNEL,)), False),
    "native op calls cuDNN": (seen("aten.relu.default", call("cuDNN")), True),
    "view silent": (seen("aten.view.default"), False),
    "view calls": (seen("aten.view.default", GEMM), True),
    "empty product": (seen("aten.mm.default", empty=True), False),
    "empty product that runs a kernel": (seen("aten.mm.default", kernels=("nvjet_hsh_64x8",), empty=True), True),
    "flash": (seen("aten._scaled_dot_product_flash_attention.default", kernels=(FLASH_KERNEL,)), False),
    "flash that calls cuDNN": (
        seen("aten._scaled_dot_product_flash_attention.default", call("cuDNN"), kernels=(FLASH_KERNEL,)),
        True,
    ),
    "efficient that runs flash": (
        seen("aten._scaled_dot_product_efficient_attention.default", kernels=(FLASH_KERNEL,)),
        True,
    ),
    "fft by its kernel": (seen("aten._fft_r2c.default", kernels=(FFT_KERNEL,)), False),
    "fft without its kernel": (seen("aten._fft_r2c.default", kernels=(ATEN_KERNEL,)), True),
    "native op that runs cuFFT": (seen("aten.relu.default", kernels=(FFT_KERNEL,)), True),
    "solver by its kernel": (seen("aten.linalg_cholesky_ex.default", kernels=(POTRF_KERNEL,)), False),
    "solver that calls cuBLAS inside": (
        seen("aten.linalg_cholesky_ex.default", call("cuSOLVER"), GEMM, kernels=(POTRF_KERNEL,)),
        False,
    ),
    "cuBLAS alone where cuSOLVER was predicted": (seen("aten.linalg_cholesky_ex.default", GEMM), True),
    "unknown op silent": (seen("mylib.op.default", kernels=("mine",)), False),
    "unknown op calls": (seen("mylib.op.default", GEMM), True),
    "call between ops": (seen(OUTSIDE, GEMM), True),
}


@pytest.mark.parametrize(("run", "mismatch"), CASES.values(), ids=CASES.keys())
def test_what_is_a_mismatch(run: Seen, mismatch: bool) -> None:
    (check,) = compare([run], COMPLETE, set())
    assert (check.problem is not None) == mismatch
    if mismatch:
        assert check.predicted.library in str(check.problem)


def test_the_judge_is_told_the_inputs_of_each_call() -> None:
    """The same op is cuBLASLt's with a fused bias, cuBLAS's with a matrix, cuSPARSE's with a sparse operand."""
    shapes = "float32[4x5](5,1), float32[5x6](6,1)"
    runs = [
        Seen("step", "aten.addmm.default", inputs, "float32", (heard,), empty=False)
        for inputs, heard in (
            (f"float32[6](1), {shapes}", LT),
            (f"float32[4x6](6,1), {shapes}", GEMM),
            ("float32[4x6](6,1), float32[4x5](torch.sparse_csr), float32[5x6](6,1)", call("cuSPARSE")),
        )
    ]
    assert [check.problem for check in compare(runs, COMPLETE, set())] == [None, None, None]
    swapped = [Seen("step", run.op, run.inputs, run.dtype, runs[1 - i].calls, False) for i, run in enumerate(runs[:2])]
    assert all(check.problem for check in compare(swapped, COMPLETE, set()))


def test_batched_solves_by_magma_are_known_by_their_kernels() -> None:
    kernel = "void trsm_template_batched_lNL_kernel<float, 8, 16>(magma_diag_t, int, int, float, float**)"
    batch = "float32[16x8x8](64,8,1), float32[16x8x8](64,8,1)"
    runs = [
        Seen("step", "aten.cholesky_solve.default", batch, "float32", (), False, (kernel,)),
        Seen("step", "aten.cholesky_solve.default", batch.replace("16x", ""), "float32", (), False, (kernel,)),
    ]
    found = compare(runs, COMPLETE, set())
    assert [(check.observed, check.problem is None) for check in found] == [(("MAGMA",), True), (("MAGMA",), False)]


def test_evidence_says_how_a_library_is_known() -> None:
    runs = [
        seen("aten.linalg_cholesky_ex.default", call("cuSOLVER")),
        seen("aten.linalg_cholesky_ex.default", kernels=(POTRF_KERNEL,)),
        seen("aten.linalg_cholesky_ex.default", GEMM, kernels=(POTRF_KERNEL,)),
        seen("aten.relu.default"),
    ]
    evidence = [check.evidence for check in compare(runs, COMPLETE, set())]
    assert evidence == ["logger", "kernel names", "logger, kernel names", "silence"]


def test_kernel_names_do_not_outvote_a_complete_logger() -> None:
    """nvjet is cuBLAS's and cuBLASLt's: by name it would be cuBLAS."""
    (check,) = compare([seen("aten.addmm.default", LT, kernels=("nvjet_hsh_64x8",))], COMPLETE, set())
    assert check.observed == ("cuBLASLt",)
    (deaf,) = compare([seen("aten.mm.default", kernels=("nvjet_hsh_64x8",))], frozenset(), set())
    assert (deaf.observed, deaf.evidence, deaf.problem) == (("cuBLAS",), "kernel names", None)


def test_a_call_between_two_ops_is_found() -> None:
    script = Script({})

    def run() -> None:
        torch.ones(2).relu()
        script.calls.append(GEMM)
        torch.ones(2).relu()
        script.calls.append(LT)

    found = verified(script, Step("step", run))
    assert [(check.op, check.observed) for check in found.mismatches] == [
        (OUTSIDE, ("cuBLAS",)),
        (OUTSIDE, ("cuBLASLt",)),
    ]


def test_what_is_heard_while_an_op_raises_is_its_own() -> None:
    script = Script({"aten.mm.default": [GEMM]})

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            torch.mm(torch.ones(2, 3), torch.ones(2, 3))
        torch.ones(2).relu()

    found = verified(script, Step("step", run))
    assert [check.op for check in found.checks if check.observed] == ["aten.mm.default"]


def test_control_needs_an_op_that_can_show_it() -> None:
    native = control([seen("aten.view.default"), seen("aten.relu.default", kernels=(ATEN_KERNEL,))], COMPLETE)
    assert (native.op, native.mislabelled, native.found) == ("aten.relu.default", "cuBLAS", True)
    # A product of empty tensors calls nothing, so ATen would do as well; one that is mismatched already shows nothing.
    empty, wrong = seen("aten.mm.default", empty=True), seen("aten.mm.default", LT)
    assert control([empty, wrong, seen("aten.bmm.default", GEMM)], COMPLETE).op == "aten.bmm.default"
    assert control([wrong, seen("aten.relu.default", kernels=(ATEN_KERNEL,))], COMPLETE).op == "aten.relu.default"
    assert not control([empty], COMPLETE).found


def test_mislabelled_op_is_a_mismatch() -> None:
    for name in ("aten.addmm", "aten.addmm.default"):
        found = verified(Script({"aten.addmm.default": [LT]}), linear_step(), mislabel=name)
        (check,) = found.mismatches
        assert (check.op, check.predicted.library, check.problem) == (
            "aten.addmm.default", "ATen", "predicted ATen (mislabelled), observed cuBLASLt",
        )  # fmt: skip
    found = verified(Script({"aten.addmm.default": [LT]}), linear_step(), mislabel="aten.relu")
    assert [(check.op, check.runs) for check in found.mismatches] == [("aten.relu.default", 2)]
    with pytest.raises(UsageError, match=r"--mislabel aten\.add: no such op"):
        verified(Script({}), linear_step(), mislabel="aten.add")


def test_optional_steps_that_fail_are_skipped_with_their_reason() -> None:
    def broken() -> None:
        raise ValueError("not on this device\nsecond line")

    found = verified(Script({"aten.addmm.default": [LT]}), Step("bad", broken, optional=True), linear_step())
    assert found.skipped == {"bad": "ValueError: not on this device second line"} and not found.mismatches
    with pytest.raises(CaptureError, match="the step fails when run as it is: ValueError: not on this device"):
        verified(Script({}), Step("bad", broken))
    with pytest.raises(MeasurementError, match="no op was dispatched: bad: ValueError"):
        verified(Script({}), Step("bad", broken, optional=True))


def test_a_profiler_without_kernels_is_no_evidence() -> None:
    script = Script({})
    with pytest.raises(MeasurementError, match="the profiler returned no kernel"):
        verify_steps(
            "test", [linear_step()], None, script.listen, lambda run: (run(), script.profile(lambda: None))[1][:1]
        )


def test_the_step_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script({"aten.mm.default": [GEMM]})
    monkeypatch.setattr(verify, "listening", script.listen)
    monkeypatch.setattr(verify, "_profile_on_device", script.profile)
    workload = load(ReviewRequest(model="llama-tiny", seq_len=12, dtype="float32"), "cpu")
    before = workload.kwargs["past_key_values"].layers[0].keys.clone()
    length = int(workload.kwargs["past_key_values"].get_seq_length())
    first = verify_workload(workload)
    assert first == verify_workload(workload)
    assert torch.equal(workload.kwargs["past_key_values"].layers[0].keys, before)
    assert int(workload.kwargs["past_key_values"].get_seq_length()) == length == 12


@pytest.mark.parametrize(
    "model", ["gpt2", "llama", "olmoe", "bert", "vit", "whisper", "t5", "mamba", "gemma2"]
)  # fmt: skip
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_registry_knows_every_op_of_every_model(model: str, phase: Any) -> None:
    if phase == "decode" and model in ("bert", "vit"):
        pytest.skip("an encoder has no decode step")
    workload = load(ReviewRequest(model=f"{model}-tiny", phase=phase, seq_len=12, dtype="float32"), "cpu")
    script = Script({})
    found = verified(script, Step(model, workload.run))
    assert [check.op for check in found.checks if check.predicted.family == "unknown"] == []
    assert {"gemm", "view"} <= {check.predicted.family for check in found.checks}


def test_probes_reach_every_family_and_the_registry_knows_their_ops() -> None:
    found = verified(Script({}), *probe_steps("cpu"))
    assert {check.op for check in found.checks if check.predicted.family == "unknown"} == set()
    families = {check.predicted.family for check in found.checks}
    assert {"gemm", "attention", "convolution", "recurrent", "normalization", "fft", "linalg"} <= families
    # What needs a GPU; everything else runs anywhere.
    assert set(found.skipped) <= {
        *(f"sdpa {backend}_attention {dtype}"
          for backend in ("flash", "efficient", "cudnn") for dtype in ("bfloat16", "float16", "float32")),
        "sparse 2:4 mm",
        "scaled_mm per row",
        "cudnn_affine_grid_generator",
    }  # fmt: skip


def test_text_and_json_tell_everything() -> None:
    def broken() -> None:
        raise ValueError("no such kernel")

    found = verified(Script({"aten.addmm.default": [GEMM, GEMM]}), linear_step(), Step("bad", broken, optional=True))
    text = verification_text(found)
    rows = [line.split() for line in text.splitlines()]
    assert ["aten.relu.default", "float32", "elementwise", "ATen", "none", "silence", "ok", "2", "0"] in rows
    wrong = ["aten.addmm.default", "float32", "gemm", "cuBLASLt", "cuBLAS", "logger", "MISMATCH", "1", "2"]
    assert [*wrong, "cublasGemmEx", "x2"] in rows
    assert ["gemm", "1", "1", "1", "2", "1"] in rows
    assert "MISMATCH aten.addmm.default(float32[5](1), float32[3x4](4,1), float32[4x5](1,4)) in linear" in text
    assert "rule cuda.addmm.cublaslt: " in text and f"kernels: {ATEN_KERNEL}" in text
    assert "skipped bad: ValueError: no such kernel" in text
    assert text.endswith("test: 4 ops, 2 library calls heard, 1 mismatches\n")
    data = json.loads(verification_json(found))
    assert (data["ops"], data["calls"], data["mismatches"]) == (4, 2, 1)
    assert data["checks"][1]["predicted"]["code"] == "cuda.addmm.cublaslt"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """The command on a CPU step, with fake ears that hear what the registry predicts."""
    script = Script({"aten.addmm.default": [LT]})
    monkeypatch.setattr(verify, "require_cuda", lambda: "cpu")
    monkeypatch.setattr(verify, "listening", script.listen)
    monkeypatch.setattr(verify, "_profile_on_device", script.profile)
    (tmp_path / "mine.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(4, 5), (torch.ones(3, 4),), {}\n"
    )
    monkeypatch.chdir(tmp_path)
    return script


def test_command_exit_codes(command: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "mine.py:make"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("mine.py:make: 2 ops, 1 library calls heard, 0 mismatches\n") and printed.err == ""
    assert "control: aten.addmm.default (cuBLASLt) labelled ATen: found a mismatch" in printed.out

    assert main(["verify", "mine.py:make", "--mislabel", "aten.addmm"]) == 8
    printed = capsys.readouterr()
    assert "disagree on aten.addmm.default" in printed.err and printed.err.count("\n") == 1
    assert "MISMATCH aten.addmm.default" in printed.out

    command._heard = {}
    assert main(["verify", "mine.py:make", "--json"]) == 8
    assert json.loads(capsys.readouterr().out)["mismatches"] == 1

    assert main(["verify", "mine.py:make", "--mislabel", "aten.bmm"]) == 2
    assert "no such op in the step" in capsys.readouterr().err


def test_a_judge_that_never_objects_is_caught(
    command: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "judge", lambda predicted, observed, run: None)
    assert main(["verify", "mine.py:make"]) == 5
    printed = capsys.readouterr()
    assert "labelled ATen: NOT found a mismatch" in printed.out
    assert "aten.addmm.default with a wrong library was no mismatch: verify proves nothing here" in printed.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_command_says_so_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("gpt2", "probes"):
        assert main(["verify", model]) == 3
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert "library calls can be observed only on a CUDA device" in printed.err


def test_usage_mistakes(capsys: pytest.CaptureFixture[str], command: Script) -> None:
    for arguments in (["verify"], ["verify", "gpt2", "--batch", "0"], ["verify", "gtp2"], ["verify", "bert-tiny"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("taxbreak: ")


def test_documented() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    assert "taxbreak verify MODEL" in documented and "`--mislabel OP`" in documented and "| 8 | `verify`" in documented


def test_loggers_count_working_calls_only() -> None:
    ears = LoggerEars()
    for text in (
        b"I! cuBLAS (v13.1) function cublasStatus_t cublasGemmEx(cublasHandle_t, int) called:",
        b"function cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t) called:",
        b"function cublasStatus_t cublasDgetrfBatched(cublasHandle_t) called:",
        b"function cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t) called:",
        b"function cublasStatus_t cublasGetMathMode(cublasHandle_t) called:",
    ):
        ears.on_blas(text)
    loggers = {logger.library: logger for logger in _LEVEL_LOGGERS}
    for library, level, function in (
        ("cuBLASLt", 5, b"cublasLtMatmul"),
        ("cuBLASLt", 2, b"cublasLtMatmul"),  # the same call, told again at another level
        ("cuBLASLt", 5, b"cublasLtTSTMatmul"),  # inside cuBLAS
        ("cuBLASLt", 5, b"cublasLtMatmulAlgoGetHeuristic"),
        ("cuSPARSE", 5, b"cusparseSpMM"),
        ("cuSPARSE", 5, b"cusparseSpMM_bufferSize"),
        ("cuSPARSE", 5, b"cusparseCreateCsr"),
        ("cuSPARSE", 5, None),
        ("cuSOLVER", 5, b"cusolverDnXgetrf"),
        ("cuSOLVER", 5, b"cusolverDnXgetrf_bufferSize"),
        ("cuSOLVER", 5, b"cusolverDnSetStream"),
        ("cuSPARSELt", 5, b"cusparseLtMatmul"),
        ("cuSPARSELt", 5, b"cusparseLtMatmulPlanInit"),
    ):
        ears.on_level(loggers[library], level, function)
    for message in (
        b"I! CuDNN (v91300 27) function cudnnBackendCreateDescriptor() called:\ni! cudnnBackendExecute",
        b"I! CuDNN (v91300 27) function cudnnBackendExecute() called:",
        b"I! CuDNN (v91300 27) function cudnnBackendExecute() called:",  # at once: nested in the first
        b"I! CuDNN (v91300 27) function cudnnGetRNNForwardTrainingAlgo() called:",
        b"I! CuDNN (v91300 27) function cudnnRNNForward() called:",
        b"I! CuDNN (v91300 27) function cudnnGetCTCLossWorkspaceSize_v8() called:",
        b"I! CuDNN (v91300 27) function cudnnCTCLoss_v8() called:",
    ):
        ears.on_cudnn(message)
    assert ears.calls == [
        LibraryCall("cuBLAS", "cublasGemmEx"),
        LibraryCall("cuBLAS", "cublasSgemmStridedBatched"),
        LibraryCall("cuBLAS", "cublasDgetrfBatched"),
        LibraryCall("cuBLASLt", "cublasLtMatmul"),
        LibraryCall("cuSPARSE", "cusparseSpMM"),
        LibraryCall("cuSOLVER", "cusolverDnXgetrf"),
        LibraryCall("cuSPARSELt", "cusparseLtMatmul"),
        LibraryCall("cuDNN", "cudnnBackendExecute"),
        LibraryCall("cuDNN", "cudnnRNNForward"),
        LibraryCall("cuDNN", "cudnnCTCLoss_v8"),
    ]


@pytest.mark.gpu
def test_a_model_on_the_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    workload = load(ReviewRequest(model="gpt2-tiny", phase="prefill", device="cuda"), "cuda")
    found = verify_workload(workload)
    assert found.mismatches == [] and found.calls > 0 and found.control.found
    assert {"cuBLAS", "cuBLASLt", "cuDNN"} <= set(found.hears)
    assert {check.op for check in verify_workload(workload, "aten.addmm").mismatches} == {"aten.addmm.default"}
    # Without a mismatch the registry's answer for the composite op is that of its leaf.
    assert classify_op("aten.addmm.default", "cuda").library == "cuBLASLt"


@pytest.mark.gpu
def test_an_empty_workload_has_nothing_to_verify() -> None:
    with pytest.raises(MeasurementError, match="no op was dispatched"):
        verify_workload(Workload(call=lambda: None, model="nothing", step=load_step()))


def load_step() -> Any:
    return load(ReviewRequest(model="gpt2-tiny", phase="prefill", seq_len=4), "cpu").step
