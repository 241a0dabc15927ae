"""Claim: every kernel and every launch of every measured variant is attributed, and every variant has a decomposition
or a reason, on GPT-2, Llama-3.2-1B, OLMoE-1B-7B, BERT and ViT, prefill and decode, on a CUDA device.

    python benchmarks/spine.py [--out benchmarks/results] [--budget 2] [--timeout 180] [--jobs 1] [--only CASE ...]
                               [--journals FOLDER] [--again]

Writes one review per case under OUT/spine-CASE.json, skips the cases whose review is there, and rewrites
OUT/spine.json = {claim, goal, unit, value, met, not_run, machine, rows} from all of them.  With --jobs, cases compile
side by side; they take turns on the device (``taxbreak_fx.turn``).  With --journals every stage's result stays under
FOLDER/CASE/journal; --again makes the reviews anew from there, also those that were broken off, without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
from tabulate import tabulate

from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report.text import terminal
from taxbreak_fx.request import CUDA_VARIANTS, ReviewRequest
from taxbreak_fx.stages import assemble, outcomes_in
from taxbreak_fx.supervisor import Event, supervise


def _case(model: str, phase: Literal["prefill", "decode"], experts: str | None = None) -> ReviewRequest:
    return ReviewRequest(model=model, phase=phase, experts_implementation=experts, device="cuda")


CASES = {
    "gpt2-decode": _case("gpt2", "decode"),
    "gpt2-prefill": _case("gpt2", "prefill"),
    "llama-3.2-1b-decode": _case("Llama-3.2-1B", "decode"),
    "llama-3.2-1b-prefill": _case("Llama-3.2-1B", "prefill"),
    "olmoe-decode-grouped": _case("OLMoE-1B-7B", "decode", "grouped_mm"),
    "olmoe-prefill-grouped": _case("OLMoE-1B-7B", "prefill", "grouped_mm"),
    "olmoe-decode-eager-experts": _case("OLMoE-1B-7B", "decode", "eager"),
    "olmoe-prefill-eager-experts": _case("OLMoE-1B-7B", "prefill", "eager"),
    "bert": _case("BERT-base", "prefill"),
    "vit": _case("ViT-base", "prefill"),
}
CLAIM = "every kernel and launch is attributed to a row, and every variant has a decomposition or a reason"


def unattributed(variant: Variant) -> int:
    """Kernels and launches of the trace that no row holds, and terms that are null without a reason."""
    if variant.status != "ok":
        return 0 if variant.reason else 1
    missing = 0
    for field in ("kernels", "launches"):
        total = getattr(variant, field)
        if total is None:
            missing += field not in variant.unmeasured
        else:
            missing += abs(total - sum(getattr(node, field) or 0 for node in variant.nodes))
    breakdown = variant.breakdown
    if breakdown is None:
        return missing + 1
    terms = ("ft_us", "ct_us", "kt_us", "hdbi")
    return missing + sum(getattr(breakdown, term) is None and term not in breakdown.unmeasured for term in terms)


def row(case: str, variant: Variant) -> dict[str, Any]:
    """One line of the table: microseconds, counts and ratios of a variant."""
    breakdown = variant.breakdown
    return {
        "case": case,
        "variant": variant.name,
        "status": variant.status,
        "reason": variant.reason,
        "wall_us": variant.t_wall_us.median if variant.t_wall_us else None,
        "host_us": variant.t_host_us.median if variant.t_host_us else None,
        "device_active_us": variant.device_active_us,
        "launches": variant.launches,
        "kernels": variant.kernels,
        "memops": variant.memops,
        "ft_us": breakdown.ft_us if breakdown else None,
        "ct_us": breakdown.ct_us if breakdown else None,
        "kt_us": breakdown.kt_us if breakdown else None,
        "hdbi": breakdown.hdbi if breakdown else None,
        "closure_error": breakdown.closure_error if breakdown else None,
        "outputs_equal": variant.outputs_equal,
        "unattributed": unattributed(variant),
    }


def measure(name: str, request: ReviewRequest, target: Path, journals: Path | None) -> None:
    """Run one case and save its review, or print why there is none."""
    started = time.monotonic()
    began = started

    def tell(event: Event) -> None:
        nonlocal began
        if event.kind in ("done", "failed"):
            seconds, began = time.monotonic() - began, time.monotonic()
            stage = f"{event.stage} {event.variant or ''}".strip()
            print(f"{name}: {stage}: {event.kind} after {seconds:.1f} s {event.message}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if journals is None else journals / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            review = supervise(request, folder, tell)
        except TaxbreakError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return
    review.save(target)
    print(f"{terminal(review)}\n{name}: {time.monotonic() - started:.0f} s\n", flush=True)


def missing(name: str, review: Review | None) -> list[str]:
    """The variants of a case that its review, if any, does not hold."""
    held = {variant.name for variant in review.variants} if review else set()
    return [f"{name}: {variant}" for variant in CASES[name].variants or CUDA_VARIANTS if variant not in held]


def main() -> None:
    """Measure what is missing, then summarise all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of timed pairs per variant")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds one stage may take")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--journals", type=Path, default=None, help="keep every stage's result under this folder")
    parser.add_argument("--again", action="store_true", help="no GPU: make the reviews anew from --journals")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), default=None)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.again and options.journals is None:
        parser.error("--again needs the --journals that an earlier run kept")
    files = {name: options.out / f"spine-{name}.json" for name in CASES}
    with ThreadPoolExecutor(options.jobs) as pool:
        for name in CASES if options.only is None else options.only:
            request = msgspec.structs.replace(CASES[name], budget_s=options.budget, timeout_s=options.timeout)
            if options.again:
                if outcomes := outcomes_in(options.journals / name / "journal"):
                    assemble(outcomes, request.variants or CUDA_VARIANTS, "cuda").save(files[name])
            elif not files[name].exists():
                pool.submit(measure, name, request, files[name], options.journals)
    reviews = {name: Review.load(path) for name, path in files.items() if path.exists()}
    rows = [row(name, variant) for name, review in reviews.items() for variant in review.variants]
    value = sum(line["unattributed"] for line in rows)
    not_run = [line for name in CASES for line in missing(name, reviews.get(name))]
    result = {
        "claim": CLAIM,
        "goal": 0,
        "unit": "unattributed kernels, launches or terms",
        "value": value,
        "met": value == 0 and not not_run,
        "not_run": not_run,
        "machine": {name: msgspec.to_builtins(review.machine) for name, review in reviews.items()},
        "rows": rows,
    }
    (options.out / "spine.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = ("case", "variant", "status", "wall_us", "device_active_us", "launches", "kernels", "ft_us", "ct_us",
             "kt_us", "hdbi", "closure_error")  # fmt: skip
    print(tabulate([[line[key] for key in shown] for line in rows], headers=shown, floatfmt=".3g"))
    print(f"{CLAIM}: {value} {result['unit']}, goal 0; not run: {', '.join(not_run) or 'none'}")


if __name__ == "__main__":
    main()
