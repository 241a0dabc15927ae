"""Timing the calls between loaded libraries: what is heard, that nothing is bent on the way, and what it is charged."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from taxbreak_fx import interpose, native
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.interpose import Interposer
from taxbreak_fx.library_events import (
    Cost,
    LibraryEvent,
    is_working,
    library_charges,
    library_of,
    outermost,
)

COMPILER = next((path for path in map(shutil.which, native.COMPILERS) if path), None)
SUPPORTED = sys.platform == "linux" and os.uname().machine in interpose.MACHINES
needs_compiler = pytest.mark.skipif(
    COMPILER is None or not SUPPORTED, reason="needs a C compiler on Linux on x86-64 or aarch64"
)

LT = """
int cublasLtMatmul(int x) { return x + 1; }
"""
BLAS = """
#include <stdarg.h>
#include <unistd.h>
int cublasLtMatmul(int x);
int cublasTable[4] = {7, 8, 9, 10};
int cublasSetStream_v2(int x) { return x; }
int cublasGemmEx(int x) { return 10 * cublasLtMatmul(x); }
int cublasTail(int x) { return cublasLtMatmul(x + 100); }
int cublasCall(int (*f)(int), int x) { return f(x) + 1; }
int cublasWait(int fd) { char c; return (int)read(fd, &c, 1); }
double cublasMixed(long a, double x, long b, long c, double y, long d, long e, long f, long g, float z, long h, long i,
                   long j, long k, long l) {
    return x * a + y * b + z * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l;
}
double cublasVectors(double a, double b, double c, double d, double e, double f, double g, double h, double i,
                     double j) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j;
}
long cublasWords(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, long k, long l) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l;
}
double cublasSum(int n, ...) {
    va_list list;
    va_start(list, n);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += va_arg(list, double);
    va_end(list);
    return sum;
}
struct two { double a; long b; };
struct many { long v[6]; };
struct pair { long a, b; };
struct pair cublasPair(long a, long b) { return (struct pair){b, a}; }
struct two cublasTwo(long b, double a) { return (struct two){a, b}; }
struct many cublasMany(long x) { return (struct many){{x, x + 1, x + 2, x + 3, x + 4, x + 5}}; }
_Complex double cublasComplex(double a) { return a + 2 * a * 1.0i; }
long double cublasLong(long double a) { return a / 3; }
"""
CLIENT = """
#include <setjmp.h>
#include <math.h>
extern int cublasTable[4];
int cublasSetStream_v2(int), cublasGemmEx(int), cublasTail(int), cublasCall(int (*)(int), int), cublasWait(int);
double cublasMixed(long, double, long, long, double, long, long, long, long, float, long, long, long, long, long);
double cublasVectors(double, double, double, double, double, double, double, double, double, double);
long cublasWords(long, long, long, long, long, long, long, long, long, long, long, long);
double cublasSum(int, ...);
struct two { double a; long b; };
struct many { long v[6]; };
struct pair { long a, b; };
struct pair cublasPair(long, long);
struct two cublasTwo(long, double);
struct many cublasMany(long);
_Complex double cublasComplex(double);
long double cublasLong(long double);

int gemm(int x) { cublasSetStream_v2(x); return cublasGemmEx(x) + 0; }
int many_gemms(int n) { int sum = 0; for (int i = 0; i < n; i++) sum += cublasGemmEx(1) == 20; return sum; }
int streams(int n) { int sum = 0; for (int i = 0; i < n; i++) sum += cublasSetStream_v2(1); return sum; }
int tail(int x) { return cublasTail(x) + 0; }
int wait_for(int fd) { return cublasWait(fd) + 0; }
static int deeper(int n) { return n ? cublasCall(deeper, n - 1) : 0; }
int deep(int n) { return deeper(n) + 0; }
int (*pointer(void))(int) { return cublasSetStream_v2; }
static jmp_buf back;
static int jump(int x) { longjmp(back, x); }
int jumps(void) { return setjmp(back) ? cublasGemmEx(1) : cublasCall(jump, 1); }
/* 0, or the number of the first check that failed; each expected value follows from the weights above. */
int forwarding(void) {
    if (cublasMixed(1, 0.5, 2, 3, 0.25, 1, 1, 1, 1, 2.0f, 1, 1, 1, 1, 1) != 0.5 + 0.5 + 6 + 72) return 1;
    if (cublasVectors(1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5) != 50) return 2;
    if (cublasVectors(1, 0, 0, 0, 0, 0, 0, 2, 0, 0) != 17) return 3;
    if (cublasWords(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12) != 650) return 4;
    if (cublasSum(3, 0.5, 1.5, 2.0) != 4 || cublasSum(0) != 0) return 5;
    struct two two = cublasTwo(3, 0.75);
    if (two.a != 0.75 || two.b != 3) return 6;
    struct many many = cublasMany(5);
    for (int i = 0; i < 6; i++) if (many.v[i] != 5 + i) return 7;
    _Complex double z = cublasComplex(1.5);
    if (__real__ z != 1.5 || __imag__ z != 3) return 8;
    if (fabsl(cublasLong(1) * 3 - 1) > 1e-15L) return 9;
    struct pair pair = cublasPair(8, 9);
    if (pair.a != 9 || pair.b != 8) return 11;
    if (cublasTable[0] + cublasTable[3] != 17) return 10;
    return 0;
}
"""
FORWARDED = 11  # calls that forwarding() makes


def build(folder: Path, name: str, source: str, *flags: str) -> Path:
    path = folder / name
    (folder / f"{name}.c").write_text(source)
    command = [str(COMPILER), "-O2", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-w"]
    subprocess.run([*command, "-o", str(path), str(folder / f"{name}.c"), *flags], check=True)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two libraries, one calling into the other, and two clients that import the first."""
    folder = tmp_path_factory.mktemp("libraries")
    lt = build(folder, "libcublasLt.so.99", LT)
    blas = build(folder, "libcublas.so.99", BLAS, str(lt))
    build(folder, "libclient_lazy.so", CLIENT, str(blas), "-Wl,-z,lazy", "-lm")
    build(folder, "libclient_now.so", CLIENT, str(blas), "-Wl,-z,relro,-z,now", "-lm")
    return folder


def opened(path: Path) -> ctypes.CDLL:
    """Loaded RTLD_LOCAL and lazily: ``ctypes.CDLL(path)`` alone would bind every import at once."""
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype = ctypes.c_void_p
    dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
    handle = dlopen(str(path).encode(), os.RTLD_LAZY | os.RTLD_LOCAL)
    assert handle, path
    return ctypes.CDLL(str(path), handle=handle)


@pytest.fixture(params=["lazy", "now"])
def client(folder: Path, request: pytest.FixtureRequest) -> ctypes.CDLL:
    return opened(folder / f"libclient_{request.param}.so")


@pytest.fixture
def interposer(client: ctypes.CDLL) -> Iterator[Interposer]:
    with contextlib.closing(Interposer(capacity=1 << 14)) as made:
        made.install()
        yield made


def protections(folder: Path) -> list[str]:
    """Address range and permissions of every mapping of the fake libraries, as the kernel tells."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [" ".join(line.split()[:2]) for line in lines if str(folder) in line]


@needs_compiler
def test_a_call_is_heard_with_what_it_calls(client: ctypes.CDLL, interposer: Interposer) -> None:
    with interposer.listening() as heard:
        assert client.gemm(3) == 40
    assert [(event.name, event.library, event.depth) for event in heard.events] == [
        ("cublasSetStream_v2", "cublas", 0),
        ("cublasGemmEx", "cublas", 0),
        ("cublasLtMatmul", "cublaslt", 1),
    ]
    assert not heard.overflow and heard.unfinished == 0
    assert {event.thread for event in heard.events} == {threading.get_native_id()}
    _, outer, inner = heard.events
    assert outer.start_us < inner.start_us <= inner.end_us <= outer.end_us
    assert [event.name for event in outermost(heard.events)] == ["cublasSetStream_v2", "cublasGemmEx"]


@needs_compiler
def test_what_is_covered_is_told(folder: Path, client: ctypes.CDLL, interposer: Interposer) -> None:
    objects = interposer.objects()
    assert str(folder / "libcublas.so.99") in objects and client._name in objects
    assert str(folder / "libcublasLt.so.99") not in objects, "it imports nothing"
    symbols = interposer.symbols()
    assert {"cublasGemmEx", "cublasSetStream_v2", "cublasMixed"} <= set(symbols["cublas"])
    assert "cublasLtMatmul" in symbols["cublaslt"]
    assert "cublasTable" not in symbols["cublas"], "data, not a function"


@needs_compiler
def test_arguments_and_results_pass_unchanged(client: ctypes.CDLL, interposer: Interposer) -> None:
    assert client.forwarding() == 0
    with interposer.listening() as heard:
        assert client.forwarding() == 0
    assert len(heard.events) == FORWARDED


@needs_compiler
def test_a_tail_call_is_nested(client: ctypes.CDLL, interposer: Interposer) -> None:
    with interposer.listening() as heard:
        assert client.tail(1) == 102
        assert client.gemm(1) == 20
    found = [(event.name, event.depth) for event in heard.events]
    assert found[:2] == [("cublasTail", 0), ("cublasLtMatmul", 1)]
    assert found[2:] == [("cublasSetStream_v2", 0), ("cublasGemmEx", 0), ("cublasLtMatmul", 1)]
    assert [event.name for event in outermost(heard.events)] == ["cublasTail", "cublasSetStream_v2", "cublasGemmEx"]


@needs_compiler
def test_threads_lose_nothing(client: ctypes.CDLL, interposer: Interposer) -> None:
    threads, calls, right = 4, 1000, []
    ready = threading.Barrier(threads)

    def work() -> None:
        ready.wait()
        right.append(client.many_gemms(calls))

    with interposer.listening() as heard:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert right == [calls] * threads
    assert not heard.overflow and heard.unfinished == 0
    per_thread: dict[int, list[tuple[str, int]]] = {}
    for event in heard.events:
        per_thread.setdefault(event.thread, []).append((event.name, event.depth))
    assert len(per_thread) == threads
    assert all(found == [("cublasGemmEx", 0), ("cublasLtMatmul", 1)] * calls for found in per_thread.values())
    assert len(outermost(heard.events)) == threads * calls


@needs_compiler
def test_overflow_is_flagged_and_costs_only_the_later_events(client: ctypes.CDLL) -> None:
    with contextlib.closing(Interposer(capacity=10)) as interposer:
        interposer.install()
        with interposer.listening() as heard:
            assert client.streams(10) == 10
        assert len(heard.events) == 10 and not heard.overflow
        with interposer.listening() as heard:
            assert client.streams(25) == 25
        assert len(heard.events) == 10 and heard.overflow
        with interposer.listening() as heard:
            assert client.many_gemms(5) == 5
        assert len(heard.events) == 10 and not heard.overflow


@needs_compiler
def test_calls_nested_too_deep_still_work_and_are_flagged(client: ctypes.CDLL, interposer: Interposer) -> None:
    with interposer.listening() as heard:
        assert client.deep(50) == 50
    assert [event.depth for event in heard.events] == list(range(50)) and not heard.overflow
    with interposer.listening() as heard:
        assert client.deep(100) == 100
    assert heard.overflow and len(heard.events) < 100


@needs_compiler
def test_a_call_left_by_longjmp_is_unfinished_and_harms_no_other(client: ctypes.CDLL, interposer: Interposer) -> None:
    with interposer.listening() as heard:
        assert client.jumps() == 20
    assert heard.unfinished == 1
    assert [(event.name, event.depth) for event in heard.events] == [("cublasGemmEx", 0), ("cublasLtMatmul", 1)]


@needs_compiler
def test_a_call_under_way_when_listening_ends_is_counted_apart(client: ctypes.CDLL, interposer: Interposer) -> None:
    read, write = os.pipe()
    found: list[int] = []
    worker = threading.Thread(target=lambda: found.append(client.wait_for(read)))
    with interposer.listening() as heard:
        worker.start()
        while interposer._installed_shim().tbx_count() == 0:
            threading.Event().wait(0.001)
    assert heard.unfinished == 1 and heard.events == []
    with interposer.listening() as heard:
        assert client.gemm(1) == 20
        os.write(write, b"x")
        worker.join()
    os.close(read)
    os.close(write)
    assert found == [1]
    assert heard.unfinished == 0 and len(heard.events) == 3, "it ended in the second listening but began before"
    assert heard.events[0].end_us <= heard.events[1].start_us, "its end was written into an event of the second"


@needs_compiler
def test_off_hears_nothing(client: ctypes.CDLL, interposer: Interposer) -> None:
    with interposer.listening() as heard:
        pass
    assert client.gemm(1) == 20
    assert heard.events == []
    with interposer.listening() as heard:
        pass
    assert heard.events == []


@needs_compiler
def test_installing_twice_adds_nothing_and_closing_restores(folder: Path, client: ctypes.CDLL) -> None:
    before = protections(folder)
    interposer = Interposer(capacity=64)
    added = interposer.install()
    assert added > 0 and added == sum(interposer.objects().values())
    assert protections(folder) == before, "the import tables are as protected as they were"
    assert interposer.install() == 0
    held = ctypes.CFUNCTYPE(ctypes.c_void_p)(("pointer", client))()
    interposer.close()
    interposer.close()
    assert protections(folder) == before
    assert client.gemm(1) == 20 and client.forwarding() == 0
    # An address that the program took while the tables were patched keeps working for ever.
    assert held is not None
    assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(held)(5) == 5
    with pytest.raises(MeasurementError, match="not installed"), interposer.listening():
        pass
    assert interposer.install() == added, "every slot had been restored"
    interposer.close()


@needs_compiler
def test_closed_tables_lead_past_the_stubs(client: ctypes.CDLL) -> None:
    with contextlib.closing(Interposer(capacity=64)) as interposer:
        interposer.install()
        shim = interposer._installed_shim()
    # The switch alone is turned on again: were a slot left patched, its call would be recorded.
    shim.tbx_reset(64)
    shim.tbx_listen(1)
    assert client.gemm(1) == 20
    shim.tbx_listen(0)
    assert shim.tbx_count() == 0


@needs_compiler
def test_a_library_loaded_later_is_covered_by_installing_again(folder: Path, interposer: Interposer) -> None:
    late = opened(build(folder, f"liblate_{id(interposer)}.so", CLIENT, str(folder / "libcublas.so.99"), "-lm"))
    with interposer.listening() as heard:
        assert late.gemm(1) == 20
    assert [event.name for event in heard.events] == ["cublasLtMatmul"], "only what the patched library imports"
    assert interposer.install() > 0
    with interposer.listening() as heard:
        assert late.gemm(1) == 20
    assert [event.name for event in heard.events] == ["cublasSetStream_v2", "cublasGemmEx", "cublasLtMatmul"]


@needs_compiler
def test_the_cost_of_a_call_is_measured(interposer: Interposer) -> None:
    cost = interposer.cost_us()
    assert 0.0 < cost.inside < 100.0 and 0.0 < cost.outside < 100.0
    with interposer.listening() as heard:
        pass
    assert heard.events == [], "the probe leaves no events behind"


@needs_compiler
def test_one_interposer_and_one_listening_at_a_time(interposer: Interposer) -> None:
    with pytest.raises(MeasurementError, match="another interposer is installed"):
        Interposer().install()
    with interposer.listening(), pytest.raises(MeasurementError, match="listening already"), interposer.listening():
        pass


@needs_compiler
def test_nothing_to_cover_is_a_reason() -> None:
    interposer = Interposer(patterns=("no_library_imports_this",))
    with pytest.raises(MeasurementError, match="no loaded library imports"):
        interposer.install()
    with pytest.raises(MeasurementError, match="not installed"):
        interposer.objects()


@pytest.mark.skipif(not SUPPORTED, reason="the machine is the reason there")
def test_no_compiler_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(native, "_cache", lambda: tmp_path)
    with pytest.raises(MeasurementError, match="no C compiler"):
        Interposer().install()


def test_another_machine_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(MeasurementError, match="not on linux on riscv64; use the subtractive estimate"):
        Interposer().install()


@pytest.mark.parametrize(
    ("name", "library", "working"),
    [
        ("cublasGemmEx", "cublas", True),
        ("cublasSgemmStridedBatched", "cublas", True),
        ("cublasGemmStridedBatchedEx_64", "cublas", True),
        ("cublasDotEx", "cublas", True),
        ("cublasStrsm_v2", "cublas", True),
        ("cublasSetStream_v2", "cublas", False),
        ("cublasSetWorkspace_v2", "cublas", False),
        ("cublasGetMathMode", "cublas", False),
        ("cublasCreate_v2", "cublas", False),
        ("cublasLtMatmul", "cublaslt", True),
        ("cublasLtMatmulAlgoGetHeuristic", "cublaslt", False),
        ("cublasLtMatmulDescCreate", "cublaslt", False),
        ("cublasLtMatrixLayoutInit_internal", "cublaslt", False),
        ("cudnnBackendExecute", "cudnn", True),
        ("cudnnBackendFinalize", "cudnn", False),
        ("cudnnBackendSetAttribute", "cudnn", False),
        ("cudnnRNNForward", "cudnn", True),
        ("cudnnBatchNormalizationForwardInference", "cudnn", True),
        ("cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize", "cudnn", False),
        ("cudnnSetTensorNdDescriptor", "cudnn", False),
        ("cusparseSpMM", "cusparse", True),
        ("cusparseSpMM_bufferSize", "cusparse", False),
        ("cusparseCreateDnMat", "cusparse", False),
        ("cusparseSpMatSetAttribute", "cusparse", False),
        ("cusparseXcoo2csr", "cusparse", True),
        ("cusparseLtMatmul", "cusparselt", True),
        ("cusparseLtMatmulPlanInit", "cusparselt", False),
        ("cusolverDnXgetrf", "cusolver", True),
        ("cusolverDnSgetrf_bufferSize", "cusolver", False),
        ("cusolverDnCreateParams", "cusolver", False),
        ("cufftExecC2C", "cufft", True),
        ("cufftXtExec", "cufft", True),
        ("cufftXtMakePlanMany", "cufft", False),
        ("ncclAllReduce", "nccl", True),
        ("ncclGroupEnd", "nccl", False),
        ("cudaLaunchKernelExC", "launch", False),
        ("cudaGraphLaunch", "launch", False),
        ("cudaStreamSynchronize", "sync", False),
        ("cudaMemcpyAsync", "memop", False),
        ("cudaMalloc", None, False),
    ],
)
def test_a_name_tells_its_library_and_whether_it_works(name: str, library: str | None, working: bool) -> None:
    assert library_of(name) == library
    assert is_working(name) is working


def event(name: str, start: float, end: float, thread: int = 1, depth: int = 0) -> LibraryEvent:
    library = library_of(name)
    assert library is not None
    return LibraryEvent(name=name, library=library, start_us=start, end_us=end, thread=thread, depth=depth)


# Thread 1: a launch of torch's own; a product that calls cuBLASLt, which launches; a heuristic; a synchronisation.
# Thread 2, at the same time: a product whose launch is not heard, and a copy inside that synchronises.
STEP = [
    event("cudaLaunchKernel", 0.0, 5.0),
    event("cublasGemmEx", 10.0, 30.0),
    event("cublasGemmEx", 12.0, 40.0, thread=2),
    event("cublasLtMatmul", 12.0, 28.0, depth=1),
    event("cudaMemcpy", 14.0, 20.0, thread=2, depth=1),
    event("cudaLaunchKernelExC", 15.0, 20.0, depth=2),
    event("cudaStreamSynchronize", 15.0, 19.0, thread=2, depth=2),
    event("cublasLtMatmulAlgoGetHeuristic", 30.0, 32.0),
    event("cudaStreamSynchronize", 40.0, 50.0),
]


def test_outermost_library_calls() -> None:
    assert [(e.name, e.thread) for e in outermost(STEP)] == [
        ("cublasGemmEx", 1),
        ("cublasGemmEx", 2),
        ("cublasLtMatmulAlgoGetHeuristic", 1),
    ]
    assert outermost([]) == []


def test_library_time_leaves_out_launches_and_the_cost_of_timing() -> None:
    # Without cost: thread 1: 20 - 5 launched = 15; thread 2: 28, no launch heard; heuristic: 2.
    assert [charge.own_us for charge in library_charges(STEP, (0.0, 0.0))] == pytest.approx([15.0, 28.0, 2.0])
    # Inside 0.25, outside 0.5.  Thread 1: (20 - 0.25 - 2 x 0.75) - (5 - 0.25) = 13.5; thread 2: 28 - 0.25 - 2 x 0.75
    # = 26.25; heuristic: 1.75.
    cost = Cost(inside=0.25, outside=0.5)
    charges = library_charges(STEP, cost)
    assert [charge.own_us for charge in charges] == pytest.approx([13.5, 26.25, 1.75])
    assert [(charge.working, charge.launches) for charge in charges] == [(True, 1), (True, 0), (False, 0)]
    assert [charge.thread for charge in charges] == [1, 2, 1]
    assert library_charges([], cost) == []


def test_a_launch_inside_a_launch_is_removed_once() -> None:
    events = [
        event("cudnnBackendExecute", 0.0, 20.0),
        event("cudaLaunchKernelExC", 5.0, 11.0, depth=1),
        event("cuLaunchKernelEx", 6.0, 10.0, depth=2),
    ]
    # (20 - 1 - 2 x 3) - (6 - 1 - 1 x 3): the inner launch is part of the outer one.
    (charge,) = library_charges(events, (1.0, 2.0))
    assert (charge.own_us, charge.launches) == (11.0, 1)


@pytest.mark.gpu
def test_torch_is_heard_on_the_gpu() -> None:
    import torch

    x = torch.randn(128, 128, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(128, device="cuda", dtype=torch.bfloat16)
    torch.mm(x, x), torch.addmm(bias, x, x), (x + x).sum().item()
    with contextlib.closing(Interposer(capacity=1 << 12)) as interposer:
        interposer.install()
        interposer.control()
        symbols = interposer.symbols()
        assert {"cublas", "cublaslt", "launch", "sync"} <= set(symbols)
        for product in (lambda: torch.mm(x, x), lambda: torch.addmm(bias, x, x)):
            with interposer.listening() as heard:
                product()
            working = [e.library for e in outermost(heard.events) if is_working(e.name)]
            assert len(working) == 1 and working[0] in ("cublas", "cublaslt"), heard.events
            assert not heard.overflow and heard.unfinished == 0
        with interposer.listening() as heard:
            torch.add(x, x)
        assert [e.library for e in heard.events] == ["launch"], heard.events
        with interposer.listening() as heard:
            x[0, 0].item()
        assert "sync" in {e.library for e in heard.events} and not outermost(heard.events)
        shim = interposer._installed_shim()
    shim.tbx_reset(16)
    shim.tbx_listen(1)
    torch.mm(x, x)
    shim.tbx_listen(0)
    assert shim.tbx_count() == 0, "closed, yet a slot was left patched"
