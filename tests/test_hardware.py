"""Hardware profiles: reading, refusing, and what they say of a call, with numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_review import sample_review

from taxbreak_fx import hardware
from taxbreak_fx import hardware_costs as costs
from taxbreak_fx.errors import FormatError, OutputError, UncoveredError, UsageError
from taxbreak_fx.hardware import (
    CompiledCosts,
    DeviceCosts,
    FamilyCost,
    FamilyGrid,
    GraphPoint,
    LaunchCosts,
    LibraryCost,
    MatrixRate,
    OpCost,
    Point,
    Profile,
    PythonCosts,
)
from taxbreak_fx.hardware_peaks import matrix_rate
from taxbreak_fx.hardware_scale import scaled
from taxbreak_fx.hardware_shapes import Work, work_of
from taxbreak_fx.machine import HostScore
from taxbreak_fx.recording import Site

LINEAR = OpCost(
    target="torch.nn.functional.linear",
    ops=("aten.addmm.default",),
    family="gemm",
    library="cuBLASLt",
    tensors=3,
    ft_us=10.0,
    ct_us=8.0,
    calls=3,
)
RESHAPE_VIEW = OpCost(
    target="Tensor.reshape", ops=("aten.view.default",), family="view", library="ATen", tensors=1, ft_us=2.0, calls=6
)
RESHAPE_COPY = OpCost(
    target="Tensor.reshape",
    ops=("aten.clone.default", "aten._unsafe_view.default"),
    family="copy",
    library="ATen",
    tensors=1,
    ft_us=9.0,
    calls=2,
)
CONTIGUOUS = OpCost(
    target="Tensor.contiguous",
    ops=("aten.clone.default",),
    family="copy",
    library="ATen",
    tensors=1,
    ft_us=6.0,
    calls=4,
)


def profile(**more: Any) -> Profile:
    """A small profile: 1,000 GB/s, 100 TFLOP/s in bfloat16, a null kernel of 1 µs."""
    fields: dict[str, Any] = {
        "profile_version": hardware.PROFILE_VERSION,
        "name": "small",
        "origin": "by hand",
        "date": "2026-11-23",
        "host_score": HostScore(version=1, us=100.0),
        "launch": LaunchCosts(launch_us=3.0, idle_us=4.0, latency_us=2.0, gap_us=1.0, memop_us=5.0),
        "graphs": (
            GraphPoint(nodes=100, host_us=40.0, first_node_us=12.0),
            GraphPoint(nodes=1, host_us=8.0, first_node_us=9.0),
            GraphPoint(nodes=1100, host_us=240.0),
        ),
        "ops": (LINEAR, RESHAPE_VIEW, RESHAPE_COPY, CONTIGUOUS),
        "families": (
            FamilyCost(family="elementwise", tensors=1, ft_us=5.0),
            FamilyCost(family="elementwise", tensors=3, ft_us=7.0),
            FamilyCost(family="reduction", ft_us=6.5),
        ),
        "libraries": (
            LibraryCost(library="cuBLASLt", family="gemm", ct_us=8.5),
            LibraryCost(library="cuDNN", family="attention", ct_us=6.0),
            LibraryCost(library="cuDNN", family="convolution", ct_us=10.0),
        ),
        "python": PythonCosts(site_glue_us=2.0, module_glue_us=3.0, function_glue_us=0.5, glue_error=0.1),
        "compiled": CompiledCosts(triton_us=6.0, triton_argument_us=0.25, guards_us=4.0, guard_us=0.03),
        "device": DeviceCosts(
            copy_gb_s=1_000.0,
            null_us=1.0,
            rates=(MatrixRate(dtype="bfloat16", tflops=100.0),),
            grids=(
                FamilyGrid(
                    family="elementwise",
                    dtype="bfloat16",
                    points=(
                        Point(bytes=1e4, us=2.0, kernels=1),
                        Point(bytes=1e6, us=2.0),
                        Point(bytes=1e8, us=200.0, kernels=2),
                    ),
                ),
                FamilyGrid(family="softmax", dtype="float32", efficiency=0.5),
            ),
        ),
    }
    return Profile(**{**fields, **more})


def call(target: str, *ops: str, family: str = "elementwise", library: str = "ATen", tensors: int = 1) -> costs.Call:
    return costs.Call(target=target, ops=ops, family=family, library=library, tensors=tensors)


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    hardware.save(profile(), path)
    assert hardware.load(path) == profile()
    assert hardware.find(str(path)) == profile()
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def test_a_head_is_enough_and_what_is_missing_says_so() -> None:
    head = {"profile_version": "1.0.0", "name": "mine", "origin": "by hand", "date": "2026-11-23"}
    bare = hardware.decode(json.dumps(head).encode(), "mine.json")
    assert bare.title == "mine (written by hand 2026-11-23)"
    with pytest.raises(UncoveredError, match=r"mine has no launch.gap_us: not in the profile"):
        bare.number("launch.gap_us")
    told = msgspec.structs.replace(bare, unmeasured={"launch": "no CUDA device"})
    with pytest.raises(UncoveredError, match=r"launch.gap_us: no CUDA device"):
        told.number("launch.gap_us")


def test_a_newer_minor_version_is_read() -> None:
    content = msgspec.to_builtins(profile(profile_version="1.9.0")) | {"novelty": 1}
    assert hardware.decode(json.dumps(content).encode(), "p").name == "small"


def _changed(place: str, value: Any) -> bytes:
    content = json.loads(hardware.encode(profile()))
    *path, last = place.split("/")
    inner = content
    for key in path:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    inner[last] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("profile_version", "2.0.0", r"p.json: profile_version '2.0.0' cannot be read, this taxbreak_fx reads 1.x"),
        ("profile_version", 1, r"p.json: .*profile_version.*; the file is no hardware profile"),
        ("origin", "guessed", r"p.json: Invalid enum value 'guessed'"),
        ("launch/gap_us", -1.5, r"p.json: the number at \$.launch.gap_us is negative \(-1.5\)"),
        ("ops/1/ft_us", float("nan"), r"p.json: .*no hardware profile"),
        ("ops/0/calls", 0, r"calls must be above zero"),
        ("device/copy_gb_s", 0, r"copy_gb_s must be above zero"),
        ("device/rates/0/tflops", 0, r"tflops must be above zero"),
        ("device/grids/0/points/0/us", 0, r"us of a point must be above zero"),
        ("device/grids/1/efficiency", None, r"softmax in float32 has neither points nor an efficiency"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(place: str, value: Any, line: str) -> None:
    with pytest.raises(FormatError, match=line) as caught:
        hardware.decode(_changed(place, value), "p.json")
    assert "\n" not in str(caught.value)


def test_nodes_of_a_graph_may_overlap() -> None:
    found = hardware.decode(_changed("launch/graph_gap_us", -0.06), "p.json")
    assert found.launch.graph_gap_us == -0.06


def test_infinity_is_refused_both_ways() -> None:
    text = hardware.encode(profile()).replace(b'"gap_us": 1.0', b'"gap_us": 1e999')
    assert b"1e999" in text
    with pytest.raises(FormatError, match=r"p.json: .*(finite|out of range)"):
        hardware.decode(text, "p.json")
    with pytest.raises(FormatError, match=r"\$.launch.gap_us is not finite"):
        hardware.encode(profile(launch=LaunchCosts(gap_us=math.inf)))


def test_files_and_names_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match=r"absent.json: cannot be read"):
        hardware.find(str(tmp_path / "absent.json"))
    with pytest.raises(OutputError, match="cannot be written"):
        hardware.save(profile(), tmp_path / "no" / "p.json")
    monkeypatch.setattr(hardware, "FOLDER", tmp_path)
    with pytest.raises(UsageError, match=r"no hardware profile 'h200'; no profile is built in"):
        hardware.find("h200")
    hardware.save(profile(name="h200"), tmp_path / "h200.json")
    hardware.save(profile(name="l4"), tmp_path / "l4.json")
    assert hardware.built_in() == ["h200", "l4"]
    assert hardware.find("h200").name == "h200"
    with pytest.raises(UsageError, match=r"no hardware profile 'h20'; did you mean h200\?"):
        hardware.find("h20")


def test_built_in_profiles_can_be_read() -> None:
    for name in hardware.built_in():
        assert hardware.find(name).name == name


@pytest.mark.parametrize(
    ("wanted", "us", "basis"),
    [
        (call("torch.nn.functional.linear", "aten.addmm.default", family="gemm"), 10.0, "call"),
        (call("Tensor.reshape", "aten.view.default", family="view"), 2.0, "call"),
        # Two leaf ops, but other ones: the entry with two.
        (call("Tensor.reshape", "aten.clone.default", "aten.view.default", family="copy"), 9.0, "target"),
        # No such target: 6.0 for the clone alone + 2.0 for the view alone.
        (call("Tensor.mine", "aten.clone.default", "aten.view.default", family="copy"), 8.0, "ops"),
        (call("torch.add", "aten.add.Tensor", tensors=2), 5.0, "family and tensors"),
        (call("torch.where", "aten.where.self", tensors=3), 7.0, "family and tensors"),
        (call("torch.full", "aten.full.default", tensors=0), 5.0, "family and tensors"),
        (call("torch.sum", "aten.sum.default", family="reduction"), 6.5, "family"),
    ],
)
def test_host_costs_fall_back_in_order(wanted: costs.Call, us: float, basis: str) -> None:
    assert costs.host_us(profile(), wanted) == costs.Cost(us=us, basis=basis)


def test_a_target_with_several_entries_takes_the_mean_over_calls() -> None:
    # Three leaf ops: the entry with two is nearest. With one entry more of two ops: (9 × 2 + 3 × 4) ÷ 6.
    other = msgspec.structs.replace(RESHAPE_COPY, ops=("aten.copy_.default", "aten.view.default"), ft_us=3.0, calls=4)
    wanted = call("Tensor.reshape", "a", "b", "c")
    assert costs.host_us(profile(ops=(RESHAPE_VIEW, RESHAPE_COPY, other)), wanted).us == pytest.approx(5.0)


def test_what_is_not_covered_is_named_and_never_free() -> None:
    conv = call("torch.conv2d", "aten.convolution.default", family="convolution", library="cuDNN")
    sort = call("torch.sort", "aten.sort.default", family="sort/scan")
    with pytest.raises(
        UncoveredError, match=r"small knows no host time of torch.conv2d \(aten.convolution.default"
    ) as e:
        costs.host_us(profile(), conv)
    assert "elementwise, reduction" in str(e.value) and "\n" not in str(e.value)
    assert len(costs.uncovered(profile(), [conv, sort, conv, call("torch.add", "aten.add.Tensor")])) == 2
    with pytest.raises(UncoveredError, match=r"torch.conv2d.*torch.sort"):
        costs.require_covered(profile(), [conv, sort])
    costs.require_covered(profile(), [call("torch.add", "aten.add.Tensor")])


@pytest.mark.parametrize(
    ("wanted", "us", "basis"),
    [
        (call("torch.nn.functional.linear", "aten.addmm.default", library="cuBLASLt", family="gemm"), 8.0, "call"),
        (call("torch.addmm", "aten.addmm.default", library="cuBLASLt", family="gemm"), 8.0, "ops"),
        (call("torch.mm", "aten.mm.default", library="cuBLASLt", family="gemm"), 8.5, "family"),
        (call("torch.lstm", "aten.lstm", library="cuDNN", family="recurrent"), 8.0, "library"),
    ],
)
def test_library_costs_fall_back_in_order(wanted: costs.Call, us: float, basis: str) -> None:
    assert costs.library_us(profile(), wanted) == costs.Cost(us=us, basis=basis)


def test_a_library_that_is_not_covered_is_named() -> None:
    with pytest.raises(UncoveredError, match=r"no library time of torch.fft .* by cuFFT"):
        costs.library_us(profile(), call("torch.fft", "aten.fft", library="cuFFT", family="fft"))
    # An entry whose library time was not measured is no zero.
    with pytest.raises(UncoveredError):
        costs.library_us(profile(libraries=()), call("Tensor.reshape", "aten.view.default", library="cuBLAS"))


def test_a_recorded_site_becomes_a_call() -> None:
    keys = (
        "aten.t.default(bfloat16[4x8](8,1))",
        "aten.addmm.default(bfloat16[4](1), bfloat16[2x8](8,1), bfloat16[8x4](1,8))",
    )
    site = Site(target="torch.nn.functional.linear", dtype="bfloat16", leaf_keys=keys)
    found = costs.call_of(site)
    assert (found.ops, found.family, found.tensors) == (("aten.t.default", "aten.addmm.default"), "gemm", 3)
    assert costs.tensors_in("aten.cat.default(float32[2](1), float32[3](1), dim=0)") == 2
    assert costs.tensors_in("aten.mul.Tensor(float32[2](1), out=float32[2](1))") == 2
    assert costs.tensors_in("aten.empty.default") == 1


def test_sums_of_fixed_and_per_piece_costs() -> None:
    known = profile()
    assert costs.python_us(known, sites=10, modules=4, functions=6) == 2.0 * 10 + 3.0 * 4 + 0.5 * 6
    assert costs.triton_us(known, 8) == 6.0 + 0.25 * 8
    assert costs.guards_us(known, 100) == pytest.approx(7.0)
    with pytest.raises(UncoveredError, match=r"no compiled.cudagraph_us"):
        costs.cudagraph_us(known, 1)


def test_the_simulator_gets_its_constants_or_is_told_which_is_missing() -> None:
    whole = LaunchCosts(latency_us=2.0, gap_us=1.0, graph_gap_us=0.5, sync_us=6.0, queue_depth=900)
    found = costs.floors(profile(launch=whole))
    assert (found.latency_us, found.gap_us, found.graph_gap_us, found.sync_us, found.queue_depth) == (2, 1, 0.5, 6, 900)
    with pytest.raises(UncoveredError, match=r"no launch.graph_gap_us"):
        costs.floors(profile())


def test_graph_launches_are_linear_between_points() -> None:
    known = profile()
    assert costs.graph_us(known, 1) == (8.0, 9.0)
    # Half way from 100 to 1,100 nodes; the first node's last slope is 3 µs in 99 nodes.
    assert costs.graph_us(known, 600) == pytest.approx((140.0, 12.0 + 3.0 * 500 / 99))
    assert costs.graph_us(known, 2100)[0] == pytest.approx(440.0)
    with pytest.raises(UncoveredError, match="knows no launch of a CUDA graph"):
        costs.graph_us(profile(graphs=()), 5)


def test_a_matrix_rate_that_was_not_measured_is_the_published_peak_at_the_share_that_was_reached() -> None:
    machine = msgspec.structs.replace(sample_review().machine, device="NVIDIA H200")
    known = profile(machine=machine)
    assert matrix_rate(known, "bfloat16") == 100.0
    assert matrix_rate(known, "float32") == pytest.approx(66.9 * 100.0 / 989.4)
    assert matrix_rate(known, "int8") is None  # no published figure here
    assert matrix_rate(profile(), "float32") is None  # nobody knows which device
    other = msgspec.structs.replace(machine, device="NVIDIA A100-SXM4-80GB")
    assert matrix_rate(profile(machine=other), "float32") is None
    # 1 GFLOP at 6.76 TFLOP/s, not at the 100 of bfloat16
    assert costs.roofline_us(known, "gemm", "float32", bytes=1e6, flops=1e9) == pytest.approx(1e3 / 6.7617, rel=1e-4)
    assert costs.roofline_us(profile(), "gemm", "float32", bytes=1e6, flops=1e9) == pytest.approx(1.0)


def test_the_roofline_takes_the_dearer_of_bytes_and_arithmetic() -> None:
    known = profile()
    assert costs.roofline_us(known, "gemm", "bfloat16", bytes=1e6, flops=1e9) == pytest.approx(10.0)
    assert costs.roofline_us(known, "gemm", "bfloat16", bytes=5e7, flops=1e9) == pytest.approx(50.0)
    assert costs.roofline_us(known, "elementwise", "bfloat16", bytes=1e6, flops=1e9) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bytes", "us", "kernels"),
    [
        (1.0, 2.0, 1),  # below the smallest point: its time
        (1e6, 2.0, None),
        (
            1e7,
            20.0,
            2,
        ),  # half way in logarithms between 2 and 200 µs; of two points as near, the later would do as well
        (1e8, 200.0, 2),
        (1e9, 2000.0, 2),  # beyond the largest: its efficiency
    ],
)
def test_sizes_are_interpolated_in_logarithms(bytes: float, us: float, kernels: int | None) -> None:
    found = costs.device_us(profile(), "elementwise", "bfloat16", bytes)
    assert (found.us, found.basis, found.dtype) == (pytest.approx(us), "size", "bfloat16")
    if bytes != 1e7:
        assert found.kernels == kernels


@pytest.mark.parametrize("us", [1.5, 2.5])  # of work that takes 0.1 µs: an empty kernel takes 1
def test_latency_is_no_rate(us: float) -> None:
    """A family of which only little work was measured goes on at the pace of others that move bytes."""
    own = FamilyGrid(family="softmax", dtype="float32", points=(Point(bytes=1e5, us=us),))
    fast = FamilyGrid(family="copy", dtype="float32", points=(Point(bytes=1e5, us=1.2), Point(bytes=1e7, us=12.5)))
    product = FamilyGrid(family="gemm", dtype="float32", points=(Point(bytes=1e7, us=10.0),))
    known = profile(
        device=DeviceCosts(copy_gb_s=1_000.0, null_us=1.0, grids=(own, fast, product)),
        unmeasured={"device.read_gb_s": "by hand"},
    )
    assert costs.device_us(known, "softmax", "float32", 1e5).us == pytest.approx(us)
    assert costs.device_us(known, "softmax", "float32", 1.01e7).us == pytest.approx(us + 10.0 / 0.8)


def test_no_kernel_takes_less_than_one_that_does_nothing() -> None:
    assert costs.device_us(profile(), "softmax", "float32", 1e5).us == 1.0
    found = costs.device_us(profile(), "softmax", "bfloat16", 1e7)
    assert found == costs.DeviceCost(us=pytest.approx(20.0), kernels=None, basis="efficiency", dtype="float32")


def test_a_family_without_device_times_is_named() -> None:
    known = profile(unmeasured={"device.sort/scan": "the sort failed"})
    with pytest.raises(UncoveredError, match=r"no device time of sort/scan in int64 \(the sort failed\); its families"):
        costs.device_us(known, "sort/scan", "int64", 1e6)


def _gemm(m: int, n: int, k: int, us: float) -> Point:
    return Point(bytes=2.0 * (m * k + k * n + m * n), flops=2.0 * m * n * k, us=us, shape=(m, n, k))


def _with_gemm(*points: Point) -> Profile:
    grids = (FamilyGrid(family="gemm", dtype="bfloat16", points=points),)
    return profile(device=msgspec.structs.replace(profile().device, grids=grids))


def _product(known: Profile, m: int, n: int, k: int) -> costs.DeviceCost:
    point = _gemm(m, n, k, 1.0)
    return costs.device_us(known, "gemm", "bfloat16", point.bytes, point.flops, point.shape)


def test_products_are_exact_at_measured_shapes_and_between_rows() -> None:
    # 1024 × 1024 weights: 2.1 MB. Rows 1024 and 4096 are bound by arithmetic: 21.5 and 85.9 µs at best.
    ideal = [2.0 * m * 1024 * 1024 / 1e8 for m in (1024, 4096)]
    known = _with_gemm(_gemm(1024, 1024, 1024, ideal[0] * 4), _gemm(4096, 1024, 1024, ideal[1] * 1))
    assert _product(known, 1024, 1024, 1024).us == pytest.approx(ideal[0] * 4)
    assert _product(known, 4096, 1024, 1024).us == pytest.approx(ideal[1])
    # 2048 rows lie half way in logarithms: slowness √(4 × 1) = 2.
    assert _product(known, 2048, 1024, 1024).us == pytest.approx(2.0 * 2.0 * 2048 * 1024 * 1024 / 1e8)
    assert _product(known, 8192, 1024, 1024).us == pytest.approx(2.0 * 8192 * 1024 * 1024 / 1e8)


def test_products_between_weights_share_the_efficiency_of_their_neighbours() -> None:
    def at(m: int, n: int, k: int, slowness: float) -> Point:
        return _gemm(m, n, k, slowness * 2.0 * m * n * k / 1e8)

    known = _with_gemm(at(4096, 1024, 1024, 1.0), at(4096, 4096, 1024, 4.0))
    # Half way between the two in log n: equal weights, geometric mean.
    found = _product(known, 4096, 2048, 1024)
    assert (found.us, found.basis) == (pytest.approx(2.0 * 2.0 * 4096 * 2048 * 1024 / 1e8), "shape")


def test_products_take_the_efficiency_of_those_aligned_alike() -> None:
    def at(m: int, n: int, k: int, slowness: float) -> Point:
        return _gemm(m, n, k, slowness * 2.0 * m * n * k / 1e8)

    known = _with_gemm(at(4096, 4099, 1024, 6.0), at(4096, 1024, 1024, 1.0))
    assert _product(known, 4096, 4104, 1024).us == pytest.approx(1.0 * 2.0 * 4096 * 4104 * 1024 / 1e8)
    assert _product(known, 4096, 4101, 1024).us == pytest.approx(6.0 * 2.0 * 4096 * 4101 * 1024 / 1e8)
    only = _with_gemm(at(4096, 4099, 1024, 6.0))
    assert _product(only, 4096, 4104, 1024).us == pytest.approx(6.0 * 2.0 * 4096 * 4104 * 1024 / 1e8)


def test_another_case_or_dtype_stands_in_and_says_so() -> None:
    batched = FamilyGrid(family="gemm", dtype="bfloat16", case="batched", points=(Point(bytes=1e6, us=3.0),))
    plain = FamilyGrid(family="gemm", dtype="float32", points=(Point(bytes=1e6, us=7.0),))
    known = profile(device=msgspec.structs.replace(profile().device, grids=(batched, plain)))
    assert costs.device_us(known, "gemm", "bfloat16", 1e6, case="batched").us == pytest.approx(3.0)
    assert costs.device_us(known, "gemm", "float16", 1e6) == costs.DeviceCost(
        us=pytest.approx(7.0), kernels=None, basis="size", dtype="float32"
    )


def test_scaling_moves_the_host_and_leaves_the_device() -> None:
    slow = scaled(profile(), HostScore(version=1, us=150.0))
    assert (slow.host_factor, slow.title) == (1.5, "small (written by hand 2026-11-23, host times × 1.5)")
    assert (slow.launch.launch_us, slow.launch.idle_us, slow.launch.memop_us) == (4.5, 6.0, 7.5)
    assert (slow.launch.latency_us, slow.launch.gap_us, slow.device) == (2.0, 1.0, profile().device)
    assert (slow.graphs[0].host_us, slow.graphs[0].first_node_us) == (60.0, 12.0)
    assert (slow.ops[0].ft_us, slow.ops[0].ct_us, slow.ops[1].ct_us) == (15.0, 12.0, None)
    assert (slow.families[0].ft_us, slow.libraries[0].ct_us) == (7.5, 12.75)
    assert (slow.python.site_glue_us, slow.python.glue_error, slow.python.module_us) == (3.0, 0.1, None)
    assert (slow.compiled.guard_us, slow.compiled.frame_us) == (pytest.approx(0.045), None)
    back = scaled(slow, HostScore(version=1, us=100.0))
    assert back.host_factor == pytest.approx(1.0) and back.ops[0].ft_us == pytest.approx(10.0)


def test_scores_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(UsageError, match=r"host score version 1, this host 2"):
        scaled(profile(), HostScore(version=2, us=100.0))
    with pytest.raises(UsageError, match=r"must be positive"):
        scaled(profile(), HostScore(version=1, us=0.0))
    with pytest.raises(UsageError, match=r"small has no host score \(not in the profile\)"):
        scaled(profile(host_score=None), HostScore(version=1, us=100.0))


X, W, V = "bfloat16[6x8](8,1)", "bfloat16[8x4](4,1)", "bfloat16[4](1)"
Q = "bfloat16[2x4x{}x16](64,16,16,1)"


@pytest.mark.parametrize(
    ("key", "work"),
    [
        (f"aten.mm.default({X}, {W})", Work(shape=(6, 4, 8))),
        (f"extern:mm({X}, {W}, out=bfloat16[6x4](4,1))", Work(shape=(6, 4, 8))),
        (f"aten.addmm.default({V}, {X}, {W})", Work(shape=(6, 4, 8))),
        ("aten.linear.default(bfloat16[2x3x8](24,8,1), bfloat16[4x8](8,1))", Work(shape=(6, 4, 8))),
        ("aten.mm.default(bfloat16[0x8](8,1), bfloat16[8x4](4,1))", Work()),
        ("aten.bmm.default(bfloat16[2x6x8](48,8,1), bfloat16[2x8x4](32,4,1))", Work(case="batched")),
        (f"aten._scaled_dot_product_cudnn_attention.default({Q.format(1)}, {Q.format(9)})", Work(case="decode")),
        (f"aten._scaled_dot_product_flash_attention.default({Q.format(9)}, {Q.format(9)})", Work(case="prefill")),
        (f"aten.add.Tensor({X}, {X})", Work()),
        ("aten.mm.default", Work()),
    ],
)
def test_the_work_of_an_op_is_read_from_its_inputs(key: str, work: Work) -> None:
    assert work_of(key) == work


def test_the_profile_in_the_documentation_answers() -> None:
    text = (Path(__file__).parent.parent / "docs" / "hardware-profile.md").read_text(encoding="utf-8")
    mine = hardware.decode(text.partition("```json\n")[2].partition("```")[0].encode(), "the example")
    assert mine.title == "my-gpu (written by hand 2026-11-23)"
    assert costs.host_us(mine, call("torch.add", "aten.add.Tensor", tensors=2)).us == 8.0
    # 2 × 512³ operations at 300 TFLOP/s are 0.895 µs, 1.6 MB at 2 TB/s 0.786 µs; at 70 % of that: below a null kernel.
    assert costs.device_us(mine, "gemm", "bfloat16", 6 * 512**2, 2 * 512**3, (512, 512, 512)).us == 1.5
    assert costs.device_us(mine, "gemm", "bfloat16", 6 * 4096**2, 2.0 * 4096**3).us == pytest.approx(
        2 * 4096**3 / 300e6 / 0.7
    )
    assert costs.python_us(mine, 1, 1, 1) == pytest.approx(5.3)


def test_the_documentation_names_every_field() -> None:
    text = (Path(__file__).parent.parent / "docs" / "hardware-profile.md").read_text(encoding="utf-8")
    ranged = {"torch_us", "dispatch_us", "function_us"}  # between the two ends of "module_us … overload_us"
    for kind in (Profile, LaunchCosts, PythonCosts, CompiledCosts, DeviceCosts):
        for name in set(kind.__struct_fields__) - ranged:
            assert f"{name}`" in text or f"{name}." in text or f"{name}[]" in text, f"{kind.__name__}.{name}"
