"""Claim: a pull request to a model is gated in CI without a GPU: GPT-2 predicted and compared on 2 cores, offline.

    python benchmarks/ci_gate.py [--out benchmarks/results]

Runs what docs/ci.md's workflow runs, each command in a fresh process on two cores, without a network where the system
allows that: ``taxbreak predict`` of the decode step in all variants with empty caches (torch's, Triton's, ours), and
again, ``taxbreak diff`` with gates, the annotations and SARIF.  Memory is the resident sets of a command's processes
together, every 50 ms.  Also: the two predictions of one model must be alike, number by number.  On a machine that does
other work too, seconds are larger: ``cpu_s`` and the load before the start tell.

Writes OUT/ci_gate.json = {claim, goal, unit, value, met, machine, rows}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from taxbreak_fx.model import Review

CORES = 2
GOAL = {"seconds": 60.0, "MiB": 2048.0}
CLAIM = (
    "the gate of docs/ci.md (GPT-2 decode predicted in every variant with empty caches, then compared with a saved "
    "baseline) takes at most 60 s and 2 GiB on 2 cores, offline"
)
GATES = ("launches>+2%", "graph_breaks>0", "exposed.ft_us>+5%&>50us", "findings.new>0")


def resident_mib(root: int) -> float:
    """Resident sets of the process ``root`` and all below it; pages that they share count once for each."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    total, left = 0, [root]
    while left:
        process = left.pop()
        left += parents.get(process, [])
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(name: str, command: list[str], environment: dict[str, str], cores: set[int]) -> dict[str, Any]:
    """One command in a fresh process: seconds, peak memory, exit code, and its last line on stderr."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident_mib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, said = process.communicate()
    done.set()
    watcher.join()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = said.strip().splitlines()[-1:] if process.returncode else []
    found: dict[str, Any] = {"step": name, "seconds": round(seconds, 2), "cpu_s": round(cpu, 2), "MiB": round(peak)}
    return found | {"exit": process.returncode, "stderr": last}


def differences(base: Review, head: Review) -> int:
    """Values of the variants that two predictions of one model do not share."""
    pairs = zip(base.variants, head.variants, strict=True)
    return sum(
        getattr(a, field) != getattr(b, field)
        for a, b in pairs
        for field in a.__struct_fields__
    )  # fmt: skip


def machine(cores: set[int], network: str, load: float) -> dict[str, Any]:
    """What the numbers were measured on."""
    text = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in text if line.startswith("model name")), platform.machine())
    return {
        "cpu": model,
        "cores_used": len(cores),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "network": network,
        "load_before": load,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    cores = set(sorted(os.sched_getaffinity(0))[:CORES])
    alone = ["unshare", "--map-root-user", "--net"]
    cut = shutil.which("unshare") is not None and not subprocess.run([*alone, "true"], capture_output=True).returncode
    network = "none (a network namespace of its own)" if cut else "there, HF_HUB_OFFLINE=1"
    taxbreak = [*(alone if cut else []), sys.executable, "-m", "taxbreak_fx"]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        base, head = home / "base", home / "head"
        root = str(Path(__file__).parent.parent)
        environment = {
            **os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home / "hub"), "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
            "TRITON_CACHE_DIR": str(home / "triton"),
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }  # fmt: skip
        found = str(base / "review.json"), str(head / "review.json")
        gates = [part for gate in GATES for part in ("--fail-on", gate)]
        predict = [*taxbreak, "predict", "gpt2", "--phase", "decode", "--target", "h200", "--quiet", "--out"]
        rows = [
            run("predict, empty caches", [*predict, str(base)], environment, cores),
            run("predict, again", [*predict, str(head)], environment, cores),
            run("diff with gates, markdown", [*taxbreak, "diff", *found, *gates, "--format", "markdown"], environment,
                cores),
            run("diff, annotations", [*taxbreak, "diff", *found, "--format", "github"], environment, cores),
            run("report, SARIF", [*taxbreak, "report", found[1], "--format", "sarif"], environment, cores),
        ]  # fmt: skip
        unlike = differences(Review.load(found[0]), Review.load(found[1])) if not rows[1]["exit"] else None
    gate = [row for row in rows if row["step"] != "predict, again"]
    value = {"seconds": round(sum(row["seconds"] for row in gate), 2), "MiB": max(row["MiB"] for row in gate)}
    ended = all(row["exit"] == 0 for row in rows)
    result = {
        "claim": CLAIM,
        "goal": GOAL,
        "unit": "seconds of all commands together, and MiB of the largest of them",
        "value": value,
        "met": ended and unlike == 0 and value["seconds"] <= GOAL["seconds"] and value["MiB"] <= GOAL["MiB"],
        "unlike": unlike,
        "machine": machine(cores, network, load),
        "rows": rows,
    }
    (options.out / "ci_gate.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    print(tabulate([[row[key] for key in ("step", "seconds", "cpu_s", "MiB", "exit")] for row in rows],
                   headers=["step", "s", "CPU s", "MiB", "exit"]))  # fmt: skip
    print(f"{CLAIM}: {value}; values that two predictions do not share: {unlike}; met: {result['met']}")


if __name__ == "__main__":
    main()
