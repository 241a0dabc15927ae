"""benchmarks/paper: cells are measured once, in order and within a budget; what fails leaves its reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from paper_reviews import answer, eager, keep
from sample_review import sample_review

from benchmarks.paper import attention, cells, document, run
from benchmarks.paper.cells import ALL, BATCHES, CELLS, LLAMA_1B, MOE, Cell, Store
from taxbreak_fx.errors import CaptureError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.record import SourceLine
from taxbreak_fx.stages import INTERRUPTED

Fake = Callable[[dict[str, str | None]], list[str]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Replaces the supervisor: every cell takes 10 s, and fails with the reason that is given for its model, if any."""

    def use(failures: dict[str, str | None]) -> list[str]:
        asked: list[str] = []

        def supervise(request: Any, out: Path, on_event: Any) -> Review:
            one = next(c for c in CELLS.values() if c.request == request)
            asked.append(one.name)
            reason = failures.get(one.name)
            if reason is not None:
                raise CaptureError(reason)
            return answer(one)

        monkeypatch.setattr(cells, "supervise", supervise)
        return asked

    return use


def clock(asked: list[str], seconds: float = 10.0) -> Callable[[], float]:
    return lambda: seconds * len(asked)


def measured(folder: Path, wanted: Iterable[Cell], asked: list[str], budget_s: float = 1e6) -> list[str]:
    lines: list[str] = []
    names = run.measure_missing(wanted, Store(folder), budget_s, clock=clock(asked), tell=lines.append)
    assert names == [line.partition(":")[0] for line in lines if not line.startswith("not begun")]
    return names


def test_cells_are_measured_once_and_in_order(tmp_path: Path, fake: Fake) -> None:
    asked = fake({})
    wanted = list(BATCHES[1:4])
    assert measured(tmp_path, wanted[:2], asked) == [one.name for one in wanted[:2]]
    assert measured(tmp_path, wanted, asked) == [wanted[2].name]  # another sitting: only what is missing
    assert measured(tmp_path, wanted, asked) == []
    assert asked == [one.name for one in wanted]
    assert all(Store(tmp_path).find(one).review is not None for one in wanted)


def test_no_cell_is_begun_that_would_outlast_the_budget(tmp_path: Path, fake: Fake) -> None:
    asked = fake({})
    # 60 s are set aside for a cell of a model that was not measured yet.  GPT-2's four take 10 s each, and
    # fit at 0, 10, 20 and 30 s of 95; Llama, which is new, does not at 40 s.
    wanted = [*BATCHES[1:], attention.ATTENTION[0]]
    assert measured(tmp_path, wanted, asked, budget_s=95.0) == [one.name for one in BATCHES[1:]]
    assert measured(tmp_path, wanted, asked, budget_s=59.0) == []
    assert measured(tmp_path, wanted, asked, budget_s=60.0) == [attention.ATTENTION[0].name]


def test_a_cell_that_does_not_fit_makes_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, now = {"Llama-3.2-1B": 80.0, "gpt2": 5.0}, [0.0]

    def supervise(request: Any, out: Path, on_event: Any) -> Review:
        now[0] += seconds[request.model]
        return answer(next(c for c in CELLS.values() if c.request == request))

    monkeypatch.setattr(cells, "supervise", supervise)
    wanted = [BATCHES[1], *attention.ATTENTION, BATCHES[2]]
    # At 85 s of 150 a second Llama cell, of 80 s, does not fit; GPT-2's, of 5 s, does.
    names = run.measure_missing(wanted, Store(tmp_path), 150.0, clock=lambda: now[0], tell=lambda line: None)
    assert names == [BATCHES[1].name, attention.ATTENTION[0].name, BATCHES[2].name]


def test_retry_forgets_failures_and_steps_without_a_trace(tmp_path: Path, fake: Fake) -> None:
    first, second, third = BATCHES[1:4]
    asked = fake({first.name: "no"})
    measured(tmp_path, [first], asked)
    untraced = msgspec.structs.replace(eager(), kernels=None, unmeasured={"kernels": "timed out"})
    keep(tmp_path, second, answer(second, untraced))
    keep(tmp_path, third, answer(third))
    store = Store(tmp_path)
    assert store.missing([first, second, third]) == []
    for one in (first, second, third):
        store.forget(one)
    assert store.missing([first, second, third]) == [first, second]


def test_side_by_side_each_cell_is_measured_once(tmp_path: Path, fake: Fake) -> None:
    asked = fake({})
    names = run.measure_missing(BATCHES[1:], Store(tmp_path), 1e6, jobs=3, tell=lambda line: None)
    assert sorted(names) == sorted(asked) == sorted(one.name for one in BATCHES[1:])


def test_a_cell_that_found_too_little_memory_beside_others_is_tried_once_more_alone(tmp_path: Path, fake: Fake) -> None:
    large = BATCHES[2]
    asked = fake({large.name: "AcceleratorError: CUDA error: out of memory"})
    run.measure_missing(BATCHES[1:], Store(tmp_path), 1e6, jobs=3, tell=lambda line: None)
    assert sorted(asked) == sorted([*(one.name for one in BATCHES[1:]), large.name]) and asked[-1] == large.name
    assert Store(tmp_path).find(large).reason == "AcceleratorError: CUDA error: out of memory"
    assert run.measure_missing(BATCHES[1:], Store(tmp_path), 1e6, jobs=3, tell=lambda line: None) == []


def test_files_of_this_repository_are_named_from_its_root() -> None:
    here = SourceLine(file=str(Path(cells.__file__).parent / "all_experts.py"), line=35)
    elsewhere = SourceLine(file="/site-packages/transformers/cache_utils.py", line=7)
    sample = sample_review()
    own = sample.variant("eager")
    nodes = [msgspec.structs.replace(n, source=s) for n, s in zip(own.nodes[:2], (here, elsewhere), strict=True)]
    review = msgspec.structs.replace(
        sample, variants=[msgspec.structs.replace(own, nodes=[*nodes, *own.nodes[2:]]), *sample.variants[1:]]
    )
    found = [node.source for node in cells.portable(review).variant("eager").nodes[:2]]
    assert found == [msgspec.structs.replace(here, file="benchmarks/paper/all_experts.py"), elsewhere]


@pytest.mark.parametrize("path", sorted(cells.RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_no_committed_result_names_the_folder_that_it_was_made_in(path: Path) -> None:
    assert re.findall(rb'"/[^"]*/(?:benchmarks|taxbreak_fx)/[^"]*[.]py', path.read_bytes()) == []


def test_a_failed_cell_leaves_its_reason_and_is_not_tried_again(tmp_path: Path, fake: Fake) -> None:
    one = attention.ATTENTION[0]
    asked = fake({one.name: "out of memory on cuda"})
    measured(tmp_path, attention.ATTENTION, asked)
    measured(tmp_path, attention.ATTENTION, asked)
    assert asked == [cell.name for cell in attention.ATTENTION]
    assert Store(tmp_path).find(one).reason == "out of memory on cuda"
    row = next(row for row in attention.compute(Store(tmp_path)).rows if row.what == "T_wall, eager attention")
    assert (row.agreement, row.reason, row.detail) == ("not run", "failed", "out of memory on cuda")
    line = document.line(msgspec.to_builtins(row))
    assert "failed" in line and "out of memory on cuda" in line


def test_a_review_whose_eager_step_failed_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = BATCHES[1]
    broken = answer(one, Variant.unavailable("eager", "failed", "a device-side assert"))
    monkeypatch.setattr(cells, "supervise", lambda *_: broken)
    assert measured(tmp_path, [one], [one.name]) == [one.name]
    assert Store(tmp_path).find(one) == cells.Found(None, "eager: a device-side assert")


def test_what_was_interrupted_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = BATCHES[1]
    half = msgspec.structs.replace(answer(one), notes=[INTERRUPTED])
    monkeypatch.setattr(cells, "supervise", lambda *_: half)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, [one], [])
    assert Store(tmp_path).missing([one]) == [one]


def test_a_committed_review_answers_its_cell_and_is_renewed_last(tmp_path: Path) -> None:
    thin = msgspec.structs.replace(eager(), exposed=None)  # as files of schema 2.0 are
    answer(BATCHES[0], thin).save(tmp_path / "spine-gpt2.json")
    store = Store(tmp_path)
    assert store.find(BATCHES[0]).file == "spine-gpt2.json"
    assert store.missing(BATCHES[:2]) == [BATCHES[1], BATCHES[0]]
    keep(tmp_path, BATCHES[0], answer(BATCHES[0]))
    assert store.missing(BATCHES[:1]) == []
    assert list(Store(tmp_path).reviews()) == [f"paper/{BATCHES[0].name}.json"]
    wider = answer(CELLS[BATCHES[0].name])  # what holds more variants than the new one stays
    wider.save(tmp_path / "spine-gpt2.json")
    assert "spine-gpt2.json" in Store(tmp_path).reviews()


@pytest.mark.parametrize(
    "change", [{"batch": 2}, {"seq_len": 64}, {"dtype": "float32"}, {"options": {"attn_implementation": "eager"}}]
)
def test_a_review_of_another_step_answers_no_cell(change: dict[str, Any]) -> None:
    review = answer(BATCHES[0])
    assert cells.answers(review, BATCHES[0])
    assert not cells.answers(
        msgspec.structs.replace(review, step=msgspec.structs.replace(review.step, **change)), BATCHES[0]
    )


def test_at_most_eight_cells_are_compiled_and_those_of_the_paper_come_first() -> None:
    assert sum(len(one.variants) > 1 for one in CELLS.values()) == 8
    first = list(CELLS.values())[:4]
    assert {(one.model, one.experts, one.request.phase) for one in first} == {
        (LLAMA_1B, None, "decode"), ("Llama-3.2-3B", None, "decode"), *((model, ALL, "decode") for model in MOE)
    }  # fmt: skip
