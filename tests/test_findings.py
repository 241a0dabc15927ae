"""Rules on real reviews of unmodified transformers models (H200, benchmarks/results), and what all findings share."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sample_review import AUTHOR_FILE, node, sample_review, variant
from sample_review import breakdown as terms
from sample_review import interval as around
from test_timeline import item, kernel, step
from test_whatif import measured as simulated

from taxbreak_fx import schema
from taxbreak_fx.breakdown_timeline import Built, exposed_of
from taxbreak_fx.compare import LEAST_EFFECT, UNCHANGED, compare_all, verdict_of
from taxbreak_fx.finding import Finding
from taxbreak_fx.findings import RULES, find, registry, with_findings
from taxbreak_fx.findings_rule import ERROR_SHARE, WARNING_SHARE, in_library, severity_of
from taxbreak_fx.model import Comparison, Removed, Review, Variant
from taxbreak_fx.record import Interval, SourceLine
from taxbreak_fx.recording import Timing
from taxbreak_fx.stats import CONFIDENCE
from taxbreak_fx.timeline import Floors, Timeline
from taxbreak_fx.timeline_store import stored
from taxbreak_fx.variant_record import GraphSkip, Node
from taxbreak_fx.whatif import Change, whatif

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
SPINE = tuple(sorted(path.stem.removeprefix("spine-") for path in RESULTS.glob("spine-*.json")))
LOOP = "olmoe-decode-eager-experts"
FLOORS = Floors(latency_us=2.0, gap_us=1.0, graph_gap_us=0.25, sync_us=8.0)

# Where each rule fires among the committed reviews: everywhere else it must be silent.
FIRES: dict[str, set[str]] = {
    "expert-loop": {LOOP},
    "graph-break": {LOOP},
    "recompile": {LOOP},
    "cudagraph-skipped": {LOOP},
    "host-sync": {LOOP, "gpt2-prefill", "llama-3.2-1b-prefill", "olmoe-prefill-grouped"},
    "slow-sdpa": {"bert", "vit"},
    "device-bound": set(),
    "hidden-copy": {"llama-3.2-1b-decode"},
    "parameter-copies": set(SPINE) - {LOOP, "vit"},
    "guard-cost": set(SPINE) - {LOOP},
    "small-gemms": set(SPINE) - {"gpt2-decode", "gpt2-prefill"},
    "dtype-round-trip": {name for name in SPINE if name.startswith(("llama", "olmoe"))},
    "unfused-chain": set(SPINE),
    "variant-worse": {"bert", "vit", LOOP, "gpt2-prefill", "llama-3.2-1b-prefill", "olmoe-prefill-grouped"},
    "cpu-tensor": set(),
}


@cache
def committed(name: str) -> Review:
    return Review.load(RESULTS / f"spine-{name}.json")


def of(review: Review, rule: str) -> list[Finding]:
    return [finding for finding in find(review) if finding.rule == rule]


def one(review: Review, rule: str) -> Finding:
    (found,) = of(review, rule)
    return found


def line_of(finding: Finding) -> tuple[str, int]:
    assert finding.source is not None
    return Path(finding.source.file).name, finding.source.line


def with_variant(review: Review, name: str, **changes: Any) -> Review:
    variants = [msgspec.structs.replace(v, **changes) if v.name == name else v for v in review.variants]
    return msgspec.structs.replace(review, variants=variants)


# --- rule by rule on the committed reviews --------------------------------------------------------------------------


def test_the_table_names_every_rule_and_review() -> None:
    assert set(FIRES) == set(RULES) and len(SPINE) == 9


@pytest.mark.parametrize("name", SPINE)
def test_each_rule_fires_where_it_should_and_nowhere_else(name: str) -> None:
    expected = {rule for rule, reviews in FIRES.items() if name in reviews}
    assert {finding.rule for finding in find(committed(name))} == expected


def test_the_expert_loop() -> None:
    found = one(committed(LOOP), "expert-loop")
    assert line_of(found) == ("modeling_olmoe.py", 314) and found.module_path == "model.layers.*.mlp"
    assert "8 experts visited per call, 16 calls per step: 256 products" in found.evidence[0]
    assert "experts_implementation='eager'" in " ".join(found.evidence)
    # One call of each op instead of eight: 7/8 of the host time of the nodes in the loop.
    loop = [n for n in committed(LOOP).variant("eager").nodes if n.count == 128]
    assert found.saving_us["ft_us"] == pytest.approx(sum(n.ft_us or 0.0 for n in loop) * 7 / 8)
    assert found.saving_origin == "predicted"


def test_waits_of_the_host_are_told_by_line() -> None:
    found = one(committed(LOOP), "host-sync")
    nodes = [n for n in committed(LOOP).variant("eager").nodes if n.family == "host-sync"]
    # 512 values read, and 128 + 16 results whose size hangs on the data.
    assert sum(n.count for n in nodes) == 512
    assert found.evidence[0].startswith("656 waits per step, counted: modeling_olmoe.py:")
    assert {f"modeling_olmoe.py:{n.source.line}" for n in nodes if n.source} <= set(
        found.evidence[0].replace(" ", ";").split(";")
    )
    # GPT-2 asks once per step whether the mask is all ones: a note, which a CUDA graph cannot hold all the same.
    small = one(committed("gpt2-prefill"), "host-sync")
    assert line_of(small) == ("masking_utils.py", 755) and small.severity == "note" and small.in_library


def test_a_graph_break_and_the_recompiles_behind_it() -> None:
    broken, again = one(committed(LOOP), "graph-break"), one(committed(LOOP), "recompile")
    assert line_of(broken) == ("modeling_olmoe.py", 311) and broken.op == "Dynamic shape operator"
    assert broken.evidence[0].startswith("10 of 17 graphs end here: Dynamic shape operator")
    assert "capture_dynamic_output_shape_ops" in broken.fix
    assert again.evidence[0] == "frame 9 was compiled 8 times, 552 ops in all"
    assert "gives up" in again.title  # eight is torch's limit


def test_work_outside_of_cuda_graphs() -> None:
    found = one(committed(LOOP), "cudagraph-skipped")
    text = " ".join(found.evidence)
    assert "212 graph launches, 2083 launches outside" in text and "eager-graph failed" in text
    assert line_of(found) == ("modeling_olmoe.py", 317)


def test_inductors_own_reasons_name_the_line() -> None:
    where = SourceLine(file="/home/author/toy.py", line=7)
    skips = [
        GraphSkip(reason="mutated inputs (2 instances)", source=where),
        GraphSkip(reason="DeviceCopy ops: aten.copy", source=where, partition=True),
    ]
    review = with_variant(committed("bert"), "reduce-overhead", graph_skips=skips)
    mutated, split = sorted(of(review, "cudagraph-skipped"), key=lambda f: f.op or "", reverse=True)
    assert (mutated.source, split.source) == (where, where)
    assert mutated.op == "mutated inputs" and "mark_static_address" in mutated.fix
    assert split.title == "A CUDA graph is split here" and "1 ops run between graphs" in split.evidence[1]
    nothing = with_variant(review, "reduce-overhead", graph_skips=[], graph_launches=0)
    assert one(nothing, "cudagraph-skipped").title.startswith("Nothing was graphed")


def test_attention_that_lost_its_fused_kernel() -> None:
    for name, path in (("bert", "encoder.layer.*.attention.self"), ("vit", "layers.*.attention")):
        review = committed(name)
        found = one(review, "slow-sdpa")
        assert line_of(found) == ("sdpa_attention.py", 158) and found.module_path == path
        text = " ".join(found.evidence)
        assert "12 kernels for 12 calls" in text and "dynamo at that line: 216 kernels" in text
        assert "in: dynamo, inductor, reduce-overhead, cudagraphs, eager-graph" in text
        assert "builds a mask that eager does not, at masking_utils.py" in text
        assert found.saving_origin == "measured" and found.saving_us["device_us"] > 400
    # GPT-2's attention keeps cuDNN under every variant.
    assert of(committed("gpt2-prefill"), "slow-sdpa") == []


def test_attention_that_lost_its_fused_kernel_costs_the_host_too() -> None:
    # An idle device: what the fallback computes longer is hidden, what it launches more is not.  Beside that line the
    # captured graph is a little cheaper for the host than the modules are.
    review = committed("vit")
    found, slower = one(review, "slow-sdpa"), one(review, "variant-worse")
    assert found.exposed_us is not None and slower.exposed_us is not None
    assert found.variant == slower.variant and found.exposed_us == pytest.approx(slower.exposed_us, rel=0.2)
    assert found.severity == "error" and "host and device time at that line" in found.evidence[-1]


def test_attention_whose_times_are_missing_costs_an_unknown() -> None:
    review = committed("vit")
    nodes = [msgspec.structs.replace(n, ft_us=None, unmeasured={**n.unmeasured, "ft_us": "not clocked"})
             for n in review.variant("dynamo").nodes]  # fmt: skip
    found = one(with_variant(review, "dynamo", nodes=nodes), "slow-sdpa")
    assert found.exposed_us is None and "was not measured" in found.evidence[-1]


def test_a_variant_that_is_worse() -> None:
    found = one(committed("bert"), "variant-worse")
    assert found.variant == "dynamo" and found.severity == "error" and found.confidence == "high"
    comparison = next(c for c in committed("bert").comparisons if (c.base, c.variant) == ("eager", "dynamo"))
    assert comparison.removed.wall_us is not None and found.exposed_us == -comparison.removed.wall_us
    assert any("kernels: 153 → 376" in line for line in found.evidence)
    assert line_of(found) == ("sdpa_attention.py", 158)
    # What other rules explain (attention, copied parameters) is not said again of variants that are faster.
    assert {f.variant for f in of(committed("vit"), "variant-worse")} == {"dynamo"}
    # Llama's dynamo is "no measurable change": more kernels alone are no finding.
    assert "dynamo" not in {f.variant for f in of(committed("llama-3.2-1b-prefill"), "variant-worse")}
    assert {f.variant for f in of(committed(LOOP), "variant-worse")} == {
        "dynamo", "inductor", "reduce-overhead", "cudagraphs",
    }  # fmt: skip


def test_chains_and_what_inductor_made_of_them() -> None:
    norm, rotary = [f for f in of(committed("llama-3.2-1b-decode"), "unfused-chain") if f.op in ("norm", "rotary")]
    assert norm.evidence[0] == "264 kernels per step in 33 calls (8.0 each), of 826 in eager"
    assert line_of(norm) == ("modeling_llama.py", 64) and norm.saving_origin == "measured"
    assert any("inductor does it in 33 kernels" in line for line in norm.evidence)
    assert rotary.op == "rotary" and "in 32 calls (5.0 each)" in rotary.evidence[0]
    activation = next(f for f in of(committed("gpt2-prefill"), "unfused-chain") if f.op == "activation")
    assert line_of(activation) == ("activations.py", 66) and "(8.0 each)" in activation.evidence[0]
    # BERT's LayerNorm and GELU are one kernel each, and it has no rotary embedding.
    assert {f.op for f in of(committed("bert"), "unfused-chain")} == {"residual"}


def test_small_products_copies_and_round_trips() -> None:
    review = committed("llama-3.2-1b-decode")
    assert {f.op for f in of(review, "small-gemms")} == {"q_proj+k_proj+v_proj", "gate_proj+up_proj"}
    # With 512 tokens the two large ones keep the device busier than the host: only q, k and v are left.
    prefill = of(committed("llama-3.2-1b-prefill"), "small-gemms")
    assert {f.op for f in prefill} == {"q_proj+k_proj+v_proj"}
    copy = one(review, "hidden-copy")
    assert line_of(copy) == ("sdpa_attention.py", 24) and "enable_gqa" in copy.fix
    assert "66 conversions per step" in one(review, "dtype-round-trip").evidence[0]


def test_parameters_copied_into_a_graph() -> None:
    found = one(committed("llama-3.2-1b-decode"), "parameter-copies")
    rows = [n for n in committed("llama-3.2-1b-decode").variant("cudagraphs").nodes if n.op.startswith("Memcpy DtoD")]
    assert found.variant == "cudagraphs" and found.saving_us["device_us"] == sum(n.device_us or 0.0 for n in rows)
    # Each is a call of the host's, too, and mostly that: GPT-2's 331 µs of copies lie behind 1,900 µs of making them.
    small = one(committed("gpt2-prefill"), "parameter-copies")
    assert small.exposed_us is not None and small.exposed_us == small.saving_us["wall_us"]
    assert small.exposed_us > 3 * small.saving_us["device_us"]
    assert of(committed("vit"), "parameter-copies") == []  # 13 copies more, of real inputs


def test_a_busy_device() -> None:
    # The device works 88 % of OLMoE's fastest step; in one that is a twentieth shorter, 92 %.
    review = committed("olmoe-prefill-grouped")
    best = review.variant("reduce-overhead")
    assert best.t_wall_us is not None and best.device_active_us is not None
    median = 0.95 * best.t_wall_us.median
    wall = msgspec.structs.replace(best.t_wall_us, median=median, low=median, high=median)
    found = one(with_variant(review, "reduce-overhead", t_wall_us=wall), "device-bound")
    assert found.exposed_us == wall.median - best.device_active_us
    assert found.severity == "note" and line_of(found) == ("moe.py", 332)
    # While traced it may be active for longer than the step takes: nothing is left then, not less.
    median = 0.95 * best.device_active_us
    wall = msgspec.structs.replace(wall, median=median, low=median, high=median)
    found = one(with_variant(review, "reduce-overhead", t_wall_us=wall), "device-bound")
    assert found.exposed_us == 0.0 and "no change of the host alone can win more than 0 µs (0%)" in found.evidence


def test_a_tensor_that_crosses() -> None:
    # Llama's rotary embedding calls .to(x.device) on its frequencies; where they already are on the device, nothing
    # moves.  The same line with a copy of 1.6 µs is what a buffer left on the CPU looks like in a trace.
    review = committed("llama-3.2-1b-decode")
    nodes = [
        msgspec.structs.replace(n, device_us=1.6) if n.op == "aten.to.device" else n
        for n in review.variant("eager").nodes
    ]
    found = one(with_variant(review, "eager", nodes=nodes), "cpu-tensor")
    assert line_of(found) == ("modeling_llama.py", 115) and found.module_path == "model.rotary_emb"
    assert of(review, "cpu-tensor") == []


def test_old_reviews_give_raw_times_and_say_so() -> None:
    for name in SPINE:
        review = committed(name)
        old = [msgspec.structs.replace(variant, timeline=None, exposed=None) for variant in review.variants]
        for found in find(msgspec.structs.replace(review, variants=old)):
            if found.rule in ("variant-worse", "device-bound") and found.exposed_us is not None:
                continue  # a measured difference of wall times needs no simulation
            assert found.exposed_us is None and found.share is None
            assert "is not known" in found.evidence[-1] and found.severity != "error"


def test_reviews_that_keep_timelines_tell_what_is_exposed() -> None:
    kept = [name for name in SPINE if all(variant.timeline is not None for variant in committed(name).variants)]
    assert "vit" in kept
    for name in kept:
        # But for a variant that only adds kernels: what those cost is not seen on the device.
        costly = [each for each in find(committed(name)) if (each.rule, each.op) != ("variant-worse", "kernels")]
        assert all(found.exposed_us is not None and found.share is not None for found in costly)


# --- exposed costs --------------------------------------------------------------------------------------------------

COPY = "aten.reshape.default"


def copying(timeline: Timeline, wall_us: float) -> Review:
    """A step of 10 products at line 41 and 10 copies at line 42, measured as ``timeline`` says."""
    nodes = [
        node("aten.linear.default", "gemm", 41, 10, 10, 100.0, 0.0, 40.0, 200.0, "model.layers.*.proj"),
        node(COPY, "copy", 42, 10, 10, 100.0, 0.0, 40.0, 50.0, "model.layers.*.attention"),
    ]
    eager = variant(
        "eager", around(wall_us, wall_us - 5, wall_us + 5), 300.0, 100.0, 20, 20, 250.0,
        terms(200.0, 0.0, 80.0, 250.0), nodes=nodes,
        simulated=exposed_of(Built(timeline, "untraced", []), wall_us),
    )  # fmt: skip
    eager = msgspec.structs.replace(eager, timeline=stored(timeline))
    return msgspec.structs.replace(sample_review(), variants=[eager], comparisons=[], graphs=[])


def places(product_us: float) -> Timeline:
    """(ΔFT 10, call 5, product) then (ΔFT 10, call 5, copy of 5 µs), ten times."""
    pair = (
        item(10.0, 5.0, kernel(product_us), family="gemm", source=SourceLine(file=AUTHOR_FILE, line=41)),
        item(10.0, 5.0, kernel(5.0), family="copy", source=SourceLine(file=AUTHOR_FILE, line=42)),
    )
    return step(*(one for _ in range(10) for one in pair), floors=FLOORS)


def test_an_exposed_cost_is_what_the_step_would_lose() -> None:
    # Host-bound: 20 x 15 = 300 µs issue the last copy, which starts 2 µs later: 302 + 5 + 8 = 315.  Without copies the
    # host returns at 150, the last product starts at 152 at the latest and takes 10: 152 + 10 + 8 = 170, or so.
    found = one(copying(places(10.0), 315.0), "hidden-copy")
    assert found.exposed_us == pytest.approx(145.0, abs=5.0)
    assert found.share == pytest.approx(found.exposed_us / 315.0) and found.severity == "error"
    assert found.evidence[-1].startswith("exposed: 14") and "simulated" in found.evidence[-1]


def test_what_the_device_hides_is_no_finding() -> None:
    # Device-bound: products of 400 µs hide the host's 300; a copy costs its 5 µs and a gap of 1: 60 of about 4,080.
    found = one(copying(places(400.0), 4_080.0), "hidden-copy")
    assert found.exposed_us is not None and 50.0 <= found.exposed_us <= 70.0 and found.severity == "note"
    # With products of 4,000 µs those 60 are below one per cent: nothing to report.
    assert of(copying(places(4_000.0), 40_080.0), "hidden-copy") == []


def test_guards_that_the_device_hides_cost_nothing() -> None:
    found = one(simulated(), "guard-cost")
    assert found.variant == "inductor" and found.exposed_us is not None
    assert found.saving_us == {"ft_us": 40.0, "wall_us": found.exposed_us}


def test_a_predicted_review_has_findings_of_its_own() -> None:
    review = whatif(simulated(), Change(no_guards=True))
    assert review.findings == find(review) and {f.rule for f in review.findings} >= {"guard-cost"}
    # Without a compiled variant there is nothing to say of the graphs that the review also lists.
    assert of(whatif(simulated(), Change(cpu_speed=2.0), ["eager"]), "graph-break") == []


def test_what_was_never_run_is_never_sure() -> None:
    review = committed("llama-3.2-1b-decode")
    guessed = with_variant(review, "eager", origin="predicted")
    for found in find(guessed):
        if found.variant == "eager":
            assert found.confidence != "high" and found.saving_origin in (None, "predicted")


# --- the same against itself ----------------------------------------------------------------------------------------


def timing(seed: int, name: str, drift: float) -> Timing:
    chance = random.Random(seed)
    pairs = [(chance.gauss(1.0, 0.04), chance.gauss(1.0, 0.04)) for _ in range(40)]
    return Timing(
        variant=name, wall_us=[6_000 * drift * a for a, _ in pairs], host_us=[5_900 * drift * a for a, _ in pairs],
        base_wall_us=[6_000 * drift * b for _, b in pairs], base_host_us=[5_900 * drift * b for _, b in pairs],
        compile_s=None, peak_memory_bytes=None, sites=[], spans=None, in_situ=None, drained=None,
        graph_launch_us=None, output_check=None, output_floor=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_variant_against_itself_is_never_worse(seed: int) -> None:
    eager = committed("llama-3.2-1b-decode").variant("eager")
    twin = msgspec.structs.replace(eager, name="inductor")
    timings = {"eager": timing(seed, "eager", 1.0), "inductor": timing(100 + seed, "inductor", 1.3)}
    review = msgspec.structs.replace(
        committed("llama-3.2-1b-decode"), variants=[eager, twin], comparisons=compare_all([eager, twin], timings)
    )
    assert of(review, "variant-worse") == []


def test_the_twenty_measured_reviews_of_eager_against_itself() -> None:
    rows = json.loads((RESULTS / "repeatability.json").read_text(encoding="utf-8"))["rows"]
    rows = [row for row in rows if "wall_ratio" in row]
    base = committed("gpt2-decode")
    eager = base.variant("eager")
    again = msgspec.structs.replace(eager, name="again")
    assert len(rows) == 20
    for row in rows:
        ratio = Interval(median=row["wall_ratio"], low=row["low"], high=row["high"], samples=row["pairs"])
        compared = Comparison(
            base="eager", variant="again", wall_ratio=ratio, verdict=verdict_of(ratio, LEAST_EFFECT),
            hdbi_before=None, hdbi_after=None, launches_before=336, launches_after=336, kernels_before=336,
            kernels_after=336, breakeven_steps=None, ratio_confidence=CONFIDENCE,
            removed=Removed(kt_us=0.0, noise_us=row["noise_us"], **row["removed_us"]),
            unmeasured=dict.fromkeys(("hdbi_before", "hdbi_after", "breakeven_steps"), "not kept"),
        )  # fmt: skip
        assert compared.verdict == UNCHANGED
        review = msgspec.structs.replace(base, variants=[eager, again], comparisons=[compared])
        assert of(review, "variant-worse") == []


def test_a_difference_inside_the_noise_is_no_finding() -> None:
    review = committed("bert")
    changed = []
    for c in review.comparisons:
        noise = {**c.removed.noise_us, "device_us": 10_000.0}
        changed.append(
            msgspec.structs.replace(c, verdict=UNCHANGED, removed=msgspec.structs.replace(c.removed, noise_us=noise))
        )
    assert of(msgspec.structs.replace(review, comparisons=changed), "variant-worse") == []


# --- what all findings share ----------------------------------------------------------------------------------------


def moved(nodes: list[Node], lines: int, speed: float) -> list[Node]:
    """The same code ``lines`` further down, on a host and device that take ``speed`` times as long."""

    def times(us: float | None) -> float | None:
        return None if us is None else us * speed

    def down(source: SourceLine | None) -> SourceLine | None:
        if source is None:
            return None
        return SourceLine(file=f"/elsewhere/{Path(source.file).name}", line=source.line + lines)

    return [
        msgspec.structs.replace(
            n,
            source=down(n.source),
            ft_us=times(n.ft_us), ct_us=times(n.ct_us), device_us=times(n.device_us),
        )
        for n in nodes
    ]  # fmt: skip


@pytest.mark.parametrize("name", SPINE)
def test_fingerprints_outlive_edits_elsewhere_and_other_speeds(name: str) -> None:
    review = committed(name)
    variants = [msgspec.structs.replace(v, nodes=moved(v.nodes, 13, 1.7)) for v in review.variants]
    before, after = find(review), find(msgspec.structs.replace(review, variants=variants))
    kept = {f.fingerprint for f in before if f.rule not in ("variant-worse", "guard-cost")}
    assert kept <= {f.fingerprint for f in after}
    assert len({f.fingerprint for f in before}) == len(before)


@pytest.mark.parametrize("name", SPINE)
def test_every_finding_is_whole(name: str) -> None:
    docs = Path(__file__).parent.parent / "docs" / "rules"
    found = find(committed(name))
    for each in found:
        assert each.rule in RULES and (docs / f"{each.rule}.md").exists()
        assert each.evidence and each.fix and each.fingerprint
        assert any(any(c.isdigit() for c in line) for line in each.evidence)
        assert (each.saving_origin is None) == (not each.saving_us)
        assert each.in_library == (each.source is not None)  # every line of these models is transformers' own
    review = with_findings(committed(name))
    assert review.findings == found and schema.decode(schema.encode(review), "a test") == review


def test_findings_stand_in_order_of_cost() -> None:
    exposed = [f.exposed_us for f in find(committed(LOOP)) if f.exposed_us is not None]
    assert exposed == sorted(exposed, reverse=True) and len(exposed) == 4
    assert find(committed(LOOP))[0].rule == "expert-loop"


def test_severity_needs_a_share_and_microseconds() -> None:
    assert severity_of(200.0, 1_000.0, known=True) == "error"
    assert severity_of(200.0, 1_000.0, known=False) == "warning"  # an upper bound is no proof
    assert severity_of(50.0, 100.0, known=True) == "warning"  # half the step, but of a step of 100 µs
    assert severity_of(WARNING_SHARE * 1_000 - 1, 1_000.0, known=True) == "note"
    assert severity_of(10.0, 20.0, known=True) == "note"
    assert ERROR_SHARE > WARNING_SHARE > LEAST_EFFECT


def test_two_rules_of_one_name_are_refused() -> None:
    rule = RULES["host-sync"]
    with pytest.raises(ValueError, match="two rules are called 'host-sync'"):
        registry([rule, rule])


@pytest.mark.parametrize(
    ("file", "installed"),
    [
        ("/opt/venv/lib/python3.12/site-packages/transformers/models/bert/modeling_bert.py", True),
        ("/usr/lib/python3/dist-packages/torch/nn/functional.py", True),
        ("C:\\venv\\Lib\\site-packages\\torch\\nn\\functional.py", True),
        ("/usr/lib/python3.12/contextlib.py", True),
        ("<string>", True),
        ("/home/author/site_packages.py", False),
        ("/home/author/models/toy/modeling_toy.py", False),
    ],
)
def test_whose_line_it_is(file: str, installed: bool) -> None:
    assert in_library(SourceLine(file=file, line=1)) is installed


def test_a_review_of_nothing_has_no_findings() -> None:
    review = sample_review()
    lost = [Variant.unavailable(v.name, "failed", "out of memory") for v in review.variants]
    empty = msgspec.structs.replace(review, variants=lost, comparisons=[], graphs=[])
    assert find(empty) == []
