"""Rows: every kernel and every launch of a trace lands in exactly one of them."""

from __future__ import annotations

import msgspec
import pytest
from fake_recording import (
    ADD,
    ADDMM,
    ITEM,
    LEAVES,
    LINE,
    SITE_US,
    SITES,
    T_SYS_US,
    VIEW,
    activity,
    clock,
    eager_step,
    eager_timing,
    eager_trace,
    kernel_of,
    key,
    launch,
    site,
    step,
    timing,
    trace,
)

from taxbreak_fx import kinds
from taxbreak_fx.families import classify_op
from taxbreak_fx.kinds import replay_kind, short_kernel, site_kind
from taxbreak_fx.kinds import site_op as shown
from taxbreak_fx.matching import family_replays, match_tier
from taxbreak_fx.nodes import SiteCost, cuda_nodes, device_sum_us, folded, host_only_nodes
from taxbreak_fx.record import SourceLine
from taxbreak_fx.recording import Replay, ReplayTrace, Site, Timing, Trace
from taxbreak_fx.variant_record import Classification, Node

COPY = activity("Memcpy HtoD", 190.0, 3.0, launch=2, kind="memcpy")
STRAY = activity("void stray<int>(int)", 270.0, 5.0, launch=2)


def rows_of(timed: Timing, traced: Trace, library: dict[int, float] | None = None) -> list[Node]:
    """The rows at a launch cost of 4 µs and a T_sys of 5 µs."""
    launch_us: dict[int, float] = {}
    for made in traced.step.launches:
        if made.kind == "kernel" and made.site is not None:
            launch_us[made.site] = launch_us.get(made.site, 0.0) + 4.0
    return cuda_nodes(timed, timed.in_situ, traced, library or {}, launch_us, T_SYS_US)


def assert_whole(rows: list[Node], traced: Trace) -> None:
    """Kernels, launches and device time of the rows are those of the trace."""
    kernels = [a for a in traced.step.activities if a.kind == "kernel"]
    launches = [each for each in traced.step.launches if each.kind != "memop"]
    assert sum(row.kernels or 0 for row in rows) == len(kernels)
    assert sum(row.launches or 0 for row in rows) == len(launches)
    assert sum(row.device_us or 0.0 for row in rows) == pytest.approx(device_sum_us(traced.step.activities))


def graph_trace(graphs: int = 2, kernels: int = 5) -> Trace:
    """Graph launches of several kernels each, with a memset node and an input copy."""
    activities = [activity("Memcpy DtoD", 10.0, 1.5, launch=0, kind="memcpy")]
    launches = [launch("memop")]
    for number in range(graphs):
        start = 100.0 * (number + 1)
        launches.append(launch("graph", activities=kernels + 1))
        activities.append(activity("Memset (Device)", start, 0.5, launch=number + 1, kind="memset"))
        activities += [
            activity(kernel_of((ADD, ADDMM)[i % 2]), start + 2 * i, 2.0, launch=number + 1) for i in range(kernels)
        ]
    return trace(step(activities, launches), graph_latency_us=[20.0 + number for number in range(graphs)])


CASES = {
    "eager with sites": (eager_timing(), eager_trace()),
    "a kernel outside sites": (
        eager_timing(),
        eager_trace(
            eager_step(activities=[*eager_step().activities, STRAY], launches=[*eager_step().launches, launch()])
        ),
    ),
    "one call that issues two kernels": (
        timing(),
        eager_trace(
            eager_step(
                activities=[activity("k", 5.0 * i, 4.0, launch=0) for i in range(2)], launches=[launch(activities=2)]
            )
        ),
    ),
    "a copy outside sites": (
        eager_timing(),
        eager_trace(
            eager_step(activities=[COPY, *eager_step().activities], launches=[*eager_step().launches, launch("memop")])
        ),
    ),
    "a copy inside a site": (
        eager_timing(),
        eager_trace(
            eager_step(
                activities=[msgspec.structs.replace(COPY, site=1), *eager_step().activities],
                launches=[*eager_step().launches, launch("memop", 1)],
            )
        ),
    ),
    "several kernels of one site, one launch each": (
        eager_timing(),
        eager_trace(
            eager_step(
                activities=[activity(kernel_of(ADDMM), 9.0 * i, 4.0, launch=i, at_site=1) for i in range(4)],
                launches=[launch(at_site=1)] * 4,
            )
        ),
    ),
    "other sites than the timed step": (eager_timing(), eager_trace(eager_step(sites=4))),
    "graphs": (timing("cudagraphs", graph_launch_us=12.0), graph_trace()),
    "a graph launched inside a site": (
        eager_timing(),
        eager_trace(
            eager_step(
                activities=[activity(kernel_of(ADD), 5.0 * i, 4.0, launch=0, at_site=1) for i in range(3)],
                launches=[launch("graph", 1, activities=3)],
            ),
            graph_latency_us=[20.0],
        ),
    ),
    "nothing was graphed": (timing("cudagraphs", graph_launch_us=0.0), eager_trace()),
    "no sites recorded": (timing(), eager_trace()),
}


@pytest.mark.parametrize("case", CASES)
def test_no_kernel_and_no_launch_is_an_orphan(case: str) -> None:
    timed, traced = CASES[case]
    assert_whole(rows_of(timed, traced), traced)


def test_the_rows_of_the_reference_step() -> None:
    rows = {row.op: row for row in rows_of(eager_timing(), eager_trace(), {1: 13.0})}
    assert set(rows) == {"aten.linear.default", ADD}  # x.size() dispatches nothing: its time is Python, in ft_parts
    linear = rows["aten.linear.default"]
    assert (linear.family, linear.i_lib, linear.module_path, linear.source) == ("gemm", True, "h.*.mlp", LINE)
    assert (linear.launches, linear.kernels, linear.count) == (1, 1, 1)
    assert (linear.ft_us, linear.ct_us, linear.kt_us, linear.device_us) == (30.0 - 13.0 - 4.0, 13.0, 5.0, 40.0)
    add = rows[ADD]
    assert (add.ft_us, add.ct_us, add.kt_us, add.device_us) == (20.0 - 4.0, 0.0, 5.0, 30.0)


def test_graph_rows_one_per_kernel_identity_and_one_for_the_launches() -> None:
    rows = rows_of(*CASES["graphs"])
    launches = next(row for row in rows if row.family == "graph-launch")
    assert (launches.op, launches.count, launches.launches, launches.kt_us) == ("cudaGraphLaunch", 2, 2, 41.0)
    assert (launches.kernels, launches.unmeasured["kernels"]) == (None, "counted in the rows of its kernels")
    # of five kernels per graph, three are adds and two gemms
    counts = {row.op: (row.kernels, row.launches, row.kt_us) for row in rows if row.kernels}
    assert counts == {short_kernel(kernel_of(ADD)): (6, 0, 0.0), short_kernel(kernel_of(ADDMM)): (4, 0, 0.0)}
    inside = next(row for row in rows if row.family == "gemm")
    assert inside.unmeasured["ft_us"] == "inside a CUDA graph: it has no host time of its own"


def test_a_graph_launch_without_a_measured_latency_has_a_null_with_a_reason() -> None:
    traced = msgspec.structs.replace(graph_trace(), graph_latency_us=[20.0])
    row = next(r for r in rows_of(timing("cudagraphs", graph_launch_us=1.0), traced) if r.family == "graph-launch")
    assert (row.kt_us, row.unmeasured["kt_us"]) == (None, "graph latency not measured")


def test_a_stray_kernel_has_a_row_of_its_own_without_host_time() -> None:
    row = next(row for row in rows_of(*CASES["a kernel outside sites"]) if row.op == "stray<int>")
    assert (row.launches, row.kernels, row.kt_us, row.device_us) == (1, 1, 5.0, 5.0)
    assert (row.ft_us, row.unmeasured["ft_us"]) == (None, "issued between recorded calls")


def test_like_layers_share_a_row_unlike_lines_do_not() -> None:
    other = SourceLine(file=LINE.file, line=LINE.line + 1)
    sites = [
        site("torch.add", ADD, module_path="h.0.mlp", source=LINE),
        site("torch.add", ADD, module_path="h.11.mlp", source=LINE),
        site("torch.add", ADD, module_path="h.11.mlp", source=other),
    ]
    timed = eager_timing(sites=sites)
    traced = eager_trace(
        eager_step(
            activities=[activity(kernel_of(ADD), 9.0 * i, 4.0, launch=i, at_site=i) for i in range(3)],
            launches=[launch(at_site=i) for i in range(3)],
        )
    )
    rows = {(row.module_path, row.source): row for row in rows_of(timed, traced)}
    assert rows[("h.*.mlp", LINE)].count == 2
    assert rows[("h.*.mlp", LINE)].ft_us == (1.0 - 4.0) + (30.0 - 4.0)  # signs are kept
    assert rows[("h.*.mlp", other)].count == 1
    assert_whole(list(rows.values()), traced)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, None),
        ("", ""),
        ("model.layers.3.self_attn", "model.layers.*.self_attn"),
        ("model.layers.3", "model.layers.*"),
        ("experts.12.w1.0", "experts.*.w1.*"),
        ("block2.conv1", "block2.conv1"),  # digits inside a name are no layer number
    ],
)
def test_layer_numbers_are_folded(path: str | None, expected: str | None) -> None:
    assert folded(path) == expected


A, B, C = ("void a<4>(int)", "grid 1"), ("void b(int)", "grid 1"), ("void a<4>(int)", "grid 2")


@pytest.mark.parametrize(
    ("own", "replayed", "tier"),
    [
        ([A, B], [B, A], "exact"),
        ([A], [C], "name"),  # same kernel, other launch signature
        ([A], [("prefix a<4> suffix", "grid 1")], "substring"),
        ([A, A], [A], "substring"),  # as many kernels are needed for a match by name
        ([A], [B], "most common"),
        ([A], [], "unmatched"),
    ],
)
def test_match_tiers(own: list[tuple[str, str]], replayed: list[tuple[str, str]], tier: str) -> None:
    assert match_tier(own, replayed) == tier


def test_a_row_shows_its_weakest_tier() -> None:
    kernel = eager_step().activities[1]
    moved = msgspec.structs.replace(kernel, signature="grid [2, 1, 1] block [128, 1, 1] smem 0 regs 16")
    sites = [SITES[2], SITES[2]]
    traced = eager_trace(
        step(
            [msgspec.structs.replace(kernel, launch=0, site=0), msgspec.structs.replace(moved, launch=1, site=1)],
            [launch(at_site=0), launch(at_site=1)],
            sites=2,
        )
    )
    timed = eager_timing(sites=sites, in_situ=clock([20.0, 20.0], 100.0))
    assert [row.match_tier for row in rows_of(timed, traced)] == ["name"]


@pytest.mark.parametrize(
    ("leaves", "family", "library_call"),
    [
        ((ADD, ADDMM), "gemm", True),  # a library op before a native one
        ((VIEW, ADD), "elementwise", False),  # a native one before a view
        ((VIEW,), "view", False),
        ((ITEM,), "host-sync", False),
        (("aten.copy_.default", ADD), "elementwise", False),  # work before the copy that prepares it
        (("aten.copy_.default",), "copy", False),
    ],
)
def test_what_a_call_is_is_decided_by_its_leaf_ops(leaves: tuple[str, ...], family: str, library_call: bool) -> None:
    kind = site_kind(site("f", *leaves), "cuda")
    assert (kind.family, kind.i_lib) == (family, library_call)


def test_the_name_a_call_is_shown_by() -> None:
    assert shown(site("f", "aten.linear.default")) == "aten.linear.default"
    assert shown(site("f", VIEW, ADD, ADD)) == ADD  # views and repetitions are left out
    assert shown(site("f", VIEW)) == VIEW
    assert shown(site("extern:addmm", "aten.addmm.out")) == "extern:addmm"
    assert shown(site("Tensor.size")) == "Tensor.size"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void at::native::f<4, g(int)>(int, float*)", "at::native::f<4, g(int)>"),
        ("nvjet_tst_64x8", "nvjet_tst_64x8"),
        ("void (anonymous namespace)::k<1>(int)", "(anonymous namespace)::k<1>"),
        ("void at::(anonymous namespace)::k(int)", "at::(anonymous namespace)::k"),
        ("x" * 300, "x" * 120),
    ],
)
def test_a_kernels_short_name_keeps_its_template_arguments(name: str, short: str) -> None:
    assert short_kernel(name) == short


def test_families_in_isolated_replay() -> None:
    named = [SITES[0], *(msgspec.structs.replace(s, call_key=f"call {i}") for i, s in enumerate(SITES[1:]))]
    hot = [Replay(key="call 0", level="call", op="x", dtype=None, host_us=24.0)]
    refused = Replay(key="call 1", level="call", op="x", dtype=None, host_us=None, failure="refused")
    timed = eager_timing(sites=named, replays=[*eager_timing().replays, *hot, refused])
    gemm, add = sorted(family_replays(timed, eager_trace(), T_SYS_US), key=lambda row: row.family, reverse=True)
    assert (gemm.family, gemm.unique_ops, gemm.failed, gemm.tiers) == ("gemm", 1, 0, {"exact": 1})
    assert gemm.hot_over_in_situ == 24.0 / 30.0
    assert gemm.kt_fw_us == 6.5 - T_SYS_US
    assert (add.family, add.failed, add.hot_over_in_situ) == ("elementwise", 1, None)
    without_floor = family_replays(timed, eager_trace(), None)
    assert {row.unmeasured["kt_fw_us"] for row in without_floor} == {"T_sys not measured"}


def test_leaf_times_of_a_family_are_without_the_overloads_boxing() -> None:
    boxed = [msgspec.structs.replace(replay, boxing_us=1.5) for replay in eager_timing().replays]
    bare = {row.family: row.leaf_us for row in family_replays(eager_timing(replays=boxed), eager_trace(), T_SYS_US)}
    assert bare == {"gemm": 25.0 - 1.5, "elementwise": 12.0 - 1.5}
    # Neither without a replay nor without the cost of boxing is there a time to show.
    for replays in ([], eager_timing().replays):
        for row in family_replays(eager_timing(replays=replays), eager_trace(), T_SYS_US):
            assert row.leaf_us is None
            assert row.unmeasured["leaf_us"] == (
                "no ATen op of the family was replayed, or what boxing costs was not measured"
            )


def test_a_leaf_is_classified_by_its_inputs() -> None:
    """Mamba's causal convolution is ATen's, as an H200 showed; another one is cuDNN's."""
    op, data = "aten.convolution.default", "bfloat16[2x8x64](512,64,1)"
    depthwise = f"{op}({data}, bfloat16[8x1x4](4,4,1), None, 1, 3, 1, False, 0, 8)"
    dense = f"{op}({data}, bfloat16[8x8x4](32,4,1), None, 1, 3, 1, False, 0, 1)"
    for leaf_key, library in ((depthwise, "ATen"), (dense, "cuDNN")):
        site = Site(target="F.conv1d", ops=("aten.conv1d.default",), dtype="bfloat16", leaf_keys=(leaf_key,))
        replay = Replay(key=leaf_key, level="leaf", op=op, dtype="bfloat16", host_us=1.0)
        assert site_kind(site, "cuda").library == replay_kind(replay, "cuda").library == library


def test_classification_is_asked_in_proportion_to_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def counting(op: str, device: str, *, dtype: str | None = None, inputs: str | None = None) -> Classification:
        nonlocal asked
        asked += 1
        return classify_op(op, device, dtype=dtype, inputs=inputs)

    monkeypatch.setattr(kinds, "classify_op", counting)
    counts = []
    works = [site for site in SITES if site.ops]
    for copies in (10, 20, 40):
        asked = 0
        cost = SiteCost(1.0, 0.0, 1.0, "measured")
        rows = host_only_nodes(eager_timing(sites=works * copies), [cost] * (len(works) * copies), "")
        assert sum(row.count for row in rows) == len(works) * copies
        counts.append(asked)
    assert 0 < counts[0] <= 10 * sum(len(site.ops) + len(site.leaf_keys) for site in works)
    assert counts[1:] == [2 * counts[0], 4 * counts[0]]


def test_families_on_the_cpu_device_have_no_kernels_to_match() -> None:
    rows = family_replays(eager_timing(), None, None)
    assert {row.family for row in rows} == {"gemm", "elementwise"}
    assert [(row.tiers, row.kt_fw_us) for row in rows] == [({}, None)] * 2


def test_replays_are_not_matched_against_a_trace_of_other_calls() -> None:
    shifted = eager_trace(eager_step(sites=4))
    assert [row.tiers for row in family_replays(eager_timing(), shifted, T_SYS_US)] == [{}, {}]


def test_a_family_that_launches_nothing() -> None:
    traced = ReplayTrace(key=key(VIEW), level="leaf", op=VIEW, kernels=[], launches=0, latency_us=None)
    timed = eager_timing(sites=[site("Tensor.view", VIEW)], in_situ=clock(SITE_US[:1], 100.0))
    (row,) = family_replays(timed, eager_trace(step([], [], sites=1), replays=[traced]), T_SYS_US)
    assert (row.family, row.kt_fw_us, row.unmeasured["kt_fw_us"]) == ("view", None, "the family launches nothing")


def test_the_fixture_times_are_as_long_as_its_sites() -> None:
    assert (len(SITES), len(SITE_US), len(LEAVES)) == (3, 3, 2)


def test_an_authors_triton_kernel_is_known_by_the_process_that_defines_it() -> None:
    own = activity("add_kernel", 0.0, 5.0, launch=0)
    traced = trace(step([own], [launch()]), triton_kernels=["add_kernel"])
    row = next(row for row in rows_of(eager_timing(sites=[], in_situ=None), traced) if row.op == "add_kernel")
    assert (row.family, row.library, row.kernels, row.launches) == ("custom-triton", "Triton", 1, 1)
    nameless = trace(step([own], [launch()]))
    row = next(row for row in rows_of(eager_timing(sites=[], in_situ=None), nameless) if row.op == "add_kernel")
    assert row.family == "unknown"
