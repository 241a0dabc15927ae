"""The cells of the paper's tables: what each one runs, where its review lies, and how it is measured once.

A cell is model × phase × batch × seq_len × experts × attention × variants.  Its review is FOLDER/paper/NAME.json; one
whose eager step cannot be measured leaves NAME.failed.json with the reason.  A committed review of the same step in the
same variants (FOLDER/spine-*.json, FOLDER/timeline-*.json) answers a cell as well, as far as it goes: those of schema
2.0 hold no timeline.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.generate_review import supervise_generate
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.request import CUDA_VARIANTS, ReviewRequest
from taxbreak_fx.stages import INTERRUPTED
from taxbreak_fx.supervisor import Event, supervise

RESULTS = Path(__file__).parent.parent / "results"
LLAMA_1B, LLAMA_3B, OLMOE, QWEN_MOE = "Llama-3.2-1B", "Llama-3.2-3B", "OLMoE-1B-7B", "Qwen1.5-MoE-A2.7B"
SHORT = {"gpt2": "gpt2", LLAMA_1B: "llama1b", LLAMA_3B: "llama3b", OLMOE: "olmoe", QWEN_MOE: "qwenmoe"}
DENSE, MOE = (LLAMA_1B, LLAMA_3B), (OLMOE, QWEN_MOE)
PUBLISHED_SHAPE, SMALL_SHAPE = (4, 2048), (1, 512)  # (batch, seq_len)
GPT2_BATCHES = (1, 2, 4, 8, 16)
ALL = "all"  # the loop over all experts, which transformers no longer has
EXPERTS = (ALL, "eager", "grouped_mm", "batched_mm")
FACTORIES = {OLMOE: "olmoe", QWEN_MOE: "qwen_moe"}
EAGER = ("eager",)
MOST_COMPILED = 8
Phase = Literal["prefill", "decode", "generate"]
PHASES: tuple[Phase, Phase] = ("decode", "prefill")
TOKENS = 32  # of a generation


class Cell(NamedTuple):
    """One review.  ``model``, ``experts`` and ``cache`` stand beside the request, which for ``ALL`` names a factory."""

    name: str
    model: str
    experts: str | None
    request: ReviewRequest

    @property
    def variants(self) -> tuple[str, ...]:
        """Eager first."""
        return self.request.variants

    @property
    def alone(self) -> Cell:
        """The same without other variants than eager: more reviews answer it."""
        return self._replace(request=msgspec.structs.replace(self.request, variants=EAGER))


class Found(NamedTuple):
    """A cell's review with its file, or the reason why there is none."""

    review: Review | None
    reason: str | None
    file: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the review can also tell what the device does not hide: those of schema 2.0 cannot."""
        return self.review is not None and all(v.exposed is not None for v in self.review.variants if v.status == "ok")

    def simulated(self, wanted: Cell) -> bool:
        """Whether the review keeps a timeline of each of the cell's variants that ran."""
        ran = [] if self.review is None else [v for v in self.review.variants if v.status == "ok"]
        return all(variant.timeline is not None for variant in ran if variant.name in wanted.variants)


def cell(
    model: str,
    phase: Phase,
    shape: tuple[int, int],
    experts: str | None = None,
    attention: str | None = None,
    variants: tuple[str, ...] = EAGER,
) -> Cell:
    """A cell of ``shape`` (batch, seq_len).

    At the published shape a decode step has the cache that ``generate`` has by default (dynamic), and so has a
    generation; elsewhere a static one, which compiled variants need.
    """
    batch, seq_len = shape
    own = shape == PUBLISHED_SHAPE or phase == "generate"
    cache: Literal["static", "dynamic"] = "dynamic" if own else "static"
    tokens = TOKENS if phase == "generate" else 0
    count = f"n{tokens}" if tokens else None
    name = "-".join(filter(None, (SHORT[model], phase, f"b{batch}", f"s{seq_len}", count, experts, attention)))
    named = model
    if experts == ALL:
        named = f"benchmarks.paper.all_experts:{FACTORIES[model]}_{cache}"
    request = ReviewRequest(
        model=named,
        phase=phase,
        tokens=tokens,
        batch=batch,
        seq_len=seq_len,
        cache=cache,
        attn_implementation=attention,
        experts_implementation=None if experts == ALL else experts,
        device="cuda",
        variants=variants,
    )
    return Cell(name, model, experts, request)


def _fits(phase: str, experts: str | None) -> bool:
    """``batched_mm`` gathers a copy of the weights per token: a prompt's do not fit into any device's memory."""
    return not (phase == "prefill" and experts == "batched_mm")


# Compiled variants in these eight cells only; they are long, and seven of them have a committed review already.
_COMPILED_STEPS: tuple[tuple[str, Phase, str | None], ...] = (
    ("gpt2", "decode", None),
    ("gpt2", "prefill", None),
    (LLAMA_1B, "decode", None),
    (LLAMA_1B, "prefill", None),
    (OLMOE, "decode", "grouped_mm"),
    (OLMOE, "prefill", "grouped_mm"),
    (OLMOE, "decode", "eager"),
    (QWEN_MOE, "decode", "grouped_mm"),
)
COMPILED = tuple(cell(model, phase, SMALL_SHAPE, how, variants=CUDA_VARIANTS) for model, phase, how in _COMPILED_STEPS)
BATCHES = tuple(cell("gpt2", "prefill", (batch, 512)) for batch in GPT2_BATCHES)
GENERATIONS = (
    cell(LLAMA_1B, "generate", SMALL_SHAPE),
    cell(OLMOE, "generate", SMALL_SHAPE, "grouped_mm"),
)
ATTENTION = tuple(cell(LLAMA_1B, "prefill", (8, 2048), attention=name) for name in ("eager", "sdpa"))


def dense_and_moe(shape: tuple[int, int], phase: Phase, experts: Iterable[str] = EXPERTS) -> tuple[Cell, ...]:
    """The dense models, then each MoE model by each way of running its experts that fits in memory."""
    dense = [cell(model, phase, shape) for model in DENSE]
    sparse = [cell(model, phase, shape, how) for model in MOE for how in experts if _fits(phase, how)]
    return (*dense, *sparse)


def _with_compiled(cells: Iterable[Cell]) -> Iterable[Cell]:
    """Each cell once; one that is also measured compiled in the form that holds all variants."""
    compiled = {one.name: one for one in COMPILED}
    return {one.name: compiled.get(one.name, one) for one in cells}.values()


# In order of value: what a published figure stands or falls with comes first.
CELLS: dict[str, Cell] = {
    one.name: one
    for one in _with_compiled(
        (
            *dense_and_moe(PUBLISHED_SHAPE, "decode", (ALL,)),
            *BATCHES,
            *dense_and_moe(PUBLISHED_SHAPE, "prefill", (ALL,)),
            *ATTENTION,
            *GENERATIONS,
            *dense_and_moe(PUBLISHED_SHAPE, "decode"),
            *COMPILED,
            *dense_and_moe(SMALL_SHAPE, "decode"),
            *dense_and_moe(PUBLISHED_SHAPE, "prefill"),
            *dense_and_moe(SMALL_SHAPE, "prefill"),
        )
    )
}
assert sum(len(one.variants) > 1 for one in CELLS.values()) <= MOST_COMPILED


def answers(review: Review, wanted: Cell) -> bool:
    """Whether ``review`` is of the step that ``wanted`` names, and holds its variants."""
    return same_step(review, wanted) and _names(review) >= set(wanted.variants)


def _names(review: Review) -> set[str]:
    return {variant.name for variant in review.variants}


def same_step(review: Review, wanted: Cell) -> bool:
    """Whether ``review`` is of the step that ``wanted`` names."""
    step, request = review.step, wanted.request
    chosen = {
        "attn_implementation": request.attn_implementation or "sdpa",
        "experts_implementation": request.experts_implementation,
        "cache": request.cache if request.phase == "decode" else None,
        "weights": "random",
    }
    return (
        review.origin == "measured"
        and (review.model, step.phase, step.batch, step.seq_len, step.dtype, step.device)
        == (request.model, request.phase, request.batch, request.seq_len, request.dtype, "cuda")
        and all(step.options.get(key) == value for key, value in chosen.items())
    )


class Store:
    """The reviews of cells under ``folder``; ``used`` gathers those that were asked for, by file name."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        paths = [path for of in ("spine", "timeline") for path in sorted(folder.glob(f"{of}-*.json"))]
        self.committed = {path.name: Review.load(path) for path in paths}
        self.used: dict[str, Review] = {}

    def path(self, wanted: Cell) -> Path:
        """Where the review of a cell is written."""
        return self.folder / "paper" / f"{wanted.name}.json"

    def failure(self, wanted: Cell) -> Path:
        """Where the reason is written for which a cell has no review."""
        return self.path(wanted).with_suffix(".failed.json")

    def forget(self, wanted: Cell) -> None:
        """Forget that a cell failed, and the review of one whose eager step could not be traced."""
        self.failure(wanted).unlink(missing_ok=True)
        if self.path(wanted).exists() and Review.load(self.path(wanted)).variant("eager").kernels is None:
            self.path(wanted).unlink()

    def find(self, wanted: Cell, simulated: bool = False) -> Found:
        """The review that was measured for the cell, else a committed one that answers it, else the reason.

        ``simulated``: rather one that keeps timelines.
        """
        own = self.path(wanted)
        if own.exists():
            return Found(Review.load(own), None, f"paper/{own.name}")
        known = [Found(review, None, name) for name, review in self.committed.items() if answers(review, wanted)]
        if known:
            return next((found for found in known if simulated and found.simulated(wanted)), known[0])
        if self.failure(wanted).exists():
            return Found(None, str(msgspec.json.decode(self.failure(wanted).read_bytes())["reason"]))
        return Found(None, "not run yet")

    def variant(self, wanted: Cell, name: str = "eager") -> tuple[Review, Variant] | str:
        """A measured variant of a cell with its review, or the reason why there is none."""
        found = self.find(wanted)
        if found.review is None or found.file is None:
            return found.reason or "not run yet"
        variant = found.review.variant(name)
        if variant.status != "ok":
            return f"{name}: {variant.reason}"
        self.used[found.file] = found.review
        return found.review, variant

    def compiled(self) -> dict[str, Review]:
        """The reviews among ``reviews`` that hold compiled variants."""
        return {name: review for name, review in self.reviews().items() if "inductor" in _names(review)}

    def reviews(self) -> dict[str, Review]:
        """Every review under the folder by file name: those of cells, and committed ones that none of them renews."""
        paths = [path for path in sorted((self.folder / "paper").glob("*.json")) if _is_review(path)]
        own = {path: Review.load(path) for path in paths}

        def renewed(old: Review) -> bool:
            return any(same_step(old, CELLS[path.stem]) and _names(old) <= _names(new)
                       for path, new in own.items() if path.stem in CELLS)  # fmt: skip

        kept = {name: review for name, review in self.committed.items() if not renewed(review)}
        return kept | {f"paper/{path.name}": review for path, review in own.items()}

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells to measure: those without review or reason first, then those whose review holds no timeline."""
        found = {one.name: (one, self.find(one)) for one in cells}
        empty = [one for one, what in found.values() if what.review is None and not self.failure(one).exists()]
        thin = [one for one, what in found.values() if what.review is not None and not what.complete]
        return empty + [one for one in thin if not self.path(one).exists() and not self.failure(one).exists()]


def _is_review(path: Path) -> bool:
    return not path.name.endswith(".failed.json")


def measure(
    wanted: Cell, store: Store, on_event: Callable[[Event], None], changes: dict[str, Any] | None = None
) -> str | None:
    """Measure a cell and save its review in one step; the reason where it has none.  ``changes``: of its request.

    Raises ``KeyboardInterrupt`` when the user ended it: what is half measured is no answer to the cell.
    """
    request = msgspec.structs.replace(wanted.request, **(changes or {}))
    store.path(wanted).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = supervise_generate if request.phase == "generate" else supervise
            review = run(request, Path(folder), on_event)
            if INTERRUPTED in review.notes:
                raise KeyboardInterrupt
            eager = review.variant("eager")
            reason = None if eager.status == "ok" else f"eager: {eager.reason}"
        except TaxbreakError as error:
            reason = str(error)
    if reason is not None:
        note = {"cell": wanted.name, "reason": reason, "date": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        _replace(store.failure(wanted), msgspec.json.format(msgspec.json.encode(note)))
        return reason
    partial = store.path(wanted).with_suffix(".partial")
    portable(review).save(partial)
    partial.replace(store.path(wanted))
    store.failure(wanted).unlink(missing_ok=True)
    return None


def portable(review: Review) -> Review:
    """The review with files of this repository named from its root: the loop over all experts is one of them."""
    root = msgspec.json.encode(f"{RESULTS.parent.parent}{os.sep}")[:-1]  # an opening quote, and no closing one
    return msgspec.json.decode(msgspec.json.encode(review).replace(root, b'"'), type=Review)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content + b"\n")
    partial.replace(path)
