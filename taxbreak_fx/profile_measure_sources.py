"""The steps of saved reviews once more on fake tensors, for a profile from reviews."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taxbreak_fx.dry_run import dry_run, record_apart
from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.model import Review
from taxbreak_fx.predicted import DryRun
from taxbreak_fx.profile_measure_reviews import Source, title
from taxbreak_fx.request import ReviewRequest

RECORDED, PLANNED = "its calls", "its launches"


def request_of(review: Review) -> ReviewRequest:
    """The request that a review answers.  Raises ``UsageError`` where its step is none that a request can name."""
    step = review.step
    if step.phase == "forward" or step.phase == "generate" or step.batch is None:
        what = "an iteration of generate()" if step.phase == "generate" else "the step of a function"
        raise UsageError(f"{title(review)}: {what} cannot be rebuilt from its review")
    return ReviewRequest(
        model=review.model,
        phase=step.phase,
        batch=step.batch,
        seq_len=512 if step.seq_len is None else step.seq_len,  # images have none: any will do
        dtype=step.dtype,  # type: ignore[arg-type]  # a review of a request has one of its dtypes
        cache="dynamic" if step.options.get("cache") == "dynamic" else "static",
        attn_implementation=step.options.get("attn_implementation"),
        experts_implementation=step.options.get("experts_implementation"),
    )


def sources_of(reviews: Sequence[Review], begin: Callable[[str], None]) -> list[Source]:
    """Each review with its step as recorded and as planned; ``begin`` is told before each.

    A step that cannot be planned, or need not be, has no plan.  Raises as ``request_of`` and ``dry_run.record_apart``.
    """
    found = []
    for number, review in enumerate(reviews):
        request = request_of(review)
        begin(stage(number, RECORDED))
        step = record_apart(request)
        begin(stage(number, PLANNED))
        found.append(Source(review, step, _plan(review, request)))
    return found


def _plan(review: Review, request: ReviewRequest) -> DryRun | None:
    """What Inductor would do, where the review ran it: only the number of guards is taken from it, and the profile says
    where that is missing."""
    if not any(variant.name == "inductor" and variant.status == "ok" for variant in review.variants):
        return None
    try:
        return dry_run(request)
    except CaptureError:
        return None


def stage(number: int, what: str) -> str:
    """The name of a stage, for progress."""
    return f"review {number + 1}: {what}"
