"""Claim: what `taxbreak whatif` predicts from one review is what another review, or another variant of it, measured.

    python benchmarks/whatif_accuracy.py [--out benchmarks/results] [--reviews FOLDER ...] [--profile h200]

Two kinds of rows, from all reviews of a CUDA device that the folders hold, at any depth.  *Steps*: two reviews that
differ in batch, experts or attention only; from each, the other is predicted.  *Graphs*: `--cuda-graph` on eager
against eager-graph, and on inductor against reduce-overhead, of one review; where the review holds no timeline (schema
2.0), on the one that the profile predicts, as `--batch` with the review's own batch does.  The two reviews of a step
were measured in two processes: where both hold a host score, `--cpu-speed` by the ratio of these is part of the
prediction.  Needs no GPU: steps are recorded and planned in processes that see none.
Writes OUT/whatif_accuracy.json = {claim, goal, unit, value, met, not_run, by_kind, profile, machine, rows}.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from taxbreak_fx import hardware
from taxbreak_fx.dry_run_predict import predict_apart
from taxbreak_fx.errors import FormatError, TaxbreakError
from taxbreak_fx.hardware import Profile
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.predict import VARIANTS
from taxbreak_fx.profile_measure_reviews import title
from taxbreak_fx.profile_measure_sources import request_of
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.whatif import GRAPHED, Change, whatif
from taxbreak_fx.whatif_step import StepChange, final, graphs_of, step_whatif

CLAIM = "T_wall that a what-if predicts, mean absolute error against what was measured"
GOAL = 0.10  # that of predictions with a profile of the same day
FIELDS = ("batch", "experts_implementation", "attn_implementation")
TIMEOUT_S = 900.0


def reviews_in(folders: list[Path]) -> dict[str, Review]:
    """Every measured review of a CUDA device, by file name."""
    found = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*.json"))):
        try:
            review = Review.load(path)
        except FormatError:
            continue  # a result of another benchmark
        if review.origin == "measured" and review.step.device == "cuda":
            found[path.name] = review
    return found


def pairs(requests: dict[str, ReviewRequest]) -> Iterator[tuple[str, str, StepChange]]:
    """Two reviews of steps that one ``StepChange`` leads from and to."""
    for one, other in itertools.permutations(requests, 2):
        wanted = {name: getattr(requests[other], name) for name in FIELDS}
        if requests[one] != requests[other] == msgspec.structs.replace(requests[one], **wanted):
            changed = {name: value for name, value in wanted.items() if value != getattr(requests[one], name)}
            yield one, other, StepChange(**changed)


def row(kind: str, start: str, end: str, made: Variant, real: Variant, known: bool) -> dict[str, Any]:
    """One line of the table: predicted and measured; times in microseconds, errors as shares of what was measured.

    ``known``: the profile was made from a review of this model and phase, among others.
    """
    line: dict[str, Any] = {
        "kind": kind, "from": start, "to": end, "variant": made.name, "against": real.name, "in_profile": known,
        "wall_error": None, "reason": made.reason or real.reason,
    }  # fmt: skip
    if made.status != "ok" or real.status != "ok":
        return line
    assert made.t_wall_us and real.t_wall_us and made.breakdown and real.breakdown
    return line | {
        "launches": [made.launches, real.launches],
        "kernels": [made.kernels, real.kernels],
        "device_us": [made.device_active_us, real.device_active_us],
        "orchestration_us": [made.breakdown.orchestration_us, real.breakdown.orchestration_us],
        "hdbi": [made.breakdown.hdbi, real.breakdown.hdbi],
        "wall_us": [made.t_wall_us.median, real.t_wall_us.median],
        "wall_error": made.t_wall_us.median / real.t_wall_us.median - 1,
    }


def graph_rows(
    name: str, review: Review, made: Review, profile: Profile, not_run: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """`--cuda-graph` on this review's variants against those that ran so; why not, into ``not_run``."""
    change, graphs = Change(cuda_graph=True), graphs_of(profile)
    known = any(title(review) in note for note in profile.notes)
    variants = {variant.name: variant for variant in review.variants}
    for base, graphed in GRAPHED.items():
        if base not in variants or variants[base].status != "ok" or graphed not in variants:
            continue
        if variants[base].timeline is None and made.variant(base).status != "ok":
            not_run[f"{name}: {base} as a graph"] = made.variant(base).reason or made.variant(base).status
            continue
        if variants[base].timeline is not None:
            kind, found = "graph", whatif(review, change, [base], name)
        else:
            own = StepChange(batch=review.step.batch)
            kind, found = (
                "graph, timeline predicted",
                step_whatif(review, made, made, own, change, [base], name, graphs),
            )
        yield row(kind, name, name, final(found, base), variants[graphed], known)


def step_rows(
    start: str, end: str, step: StepChange, reviews: dict[str, Review], made: dict[str, Review], profile: Profile
) -> Iterator[dict[str, Any]]:
    """The step of ``end`` predicted from ``start``, on a host as fast as that of ``end`` then was."""
    own = {variant.name: variant for variant in reviews[start].variants if variant.status == "ok"}
    real = {variant.name: variant for variant in reviews[end].variants}
    known = any(title(reviews[end]) in note for note in profile.notes)
    for base in VARIANTS:
        if base not in real or base not in own:
            continue
        scores = [score(reviews[start], own[base]), score(reviews[end], real[base])]
        speed = None if None in scores else scores[0] / scores[1]  # type: ignore[operator]
        change = Change(cpu_speed=speed)
        found = step_whatif(reviews[start], made[start], made[end], step, change, [base], start)
        line = row(", ".join(step.labels), start, end, final(found, base), real[base], known)
        yield line | {"cpu_speed": speed}


def score(review: Review, variant: Variant) -> float | None:
    """The reference workload on the host while ``variant`` was timed, in microseconds; None where none is held."""
    whole = review.machine.calibration.host_reference
    return variant.host_reference_us or (whole.us if whole is not None else None)


def main() -> None:
    """Predict every step that a review is of, and set what-ifs beside what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--reviews", type=Path, nargs="*", default=[default])
    parser.add_argument("--profile", default="h200", help="a built-in profile, or the path of one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    profile = hardware.find(options.profile)
    reviews = reviews_in(options.reviews)
    requests: dict[str, ReviewRequest] = {}
    made: dict[str, Review] = {}
    not_run: dict[str, str] = {}
    for name, review in reviews.items():
        try:
            requests[name] = request_of(review)
            (made[name],) = predict_apart({"": requests[name]}, profile, VARIANTS, TIMEOUT_S, lambda stage: None)
        except TaxbreakError as error:
            not_run[name] = str(error)
        print(name, "not predicted" if name in not_run else "predicted", file=sys.stderr, flush=True)
    rows = [line for name in made for line in graph_rows(name, reviews[name], made[name], profile, not_run)]
    wanted = list(pairs({name: requests[name] for name in made}))
    rows += [line for start, end, step in wanted for line in step_rows(start, end, step, reviews, made, profile)]
    errors: dict[str, list[float]] = {}
    for line in rows:
        if line["wall_error"] is not None:
            errors.setdefault(line["kind"], []).append(abs(line["wall_error"]))
    every = [error for own in errors.values() for error in own]
    value = statistics.fmean(every) if every else None
    for field, label in zip(FIELDS, ("batch", "experts", "attn"), strict=True):
        if not any(label in kind for kind in errors):
            not_run[label] = f"no two reviews differ in {field} only"
    result = {
        "claim": CLAIM,
        "goal": GOAL,
        "unit": "share of the measured T_wall",
        "value": value,
        "met": value is not None and value <= GOAL,
        "not_run": not_run,
        "by_kind": {kind: {"rows": len(own), "mean": statistics.fmean(own), "most": max(own)}
                    for kind, own in errors.items()},
        "profile": profile.title,
        "machine": {name: msgspec.to_builtins(reviews[name].machine) for name in made},
        "rows": rows,
    }  # fmt: skip
    (options.out / "whatif_accuracy.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = ("from", "variant", "against", "launches", "kernels", "hdbi", "wall_us", "wall_error", "reason")
    print(tabulate([[line.get(key) for key in shown] for line in rows], headers=shown, floatfmt=".3f"))
    for name, why in not_run.items():
        print(f"not run: {name}: {why[:200]}")
    shown_value = "–" if value is None else f"{value:.1%}"
    print(f"{CLAIM}: {shown_value} over {len(every)} rows, goal {GOAL:.0%}; met: {result['met']}")


if __name__ == "__main__":
    main()
