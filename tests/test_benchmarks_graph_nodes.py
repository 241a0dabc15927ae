"""benchmarks/graph_nodes.py: rows of a stand-in bench, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_stages import FACTS

from benchmarks import graph_nodes
from benchmarks.graph_nodes import ALONE, BETWEEN, BUSY, SHARED, beside, measure, per_node, widest, write


class FakeBench:
    """Graphs take 100 µs, and 110 in the second capture; it notes what is run."""

    def __init__(self) -> None:
        self.eager, self.captures = "eager", 0
        self.ran: list[str] = []

    def build(self, name: str) -> tuple[Any, float]:
        """A capture."""
        assert name == "eager-graph"
        self.captures += 1
        return type("Graph", (), {"wall": 90.0 + 10.0 * self.captures, "release": lambda self: None})(), 0.0

    def timed(self, built: Any) -> tuple[float, float]:
        """T_wall and T_host."""
        self.ran.append("eager" if built == "eager" else "graph")
        return (500.0, 400.0) if built == "eager" else (built.wall, 5.0)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a GPU."""
    monkeypatch.setattr(graph_nodes, "calibrate_host", lambda device: None)
    monkeypatch.setattr(graph_nodes, "describe_machine", lambda *_: FACTS.machine)
    kernels = [{"cat": "kernel", "ts": 2.5 * number, "dur": 2.0} for number in range(40)]
    monkeypatch.setattr(graph_nodes, "traced", lambda bench, built: kernels)
    monkeypatch.setattr(graph_nodes, "added_by_tracing", lambda: 0.125)
    monkeypatch.setattr(graph_nodes, "CONTEXT", graph_nodes.SPIN)


def test_every_capture_is_replayed_in_every_condition(fakes: None, tmp_path: Path) -> None:
    bench = FakeBench()
    rows = measure("toy", bench, 2, 3)  # type: ignore[arg-type]
    assert [row["condition"] for row in rows] == [
        name for name in (ALONE, BETWEEN, BUSY, SHARED, ALONE) for _ in range(2)
    ]
    assert bench.ran[:6] == ["graph"] * 6 and bench.ran[6:18] == ["eager", "graph"] * 6
    assert [row["wall_us"] for row in rows[:2]] == [100.0, 110.0]
    assert [rows[0][key] for key in ("kernels", "device_us", "node_us", "gap_us")] == [40, 80.0, 0.5, 0.5]
    # 100 and 110 µs are 0.5 and 0.75 beyond the kernels, where 0.5 − 0.125 was traced.
    assert widest(rows) == pytest.approx(0.375)
    result = write(tmp_path, rows, FACTS.machine)
    assert not result["met"] and json.loads((tmp_path / "graph_nodes.json").read_text())["value"] == result["value"]


def test_without_kernels_there_is_no_time_per_node() -> None:
    assert per_node(100.0, [])["node_us"] is None
    assert widest([{"case": "toy", "node_us": None, "gap_us": None, "added_us": 0.1}]) is None


def test_a_process_that_does_not_begin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_nodes, "CONTEXT", "raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="ended before it began"), beside(SHARED):
        pass
