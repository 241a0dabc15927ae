"""Predictions of the steps that requests name, each recorded and planned in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from taxbreak_fx import dry_run
from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.hardware import Profile
from taxbreak_fx.model import Review
from taxbreak_fx.predict import COMPILED, check_names, predict
from taxbreak_fx.predicted import DryRun, FakeStep
from taxbreak_fx.request import ReviewRequest

T = TypeVar("T")

NOT_ASKED = "not asked for"
# The GPU whose rules decide which ops and kernels a step has; the profile decides what they cost.
GPU = "h200"
OPS, CAPTURED, PLAN = "ops of the step", "ops under capture", "plan"


def stages(titles: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """What ``predict_apart`` tells that it begins, in order."""
    needed = [what for what, needs in ((CAPTURED, _captures(names)), (PLAN, _plans(names))) if needs]
    return (*(_stage(t, OPS) for t in titles), *(_stage(t, what) for t in titles for what in needed))


def predict_apart(
    requests: Mapping[str, ReviewRequest],
    profile: Profile,
    names: Sequence[str],
    timeout_s: float,
    begin: Callable[[str], None],
) -> list[Review]:
    """The review of each request's step as ``profile`` would have it; a request's key opens what is said of it.

    ``names``: variants, as ``predict``.  What cannot be captured or planned costs only the variants that need it.  All
    steps are recorded, and priced as eager, before the first of them is planned, which takes minutes.
    Raises as ``dry_run.record_apart`` and ``predict`` do.
    """
    names = check_names(names)
    steps = {}
    for title, request in requests.items():
        begin(_stage(title, OPS))
        with _said_of(title):
            steps[title] = dry_run.record_apart(request, timeout_s, GPU)
            predict(steps[title], NOT_ASKED, profile, ["eager"])
    found = []
    for title, request in requests.items():
        captured: FakeStep | str = NOT_ASKED
        plan: DryRun | str = NOT_ASKED
        if _captures(names):
            begin(_stage(title, CAPTURED))
            captured = _known(request, _record_captured, timeout_s, "not captured")
        if _plans(names):
            begin(_stage(title, PLAN))
            plan = _known(request, dry_run.dry_run, timeout_s, "not planned")
        with _said_of(title):
            found.append(predict(steps[title], plan, profile, names, captured))
    return found


def _captures(names: Sequence[str]) -> bool:
    return "eager-graph" in names


def _plans(names: Sequence[str]) -> bool:
    return any(name in COMPILED for name in names)


def _stage(title: str, what: str) -> str:
    return f"{title}: {what}" if title else what


def _record_captured(request: ReviewRequest, timeout_s: float, target: str) -> FakeStep:
    return dry_run.record_apart(request, timeout_s, target, capturing=True)


def _known(
    request: ReviewRequest, ask: Callable[[ReviewRequest, float, str], T], timeout_s: float, without: str
) -> T | str:
    """What ``ask`` finds, or why there is none: the eager prediction stands without it."""
    try:
        return ask(request, timeout_s, GPU)
    except TaxbreakError as error:
        return f"{without}: {error}"


@contextlib.contextmanager
def _said_of(title: str) -> Iterator[None]:
    """A mistake in one of several steps names it."""
    try:
        yield
    except TaxbreakError as error:
        if not title:
            raise
        raise type(error)(f"{title}: {error}") from error
