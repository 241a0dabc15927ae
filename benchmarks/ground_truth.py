"""Claim: the library that the registry predicts for an op is the one that is called, for every op of every listed model
and of the probes (convolution, FFT, linear algebra, sparse, each SDPA backend, cuBLAS beside cuBLASLt).

    python benchmarks/ground_truth.py [--out benchmarks/results] [--only CASE ...]

Needs a CUDA device.  Models have their released sizes and random weights.  Prints every mismatch in full, and writes
OUT/ground_truth.json = {claim, goal, unit, value, met, not_run, machine, rows, mismatches}.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from tabulate import tabulate

from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.models import load
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.verify import Verification, require_cuda, verify_steps, verify_workload
from taxbreak_fx.verify_probes import probe_steps
from taxbreak_fx.verify_text import mismatch_text

CLAIM = "the library that the registry predicts for an op is the one that is called"
UNIT = "ops whose predicted and observed libraries disagree"
PROBES = "probes"


def _both(name: str, model: str, **chosen: Any) -> dict[str, ReviewRequest]:
    return {
        f"{name}-prefill": ReviewRequest(model=model, phase="prefill", **chosen),
        f"{name}-decode": ReviewRequest(model=model, phase="decode", **chosen),
    }


CASES: dict[str, ReviewRequest] = {
    **_both("gpt2", "gpt2"),
    **_both("gpt2-float32", "gpt2", dtype="float32"),
    **_both("gpt2-float16", "gpt2", dtype="float16"),
    **_both("gpt2-eager-attention", "gpt2", attn_implementation="eager"),
    "gpt2-decode-dynamic-cache": ReviewRequest(model="gpt2", cache="dynamic"),
    **_both("llama-3.2-1b", "Llama-3.2-1B"),
    **_both("olmoe-grouped", "OLMoE-1B-7B", experts_implementation="grouped_mm"),
    # One product per expert that has tokens: 64 tokens reach as many experts as 512.
    **_both("olmoe-eager-experts", "OLMoE-1B-7B", experts_implementation="eager", seq_len=64),
    "bert-prefill": ReviewRequest(model="BERT-base", phase="prefill"),
    "vit-prefill": ReviewRequest(model="ViT-base", phase="prefill"),
    **_both("whisper", "Whisper-base", seq_len=128),  # it has 448 positions
    **_both("t5", "T5-small"),
    # Without its own kernels Mamba scans in Python, a dozen ops per token.
    **_both("mamba", "Mamba-130M", seq_len=32),
    **_both("gemma-2", "Gemma-2-2B"),
}


def observe(name: str) -> Verification:
    """Build one case, observe its step, and free it again."""
    device = require_cuda()
    if name == PROBES:
        return verify_steps(PROBES, probe_steps(device))
    return verify_workload(load(CASES[name], device))


def row(name: str, found: Verification, seconds: float) -> dict[str, Any]:
    """One line of the table; ``seconds`` is what the case took in all."""
    return {
        "case": name,
        "ops": found.ops,
        "predicted_i_lib": sum(check.runs for check in found.checks if check.predicted.i_lib),
        "library_calls": found.calls,
        "by_kernel_names": sum(check.runs for check in found.checks if "kernel names" in check.evidence),
        "mismatches": sum(check.runs for check in found.mismatches),
        "control_found": found.control.found,
        "skipped": found.skipped,
        "seconds": seconds,
    }


def machine() -> dict[str, Any]:
    """What decides which library ATen calls."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),  # a TorchVersion, which is no plain string
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Observe every case, a failure costing that one only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="*", choices=sorted([*CASES, PROBES]), default=None)
    options = parser.parse_args()
    try:
        require_cuda()
    except TaxbreakError as error:
        sys.exit(f"ground_truth: {error}")
    rows: list[dict[str, Any]] = []
    mismatches: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    for name in [*CASES, PROBES]:
        if options.only is not None and name not in options.only:
            not_run[name] = "not asked for"
            continue
        started = time.monotonic()
        try:
            found = observe(name)
        except Exception as error:  # whatever one case raises is reported, and costs that case
            not_run[name] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            print(f"{name}: {not_run[name]}", file=sys.stderr, flush=True)
        else:
            rows.append(row(name, found, time.monotonic() - started))
            for check in found.mismatches:
                print(f"{name}: {mismatch_text(check)}\n", flush=True)
                mismatches.append({"case": name, **msgspec.to_builtins(check)})
        gc.collect()
        torch.cuda.empty_cache()
    value = sum(line["mismatches"] for line in rows)
    result = {
        "claim": CLAIM,
        "goal": 0,
        "unit": UNIT,
        "value": value,
        "met": value == 0 and not not_run and all(line["control_found"] for line in rows),
        "not_run": not_run,
        "machine": machine(),
        "rows": rows,
        "mismatches": mismatches,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ground_truth.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    shown = [[len(cell) if isinstance(cell, dict) else cell for cell in line.values()] for line in rows]
    print(tabulate(shown, headers=list(rows[0]) if rows else [], floatfmt=".1f"))
    for line in rows:
        for name, why in line["skipped"].items():
            print(f"skipped {name}: {why}")
    print(f"{CLAIM}: {value} {UNIT}, goal 0; not run: {', '.join(not_run) or 'none'}")


if __name__ == "__main__":
    main()
