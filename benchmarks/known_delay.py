"""Claim: a spin of known length comes out in its own term, ± 10 %, and in no other.

    python benchmarks/known_delay.py [--out benchmarks/results] [--device auto]

Writes OUT/known_delay.json = {claim, goal, unit, value, met, machine, rows}.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from tabulate import tabulate

from taxbreak_fx.calibrate import calibrate_host, describe_machine
from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.known_delay import PLACES, TOLERANCE, known_delay
from taxbreak_fx.models import resolve_device

CLAIM = "an injected delay comes out in its own term and in no other"


def main() -> None:
    """Delay every place that the device has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    machine = describe_machine(device, calibrate_host(device), None)
    rows = []
    for place in PLACES[device]:
        try:
            found = known_delay(place, device)
        except TaxbreakError as error:
            rows.append({"place": place, "met": False, "reason": str(error), "worst": None})
            continue
        off = {name: abs(share - (name == found.target)) for name, share in found.shares.items()}
        rows.append(msgspec.to_builtins(found) | {"met": found.met, "reason": None, "worst": max(off.values())})
    measured = [row["worst"] for row in rows if row["worst"] is not None]
    value = max(measured) if len(measured) == len(rows) else None
    result = {
        "claim": CLAIM,
        "goal": TOLERANCE,
        "unit": "largest share of the delay that is missing from its term or found in another",
        "value": value,
        "met": all(row["met"] for row in rows),
        "machine": msgspec.to_builtins(machine),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "known_delay.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    fields = ("place", "variant", "target", "injected_us", "pairs", "met")
    shown = []
    for row in rows:
        shares = ", ".join(f"{name} {share:+.3f}" for name, share in row.get("shares", {}).items())
        shown.append([*(row.get(name) for name in fields), shares or row["reason"]])
    print(tabulate(shown, headers=("place", "variant", "term", "injected µs", "pairs", "met", "shares of the delay")))
    print(f"{CLAIM}: {value} (goal ≤ {TOLERANCE}), {'met' if result['met'] else 'NOT met'}")


if __name__ == "__main__":
    main()
