"""Several ranks: all measure the same, or none does, and nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from taxbreak_fx import backend_ranks
from taxbreak_fx.backend_ranks import Ranks, fingerprint

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


def together(*calls: Any) -> list[Any]:
    """The results of calls that run at the same time, one thread each."""
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank waits for ever"
    return results


def pair(timeout_s: float = 10.0) -> tuple[Ranks, Ranks]:
    store = torch.distributed.HashStore()
    return Ranks(store, 0, 2, timeout_s), Ranks(store, 1, 2, timeout_s)


def test_what_every_rank_compiled_is_measured() -> None:
    a, b = pair()
    found = together(lambda: a.agree("x", ["dynamo", "inductor"]), lambda: b.agree("x", ["dynamo", "cudagraphs"]))
    assert found == [(["dynamo"], None), (["dynamo"], None)]


def test_another_graph_on_one_rank_stops_all_at_once_and_for_good() -> None:
    a, b = pair()
    started = time.monotonic()
    first = together(lambda: a.agree("x", ["dynamo"]), lambda: b.agree("y", ["dynamo"]))
    assert [names for names, _ in first] == [[], []]
    assert all(reason is not None and "rank 1 has other options or another graph" in reason for _, reason in first)
    assert a.agree("x", ["dynamo"])[0] == [], "ranks that went apart do not meet again"
    assert time.monotonic() - started < 5


def test_a_rank_that_never_comes_costs_one_timeout() -> None:
    a, _ = pair(timeout_s=0.3)
    started = time.monotonic()
    names, reason = a.agree("x", ["dynamo"])
    assert names == [] and reason is not None and "waited 0.3 s in vain" in reason
    a.agree("x", ["dynamo"])
    assert 0.2 < time.monotonic() - started < 5


def test_a_rank_that_comes_late_finds_the_decision_made() -> None:
    store = torch.distributed.HashStore()
    hasty, late = Ranks(store, 0, 2, 0.2), Ranks(store, 1, 2, 10.0)
    assert hasty.agree("x", ["dynamo"])[0] == []
    names, reason = late.agree("x", ["dynamo"])  # both offers are there now, and still it must not go ahead
    assert names == [] and reason is not None and "waited" in reason


def test_rank_0_chooses_for_all() -> None:
    a, b = pair()
    assert together(lambda: a.choose("inductor", "dynamo"), lambda: b.choose("dynamo", "dynamo")) == ["inductor"] * 2


def test_a_choice_that_does_not_come_is_the_default_for_all() -> None:
    store = torch.distributed.HashStore()
    slow, hasty = Ranks(store, 0, 2, 10.0), Ranks(store, 1, 2, 0.2)
    assert hasty.choose("inductor", "dynamo") == "dynamo"
    assert slow.choose("inductor", "dynamo") == "dynamo"


def test_fingerprints_tell_the_parts_apart() -> None:
    assert fingerprint("a", "b") == fingerprint("a", "b")
    assert fingerprint("a", "b") != fingerprint("ab", "")


def test_one_process_is_alone() -> None:
    assert backend_ranks.connect(1.0) is None


PROGRAM = """
import sys, time, torch, torch.distributed as dist
from taxbreak_fx import backend
rank, folder, budget = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

def step(x):
    return torch.distributed._functional_collectives.all_reduce(x.sin() * 2, "sum", dist.group.WORLD) + 1

options = {"variants": ["dynamo"], "budget_s": budget, "timeout_s": 20.0, "out": folder + "/out"}
compiled = torch.compile(step, backend="taxbreak", options=options)
x = torch.full((4,), float(rank + 1))
expected = (torch.tensor(1.0).sin() + torch.tensor(2.0).sin()) * 2 + 1
with torch.no_grad():
    for _ in range(3):
        torch.testing.assert_close(compiled(x), expected.expand(4))
reviews = backend.report()
print("rank", rank, [len(review.graphs) for review in reviews])
print("notes", [note for session in backend._sessions.values() for note in session.notes])
dist.barrier()
dist.destroy_process_group()
"""


def two(folder: Path, budgets: tuple[str, str]) -> list[tuple[str, str]]:
    """stdout and stderr of both ranks; fails when one does not end."""
    commands = [[sys.executable, "-c", PROGRAM, str(rank), str(folder), budgets[rank]] for rank in range(2)]
    ranks = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        found = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, found, strict=True):
        assert rank.returncode == 0, errors
    return found


def test_two_ranks_measure_a_graph_with_a_collective(tmp_path: Path) -> None:
    (zero, shown), (one, silent) = two(tmp_path, ("60", "60"))
    assert "rank 0 [1]" in zero and "rank 1 [1]" in one
    assert "Variants (ms per step)" in shown and "Variants" not in silent
    assert (tmp_path / "out" / "review.json").exists()


def test_two_ranks_with_other_options_refuse_and_go_on(tmp_path: Path) -> None:
    (zero, _), (one, _) = two(tmp_path, ("60", "50"))
    assert "rank 0 []" in zero and "rank 1 []" in one
    assert "rank 1 has other options" in zero and "rank 1 has other options" in one
