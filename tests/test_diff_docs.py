"""What docs/ci.md and docs/diff.md tell readers to copy is understood by the command."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from taxbreak_fx.cli import app
from taxbreak_fx.diff_metrics import names
from taxbreak_fx.gates import parse

DOCS = Path(__file__).parent.parent / "docs"


def workflow() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "ci.md").read_text(encoding="utf-8"), re.DOTALL)
    loaded: dict[str, Any] = yaml.safe_load(block)
    return loaded


def commands(script: str) -> list[list[str]]:
    """The arguments of every taxbreak command in a shell script, without redirections."""
    lines = script.replace("\\\n", " ").splitlines()
    split = [shlex.split(line.partition(">>")[0]) for line in lines]
    return [words[1:] for words in split if words[:1] == ["taxbreak"]]


def test_the_commands_of_the_workflow_are_ours() -> None:
    known: Any = typer.main.get_command(app)
    ran = [found for step in workflow()["jobs"]["gate"]["steps"] for found in commands(step.get("run", ""))]
    assert [arguments[0] for arguments in ran] == ["predict", "diff", "diff", "report"]
    for name, *arguments in ran:
        given = known.commands[name].make_context(name, arguments).params
        for gate in given.get("fail_on") or ():
            parse(gate)


def test_what_the_gate_takes_is_what_was_measured() -> None:
    page = (DOCS / "ci.md").read_text(encoding="utf-8")
    result = json.loads((DOCS.parent / "benchmarks" / "results" / "ci_gate.json").read_text(encoding="utf-8"))
    for row in result["rows"]:
        assert f"| {row['step']} | {row['seconds']:.1f} | {row['cpu_s']:.1f} | {row['MiB']} |" in page
    assert f"{result['value']['seconds']:.1f} s" in page and result["machine"]["date"][:10] in page


def test_the_gates_and_metrics_of_the_page_are_ours() -> None:
    page = (DOCS / "diff.md").read_text(encoding="utf-8")
    table = page.partition("| gate | fails where |")[2].partition("\n\n")[0]
    gates = [gate for row in table.splitlines()[2:] for gate in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(gates) >= 5
    for gate in gates:
        parse(gate)
    metrics = page.partition("| metric | unit | noise |")[2].partition("\n\n")[0]
    named = re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in metrics.splitlines()[2:]))
    assert set(named) == {*names(), "ft_parts.PART"}
