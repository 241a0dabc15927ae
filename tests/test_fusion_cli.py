"""``taxbreak fusion`` end to end: a real tiny model on the CPU, and steps of a user's own; mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sample_review import node, sample_review

from taxbreak_fx import schema
from taxbreak_fx.cli import main
from taxbreak_fx.fusion import launching
from taxbreak_fx.model import Review
from taxbreak_fx.nodes import folded
from taxbreak_fx.step_graph import StepGraph
from taxbreak_fx.variant_record import Node
from taxbreak_fx.whatif_fusion import SCHEMA_VERSION, FusionWhatIf, decode

Capture = pytest.CaptureFixture[str]
TINY = ("gpt2-tiny", "--seq-len", "16", "--dtype", "float32", "--device", "cpu", "--quiet")


def fusion(capsys: Capture, *argv: str) -> str:
    assert main(["fusion", *argv]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def document(capsys: Capture, *argv: str) -> FusionWhatIf:
    return decode(fusion(capsys, *argv, "--json").encode())


def refused(capsys: Capture, code: int, *argv: str) -> str:
    assert main(["fusion", *argv]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("taxbreak: ") and printed.err.count("\n") == 1
    return printed.err


def rows_of(graph: StepGraph) -> list[Node]:
    """A row per op, line and module of a graph: ΔFT 3 µs a call, ΔCT 2 of a library's, ΔKT 1 a launch."""
    found: dict[tuple[str, str, str], Node] = {}
    for op in graph.ops:
        if op.source is None:
            continue
        key = (op.op, f"{op.source.file}:{op.source.line}", folded(op.module_path) or "")
        old = found.get(key)
        calls, launches = (
            (1, int(launching(op))) if old is None else (old.count + 1, (old.launches or 0) + launching(op))
        )
        found[key] = msgspec.structs.replace(
            node(
                op.op, op.family, 1, calls, launches, 3.0 * calls, 2.0 * calls * op.i_lib, 1.0 * launches, 1.0, key[2]
            ),
            source=op.source,
        )
    return list(found.values())


def review_of(found: FusionWhatIf, path: Path) -> Review:
    """A review of the step that was recorded, in a file: the sample's, with rows of the uncompiled graph."""
    sample = sample_review()
    rows = rows_of(found.recorded.eager)
    eager = msgspec.structs.replace(
        sample.variant("eager"), nodes=rows, launches=sum(row.launches or 0 for row in rows),
        kernels=sum(row.kernels or 0 for row in rows),
    )  # fmt: skip
    machine = msgspec.structs.replace(sample.machine, transformers=found.recorded.transformers)
    review = msgspec.structs.replace(
        sample, model=found.recorded.model, step=found.recorded.step, machine=machine,
        variants=[eager, sample.variant("eager-graph")], comparisons=[],
    )  # fmt: skip
    schema.save(review, path)
    return review


def test_gpt2_tiny_and_what_it_costs_by_a_review(capsys: Capture, tmp_path: Path) -> None:
    found = document(capsys, *TINY)
    assert found.schema_version == SCHEMA_VERSION and found.recorded.captured is not None
    # GELU written out, once per layer: four products, a power, two sums and a tanh.
    gelu = next(row for row in found.like if any("activations.py" in line.file for line in row.sources))
    assert (len(gelu.groups), len(gelu.names), len(gelu.sources), gelu.graphs) == (2, 8, 1, 1)
    assert (gelu.launches_before, gelu.launches_after, gelu.end) == (16, 2, "extern")
    assert gelu.module_paths == ("transformer.h.*.mlp.act",)
    # Each group is in one row, and the rows sum to the totals.
    groups = [index for row in found.like for index in row.groups]
    assert sorted(groups) == list(range(len(found.fusion.groups)))
    assert sum(row.launches_before or 0 for row in found.like) == found.totals["launches_before"]
    assert sum(row.bytes_saved for row in found.like) == found.totals["bytes_saved"]
    assert found.pricing is None and found.totals["ft_saved_us"] is None and found.agreement is None
    assert [(way.way, way.capture is not None and way.capture.whole) for way in found.captures] == [
        ("reduce-overhead", True), ("cudagraphs", True), ("eager-graph", True),
    ]  # fmt: skip

    text = fusion(capsys, *TINY, "--top", "1")
    assert "not priced: give a measured review" in text and "ΔFT 0" not in text
    assert "16 → 2" in text and "transformers/activations.py:66" in text
    assert "Exposed, the wall time saved, does not" in text
    assert f"… and {len(found.like) - 1} more rows" in text
    assert "not compared (not asked for; add --inductor)" in text

    review_of(found, tmp_path / "review.json")
    priced = document(capsys, *TINY, "--review", str(tmp_path / "review.json"))
    assert priced.pricing is not None and priced.pricing.captured is not None
    assert priced.pricing.eager.priced == priced.pricing.eager.ops  # every op of the graph that the rows were made of
    assert priced.pricing.eager.unused_rows == 0
    gelu = next(row for row in priced.like if any("activations.py" in line.file for line in row.sources))
    # Per layer eight ops of 3 and 1 µs, less the cheapest of them.
    assert (gelu.ft_saved_us, gelu.ct_saved_us, gelu.kt_saved_us) == (2 * 7 * 3.0, 0.0, 2 * 7 * 1.0)
    text = fusion(capsys, *TINY, "--review", str(tmp_path / "review.json"), "--top", "1")
    assert "prices: eager of a measured review, Example GPU" in text
    assert "0.042" in text and "0.014" in text and "costs what the group's cheapest op does" in text
    ways = {way.way: way.graph_launches for way in priced.captures}
    assert ways == {"reduce-overhead": None, "cudagraphs": None, "eager-graph": 1}

    other = refused(capsys, 2, *TINY, "--batch", "2", "--review", str(tmp_path / "review.json"))
    assert "--review is of another step (batch 1 instead of 2): give the review of this one" in other


def test_agreement_with_inductor_is_shown_with_its_definitions(capsys: Capture) -> None:
    found = document(capsys, *TINY, "--inductor")
    result = found.agreement
    assert result is not None and found.recorded.kernels is not None
    assert {row.group for row in result.rows} >= set(range(len(found.fusion.groups)))
    assert 0 < result.agreed <= result.pairs and result.score == result.agreed / result.pairs
    assert all((row.reason is None) == (row.relation in ("same", "Inductor fuses more")) for row in result.rows)
    text = fusion(capsys, *TINY, "--inductor")
    score = f"score {100 * result.agreed / result.pairs:.1f} % ({result.agreed} of {result.pairs} pairs)"
    assert score in text and f"unseen {result.unseen}" in text
    assert "Agreement with the kernels Inductor makes of this step on cpu" in text
    assert all(f"{word}: " in text for word in ("score", "overlap", "unseen"))


BROKEN = """
import torch

class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        inner = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh())
        self.add_module("a\\x1b[31m", inner)
    def forward(self, x):
        x = getattr(self, "a\\x1b[31m")(x)
        if x.sum().item() > 0:
            x = x * 2 + 1
        return torch.sigmoid(x).exp()

def sync():
    return Step().eval(), (torch.ones(4),), {}

def fails():
    def step(x):
        raise ValueError("no such\\x1b thing")
    return step, (torch.ones(4),), {}

def hidden():
    inside = torch._dynamo.disable(lambda x: x.relu().exp())
    return (lambda x: inside(x)), (torch.ones(4),), {}

def single():
    return torch.nn.Linear(4, 4).eval(), (torch.ones(4, 4),), {}
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], str]:
    path = tmp_path / "own.py"
    path.write_text(BROKEN, encoding="utf-8")
    return lambda factory: f"{path}:{factory}"


def test_a_sync_splits_the_step_and_names_its_line(capsys: Capture, own: Callable[[str], str]) -> None:
    name = own("sync")
    found = document(capsys, name, "--device", "cpu", "--quiet")
    line = 1 + BROKEN.splitlines().index("        if x.sum().item() > 0:")
    for way in found.captures:
        assert way.capture is not None and not way.capture.whole and len(way.capture.regions) == 2
        stops = [b for b in way.capture.blockers if b.effect != "costs"]
        assert [(b.kind, b.source.line) for b in stops if b.source] == [("host sync", line)]
    text = fusion(capsys, name, "--device", "cpu", "--quiet")
    assert f"own.py:{line}" in text and "host sync" in text
    assert "\x1b" not in text and "\\x1b[31m" in text


def test_what_dynamo_does_not_capture_is_told_and_the_uncompiled_step_grouped(
    capsys: Capture, own: Callable[[str], str]
) -> None:
    text = fusion(capsys, own("hidden"), "--device", "cpu", "--quiet", "--inductor")
    assert "no Dynamo graph (Dynamo captured no graph" in text and "2 → 1" in text
    assert "– reduce-overhead: Dynamo captured no graph" in text
    assert "not compared (not captured: Dynamo captured no graph" in text


def test_a_step_with_nothing_to_fuse(capsys: Capture, own: Callable[[str], str]) -> None:
    assert "No two ops of the step could be one kernel." in fusion(capsys, own("single"), "--device", "cpu", "--quiet")


def test_bad_input(capsys: Capture, own: Callable[[str], str], tmp_path: Path) -> None:
    assert "--top must be at least 1, got 0" in refused(capsys, 2, *TINY, "--top", "0")
    assert "--batch must be at least 1" in refused(capsys, 2, "gpt2-tiny", "--batch", "0")
    assert "did you mean gpt2-tiny" in refused(capsys, 2, "gpt2-tinny", "--device", "cpu")
    line = refused(capsys, 4, own("fails"), "--device", "cpu", "--quiet")
    assert "the step fails when run as it is: ValueError: no such\\x1b thing" in line
    assert "absent.json: cannot be read" in refused(capsys, 6, *TINY, "--review", str(tmp_path / "absent.json"))
    newer = json.loads(schema.encode(sample_review())) | {"schema_version": "3.0.0"}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    assert "upgrade taxbreak_fx" in refused(capsys, 6, *TINY, "--review", str(tmp_path / "newer.json"))
    schema.save(sample_review(), tmp_path / "toy.json")
    assert "model toy instead of gpt2-tiny" in refused(capsys, 2, *TINY, "--review", str(tmp_path / "toy.json"))


def test_documented(capsys: Capture) -> None:
    import typer

    from taxbreak_fx import cli

    text = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.partition("## `taxbreak fusion MODEL`")[2].partition("\n## ")[0]
    command = typer.main.get_command(cli.app)
    context = command.make_context("taxbreak", ["models"])
    found = command.get_command(context, "fusion")  # type: ignore[attr-defined]
    options = {flag for parameter in found.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert not {flag for flag in options if flag.startswith("--") and f"`{flag}`" not in section} - {"--help"}
