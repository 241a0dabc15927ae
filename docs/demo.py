"""``make demo``: GPT-2's decode step reviewed on this machine; without a GPU, beneath it what an H200 would take for it
and for OLMoE-1B-7B's, predicted from the profile that comes with the package.  Needs no network.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from taxbreak_fx import schema
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.tables import Column, table
from taxbreak_fx.report.text import render

OUT = Path("build/demo")
TAXBREAK = [sys.executable, "-c", "import sys; from taxbreak_fx.cli import entry; sys.exit(entry())"]
PREDICTED = {"gpt2": OUT / "gpt2-on-h200", "OLMoE-1B-7B": OUT / "olmoe-on-h200"}


def main() -> int:
    """The exit code of the first command that failed, or 0."""
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # type: ignore[union-attr]
    started = time.perf_counter()
    code = subprocess.run([*TAXBREAK, "review", "gpt2", "--phase", "decode", "--out", str(OUT)], check=False).returncode
    if code:
        return code
    if schema.load(OUT / "review.json").step.device != "cuda":
        print("\nNo GPU here: the same step, and OLMoE-1B-7B's, predicted for an H200 (a minute or two) …\n")
        code = predict()
        if code:
            return code
        print(beside())
    print(f"\nTook {time.perf_counter() - started:.0f} s.")
    return 0


def predict() -> int:
    """Write both predictions; the exit code of one that failed, or 0."""
    # At the same time: nothing is measured, and each is mostly one thread of a compiler that only plans.
    runs = [
        subprocess.Popen(
            [*TAXBREAK, "predict", model, "--phase", "decode", "--target", "h200", "--out", str(folder), "--quiet"],
            stdout=subprocess.DEVNULL,  # the reports are in the folders; here they would bury the table
        )
        for model, folder in PREDICTED.items()
    ]
    try:
        return next((code for code in [run.wait() for run in runs] if code), 0)
    finally:
        for run in runs:
            run.kill()


def beside() -> str:
    """All steps in one table, what the predictions rest on, and where the reports are."""
    rows = []
    folders = (OUT, *PREDICTED.values())
    reviews = [schema.load(folder / "review.json") for folder in folders]
    for review in reviews:
        for variant in review.variants:
            wall, terms = variant.t_wall_us, variant.breakdown
            rows.append(
                [
                    review.model, review.machine.device, review.origin, variant.name,
                    fmt.ms(None if wall is None else wall.median), fmt.ms(variant.device_active_us),
                    fmt.count(variant.launches), fmt.index(None if terms is None else terms.hdbi),
                ]
            )  # fmt: skip
    columns = (
        Column("model"), Column("machine"), Column("origin"), Column("variant"), Column("wall", right=True),
        Column("device", right=True), Column("launches", right=True), Column("HDBI", right=True),
    )  # fmt: skip
    made = table("One decode step, batch 1, sequence 512, bfloat16 (ms; low HDBI = host-bound)", columns, rows)
    rests = dict.fromkeys(note for review in reviews[1:] for note in review.notes[:2])
    shown = [f"taxbreak show {folder / 'review.json'}" for folder in folders]
    pages = [str(folder / "report.html") for folder in folders]
    return "\n".join([made.title, *render(made, 100)[0], "", *rests, "", *shown, f"or open {', '.join(pages)}"])


if __name__ == "__main__":
    sys.exit(main())
