"""The launch path: the loops in C against a driver of our own, the fallbacks, the arithmetic, and the real thing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fake_recording import calibration, eager_recording, parts_of
from sample_review import machine, sample_review

from taxbreak_fx import calibrate, launch_path, native
from taxbreak_fx.breakdown import decompose
from taxbreak_fx.decompose import untraced_floor
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.launch_path import WARM, Kernel, LaunchLoop, measure_launch_path
from taxbreak_fx.machine import LaunchPath
from taxbreak_fx.record import Percentiles
from taxbreak_fx.recording import LaunchFloor
from taxbreak_fx.report import content, text
from taxbreak_fx.stages import MOST_TRACED, Outcome, Stage, with_floor

two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core that watches for the flag")

# A driver without a device.  A handle says what its kernel does: 1 nothing, 2 refuses, 3 writes its second argument to
# where its first one points 0.3 ms AFTER the call returned, 4 copies questions to answers, 5 never answers.
FAKE_DRIVER = r"""
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

int fake_launches, fake_syncs, fake_running;
static pthread_t worker;
static volatile int32_t *first, *second;
static int32_t third;

static void *write_flag(void *unused) {
    (void)unused;
    usleep(300);
    *first = third;
    return NULL;
}

static void *answer(void *unused) {
    (void)unused;
    while (*second < third) *second = *first;
    return NULL;
}

int cuStreamSynchronize(void *stream) {
    (void)stream;
    fake_syncs++;
    if (fake_running) pthread_join(worker, NULL);
    fake_running = 0;
    return 0;
}

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned smem,
                   void *stream, void **params, void **extra) {
    (void)stream, (void)extra;
    if (gx * gy * gz * by * bz != 1 || bx != 32 || smem) return 1;
    fake_launches++;
    long handle = (long)f;
    if (handle == 2) return 700;
    if (handle == 3) {
        first = *(int32_t **)params[0];
        third = *(int32_t *)params[1];
        fake_running = !pthread_create(&worker, NULL, write_flag, NULL);
    }
    if (handle == 4) {
        first = *(int32_t **)params[0];
        second = *(int32_t **)params[1];
        third = *(int32_t *)params[2];
        fake_running = !pthread_create(&worker, NULL, answer, NULL);
    }
    return 0;
}

int cuModuleLoadData(void **module, const void *image) { *module = (void *)image; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    if (strcmp(name, "null_kernel")) return 500;
    *function = module;
    return 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "fake.c").write_text(FAKE_DRIVER)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-pthread", "-O1", "-o", folder / "fake.so", folder / "fake.c"], check=True
    )
    return folder / "fake.so"


@pytest.fixture
def loop(driver: Path) -> LaunchLoop:
    return LaunchLoop(str(driver))


def kernel(handle: int, *arguments: Any) -> Kernel:
    return Kernel(handle, 32, 0, arguments, False)


def words() -> tuple[Any, int, int]:
    """Memory with two words, 128 bytes apart, and their addresses."""
    memory = (ctypes.c_int32 * 64)()
    return memory, ctypes.addressof(memory), ctypes.addressof(memory) + 128


# --- the loops ------------------------------------------------------------------------------------------------------


def test_every_launch_is_timed_and_the_stream_drained_as_often_as_asked(loop: LaunchLoop, driver: Path) -> None:
    fake = ctypes.CDLL(str(driver))
    launches, syncs = ctypes.c_int.in_dll(fake, "fake_launches"), ctypes.c_int.in_dll(fake, "fake_syncs")
    launches.value = syncs.value = 0
    times = loop.host_us(kernel(1), per_drain=10, count=40)
    assert (len(times), launches.value) == (40, WARM + 40)
    # The warm-up drains before each of its launches; both end with a sync.
    assert syncs.value == WARM + 1 + 40 // 10 + 1


def test_the_clocks_own_cost_is_removed(loop: LaunchLoop) -> None:
    loop.clock_us = 0.0
    with_clock = min(loop.host_us(kernel(1), 1, 400))
    loop.clock_us = 1_000.0
    assert min(loop.host_us(kernel(1), 1, 400)) < with_clock - 900.0


def test_a_refused_launch_is_an_error_with_its_code(loop: LaunchLoop) -> None:
    with pytest.raises(MeasurementError, match="launch loop, host: CUDA error 700"):
        loop.host_us(kernel(2), 1)


@two_cores
def test_the_flag_is_timed_until_it_is_seen_and_not_until_the_call_returns(loop: LaunchLoop) -> None:
    memory, flag, _ = words()
    value = ctypes.c_int32(0)
    times = loop.flag_us(kernel(3, ctypes.c_void_p(flag), value), flag, value, count=5)
    # The driver of this test writes the flag 300 µs after the launch call has returned.
    assert len(times) == 5 and all(us >= 300.0 for us in times)
    assert value.value == memory[0] == WARM + 5


@two_cores
def test_a_flag_that_never_comes_ends_at_the_limit(loop: LaunchLoop) -> None:
    memory, flag, _ = words()
    value = ctypes.c_int32(0)
    with pytest.raises(MeasurementError, match="launch loop, flag: no answer within 200 ms"):
        loop.flag_us(kernel(5, ctypes.c_void_p(flag), value), flag, value, count=5)
    del memory


def test_one_core_cannot_watch_and_launch(loop: LaunchLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with pytest.raises(MeasurementError, match="one core only"):
        loop.flag_us(kernel(3), 0, ctypes.c_int32(0))


@two_cores
def test_every_question_is_answered_in_turn(loop: LaunchLoop) -> None:
    memory, question, answer = words()
    rounds = ctypes.c_int32(WARM + 7)
    asked = kernel(4, ctypes.c_void_p(question), ctypes.c_void_p(answer), rounds, ctypes.c_int32(0))
    times = loop.round_trip_us(asked, question, answer, count=7)
    assert len(times) == 7 and min(times) > 0.0
    assert (memory[0], memory[32]) == (WARM + 7, WARM + 7)


def test_a_kernel_that_does_not_answer_ends_at_the_limit(loop: LaunchLoop) -> None:
    memory, question, answer = words()
    with pytest.raises(MeasurementError, match="launch loop, round_trip: no answer within 200 ms"):
        loop.round_trip_us(kernel(5), question, answer)
    assert (memory[0], memory[32]) == (1, 0)


@two_cores
def test_a_watch_tells_when_a_word_became_one(loop: LaunchLoop) -> None:
    memory, address, _ = words()
    memory[0] = 1  # left over from before: it must not be taken for the answer

    def later() -> None:
        time.sleep(0.002)
        memory[0] = 1

    with loop.watch(address) as seen:
        for _ in range(3):
            thread = threading.Thread(target=later)
            begin = time.perf_counter_ns()
            at = seen(thread.start)
            thread.join()
            assert begin + 2_000_000 <= at <= time.perf_counter_ns()


def test_a_kernel_is_loaded_by_its_name(loop: LaunchLoop) -> None:
    @dataclass
    class Image:
        binary: bytes
        name: str
        threads: int = 32

    assert loop.kernel(Image(b"cubin", "null_kernel"), 0).launch.handle  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="launch loop, kernel: CUDA error 500"):
        loop.kernel(Image(b"cubin", "other"), 0)  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="a library or one of its launch functions is missing"):
        loop.kernel(Image(b"cubin", "null_kernel"), 0, runtime="libno-such-runtime.so")  # type: ignore[arg-type]


# --- what cannot be measured ----------------------------------------------------------------------------------------


def test_no_compiler_leaves_every_number_null_with_that_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    monkeypatch.setattr(native, "_cache", lambda: tmp_path)
    found = measure_launch_path()
    assert set(found.unmeasured) == set(LaunchPath.MEASUREMENTS)
    assert set(found.unmeasured.values()) == {"no C compiler (no-such-compiler) to build launch_loop.c; install one"}


def test_no_driver_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="launch loop, open: a library or one of its launch functions"):
        LaunchLoop(str(tmp_path / "libcuda.so.1"))


def test_one_number_that_fails_costs_only_itself_and_what_is_made_of_it(
    loop: LaunchLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hung() -> list[float]:
        raise MeasurementError("no answer")

    ways = {name: lambda: [1.0, 2.0, 3.0] for name in ("queued_us", "idle_us", "queued_arguments_us", "flag_us")}
    ways |= {"queued_runtime_us": lambda: [1.5], "round_trip_us": hung}
    monkeypatch.setattr(launch_path, "LaunchLoop", lambda: loop)
    monkeypatch.setattr(launch_path, "_parts", lambda loop: ways)
    found = measure_launch_path()
    assert found.flag_us is not None and found.flag_us.p50 == 2.0
    assert found.unmeasured == {
        "t_sys_bare_us": launch_path.NOT_TRACED,
        "round_trip_us": "no answer",
        "t_sys_untraced_us": "no answer",
    }


@pytest.mark.parametrize(("queued", "source"), [(2.0, "C loop"), (None, "ctypes")])
def test_the_launch_cost_says_how_it_was_measured(
    queued: float | None, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine().calibration.launch_path
    if queued is None:
        path = LaunchPath.unavailable("no C compiler")
    monkeypatch.setattr(calibrate, "measure_launch_path", lambda: path)
    monkeypatch.setattr(calibrate, "kernel_launch_us", lambda: 7.0)
    found = calibrate.calibrate_host("cuda")
    assert (found.launch_us, found.launch_source) == (5.0 if queued else 7.0, source)
    assert found.launch_path is path and set(found.unmeasured) == {"t_sys_us"}


def test_a_launch_cost_measured_neither_way_is_null_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise MeasurementError("no driver")

    monkeypatch.setattr(calibrate, "measure_launch_path", lambda: LaunchPath.unavailable("no C compiler"))
    monkeypatch.setattr(calibrate, "kernel_launch_us", refuse)
    found = calibrate.calibrate_host("cuda")
    assert (found.launch_us, found.launch_source) == (None, None)
    assert found.unmeasured["launch_us"] == "launch cost not measured: no driver"


def test_the_cpu_device_has_no_launch_path() -> None:
    found = calibrate.calibrate_host("cpu")
    assert set(found.launch_path.unmeasured.values()) == {calibrate.NO_LAUNCH}
    assert (found.launch_us, found.t_sys_us, found.launch_source) == (None, None, None)


# --- the traced floors ----------------------------------------------------------------------------------------------


def floor_of(traced: list[list[float]], monkeypatch: pytest.MonkeyPatch, bare: Any) -> LaunchFloor:
    """``launch_floor`` with a profiler that yields the lists one after the other."""
    stand_in = types.ModuleType("taxbreak_fx.null_kernel")
    stand_in.launch_null_kernel = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "taxbreak_fx.null_kernel", stand_in)
    monkeypatch.setattr(calibrate, "bare_null_loop", bare)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    series = iter(traced)

    def profiled(run: Any) -> list[float]:
        run()
        return next(series)

    return calibrate.launch_floor(profiled, lambda run: [])


def test_both_loops_are_traced_with_the_same_number_of_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    full = calibrate.NULL_LAUNCHES
    found = floor_of([[8.0] * full, [6.0] * full], monkeypatch, lambda: asked.append)
    assert asked == [full]
    assert found.t_sys_us is not None and found.bare_us is not None
    assert (found.t_sys_us.p50, found.bare_us.p50, found.failure, found.bare_failure) == (8.0, 6.0, None, None)


def test_a_bare_loop_that_fails_leaves_the_other_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise MeasurementError("no C compiler")

    full = calibrate.NULL_LAUNCHES
    found = floor_of([[8.0] * full], monkeypatch, refuse)
    assert (found.failure, found.bare_us, found.bare_failure) == (None, None, "no C compiler")
    short = floor_of([[8.0] * full, [6.0] * 3], monkeypatch, lambda: lambda count: None)
    assert (short.bare_us, short.bare_failure) == (None, f"the trace holds 3 of {full} null launches")


def test_the_traced_floors_reach_the_machine_or_leave_their_reasons() -> None:
    def outcome(floor: LaunchFloor) -> Outcome:
        return Outcome(stage=Stage(kind="floor"), seconds=1.0, result=msgspec.Raw(msgspec.json.encode(floor)))

    p = Percentiles(p5=1.0, p50=2.0, p95=3.0, samples=4)
    both = with_floor(machine(), outcome(LaunchFloor(t_sys_us=p, failure=None, bare_us=p)), "cuda").calibration
    assert both.launch_path.t_sys_bare_us == both.t_sys_us == p
    one = with_floor(
        machine(), outcome(LaunchFloor(t_sys_us=p, failure=None, bare_us=None, bare_failure="no cc")), "cuda"
    ).calibration
    assert one.launch_path.unmeasured["t_sys_bare_us"] == "no cc" and not one.unmeasured
    lost = Outcome(stage=Stage(kind="floor"), seconds=1.0, failure="killed")
    none = with_floor(machine(), lost, "cuda").calibration
    assert none.launch_path.unmeasured["t_sys_bare_us"] == none.unmeasured["t_sys_us"] == "killed"
    assert none.launch_path.flag_us is not None


@pytest.mark.parametrize(("traced", "kept"), [(MOST_TRACED, True), (57.0, False)])
def test_a_floor_traced_beside_another_program_is_none(traced: float, kept: bool) -> None:
    untraced = machine().calibration.launch_path.t_sys_untraced_us
    assert untraced is not None
    p50 = traced * untraced.p50
    floor = LaunchFloor(t_sys_us=Percentiles(p5=1.0, p50=p50, p95=2 * p50, samples=4), failure=None, bare_us=None)
    outcome = Outcome(stage=Stage(kind="floor"), seconds=1.0, result=msgspec.Raw(msgspec.json.encode(floor)))
    found = with_floor(machine(), outcome, "cuda").calibration
    assert (found.t_sys_us is not None) == kept
    assert ("another program ran on the device" in found.unmeasured.get("t_sys_us", "")) == (not kept)


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_the_untraced_floor_is_the_flag_less_half_the_median_round_trip() -> None:
    flag = Percentiles(p5=6.0, p50=7.0, p95=11.0, samples=500)
    trip = Percentiles(p5=2.0, p50=3.0, p95=9.0, samples=300)
    assert untraced_floor(flag, trip) == Percentiles(p5=4.5, p50=5.5, p95=9.5, samples=500)


def test_hdbi_on_the_untraced_floor() -> None:
    """Reference step: ΔFT 79 + ΔCT 13 = 92, device active 60, two launches: ΔKT 2 x 5 traced, 2 x 3 untraced."""
    parts = parts_of(decompose(eager_recording(), None))
    assert parts.hdbi == pytest.approx(60 / (60 + 92 + 10))
    assert parts.hdbi_untraced == pytest.approx(60 / (60 + 92 + 6))


def test_each_floor_may_be_missing_alone() -> None:
    parts = parts_of(decompose(eager_recording(calibration=calibration(untraced_us=None)), None))
    assert parts.hdbi is not None
    assert (parts.hdbi_untraced, parts.unmeasured["hdbi_untraced"]) == (None, "no untraced T_sys")
    parts = parts_of(decompose(eager_recording(calibration=calibration(t_sys_us=None)), None))
    assert parts.hdbi is None
    assert parts.hdbi_untraced == pytest.approx(60 / (60 + 92 + 6))


def test_an_unknown_framework_time_leaves_both_indices_null_with_its_reason() -> None:
    parts = parts_of(decompose(eager_recording(calibration=calibration(launch_us=None)), None))
    assert parts.unmeasured["hdbi_untraced"] == parts.unmeasured["hdbi"] == "no launch_us here"


# --- the reports ----------------------------------------------------------------------------------------------------


def test_the_reports_show_both_floors_and_both_indices() -> None:
    review = sample_review()
    shown = text.terminal(review)
    assert "T_sys 4.00 µs traced, 3.00 µs untraced" in shown
    assert "HDBI on the untraced launch floor: eager 0.204, inductor 0.267, the others as above" in shown
    table = content.launch_table(review)
    assert table is not None and len(table.rows) == 8  # all but the runtime's, which was not measured
    assert "Launch path" in review.to_markdown()


# --- the benchmark's own arithmetic ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> Any:
    path = Path(__file__).parent.parent / "benchmarks" / "launch_floor.py"
    spec = importlib.util.spec_from_file_location("launch_floor", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fit_gives_base_slope_and_its_worst_residual(benchmark: Any) -> None:
    line = benchmark.fit([1, 10, 100], [8.5, 13.0, 58.0])  # 8 + 0.5 n
    assert (line["base_us"], line["per_node_us"]) == (pytest.approx(8.0), pytest.approx(0.5))
    assert line["worst_residual_us"] == pytest.approx(0.0, abs=1e-9)
    # Least squares through (0, 10), (1, 13), (2, 10) is the constant 11: off by 1, 2 and 1.
    assert benchmark.fit([0, 1, 2], [10.0, 13.0, 10.0])["worst_residual_us"] == pytest.approx(2.0)
    assert benchmark.fit([0, 1, 2], [10.0, 13.0, 10.0])["worst_residual_relative"] == pytest.approx(2 / 13)


def test_what_each_step_adds_to_the_floor_sums_to_the_whole_move(benchmark: Any) -> None:
    rows = benchmark.floor_rows(machine().calibration, "NVIDIA H200")
    moves = [row["us"] for row in rows if row["table"] == "move"]
    # Triton 4.00, bare 3.75, untraced 3.00, published 4.452.
    assert moves == pytest.approx([0.25, 0.75, 3.0 - 4.452])
    assert sum(moves) == pytest.approx(4.0 - 4.452)
    assert [row["reason"] for row in rows if row["table"] == "unmeasured"] == [
        "launch loop, runtime_kernel: CUDA error 500"
    ]
    # A card without a published floor has none to be set against.
    elsewhere = benchmark.floor_rows(machine().calibration, "Example GPU")
    assert len([row for row in elsewhere if row["table"] == "move"]) == 2


def test_a_missing_index_is_no_number(benchmark: Any) -> None:
    row = benchmark.index_row("case", decompose(eager_recording(calibration=calibration(untraced_us=None)), None))
    assert (row["hdbi_untraced"], row["moved"], row["reason"]) == (None, None, "no untraced T_sys")
    row = benchmark.index_row("case", decompose(eager_recording(), None))
    assert row["moved"] == pytest.approx(60 / 158 - 60 / 162) and row["reason"] is None


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_launch_path_is_whole_ordered_and_positive() -> None:
    found = measure_launch_path()
    assert set(found.unmeasured) == {"t_sys_bare_us"}
    for name in LaunchPath.MEASUREMENTS:
        value = getattr(found, name)
        if value is not None:
            assert 0.0 < value.p5 <= value.p50 <= value.p95, name
            assert value.samples == launch_path.SAMPLES, name
    assert found.flag_us is not None and found.t_sys_untraced_us is not None and found.round_trip_us is not None
    assert found.t_sys_untraced_us.p50 == found.flag_us.p50 - found.round_trip_us.p50 / 2


@pytest.mark.gpu
def test_the_bare_loop_is_traced_beside_triton() -> None:
    from taxbreak_fx.recorders.tracing import traced_floor

    found = traced_floor()
    assert (found.failure, found.bare_failure) == (None, None)
    for floor in (found.t_sys_us, found.bare_us):
        assert floor is not None and floor.samples >= calibrate.NULL_LAUNCHES
        assert 0.0 < floor.p5 <= floor.p50 <= floor.p95


@pytest.mark.gpu
def test_a_hung_question_ends_and_leaves_the_device_usable() -> None:
    from taxbreak_fx import null_kernel

    loop = LaunchLoop()
    memory = torch.zeros(64, dtype=torch.int32, pin_memory=True)
    first, second = memory.data_ptr(), memory.data_ptr() + 128
    never = ctypes.c_int32(10_000), ctypes.c_int32(1_000)
    places = ctypes.c_void_p(second), ctypes.c_void_p(first)  # the kernel listens where nobody asks
    stream = torch.cuda.current_stream().cuda_stream
    deaf = loop.kernel(null_kernel.answer_image(), stream, *places, *never)
    with pytest.raises(MeasurementError, match="no answer within 200 ms"):
        loop.round_trip_us(deaf, first, second)
    assert torch.ones(4, device="cuda").sum().item() == 4.0
