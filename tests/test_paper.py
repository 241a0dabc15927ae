"""benchmarks/paper: claims follow from reviews, and the docs from the claims.

Reviews are made by hand from ``sample_review`` (its numbers are derived there): GPU time is for the cells themselves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from paper_reviews import answer, eager, keep
from sample_findings import full_review
from sample_review import AUTHOR_FILE, exposed, interval, sample_review

from benchmarks.paper import (
    attention,
    cells,
    claim,
    cpu_claim,
    document,
    experts,
    extension,
    generate,
    gpt2_batches,
    kernels_per_token,
    results,
    rq5,
    run,
)
from benchmarks.paper.cells import ALL, BATCHES, LLAMA_1B, MOE, PUBLISHED_SHAPE, RESULTS, Store
from benchmarks.paper.claim import NOT_RUN, Claim, Row
from benchmarks.paper.published import FIGURES
from taxbreak_fx.model import SourceLine
from taxbreak_fx.variant_record import Node


def test_a_row_without_a_number_has_a_reason_of_the_list() -> None:
    with pytest.raises(ValueError, match="no reason of the list"):
        Row(what="x", ours=None, unit="µs", agreement="not run", reason="tired")
    with pytest.raises(ValueError, match=r"x: not run with 1\.0"):
        Row(what="x", ours=1.0, unit="µs", agreement="not run", reason="not run")
    with pytest.raises(ValueError, match="x: differs with reason None"):
        Row(what="x", ours=1.0, unit="µs", agreement="differs")
    with pytest.raises(ValueError, match="value None, met None, reason None"):
        Claim(claim="x", goal=1.0, unit="", value=None, met=None, machine={}, rows=[])


def test_agreement_is_within_ten_per_cent_and_five_hundredths_of_hdbi() -> None:
    assert claim.agrees("kernels_llama1b", 848 * 1.099) and not claim.agrees("kernels_llama1b", 848 * 1.101)
    assert claim.agrees("hdbi_dense_prefill", 0.321) and not claim.agrees("hdbi_dense_prefill", 0.319)
    assert claim.agrees("cpu_orchestration", -0.3) and not claim.agrees("cpu_orchestration", -0.05)


def test_kernels_per_token_is_the_smaller_ratio_and_needs_all_of_them(tmp_path: Path) -> None:
    counts = {LLAMA_1B: 800, MOE[0]: 8800, MOE[1]: 7200}
    for model, count in counts.items():
        one = cells.cell(model, "decode", PUBLISHED_SHAPE, ALL if model in MOE else None)
        if model == MOE[1]:
            result = kernels_per_token.compute(Store(tmp_path))
            assert (result.value, result.met) == (None, None) and NOT_RUN.split()[0] in str(result.reason)
        keep(tmp_path, one, answer(one, eager(kernels=count)))
    result = kernels_per_token.compute(Store(tmp_path))
    assert (result.value, result.met) == (9.0, True)  # 7200 / 800; 8800 / 800 = 11 is in the range as well
    row = next(row for row in result.rows if row.figure == "kernels_olmoe")
    assert (row.ours, row.agreement, row.facts["kernels"]) == (8800, "agrees", 8800)
    assert set(result.machine) == {
        f"paper/{name}"
        for name in (
            "llama1b-decode-b4-s2048.json",
            "olmoe-decode-b4-s2048-all.json",
            "qwenmoe-decode-b4-s2048-all.json",
        )
    }


def test_gpt2_over_batches(tmp_path: Path) -> None:
    # T_Orchestration 5.2 ms throughout; HDBI = device / (device + 5.2): 0.242, 0.345, 0.447, 0.606, 0.742.
    devices = dict(zip((1, 2, 4, 8, 16), (1.66, 2.74, 4.2, 8.0, 15.0), strict=True))
    for one in BATCHES:
        device = 1e3 * devices[one.request.batch]
        keep(tmp_path, one, answer(one, eager(wall=20e3, host=5200.0, device=device)))
    result = gpt2_batches.compute(Store(tmp_path))
    # Between batch 4 (0.4468) and 8 (0.6061): 4 + 4 x (0.5 - 0.4468) / 0.1593 = 5.336, which is nearer to 4 than to 8.
    at = next(row for row in result.rows if row.figure == "gpt2_crossover")
    assert at.ours == pytest.approx(5.336, abs=1e-3) and at.agreement == "differs"
    assert (result.value, result.met) == (5, False)
    assert gpt2_batches.crossover({1: 0.2, 2: 0.4}) is None
    assert gpt2_batches.crossover({1: 0.6, 2: 0.7}) == 1.0


def test_attention_is_met_when_a_faster_step_has_a_lower_hdbi(tmp_path: Path) -> None:
    slow, fast = attention.ATTENTION
    keep(tmp_path, slow, answer(slow, eager(wall=304e3, host=11_700.0, device=280.8e3)))  # HDBI 0.96
    keep(tmp_path, fast, answer(fast, eager(wall=95.5e3, host=8_900.0, device=80.1e3)))  # HDBI 0.9
    result = attention.compute(Store(tmp_path))
    assert result.met is True and result.value == pytest.approx(-0.06)
    assert {row.agreement for row in result.rows} == {"agrees"}


def rq5_line(device: float, alone: tuple[float, ...]) -> dict[str, Any]:
    sample = sample_review()
    changed = msgspec.structs.replace(
        sample.variant("eager"), device_active_us=device,
        exposed=exposed(990.0, 1000.0, 900.0, 908.0, 770.0, alone, (560.0, 180.0, 90.0, 8.0, 152.0)),
    )  # fmt: skip
    return rq5.case("toy.json", msgspec.structs.replace(sample, variants=[changed, *sample.variants[1:]]))


def test_rq5_names_targets_remedies_and_what_they_bought() -> None:
    line = rq5_line(220.0, (560.0, 190.0, 120.0, 8.0, 40.0))
    assert line["targets"] == {
        "latency": "the step", "idle share": "launches", "TKLQT": None, "decomposition": "framework",
        "largest raw term": "framework",
    }  # fmt: skip
    # Latency and the decomposition both choose inductor: that makes no case.
    assert line["misled"] == ["idle share"]
    # Of the sample's comparisons: inductor 0.5, eager-graph 0.2, which is the best.
    assert (line["bought"]["decomposition"], line["bought"]["idle share"]) == (0.5, 0.2)
    assert (line["best"], line["best_ratio"]) == ("eager-graph", 0.2)


def test_rq5_latency_is_a_case_where_it_chooses_another_remedy() -> None:
    line = rq5_line(220.0, (100.0, 190.0, 720.0, 8.0, 40.0))
    assert line["targets"]["decomposition"] == "launches" and line["misled"] == ["latency"]


def test_rq5_is_no_case_where_all_agree() -> None:
    line = rq5_line(800.0, (1.0, 2.0, 3.0, 8.0, 900.0))
    assert line["targets"]["idle share"] == line["targets"]["decomposition"] == "device"
    assert line["misled"] == []


def test_rq5_without_a_timeline_makes_no_case(tmp_path: Path) -> None:
    sample = sample_review()
    thin = msgspec.structs.replace(sample.variant("eager"), exposed=None)
    msgspec.structs.replace(sample, variants=[thin, *sample.variants[1:]]).save(tmp_path / "spine-toy.json")
    result = rq5.compute(Store(tmp_path))
    assert result.value is None and result.rows[0].reason == "not kept"
    assert result.rows[0].facts["targets"]["largest raw term"] == "framework"


def test_mean_wait_is_start_less_entry_of_the_launch_call() -> None:
    from taxbreak_fx.timeline import Floors, Item, Piece, Timeline, Work
    from taxbreak_fx.timeline_store import stored

    def kernel(us: float) -> Item:
        work = Work(kind="kernel", stream=0, pieces=(Piece(us=us, family="gemm"),))
        return Item(ft_us=1.0, launch_us=4.0, action=work, family="gemm")

    floors = Floors(latency_us=2.0, gap_us=1.0, graph_gap_us=0.0, sync_us=0.0)
    # Launch calls begin at 1 and 6; the first kernel starts at 5 + 2 = 7 and ends at 37; the second starts at 38.
    timeline = stored(Timeline(items=(kernel(30.0), kernel(3.0)), floors=floors))
    variant = msgspec.structs.replace(eager(), timeline=timeline)
    assert rq5.mean_wait_us(variant) == pytest.approx(((7 - 1) + (38 - 6)) / 2)
    assert rq5.mean_wait_us(eager()) is None


def test_extension_repeats_what_the_review_compared() -> None:
    sample = sample_review()
    rows = {row.what: row for row in extension.rows_of("toy", sample)}
    inductor = rows["toy: inductor"]
    assert inductor.ours == 0.5 and inductor.facts["removed"]["ft_ms"] == pytest.approx(0.34)
    assert inductor.facts["breakeven_steps"] == pytest.approx(4000.0)  # 2 s / (1000 us x 0.5)
    assert rows["toy: cudagraphs"].detail == "CUDA out of memory: tried to allocate 32 GiB"
    both = rows["toy: fusion and graphs"].facts
    # 1 - 0.5; reduce-overhead 0.5 of inductor; eager-graph 0.2, and reduce-overhead 0.25 / 0.2 = 1.25 of that.
    assert [both[key] for key in ("fusion", "graphs_after_fusion", "graphs", "fusion_after_graphs")] == pytest.approx(
        [0.5, 0.5, 0.8, -0.25]
    )


def test_break_even_of_committed_reviews_is_that_of_the_reviews() -> None:
    found = 0
    for review in Store(RESULTS).committed.values():
        for one in review.comparisons:
            if one.base == "eager" and one.wall_ratio is not None:
                variant, base = review.variant(one.variant), review.variant("eager")
                if one.verdict != "faster" or variant.compile_s is None:
                    assert one.breakeven_steps is None
                    continue
                assert base.t_wall_us is not None
                saved_s = 1e-6 * base.t_wall_us.median * (1.0 - one.wall_ratio.median)
                assert one.breakeven_steps == pytest.approx(variant.compile_s / saved_s)
                found += 1
    assert found > 10


def test_a_graph_timed_on_a_slower_host_is_compared_with_no_other_variant() -> None:
    sample = sample_review()
    graph = sample.variant("eager-graph")
    assert graph.t_wall_us is not None
    kept = {row.what: row.facts for row in extension.rows_of("toy", sample)}
    assert kept["toy: eager-graph"]["eager_then"] == pytest.approx(1.0) and not kept["toy: eager-graph"]["drifted"]
    # 0.2 of an eager step that took twice its own median then: 400 us, of eager's 1000.
    slow = msgspec.structs.replace(graph, t_wall_us=interval(400.0, 390.0, 410.0))
    variants = [slow if v.name == "eager-graph" else v for v in sample.variants]
    rows = {row.what: row.facts for row in extension.rows_of("toy", msgspec.structs.replace(sample, variants=variants))}
    assert rows["toy: eager-graph"]["eager_then"] == pytest.approx(2.0) and rows["toy: eager-graph"]["drifted"]
    assert rows["toy: fusion and graphs"]["graphs"] is rows["toy: fusion and graphs"]["fusion_after_graphs"] is None
    assert rows["toy: fusion and graphs"]["graphs_after_fusion"] == pytest.approx(0.5)


def node(op: str, module: str, count: int, kernels: int) -> Node:
    return Node(
        op=op, family="index", library="ATen", i_lib=False, reason="by op", module_path=module,
        source=SourceLine(file=AUTHOR_FILE, line=1), count=count, launches=kernels, kernels=kernels, ft_us=1.0,
        ct_us=0.0, kt_us=0.0, device_us=1.0, match_tier="exact",
    )  # fmt: skip


def test_kernels_of_a_loop_over_experts_are_counted_by_visit() -> None:
    where = "model.layers.*.mlp.experts"
    nodes = [
        node("aten.one_hot.default", where, 2, 4),  # 2 layers, 2 kernels each
        node("aten.index_add_.default", where, 10, 10),  # 10 visits
        node("aten.linear.default", f"{where}.act_fn", 20, 20),  # 2 per visit
        node("aten.linear.default", "model.layers.*.mlp.shared_expert", 2, 2),  # not of the experts
        node("aten.item.default", where, 7, 3),  # of neither
    ]
    variant = msgspec.structs.replace(eager(), kernels=39, launches=39, nodes=nodes)
    assert experts.experts_kernels(variant) == {
        "kernels_in_experts": 37, "visits": 10, "layers": 2, "kernels_per_visit": 3.0, "kernels_per_layer": 2.0,
        "unexplained": 3,
    }  # fmt: skip


@pytest.mark.parametrize("one", run.CLAIMS, ids=lambda one: one.NAME)
def test_committed_results_are_what_the_committed_reviews_say(one: Any) -> None:
    made = msgspec.json.decode(msgspec.json.encode(one.compute(Store(RESULTS))))
    assert msgspec.json.decode((RESULTS / f"paper_{one.NAME}.json").read_bytes()) == made


def test_committed_docs_are_made_from_the_committed_results() -> None:
    for path, content in document.pages(RESULTS).items():
        assert path.read_text(encoding="utf-8") == content, f"{path} is not what `--summarise` makes"


def test_every_published_figure_in_a_result_is_cited_from_the_one_file() -> None:
    seen = set()
    for one in run.CLAIMS:
        for row in msgspec.json.decode((RESULTS / f"paper_{one.NAME}.json").read_bytes())["rows"]:
            if row["figure"] is not None:
                figure = FIGURES[row["figure"]]
                assert (row["published"], row["source"]) == (figure.shown, figure.source)
                seen.add(row["figure"])
    assert seen >= set(FIGURES) - {"cpu_wall"}  # which stands beside simulated steps only


def test_ten_sentences_without_a_gap() -> None:
    rows = msgspec.json.decode((RESULTS / "paper_extension.json").read_bytes())["rows"]
    found = results.sentences(rows)
    assert len(found) == 10
    for sentence in found:
        assert sentence.endswith(".") and not re.search(r"None|nan|\bnothing\b", sentence), sentence


def test_the_pages_of_an_empty_folder_hold_no_number(tmp_path: Path) -> None:
    run.summarise(tmp_path)
    pages = {path.name: text for path, text in document.pages(tmp_path).items()}
    assert "16 have none of ours" not in pages["paper.md"] and f"{len(FIGURES)} have none of ours" in pages["paper.md"]
    assert all(row.ours is None for one in run.CLAIMS for row in one.compute(Store(tmp_path)).rows)


def test_generate_is_met_by_equal_tokens_in_equal_time(tmp_path: Path) -> None:
    from taxbreak_fx.breakdown_generate import generated, step_of, with_steps
    from taxbreak_fx.generate_record import GenerateRaw

    for one, own in zip(cells.GENERATIONS, (202.0, 199.0), strict=True):
        assert one.request.tokens == cells.TOKENS and one.request.phase == "generate"
        raw = GenerateRaw(own_us=[own] * 4, theirs_us=[200.0] * 4, own_first_us=[50.0] * 4, theirs_first_us=[45.0] * 4,
                          token_us=[], tokens_equal=True)  # fmt: skip
        review = answer(one)
        step = msgspec.structs.replace(review.step, options={"tokens": str(cells.TOKENS), "token": "16"})
        whole = msgspec.structs.replace(review, step=step, generate=generated(raw, "", cells.TOKENS, 512, 1, 16))
        keep(tmp_path, one, with_steps(whole, [step_of(16, 512, eager())]))
    result = generate.compute(Store(tmp_path))
    assert result.value == pytest.approx(0.01) and result.met is True
    ours = {row.what.partition(": ")[2]: row.ours for row in result.rows}
    # (200 - 45) / 31 tokens = 5 us.
    assert ours["TPOT"] == pytest.approx(0.005) and ours["HDBI of token 16"] == pytest.approx(0.2)


def test_a_faster_host_is_simulated_where_there_is_a_timeline(tmp_path: Path) -> None:
    keep(tmp_path, BATCHES[0], answer(BATCHES[0], full_review().variant("eager")))
    result = cpu_claim.compute(Store(tmp_path))
    assert result.value is None  # the paper's other steps are missing
    changes = {row.what.partition(", ")[2]: row for row in result.rows if row.ours is not None}
    previous = 0.0
    for speed in cpu_claim.SPEEDS:
        host, wall = (changes[f"host × {speed:g}: {what}"].ours for what in ("T_Orchestration", "T_wall"))
        assert host is not None and wall is not None
        # At most all of it is the host's time.
        assert 1 / speed - 1 - 1e-9 <= host < 0 and 1 / speed - 1 - 1e-9 <= wall < previous
        previous = wall
    assert next(row.facts["host_score"] for row in result.rows if "per launch" in row.what) == 20.0


def test_the_share_of_steps_that_gain_no_more_than_published() -> None:
    def row(what: str, ours: float) -> Row:
        return claim.alone(what, ours, "change", "")

    rows = [
        row("a, host × 1.2: T_Orchestration", -0.15), row("a, host × 1.2: T_wall", -0.10),
        row("b, host × 1.2: T_Orchestration", -0.20), row("b, host × 1.2: T_wall", -0.18),  # more than 14 %
        row("c, host × 1.2: T_Orchestration", -0.40), row("c, host × 1.2: T_wall", -0.01),  # not as published
    ]  # fmt: skip
    assert cpu_claim.within(rows) == 0.5
    assert cpu_claim.within(rows[4:]) is None


def test_the_fastest_is_told_at_one_speed_of_the_host() -> None:
    def row(ours: float, at_speed: float, verdict: str = "faster") -> dict[str, Any]:
        return {"ours": ours, "facts": {"verdict": verdict, "wall_at_speed_ms": at_speed}}

    # By its ratio the graph is the faster one; its T_wall is the longer, on any host.
    slow_host = {"reduce-overhead": row(0.3, 1.0), "eager-graph": row(0.2, 1.4)}
    told = results._fastest({"a": slow_host, "b": {"inductor": row(1.1, 0.5, "slower")}})
    assert told.startswith("The fastest variant, at one speed of the host, is reduce-overhead in 1 (a); ")
    assert told.endswith("no variant is faster than eager in b.")
