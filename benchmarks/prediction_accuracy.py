"""Claim: `taxbreak predict` tells, with no GPU, what models that its profile never saw cost on one.

    python benchmarks/prediction_accuracy.py [--out benchmarks/results] [--reviews FOLDER ...] [--profile h200]
        [--measure] [--only CASE ...]

For every case there must be a measured review, spine-CASE.json or prediction-CASE.json, in one of the folders; with
--measure (CUDA) the missing ones are measured first, into OUT.  The steps are then predicted in processes that see no
CUDA device.  On the models that are held out of every profile: launches equal where torch and transformers are those of
the review, kernels within 3 %, HDBI within 0.05, and T_wall within 10 % (profile and review of one day) or 20 % (else)
on average.  Every variant that misses has a cause of ``CAUSES``.
Where profile and review hold a host score of one version, the profile is scaled to the host as it was while the variant
was timed; ``unscaled_wall_error`` is with the profile as it is.
Writes OUT/prediction_accuracy.json = {claim, goal, unit, value, met, unscaled_value, not_run, missed, profile, machine,
rows}.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from tabulate import tabulate

from taxbreak_fx import hardware
from taxbreak_fx.dry_run import dry_run, record_apart
from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.hardware import Profile
from taxbreak_fx.hardware_scale import scaled
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.predict import VARIANTS, predict
from taxbreak_fx.predicted import DryRun, FakeStep
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.supervisor import supervise

CLAIM = "predicted T_wall of models that no profile saw, mean absolute error over all variants"
LAUNCHES, KERNELS, HDBI, WALL_SAME_DAY, WALL = 0, 0.03, 0.05, 0.10, 0.20
# The fixed list: what a miss is put down to, the greatest part of its error deciding.
CAUSES = {
    "versions": "torch or transformers are not those of the review: other ops, other fusions",
    "python": "Python above the ops costs other than in the models of the profile",
    "ops": "ΔFT of calls: the profile's are of other calls, or of a host at another speed",
    "library": "ΔCT of calls",
    "compiled runtime": "guards, frame, wrappers and launchers of a compiled step",
    "launches": "time in launch calls and behind them",
    "device": "device time of kernels",
    "clock": "the review's own pieces do not add up to its T_issue: what was measured is in doubt",
}
_COMPILED = (
    "guards", "frame", "aot_wrapper", "wrapper", "triton_launchers", "allocations", "extern_calls", "cudagraph_runtime",
    "graph_wrapper", "node_python",
)  # fmt: skip


def _case(model: str, phase: Literal["prefill", "decode"], batch: int = 1, experts: str | None = None) -> ReviewRequest:
    return ReviewRequest(
        model=model, phase=phase, batch=batch, experts_implementation=experts, device="cuda", variants=VARIANTS
    )


HELD_OUT = {
    "bert": _case("BERT-base", "prefill"),
    "vit": _case("ViT-base", "prefill"),
    "bert-b8": _case("BERT-base", "prefill", 8),
    "whisper-decode": _case("Whisper-base", "decode"),
    "qwen3-0.6b-decode": _case("Qwen3-0.6B", "decode"),
    "qwen3-0.6b-prefill": _case("Qwen3-0.6B", "prefill"),
    "qwen3-8b-decode": _case("Qwen3-8B", "decode"),
    "qwen3-30b-a3b-decode": _case("Qwen3-30B-A3B", "decode", 1, "grouped_mm"),
}
FITTED = {
    "gpt2-decode": _case("gpt2", "decode"),
    "gpt2-prefill": _case("gpt2", "prefill"),
    "llama-3.2-1b-decode": _case("Llama-3.2-1B", "decode"),
    "llama-3.2-1b-prefill": _case("Llama-3.2-1B", "prefill"),
    "olmoe-decode-grouped": _case("OLMoE-1B-7B", "decode", 1, "grouped_mm"),
    "olmoe-prefill-grouped": _case("OLMoE-1B-7B", "prefill", 1, "grouped_mm"),
    "olmoe-decode-eager-experts": _case("OLMoE-1B-7B", "decode", 1, "eager"),
}
CASES = HELD_OUT | FITTED


def review_of(name: str, folders: list[Path], measure: bool) -> Review | None:
    """The measured review of a case: found, or measured now and saved in the first folder."""
    for folder in folders:
        for prefix in ("prediction", "spine"):
            path = folder / f"{prefix}-{name}.json"
            if path.exists():
                return Review.load(path)
    if not measure:
        return None
    request = msgspec.structs.replace(CASES[name], budget_s=2.0)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            review = supervise(request, Path(scratch), lambda event: None)
        except TaxbreakError as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
            return None
    review.save(folders[0] / f"prediction-{name}.json")
    return review


def predictions(request: ReviewRequest, profiles: Sequence[Profile]) -> list[Review]:
    """The step as ``taxbreak predict`` predicts it with each profile.  Raises ``TaxbreakError`` where eager cannot be
    predicted."""
    step = record_apart(request)
    captured: FakeStep | str
    plan: DryRun | str
    try:
        captured = record_apart(request, capturing=True)
    except TaxbreakError as error:
        captured = str(error)
    try:
        plan = dry_run(request)
    except TaxbreakError as error:
        plan = str(error)
    return [predict(step, plan, profile, (), captured) for profile in profiles]


def on_host_of(review: Review, variant: Variant, profile: Profile) -> Profile:
    """``profile`` scaled to the host as it was while ``variant`` was timed, before schema 2.5 while all were; as it is
    where one of them holds no score, or another's."""
    score = review.machine.calibration.host_reference
    if score is None or profile.host_score is None or profile.host_score.version != score.version:
        return profile
    return scaled(profile, msgspec.structs.replace(score, us=variant.host_reference_us or score.us))


def parts(variant: Variant) -> dict[str, float]:
    """T_wall's makings, microseconds, by the names of ``CAUSES``; device time and host time overlap in T_wall."""
    own = variant.breakdown
    found: dict[str, float] = collections.defaultdict(float)
    if own is None:
        return found
    for name, us in own.ft_parts.items():
        cause = "compiled runtime" if name in _COMPILED else "clock" if name == "unattributed" else name
        found[cause] += us
    found |= {"library": own.ct_us or 0.0, "device": variant.device_active_us or 0.0}
    found["launches"] = variant.launch_us or 0.0
    return found


def cause(measured: Variant, made: Variant, same_versions: bool) -> str:
    """What most of the difference in T_wall is put down to."""
    if not same_versions and (measured.launches != made.launches or measured.kernels != made.kernels):
        return "versions"
    before, after = parts(measured), parts(made)
    differences = {name: abs(after[name] - before[name]) for name in CAUSES if name in before or name in after}
    # Of a step that the device or a graph decides, host time explains nothing, and the other way round.
    host_bound = (measured.t_host_us.median if measured.t_host_us else 0.0) > (measured.device_active_us or 0.0)
    shown = {name: us for name, us in differences.items() if (name == "device") != host_bound}
    return max(shown or differences, key=lambda name: (shown or differences)[name])


def row(name: str, measured: Variant, made: Variant, same_versions: bool, same_day: bool) -> dict[str, Any]:
    """One line of the table: times in microseconds, errors as shares of what was measured."""
    line: dict[str, Any] = {
        "case": name,
        "held_out": name in HELD_OUT,
        "variant": made.name,
        "status": made.status if measured.status == "ok" else f"measured: {measured.status}",
        "reason": made.reason or measured.reason,
        "same_versions": same_versions,
        "met": None,
    }
    if made.status != "ok" or measured.status != "ok":
        return line
    assert measured.t_wall_us and made.t_wall_us and measured.breakdown and made.breakdown
    assert measured.kernels is not None and made.kernels is not None
    wall = made.t_wall_us.median / measured.t_wall_us.median - 1
    kernels = made.kernels / measured.kernels - 1
    known = measured.breakdown.hdbi is not None and made.breakdown.hdbi is not None
    hdbi = (made.breakdown.hdbi or 0.0) - (measured.breakdown.hdbi or 0.0) if known else None
    limit = WALL_SAME_DAY if same_day else WALL
    met = {
        "launches": made.launches == measured.launches,
        "kernels": abs(kernels) <= KERNELS,
        "hdbi": hdbi is not None and abs(hdbi) <= HDBI,
        "wall": abs(wall) <= limit,
    }
    return line | {
        "launches": [made.launches, measured.launches],
        "kernels": [made.kernels, measured.kernels],
        "hdbi": [made.breakdown.hdbi, measured.breakdown.hdbi],
        "hdbi_error": hdbi,
        "wall_us": [made.t_wall_us.median, measured.t_wall_us.median],
        "wall_error": wall,
        "host_us": [
            made.t_host_us.median if made.t_host_us else None,
            measured.t_host_us and measured.t_host_us.median,
        ],
        "device_us": [made.device_active_us, measured.device_active_us],
        "met": all(met.values()),
        "missed": [what for what, fine in met.items() if not fine],
        "cause": None if all(met.values()) else cause(measured, made, same_versions),
    }


def main() -> None:
    """Predict every case that has a review, and set the two side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--reviews", type=Path, nargs="*", default=[default])
    parser.add_argument("--profile", default="h200", help="a built-in profile, or the path of one")
    parser.add_argument("--measure", action="store_true", help="measure the reviews that are missing (CUDA)")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=sorted(CASES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    profile = hardware.find(options.profile)
    rows: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    machines: dict[str, Any] = {}
    for name in options.only:
        review = review_of(name, [options.out, *options.reviews], options.measure)
        if review is None:
            not_run[name] = "not measured"
            continue
        machines[name] = msgspec.to_builtins(review.machine)
        measured = {variant.name: variant for variant in review.variants if variant.name in VARIANTS}
        hosts = [on_host_of(review, variant, profile) for variant in measured.values()]
        try:
            plain, *made = predictions(CASES[name], [profile, *hosts])
        except TaxbreakError as error:
            not_run[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        same = not any(note.startswith("ops and counts are those of") for note in plain.notes)
        day = review.machine.date[:10] == profile.date[:10]
        for (variant_name, variant), on_host in zip(measured.items(), made, strict=True):
            line = row(name, variant, on_host.variant(variant_name), same, day)
            unscaled = row(name, variant, plain.variant(variant_name), same, day)
            rows.append(line | {"unscaled_wall_error": unscaled.get("wall_error")})
        print(name, "done", file=sys.stderr, flush=True)
    held = [line for line in rows if line["held_out"] and line["met"] is not None]
    errors = [abs(line["wall_error"]) for line in held]
    value = statistics.fmean(errors) if errors else None
    goal = WALL_SAME_DAY if all(m["date"][:10] == profile.date[:10] for m in machines.values()) else WALL
    unscaled = [abs(line["unscaled_wall_error"]) for line in held]
    missed = [what for line in held for what in line["missed"] if what != "wall"]
    result = {
        "claim": CLAIM,
        "goal": goal,
        "unit": "share of the measured T_wall",
        "value": value,
        "met": value is not None and value <= goal and not missed and not not_run,
        "unscaled_value": statistics.fmean(unscaled) if unscaled else None,
        "not_run": not_run,
        "missed": dict(collections.Counter(what for line in held for what in line["missed"])),
        "causes": {name: text for name, text in CAUSES.items() if any(line.get("cause") == name for line in rows)},
        "profile": profile.title,
        "machine": machines,
        "rows": rows,
    }
    (options.out / "prediction_accuracy.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = ("case", "held_out", "variant", "status", "launches", "kernels", "hdbi_error", "wall_error", "met", "cause")
    print(tabulate([[line.get(key) for key in shown] for line in rows], headers=shown, floatfmt=".3f"))
    for name, why in not_run.items():
        print(f"not run: {name}: {why[:200]}")
    shown_value = "–" if value is None else f"{value:.1%}"
    print(f"{CLAIM}: {shown_value} over {len(held)} variants, goal {goal:.0%}; met: {result['met']}")


if __name__ == "__main__":
    main()
