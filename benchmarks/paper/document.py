"""docs/paper.md from the claims' result files: every published figure, ours, the conditions, agreement or the reason.

    python -m benchmarks.paper.document [--out benchmarks/results]

Writes docs/paper.md, docs/results.md and the pictures of the latter.  No number in them is typed in.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.paper import results
from benchmarks.paper.cells import RESULTS
from benchmarks.paper.claim import REASONS, show
from benchmarks.paper.pictures import HOSTS, drawn, hosts
from benchmarks.paper.published import ABSTRACT, FIGURES, PAPER, SETUP
from taxbreak_fx.report.format import clip

DOCS = RESULTS.parent.parent / "docs"
TITLES = {
    "launch_floor": "Launch floor and what families add to it",
    "gpt2_batches": "GPT-2 over batch 1 to 16",
    "kernels_per_token": "Kernels per output token",
    "dense_and_moe": "Dense and MoE, prefill and decode",
    "attention": "Attention: eager and SDPA",
    "cpu_claim": "A faster host CPU",
    "experts": "Experts: all, hit, grouped, batched",
    "generate": "generate() and the steps that are reviewed",
    "rq5": "RQ5: do other metrics point elsewhere?",
}
Json = Mapping[str, Any]
INTRO = f"""# The paper's figures and ours

<!-- Made by `python -m benchmarks.paper.run --summarise` from benchmarks/results/paper_*.json: not to be edited. -->

Every published figure of {PAPER} that this project was built on, beside what taxbreak measured. Figures marked
`abstract` are quoted from the abstract; `notes` come from notes on the paper, which name neither table nor figure.
Published setup: {SETUP}.
Ours: bf16, eager, random weights, sizes of the released models, un-instrumented medians ([method](method.md)), on the
machines at the end of this page.

Ours *agrees* within 10 % of a published number or range, HDBI within 0.05. *other conditions*: both numbers are shown,
but they are not of the same thing, for the reason given; that is neither agreement nor difference. What is not measured
yet has no number. `python -m benchmarks.paper.run` measures what is missing, on an H200."""


def load(folder: Path) -> dict[str, Json]:
    """The claims' result files by name; those that were never written are left out."""
    paths = {name: folder / f"paper_{name}.json" for name in (*TITLES, "extension")}
    return {name: msgspec.json.decode(path.read_bytes()) for name, path in paths.items() if path.exists()}


def paper(found: Mapping[str, Json]) -> str:
    """docs/paper.md."""
    parts = [INTRO, summary(found)]
    for name, title in TITLES.items():
        if name in found:
            parts.append("\n".join([f"## {title}", "", *section(name, found[name])]))
    parts += [reasons(found), machines(found)]
    return "\n\n".join(parts) + "\n"


def summary(found: Mapping[str, Json]) -> str:
    """One line per claim, and how the published figures came out."""
    lines = ["| claim | ours | goal | met |", "|---|---:|---:|---|"]
    for name in TITLES:
        if name in found:
            one = found[name]
            value = "–" if one["value"] is None else show(one["value"])
            met = {True: "yes", False: "no", None: "not answered"}[one["met"]]
            lines.append(f"| [{TITLES[name]}](#{anchor(TITLES[name])}) | {value} | {show(one['goal'])} | {met} |")
    counted: dict[str, int] = {}
    figures: dict[str, set[str]] = {}
    for one in found.values():
        for row in one["rows"]:
            if row["figure"] is not None:
                figures.setdefault(row["figure"], set()).add(row["agreement"])
    for figure in FIGURES:
        agreements = figures.get(figure, {"not run"})
        best = next(a for a in ("agrees", "differs", "other conditions", "not run") if a in agreements)
        counted[best] = counted.get(best, 0) + 1
    words = {"agrees": ("agrees", "agree"), "differs": ("differs", "differ"),
             "other conditions": ("stands", "stand"), "not run": ("has", "have")}  # fmt: skip
    rest = {"other conditions": " beside ours of other conditions", "not run": " none of ours yet"}
    text = ", ".join(f"{counted[name]} {verbs[counted[name] != 1]}{rest.get(name, '')}" for name, verbs in words.items()
                     if name in counted)  # fmt: skip
    return "\n".join([*lines, "", f"Of {len(FIGURES)} published figures, each by its best row: {text}."])


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def section(name: str, one: Json) -> Iterator[str]:
    """A claim: what it says, what came out, its table, and what is not run."""
    met = {True: "met", False: "**not met**", None: f"Not answered: {one['reason']}"}[one["met"]]
    value = "" if one["value"] is None else f"{show(one['value'])} {one['unit']}, goal {show(one['goal'])}: "
    yield f"Claim: {one['claim']}. {value}{met}."
    yield ""
    if name == "rq5":
        yield from rq5(one)
        return
    shown = [row for row in one["rows"] if row["agreement"] != "not run" or row["reason"] == "failed"]
    listed = shown
    if name == "dense_and_moe":  # its cells have a table with their terms
        shown = [row for row in shown if row["figure"] is not None or row["ours"] is None]
    if shown:
        yield "| what | published | source | ours | agreement | measured on |"
        yield "|---|---:|---|---:|---|---|"
        yield from map(line, shown)
    else:
        yield "No figure of this claim has been measured yet."
    if name == "dense_and_moe":
        yield from terms([row for row in listed if row not in shown])
    left = [row for row in one["rows"] if row not in listed]
    for reason in dict.fromkeys(row["reason"] for row in left):
        rows = [row for row in left if row["reason"] == reason]
        names = [f"{row['what']} (published: {row['published']})" for row in rows if row["published"]]
        rest = len(rows) - len(names)
        names += [f"{rest} more, beside which nothing is published" if names else f"{rest} figures"] if rest else []
        yield ""
        yield f"Missing, {REASONS[reason]}: {'; '.join(names)}."
    if name == "experts":
        yield from visits(one)
    if name == "cpu_claim":
        yield from ("", f"![T_Orchestration per launch over the host score](images/{HOSTS})")


def line(row: Json) -> str:
    """One row of a claim's table."""
    why = "" if row["reason"] is None else f": {row['reason']}"
    detail = f" ({clip(' '.join(row['detail'].split()), 110)})" if row["detail"] else ""
    source = "" if row["source"] is None else "abstract" if row["source"] == ABSTRACT else "notes"
    unit = "" if row["unit"] == "HDBI" or row["unit"].startswith("change") else f" {row['unit']}"
    ours = show(row["ours"], row["unit"]) + (unit if row["ours"] is not None else "")
    cells = (row["what"], row["published"] or "", source, ours, f"{row['agreement']}{why}{detail}",
             row["conditions"] or "")  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def terms(rows: Sequence[Json]) -> Iterator[str]:
    """The terms of every measured cell."""
    if not rows:
        return
    columns = {"kernels": "kernels", "wall_ms": "ms", "ft_ms": "ms", "ct_ms": "ms", "kt_ms": "ms", "device_ms": "ms",
               "gpu_idle": "share", "hdbi": "HDBI"}  # fmt: skip
    yield ""
    yield "| cell | kernels | wall, ms | ΔFT, ms | ΔCT, ms | ΔKT, ms | device, ms | GPU idle | HDBI |"
    yield "|---|" + "---:|" * len(columns)
    for row in rows:
        cells = [show(row["facts"][key], unit) for key, unit in columns.items()]
        yield f"| {row['what'].partition(': ')[2]} | {' | '.join(cells)} |"


def visits(one: Json) -> Iterator[str]:
    """The kernels of the experts by visit."""
    rows = [row for row in one["rows"] if row["facts"].get("kernels_in_experts")]
    if not rows:
        return
    yield ""
    yield "| cell | kernels in experts | visits | per visit | per layer | neither |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in rows:
        facts = row["facts"]
        numbers = (facts["kernels_in_experts"], facts["visits"], facts["kernels_per_visit"],
                   facts["kernels_per_layer"], facts["unexplained"])  # fmt: skip
        yield f"| {row['what']} | " + " | ".join("–" if n is None else f"{n:,.4g}" for n in numbers) + " |"


def rq5(one: Json) -> Iterator[str]:
    """What each metric points at, and what its remedy bought."""
    yield "Each metric names a target by a fixed rule, and each target has one remedy among the measured variants"
    yield "(`benchmarks/paper/rq5.py`); in brackets the wall time with that remedy, as a part of eager's."
    yield ""
    yield "| step | idle | latency | idle share | TKLQT | largest exposed term | largest raw term | best |"
    yield "|---|---:|---|---|---|---|---|---|"
    lines = [row["facts"] for row in one["rows"] if row["facts"]]
    for facts in lines:
        cells = [pointed(facts, metric) for metric in facts["targets"]]
        best = "none is faster" if facts["best"] is None else f"{facts['best']} ({facts['best_ratio']:.2f})"
        yield f"| {facts['review']} | {show(facts['idle_share'], 'share')} | {' | '.join(cells)} | {best} |"
    yield ""
    known = [facts for facts in lines if facts["targets"]["decomposition"] is not None]
    if not known:
        yield f"No case can be told yet: of {len(lines)} reviews none keeps a timeline, so that exposed terms and TKLQT"
        yield "are not known. The largest raw term makes no case: raw terms overlap with the device's work."
    else:
        misled = [facts for facts in known if facts["misled"]]
        yield (
            f"Of {len(known)} reviews with exposed terms, {len(misled)} hold a case: "
            + ("; ".join(f"{facts['review']} ({', '.join(facts['misled'])})" for facts in misled) or "none")
            + "."
        )
    idle = [f for f in lines if f["bought"]["idle share"] is not None and f["bought"]["largest raw term"] is not None]
    apart = [f for f in idle if f["remedies"]["idle share"] != f["remedies"]["largest raw term"]]
    better = sum(f["bought"]["idle share"] < f["bought"]["largest raw term"] for f in apart)
    yield f"Idle share and the largest raw term choose different remedies in {len(apart)} of {len(idle)} steps where"
    yield f"both remedies ran; the one of the idle share bought more in {better} of these: a term that is large is not"
    yield "by itself removed best by the remedy named after it, since a CUDA graph removes ΔFT as well."


def pointed(facts: Json, metric: str) -> str:
    """A metric's target with what its remedy bought."""
    target, remedy, ratio = facts["targets"][metric], facts["remedies"][metric], facts["bought"][metric]
    if target is None:
        return "not known"
    return f"{target}: {remedy or 'no variant'} ({'did not run' if ratio is None else f'{ratio:.2f}'})"


def reasons(found: Mapping[str, Json]) -> str:
    """The reasons that occur, in words."""
    used = dict.fromkeys(row["reason"] for one in found.values() for row in one["rows"] if row["reason"])
    return "\n".join(["## Reasons", "", *(f"- **{name}**: {text}." for name, text in REASONS.items() if name in used)])


def machines(found: Mapping[str, Json]) -> str:
    """Every machine that a figure comes from, once."""
    rows = {file: machine for one in found.values() for file, machine in one["machine"].items()}
    lines = ["## Machines", "", "| file | device | host CPU | cores | torch | host score | T_sys p50, µs | date |",
             "|---|---|---|---:|---|---:|---:|---|"]  # fmt: skip
    for file, one in sorted(rows.items()):
        score, floor = one.get("host_score"), one.get("t_sys_p50_us")
        lines.append(
            f"| `{file}` | {one['device']} | {one['host_cpu']} | {one['cores']} | {one['torch']} | {show(score)} | "
            f"{show(floor)} | {one['date'][:16]} |"
        )
    return "\n".join([*lines, "", "Host score: iterations of a fixed single-thread Python loop per microsecond."])


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """Every generated file under docs with its content."""
    found = load(folder)
    made = {DOCS / "paper.md": paper(found)}
    if "extension" in found:
        rows = found["extension"]["rows"]
        made[DOCS / "results.md"] = results.page(found["extension"])
        made |= {DOCS / "images" / name: picture for name, picture in drawn(rows).items()}
    if "cpu_claim" in found:
        made[DOCS / "images" / HOSTS] = hosts(found["cpu_claim"]["rows"])
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the claims' results")
    for path, content in pages(parser.parse_args(argv).out).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
