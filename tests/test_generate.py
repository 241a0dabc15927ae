"""--phase generate: the loop reviewed is transformers' own, its steps are in the right place, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from sample_findings import sample_findings
from sample_review import interval, sample_review

from taxbreak_fx import breakdown_generate, cli, generate_loop, generate_review, schema
from taxbreak_fx.breakdown_generate import cached, failed_step, generated, step_of, steps_us, times, with_steps
from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.generate_record import Generate, GenerateRaw
from taxbreak_fx.model import Review
from taxbreak_fx.models import load
from taxbreak_fx.pipeline import Runner
from taxbreak_fx.recorders.bench import Bench
from taxbreak_fx.report.repro import repro
from taxbreak_fx.report.text import MAX_LINES, terminal
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import INTERRUPTED, Stage, plan
from taxbreak_fx.state import Snapshot
from taxbreak_fx.workload import Workload

PROMPT, TOKENS = 7, 5
MODELS = ("gpt2-tiny", "llama-tiny", "gemma2-tiny", "olmoe-tiny", "mamba-tiny")


def request(model: str = "gpt2-tiny", **more: Any) -> ReviewRequest:
    asked = {"model": model, "phase": "generate", "batch": 2, "seq_len": PROMPT, "dtype": "float32", "tokens": TOKENS}
    return ReviewRequest(**(asked | more))


def steps(workload: Workload, count: int) -> list[torch.Tensor]:
    with torch.no_grad():
        return [workload.run() for _ in range(count)]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("model", MODELS)
def test_the_reviewed_loop_yields_the_tokens_of_generate(model: str, cache: str) -> None:
    workload = load(request(model, cache=cache, token=0), "cpu")
    assert workload.generation is not None
    with torch.no_grad():
        expected = workload.generation.theirs(TOKENS)
        assert torch.equal(workload.generation.own(TOKENS), expected)
    assert expected.shape == (2, PROMPT + TOKENS)  # none ends early
    scores = steps(workload, TOKENS)
    assert torch.equal(torch.stack([one.argmax(-1) for one in scores], dim=1), expected[:, PROMPT:])
    assert workload.call.finished  # type: ignore[attr-defined]


@pytest.mark.parametrize("token", [1, 3, TOKENS - 1])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_step_stands_behind_all_tokens_before_it(cache: str, token: int) -> None:
    workload = load(request(cache=cache, token=token), "cpu")
    step: Any = workload.call
    assert workload.generation is not None
    with torch.no_grad():
        expected = workload.generation.theirs(TOKENS)
    assert torch.equal(step.ids, expected[:, : PROMPT + token])
    assert int(step.taken["past_key_values"].get_seq_length()) == cached(token, PROMPT) == PROMPT + token - 1
    (scores,) = steps(workload, 1)
    assert torch.equal(scores.argmax(-1), expected[:, PROMPT + token])
    assert step.finished == (token == TOKENS - 1)
    assert (workload.step.phase, workload.step.options["token"]) == ("generate", str(token))


@pytest.mark.parametrize("model", ["gpt2-tiny", "mamba-tiny"])
def test_a_step_is_repeatable_and_generating_in_between_does_not_move_it(model: str) -> None:
    workload = load(request(model, token=2), "cpu")
    assert workload.generation is not None
    snapshot = Snapshot([workload.call, workload.args, dict(workload.kwargs), *workload.state])
    (first,) = steps(workload, 1)
    snapshot.settle()
    snapshot.restore()
    with torch.no_grad(), workload.generation.outside():
        workload.generation.own(TOKENS)
    snapshot.restore()
    (again,) = steps(workload, 1)
    assert torch.equal(first, again)
    (further,) = steps(workload, 1)
    assert not torch.equal(further, again)


def test_experts_are_those_of_decoding_inside_and_of_the_call_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationMixin

    original = GenerationMixin._optimize_model_for_decode
    # On a CPU nothing is switched: here generate() believes the model to be on a GPU while it decides.
    monkeypatch.setattr(GenerationMixin, "_optimize_model_for_decode", _as_on_a_gpu(original))
    asked = request("olmoe-tiny", experts_implementation="grouped_mm", token=1)
    workload = load(asked, "cpu")
    model: Any = workload.call.model  # type: ignore[attr-defined]
    generation = workload.generation
    assert generation is not None
    options = workload.step.options
    assert (options["experts_implementation"], options["prefill_experts"]) == ("batched_mm", "grouped_mm")
    again = repro(msgspec.structs.replace(review_of(2, 20.0, None), step=workload.step, model="olmoe-tiny"), "eager")
    assert (
        "experts_implementation='grouped_mm'" in again
    )  # what was asked for: batched_mm gathers weights per token of a prompt
    assert set(model.get_experts_implementation().values()) == {"batched_mm"}
    with generation.outside():
        assert set(model.get_experts_implementation().values()) == {"grouped_mm"}
    assert set(model.get_experts_implementation().values()) == {"batched_mm"}
    prefill = load(msgspec.structs.replace(asked, token=0), "cpu").step.options
    assert prefill["experts_implementation"] == "grouped_mm" and "prefill_experts" not in prefill


def test_the_reviewed_prefill_runs_the_experts_as_the_one_of_generate_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationMixin

    monkeypatch.setattr(
        GenerationMixin, "_optimize_model_for_decode", _as_on_a_gpu(GenerationMixin._optimize_model_for_decode)
    )
    workload = load(request("olmoe-tiny", experts_implementation="grouped_mm", token=1), "cpu")
    model: Any = workload.call.model  # type: ignore[attr-defined]
    generation = workload.generation
    assert generation is not None
    seen: list[tuple[int, set[str]]] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((kwargs["input_ids"].shape[1], set(model.get_experts_implementation().values())))

    model.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad(), generation.outside():
        generation.theirs(TOKENS)
        theirs = [*seen]
        seen.clear()
        generation.own(TOKENS)
    assert seen == theirs
    assert seen[0] == (PROMPT, {"grouped_mm"}) and seen[1:] == [(1, {"batched_mm"})] * (TOKENS - 1)


def test_a_step_under_graph_capture_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = load(request(token=1), "cpu")
    assert not generate_loop._captured(torch.ones(1))
    monkeypatch.setattr(generate_loop, "_captured", lambda ids: True)
    with pytest.raises(CaptureError, match=r"waits for every token .* a CUDA graph cannot hold that"):
        workload.run()


@pytest.mark.gpu
def test_eager_graph_says_why_it_cannot_and_what_follows_runs() -> None:
    runner = Runner(load(request(token=1), "cuda"), "cuda", 0.01)
    failed = runner.run(Stage(kind="timing", variant="eager-graph"))
    assert failed.failure is not None and "a CUDA graph cannot hold that" in failed.failure and not failed.fatal
    assert runner.run(Stage(kind="generate")).failure is None


def test_where_the_loop_breaks_a_graph_is_a_line_of_the_loop() -> None:
    built, _ = Bench(load(request(token=1), "cpu"), "cpu", 0.01).build("dynamo")
    lines = Path(generate_loop.__file__).read_text().splitlines()
    sources = [graph.source for graph in built.graphs if graph.break_reason is not None]
    assert sources and None not in sources
    assert "self.finished = bool(" in lines[sources[-1].line - 1], sources  # type: ignore[union-attr]
    assert sources[-1].file == generate_loop.__file__  # type: ignore[union-attr]


def _as_on_a_gpu(original: Any) -> Any:
    import contextlib

    @contextlib.contextmanager
    def decoding(model: Any) -> Any:
        own = model.get_experts_implementation()
        model.set_experts_implementation({k: "batched_mm" if v == "grouped_mm" else v for k, v in own.items()})
        try:
            yield
        finally:
            model.set_experts_implementation(own)

    return decoding


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (request(tokens=0), "--tokens must be at least 1"),
        (request(token=TOKENS), f"token {TOKENS} is none of {TOKENS}"),
        (request("bert-tiny"), "takes decoders, bert-tiny is an encoder"),
        (request("vit-tiny"), "takes decoders, vit-tiny is an encoder"),
        (request("t5-tiny"), "takes decoders, t5-tiny is an encoder-decoder"),
        (request("step.py:make"), "step.py:make makes a step of its own"),
        (request(seq_len=10**6), "needs 1000004 positions"),
    ],
)
def test_what_cannot_be_generated_is_one_line(asked: ReviewRequest, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        load(asked, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--tokens", "4"], "--tokens is for --phase generate"),
        (["--phase", "generate", "--tokens", "0"], "--tokens must be at least 1"),
        (["--phase", "generate", "--tokens", "-3"], "--tokens must be at least 1"),
        (["--phase", "generate", "--tokens", "many"], "--tokens"),
        (["--phase", "write"], "write"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["review", "gpt2-tiny", *arguments, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1
    assert not out.exists()


def test_another_release_of_transformers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationMixin

    monkeypatch.delattr(GenerationMixin, "_update_model_kwargs_for_generation")
    with pytest.raises(CaptureError, match=r"generate\(\) of this transformers release failed: AttributeError"):
        load(request(token=1), "cpu")


def test_all_tokens_are_timed_after_eager_and_before_any_trace() -> None:
    kinds = [stage.kind for stage in plan(("eager", "inductor"), "cuda", generates=True)]
    assert kinds[:3] == ["host", "timing", "generate"] and kinds.index("generate") < kinds.index("trace")
    assert "generate" not in [stage.kind for stage in plan(("eager", "inductor"), "cuda")]


def test_the_stage_times_every_token_in_every_round() -> None:
    outcome = Runner(load(request(token=2), "cpu"), "cpu", 0.01).run(Stage(kind="generate"))
    assert outcome.failure is None
    raw = outcome.value()
    assert isinstance(raw, GenerateRaw) and raw.tokens_equal
    rounds = len(raw.own_us)
    assert rounds >= 6
    assert {len(raw.theirs_us), len(raw.own_first_us), len(raw.theirs_first_us), len(raw.token_us)} == {rounds}
    for wall, tokens in zip(raw.own_us, raw.token_us, strict=True):
        assert len(tokens) == TOKENS and min(tokens) > 0
        assert sum(tokens) <= wall


def test_a_step_that_generates_nothing_has_no_such_stage() -> None:
    workload = load(ReviewRequest(model="gpt2-tiny", seq_len=PROMPT, dtype="float32"), "cpu")
    outcome = Runner(workload, "cpu", 0.01).run(Stage(kind="generate"))
    assert outcome.failure == "the step is not of a generation"


def test_times_by_hand() -> None:
    # 4 tokens of 2 sequences: TPOT (100 - 40) / 3 = 20 us; 8 tokens in 100 us are 80,000 per second.
    found = times([100.0, 100.0, 100.0], [40.0, 40.0, 40.0], tokens=4, batch=2)
    assert (found.wall_us.median, found.ttft_us.median) == (100.0, 40.0)
    assert found.tpot_us is not None and found.tpot_us.median == pytest.approx(20.0)
    assert found.tokens_per_s == pytest.approx(80_000.0)
    one = times([40.0] * 3, [40.0] * 3, tokens=1, batch=1)
    assert one.tpot_us is None and one.unmeasured == {"tpot_us": breakdown_generate.ONE_TOKEN}


def test_walls_between_reviewed_tokens_are_on_a_line() -> None:
    # Token 2 is half way between 10 and 30: 100 + 10 + 20 + 30.
    assert steps_us({0: 100.0, 1: 10.0, 3: 30.0}, tokens=4) == pytest.approx(160.0)
    assert steps_us({0: 100.0}, tokens=1) == pytest.approx(100.0)
    assert steps_us({0: 100.0, 1: 10.0}, tokens=2) == pytest.approx(110.0)
    assert steps_us({0: 100.0, 1: 10.0}, tokens=4) is None  # the last is not known
    assert steps_us({1: 10.0, 3: 30.0}, tokens=4) is None


def raw(own: float = 160.0) -> GenerateRaw:
    return GenerateRaw(
        own_us=[own] * 3, theirs_us=[200.0] * 3, own_first_us=[100.0] * 3, theirs_first_us=[110.0] * 3,
        token_us=[[100.0, 10.0, 20.0, 30.0]] * 3, tokens_equal=True,
    )  # fmt: skip


def review_of(token: int, wall: float, generate: Generate | None) -> Review:
    """A review of an eager step that takes ``wall`` us."""
    sample = sample_review()
    eager = msgspec.structs.replace(sample.variant("eager"), t_wall_us=interval(wall, wall, wall))
    step = msgspec.structs.replace(
        sample.step, phase="generate", seq_len=PROMPT, options={"tokens": "4", "token": str(token)}
    )
    variants = [eager, *sample.variants[1:]] if generate is not None else [eager]
    return msgspec.structs.replace(sample, step=step, variants=variants, generate=generate)


WALLS = {0: 100.0, 1: 10.0, 2: 20.0, 3: 30.0}
Supervise = Callable[[Any, Any, Any], Review]


def fake(asked: list[ReviewRequest], fails: dict[int, Exception | str]) -> Supervise:
    """A supervisor whose steps take ``WALLS``; ``fails``: what happens at a token."""

    def supervise(wanted: ReviewRequest, out: Path | None, on_event: Any) -> Review:
        asked.append(wanted)
        what = fails.get(wanted.token)
        if isinstance(what, Exception):
            raise what
        whole = generated(raw(), "", 4, PROMPT, 1, wanted.token) if wanted.token == 2 else None
        made = review_of(wanted.token, WALLS[wanted.token], whole)
        return msgspec.structs.replace(made, notes=[what] if what else [])

    return supervise


def reviewed(monkeypatch: pytest.MonkeyPatch, out: Path | None, fails: dict[int, Any]) -> tuple[Generate, Review, Any]:
    asked: list[ReviewRequest] = []
    monkeypatch.setattr(generate_review, "supervise", fake(asked, fails))
    found = generate_review.supervise_generate(request(tokens=4, variants=("eager", "inductor")), out, lambda _: None)
    assert found.generate is not None
    return found.generate, found, asked


def test_the_middle_step_is_reviewed_in_all_variants_and_others_in_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, review, asked = reviewed(monkeypatch, tmp_path, {})
    assert [(wanted.token, wanted.variants) for wanted in asked] == [
        (2, ("eager", "inductor")), (0, ("eager",)), (1, ("eager",)), (3, ("eager",)),
    ]  # fmt: skip
    assert (tmp_path / "token-0").is_dir() and not (tmp_path / "token-2").exists()
    assert [(step.token, step.cached) for step in one.steps] == [(0, 0), (1, 7), (2, 8), (3, 9)]
    assert [step.t_wall_us.median for step in one.steps if step.t_wall_us] == list(WALLS.values())
    assert one.steps_share == pytest.approx(160.0 / 160.0)
    assert one.ratio is not None and one.ratio.median == pytest.approx(0.8)
    assert one.token_us == [100.0, 10.0, 20.0, 30.0]
    assert schema.decode(schema.encode(review), "x") == review
    assert generate_review.reviewed_tokens(1) == [0] and generate_review.reviewed_tokens(2) == [1, 0]


def test_a_step_that_fails_costs_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one, review, _ = reviewed(monkeypatch, None, {3: CaptureError("out of memory")})
    last = one.steps[-1]
    assert last.t_wall_us is None and set(last.unmeasured.values()) == {"out of memory"}
    assert one.steps_share is None and one.unmeasured["steps_share"] == "a step that it needs has no wall time"
    assert "token 3: out of memory" in terminal(review)


def test_an_interrupted_review_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    one, review, asked = reviewed(monkeypatch, None, {1: INTERRUPTED})
    assert [wanted.token for wanted in asked] == [2, 0, 1]
    assert review.notes == [INTERRUPTED]
    assert one.steps[3].unmeasured["t_wall_us"] == INTERRUPTED and one.own is not None


def test_without_times_the_reason_stands_in_every_place() -> None:
    one = generated(None, "generate() failed", 4, PROMPT, 1, 2)
    made = with_steps(review_of(2, 20.0, one), [step_of(0, PROMPT, sample_review().variant("eager"))]).generate
    assert made is not None and made.own is None and made.token_us == []
    assert set(made.unmeasured.values()) == {"generate() failed"} and set(made.unmeasured) == set(Generate.MEASUREMENTS)


def test_a_failed_step_has_no_number() -> None:
    step = failed_step(3, PROMPT, "no")
    assert all(getattr(step, name) is None for name in step.MEASUREMENTS) and step.cached == PROMPT + 2


def test_the_report_shows_both_loops_and_every_step_in_forty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    _, review, _ = reviewed(monkeypatch, None, {})
    text = terminal(review)
    assert text.count("\n") <= MAX_LINES
    for piece in ("4 tokens after 7, batch 1", "transformers' loop", "0.800", "the same tokens", "account for 100 %",
                  "0, prefill", "2, as above"):  # fmt: skip
        assert piece in text, piece
    assert "0, prefill" in review.to_markdown() and "generate()" not in terminal(sample_review())


def test_a_repro_asks_for_the_same_token() -> None:
    script = repro(review_of(2, 20.0, generated(raw(), "", 4, PROMPT, 1, 2)), "eager")
    assert "tokens=4, token=2" in script and "phase='generate'" in script


def test_forty_lines_hold_the_worst_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = {token: CaptureError(f"step {token} failed") for token in (0, 1, 3)}
    _, review, _ = reviewed(monkeypatch, None, fails)
    text = terminal(msgspec.structs.replace(review, findings=sample_findings()))
    assert text.count("\n") <= MAX_LINES
    assert "… and 3 more lines" in text and "what the steps account for is not known" in text
