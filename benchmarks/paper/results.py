"""docs/results.md: the extension in ten sentences, four pictures and a table, all from FOLDER/paper_extension.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.paper.figures import DRIFT
from benchmarks.paper.pictures import COLOURS, PICTURES, cases
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING, clip

Facts = Mapping[str, Any]
CAPTIONS = {
    "results-terms.svg": "Terms and device time per step",
    "results-hdbi.svg": "HDBI of each variant",
    "results-order.svg": "Fusion and CUDA graphs in both orders",
    "results-breakeven.svg": "Break-even steps",
}
assert list(CAPTIONS) == list(PICTURES)
COMPILED = tuple(name for name in COLOURS if name != "eager")


def page(extension: Mapping[str, Any]) -> str:
    """docs/results.md."""
    rows = extension["rows"]
    numbered = [f"{number}. {words}" for number, words in enumerate(sentences(rows), 1)]
    state = "" if extension["reason"] is None else f"\nNot complete: {extension['reason']}.\n"
    parts = [
        "# What compiled variants remove",
        "<!-- Made by `python -m benchmarks.paper.run --summarise` from benchmarks/results/paper_extension.json: not "
        "to be edited. -->",
        "The decomposition of [the method](method.md) under `torch.compile` and CUDA graphs, which the paper "
        "(eager mode only) does not have. Every "
        "number is of a committed review in `benchmarks/results/`, each variant timed in pairs with "
        "eager inside one process; steps are of batch 1 and random weights; `python -m benchmarks.paper.run` renews "
        f"this page.\n{state}",
        "## Ten sentences\n\n" + "\n".join(numbered),
        "## Four pictures\n\n" + "\n\n".join(f"![{words}](images/{name})" for name, words in CAPTIONS.items()),
        "## The table\n\n" + table(rows),
        "## What a column means\n\n" + MEANING,
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


MEANING = """- **wall**: T_wall ÷ eager's, paired, with its 99.9 % interval.
- **eager then**: eager's T_wall in those pairs ÷ its own median: how much slower the host was meanwhile. It cancels in
  the ratio of a variant that waits for the host, but not in that of a graph, which the host does not hold up. Beyond
  @DRIFT@ (*drifted*) a graphed variant's ratio is not compared with another variant's. Which variant is the fastest is
  told by T_wall with its host time alone brought to the speed that the host had for eager.
- **ΔFT … device**: removed per step, ms; negative was added, ≈0 is within the noise of the measurement.
- **HDBI**: eager's → the variant's.
- **build s**: building the variant and running it until a step compiles nothing more, with the compiler's caches as
  they are: reduce-overhead finds the kernels that inductor compiled before it.
- **memory**: peak device memory beyond eager's, MiB.
- **break-even**: build seconds ÷ seconds saved per step (eager's T_wall × (1 − wall)): the steps after which the build
  is repaid; – where nothing is measurably saved.
- **loses**: what got worse, as the review says it.""".replace("@DRIFT@", f"×{DRIFT:g} or ÷{DRIFT:g}")


def sentences(rows: Sequence[Facts]) -> list[str]:
    """The ten findings."""
    found = cases(rows)
    steps = [row["facts"] for row in rows if "fusion_after_graphs" in row["facts"]]
    return [
        _walls(found),
        _inductor(found),
        _graphed(found),
        _rest(steps, "graphs_after_fusion", "After fusion (inductor), CUDA graphs (reduce-overhead) remove", "the wall "
              "time that fusion left"),
        _rest(steps, "fusion_after_graphs", "The other way round, fusion after graphs (eager-graph → reduce-overhead) "
              "removes", "what graphs left (below zero, guards and the graph's bookkeeping cost more than fused "
              "kernels save)"),
        _fastest(found),
        _slower(found, rows),
        _device(found),
        _builds(found),
        _memory(found),
    ]  # fmt: skip


Cases = Mapping[str, Mapping[str, Facts]]


def _values(found: Cases, variant: str, get: Callable[[Facts], float | None]) -> dict[str, float]:
    """``get`` of a variant's facts in every case that has it."""
    pairs = ((case, get(v[variant]["facts"] | {"ours": v[variant]["ours"]})) for case, v in found.items()
             if variant in v)  # fmt: skip
    return {case: value for case, value in pairs if value is not None}


def _spread(values: Iterable[float], form: Callable[[float], str]) -> str:
    known = sorted(values)
    return f"{form(statistics.median(known))} ({form(known[0])} to {form(known[-1])})" if known else "nothing"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")


def _signed(mib: float) -> str:
    return f"{mib:+,.0f}".replace("-", "−") if abs(mib) >= 0.5 else "0"


def _names(cases: Iterable[str]) -> str:
    return ", ".join(cases) or "no step"


def _walls(found: Cases) -> str:
    parts = []
    for name in COMPILED:
        values = _values(found, name, lambda facts: None if facts["drifted"] else facts["ours"])
        if values:
            parts.append(f"{name} {_spread(values.values(), '{:.2f}'.format)} in {len(values)}")
    return f"The median wall time, in parts of eager's (from, to; how many steps), is {'; '.join(parts)}."


def _removed(found: Cases, variant: str, term: str) -> list[float]:
    """Removed ÷ eager's own, of a term."""
    shares = []
    for variants in found.values():
        own = variants["eager"]["facts"]["terms"][f"{term}_ms"]
        gone = variants[variant]["facts"]["removed"][f"{term}_ms"] if variant in variants else None
        if own and gone is not None:
            shares.append(gone / own)
    return shares


def _inductor(found: Cases) -> str:
    terms = {"ft": "ΔFT", "ct": "ΔCT", "kt": "ΔKT", "device": "device time"}
    parts = [f"{_spread(_removed(found, 'inductor', term), _percent)} of {label}" for term, label in terms.items()]
    return f"Inductor alone removes, in the median, {'; '.join(parts)}."


def _graphed(found: Cases) -> str:
    after = _values(found, "reduce-overhead", lambda facts: facts["hdbi_after"])
    before = _values(found, "reduce-overhead", lambda facts: facts["hdbi_before"])
    host = _values(found, "reduce-overhead", lambda facts: facts["terms"]["orchestration_ms"])
    return (
        f"With CUDA graphs on top (reduce-overhead) HDBI goes from {_spread(before.values(), '{:.2f}'.format)} to "
        f"{_spread(after.values(), '{:.2f}'.format)}, and what is left of T_Orchestration is "
        f"{_spread(host.values(), '{:.2f}'.format)} ms{_hardly(found)}."
    )


def _hardly(found: Cases) -> str:
    """The steps that reduce-overhead left mostly un-graphed: most of their launches are still there."""
    launches = {case: variants["reduce-overhead"]["facts"]["launches"] for case, variants in found.items()
                if "reduce-overhead" in variants}  # fmt: skip
    parts = [f"{case}, where {after:,} of {before:,} launches remain" for case, (before, after) in launches.items()
             if before and after and 2 * after > before]  # fmt: skip
    return f"; it graphed little of {'; '.join(parts)}" if parts else ""


def _rest(steps: Sequence[Facts], key: str, begin: str, what: str) -> str:
    known = {facts["case"]: facts[key] for facts in steps if facts[key] is not None}
    if not known:
        return f"{begin} an unknown part of {what}: no step has all the variants that tell."
    least, most = min(known, key=lambda c: known[c]), max(known, key=lambda c: known[c])
    return f"{begin} a median {_percent(statistics.median(known.values()))} of {what}: {_percent(known[least])} in " \
           f"{least}, {_percent(known[most])} in {most}."  # fmt: skip


def _fastest(found: Cases) -> str:
    best: dict[str, list[str]] = {}
    for case, variants in found.items():
        faster = {name: row["facts"]["wall_at_speed_ms"] for name, row in variants.items()
                  if row["facts"].get("verdict") == "faster"}  # fmt: skip
        best.setdefault(min(faster, key=lambda name: faster[name]) if faster else "none", []).append(case)
    parts = [f"{name} in {len(where)} ({_names(where)})" for name, where in best.items() if name != "none"]
    none = f"; no variant is faster than eager in {_names(best['none'])}" if "none" in best else ""
    return f"The fastest variant, at one speed of the host, is {'; '.join(parts)}{none}."


def _slower(found: Cases, rows: Sequence[Facts]) -> str:
    parts = []
    for name in COMPILED:
        slow = [case for case, v in found.items() if name in v and v[name]["facts"]["verdict"] == "slower"]
        if slow:
            parts.append(f"{name} in {_names(slow)}")
    failed = [row["what"] for row in rows if row["reason"] == "failed"]
    broke = f"; what did not run: {_names(failed)}" if failed else ""
    return f"Slower than eager: {'; '.join(parts) or 'none'}{broke}."


def _device(found: Cases) -> str:
    parts = []
    for name in COMPILED:
        ratios = {}
        for case, v in found.items():
            if name in v and v[name]["facts"]["terms"]["device_ms"] and v["eager"]["facts"]["terms"]["device_ms"]:
                ratios[case] = v[name]["facts"]["terms"]["device_ms"] / v["eager"]["facts"]["terms"]["device_ms"]
        more = [case for case, ratio in ratios.items() if ratio > 1.02]
        if more:
            worst = max(ratios, key=lambda case: ratios[case])
            parts.append(f"{name} in {len(more)} of {len(ratios)} (up to ×{ratios[worst]:.2f}, {worst})")
    return f"Device time grows by more than 2 % with {'; '.join(parts) or 'no variant'}."


def _builds(found: Cases) -> str:
    parts = []
    for name in COMPILED:
        built = _values(found, name, lambda facts: facts["compile_s"])
        repaid = _values(found, name, lambda facts: facts["breakeven_steps"])
        steps = _spread(repaid.values(), "{:,.0f}".format)
        part = f"{name} {_spread(built.values(), fmt.number)} s and {steps} steps"
        parts.append(f"{part} in {len(repaid)} of {len(built)}")
    return f"To build takes, and is repaid after, where it is at all: {'; '.join(parts)}."


def _memory(found: Cases) -> str:
    parts = []
    for name in COMPILED:
        added = _values(found, name, lambda facts: facts["memory_added_mib"])
        parts.append(f"{name} {_spread(added.values(), _signed)}")
    equal = [v[name]["facts"]["outputs_equal"] for v in found.values() for name in COMPILED if name in v]
    return (
        f"Peak memory beside eager's, MiB: {'; '.join(parts)}; outputs are equal in "
        f"{sum(one is True for one in equal)} of {len(equal)} compiled runs."
    )


def table(rows: Sequence[Facts]) -> str:
    """Every compiled variant of every step."""
    names = "wall | eager then | ΔFT | ΔCT | ΔKT | device | HDBI | kernels | build s | memory | break-even | loses"
    lines = [f"| step | variant | {names} |",
             "|---|---|---|---|---:|---:|---:|---:|---|---|---:|---:|---:|---|"]  # fmt: skip
    for row in rows:
        facts = row["facts"]
        if row["reason"] == "failed":
            case, _, name = row["what"].partition(": ")
            why = clip(" ".join(str(row["detail"]).split()), 90)
            lines.append(f"| {case} | {name} | failed | | | | | | | | | | | {why} |")
        elif facts.get("variant") in COMPILED:
            lines.append("| " + " | ".join(_cells(row["ours"], facts)) + " |")
    return "\n".join(lines)


def _cells(ratio: float, facts: Facts) -> list[str]:
    (low, high), then = facts["wall_ratio"], facts["eager_then"]
    removed = [
        fmt.difference(
            *(None if us is None else 1e3 * us for us in (facts["removed"][term], facts["noise"][term]))
        ).replace("-", "−")
        for term in ("ft_ms", "ct_ms", "kt_ms", "device_ms")
    ]
    added, repaid = facts["memory_added_mib"], facts["breakeven_steps"]
    return [
        facts["case"],
        facts["variant"],
        f"{ratio:.3f} [{low:.3f} {high:.3f}]",
        MISSING if then is None else f"×{then:.2f}{', drifted' if facts['drifted'] else ''}",
        *removed,
        f"{fmt.index(facts['hdbi_before'])} → {fmt.index(facts['hdbi_after'])}",
        " → ".join(fmt.count(count) for count in facts["kernels"]),
        MISSING if facts["compile_s"] is None else fmt.number(facts["compile_s"]),
        MISSING if added is None else _signed(added),
        MISSING if repaid is None else f"{repaid:,.0f}",
        "; ".join(facts["worse"]).replace("|", "\\|"),
    ]
