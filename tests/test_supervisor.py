"""One worker at a time: what it loses costs one stage, and what it measured is on disk before the next stage starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
from fake_recording import FRAME, eager_timing, timing
from test_stages import FACTS, done, lost

from taxbreak_fx import schema, supervisor
from taxbreak_fx.errors import CaptureError, FormatError, TaxbreakError
from taxbreak_fx.model import Review
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import WAITING, Outcome, Ready, Stage
from taxbreak_fx.supervisor import Event, Worker, WorkerLost, supervise
from taxbreak_fx.turn import Turn

ROOT = Path(__file__).parent.parent
REQUEST = ReviewRequest(model="toy", variants=("eager", "dynamo", "inductor"), timeout_s=3.0)
READY = Ready(device="cpu", variants=("eager", "dynamo", "inductor"))
Script = Callable[[Stage], Outcome]


def measure(stage: Stage) -> Outcome:
    """A worker to which nothing happens."""
    if stage.kind == "host":
        return done("host", FACTS)
    if stage.kind == "frame":
        return done("frame", FRAME)
    assert stage.variant is not None
    result = eager_timing() if stage.variant == "eager" else timing(stage.variant)
    return done("timing", result, stage.variant)


class FakeWorkers:
    """Stands for ``supervisor.Worker``: every worker follows the same script; ``replies`` are their first replies."""

    def __init__(self, folder: Path) -> None:
        self.script: Script = measure
        self.replies: list[Ready | WorkerLost] = []
        self.journals: list[list[str]] = []
        self.stages: list[str] = []
        self.started, self.stopped, self.waits = 0, 0, 0
        self._folder = folder

    def __call__(self, request: ReviewRequest, log: IO[bytes]) -> FakeWorkers:
        self.started += 1
        return self

    def ready(self, waiting: Callable[[], None]) -> Ready:
        """The first reply."""
        for _ in range(self.waits):
            waiting()
        reply = self.replies.pop(0) if self.replies else READY
        if isinstance(reply, WorkerLost):
            raise reply
        return reply

    def run(self, stage: Stage, timeout_s: float, waiting: Callable[[], None]) -> Outcome:
        """Follow the script, and note what was on disk when the stage began."""
        assert timeout_s == REQUEST.timeout_s
        for _ in range(self.waits):
            waiting()
        self.stages.append(stage.title)
        self.journals.append(sorted(path.name for path in (self._folder / "journal").glob("*")))
        return self.script(stage)

    def stop(self) -> None:
        """End."""
        self.stopped += 1


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeWorkers:
    """Fake workers instead of processes."""
    fake = FakeWorkers(tmp_path)
    monkeypatch.setattr(supervisor, "Worker", fake)
    return fake


def run(tmp_path: Path) -> tuple[Review, list[Event]]:
    """Supervise the request, and the events that were shown."""
    events: list[Event] = []
    return supervise(REQUEST, tmp_path, events.append), events


def test_waiting_for_another_review_is_told_once_a_stage(workers: FakeWorkers, tmp_path: Path) -> None:
    workers.waits = 3
    review, events = run(tmp_path)
    told = [event for event in events if event.kind == "note"]
    assert [(event.stage, event.variant) for event in told] == [
        ("start", None),
        ("host", None),
        ("timing", "eager"),
        ("frame", None),
        ("timing", "dynamo"),
        ("timing", "inductor"),
    ]
    assert all("another review" in event.message for event in told)
    assert {variant.status for variant in review.variants} == {"ok"}


def test_every_result_is_on_disk_before_the_next_stage_starts(workers: FakeWorkers, tmp_path: Path) -> None:
    review, events = run(tmp_path)
    files = [
        "00-host.json",
        "01-timing-eager.json",
        "02-frame.json",
        "03-timing-dynamo.json",
        "04-timing-inductor.json",
    ]
    assert workers.journals == [files[:number] for number in range(5)]
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == files
    assert (workers.started, workers.stopped) == (1, 1)
    assert {variant.status for variant in review.variants} == {"ok"}
    assert [(event.kind, event.done, event.total) for event in events[:4]] == [
        ("start", 0, 5),
        ("done", 1, 5),
        ("start", 1, 5),
        ("done", 2, 5),
    ]


def test_journals_of_an_earlier_review_are_removed(workers: FakeWorkers, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "07-trace-eager.json").write_text("old")
    run(tmp_path)
    assert workers.journals[0] == []


def test_without_a_folder_nothing_is_left_behind(workers: FakeWorkers) -> None:
    assert supervise(REQUEST, None, lambda event: None).variant("inductor").status == "ok"


def test_a_lost_worker_costs_its_stage_and_the_next_stage_gets_a_new_one(workers: FakeWorkers, tmp_path: Path) -> None:
    def crash(stage: Stage) -> Outcome:
        if stage.variant == "dynamo":
            raise WorkerLost("the worker was killed by SIGKILL")
        return measure(stage)

    workers.script = crash
    review, events = run(tmp_path)
    assert (review.variant("dynamo").status, review.variant("dynamo").reason) == (
        "failed",
        "the worker was killed by SIGKILL",
    )
    assert {review.variant(name).status for name in ("eager", "inductor")} == {"ok"}
    assert (workers.started, workers.stopped) == (2, 2)
    assert [event.message for event in events if event.kind == "failed"] == ["the worker was killed by SIGKILL"]
    journal = msgspec.json.decode((tmp_path / "journal" / "03-timing-dynamo.json").read_bytes(), type=Outcome)
    assert journal.failure == "the worker was killed by SIGKILL"


def test_a_poisoned_worker_is_replaced_an_ordinary_failure_keeps_it(workers: FakeWorkers, tmp_path: Path) -> None:
    def fail(stage: Stage) -> Outcome:
        if stage.variant in ("dynamo", "inductor"):
            return Outcome(stage=stage, seconds=1.0, failure="it raised", fatal=stage.variant == "dynamo")
        return measure(stage)

    workers.script = fail
    review, _ = run(tmp_path)
    assert {review.variant(name).reason for name in ("dynamo", "inductor")} == {"it raised"}
    assert workers.started == 2  # after the fatal one only


def test_a_worker_that_cannot_be_replaced_costs_the_rest_not_the_review(workers: FakeWorkers, tmp_path: Path) -> None:
    def crash(stage: Stage) -> Outcome:
        if stage.kind == "frame":
            raise WorkerLost("killed")
        return measure(stage)

    workers.script = crash
    workers.replies = [READY, WorkerLost("ended with exit code 1"), Ready(error="out of memory", exit_code=3)]
    review, _ = run(tmp_path)
    assert review.variant("eager").status == "ok"
    assert review.variant("dynamo").reason == "ended with exit code 1"
    assert review.variant("inductor").reason == "out of memory"
    assert workers.started == workers.stopped == 3


def test_nothing_more_is_measured_once_eager_fails(workers: FakeWorkers, tmp_path: Path) -> None:
    workers.script = lambda stage: lost("timing", "it raised", "eager") if stage.variant else measure(stage)
    review, _ = run(tmp_path)
    assert workers.stages == ["host", "timing-eager"]
    assert review.variant("eager").reason == "it raised"
    assert review.variant("inductor").reason == "eager failed: it raised"


def test_a_machine_that_cannot_be_described_ends_the_review(workers: FakeWorkers, tmp_path: Path) -> None:
    workers.script = lambda stage: lost("host", "no driver")
    with pytest.raises(FormatError, match="no driver"):
        run(tmp_path)
    assert workers.stages == ["host"]


def test_ctrl_c_keeps_what_is_done(workers: FakeWorkers, tmp_path: Path) -> None:
    def interrupt(stage: Stage) -> Outcome:
        if stage.variant == "dynamo":
            raise KeyboardInterrupt
        return measure(stage)

    workers.script = interrupt
    review, _ = run(tmp_path)
    assert review.notes == ["interrupted by the user"]
    assert [(v.name, v.status, v.reason) for v in review.variants] == [
        ("eager", "ok", None),
        ("dynamo", "skipped", "interrupted by the user"),
        ("inductor", "skipped", "interrupted by the user"),
    ]
    assert workers.started == workers.stopped == 1


def test_ctrl_c_before_anything_is_known_passes_through(workers: FakeWorkers, tmp_path: Path) -> None:
    def interrupt(stage: Stage) -> Outcome:
        raise KeyboardInterrupt

    workers.script = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert workers.stopped == 1


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_users_mistake_keeps_its_exit_code(workers: FakeWorkers, tmp_path: Path, code: int) -> None:
    workers.replies = [Ready(error="no model 'toy'", exit_code=code)]
    with pytest.raises(TaxbreakError, match="no model 'toy'") as caught:
        run(tmp_path)
    assert caught.value.exit_code == code
    assert workers.stopped == 1


def test_a_worker_that_does_not_start_is_a_capture_error(workers: FakeWorkers, tmp_path: Path) -> None:
    workers.replies = [WorkerLost("the worker ended with exit code 1: ImportError")]
    with pytest.raises(CaptureError, match="did not start: the worker ended with exit code 1: ImportError"):
        run(tmp_path)


# --- real processes -------------------------------------------------------------------------------------------------

FACTORY = '''
import os, signal, sys, time
import torch


@torch._dynamo.disable
def where():
    """The variant being built, or the stage, from the frames that called this step."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "build" and frame.f_code.co_filename.endswith("bench.py"):
            return frame.f_locals["name"]
        if frame.f_code.co_name == "measure_frame":
            return "frame"
        frame = frame.f_back
    return "eager"


class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        here = where()
        if here == "frame":
            os.kill(os.getpid(), signal.SIGKILL)
        if here == "inductor":
            time.sleep(600)
        return torch.relu(self.layer(x))


def make():
    return Step(), (torch.ones(2, 4),), {}


def slow():
    def step(x):
        time.sleep(2)
        return torch.relu(x)
    return step, (torch.ones(2, 4),), {}


def raising():
    def step():
        raise KeyError("no such key")
    return step, (), {}
'''


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file of factories; workers find the package though it may not be installed."""
    path = tmp_path / "steps.py"
    path.write_text(FACTORY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield str(path)


def request(model: str, *variants: str, **fields: Any) -> ReviewRequest:
    """A quick request on the CPU."""
    return ReviewRequest(model=model, variants=variants, device="cpu", dtype="float32", budget_s=0.02, **fields)


def test_a_crash_and_a_hang_cost_one_stage_each(factory: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    asked = request(f"{factory}:make", "inductor", "dynamo", timeout_s=60.0)  # a start is slow on a busy machine
    started = time.monotonic()
    review = supervise(asked, out, lambda event: None)
    assert time.monotonic() - started < 300.0
    frame = msgspec.json.decode((out / "journal" / "02-frame.json").read_bytes(), type=Outcome)
    assert frame.failure is not None and frame.failure.startswith("the worker was killed by SIGKILL")
    inductor, dynamo = review.variant("inductor"), review.variant("dynamo")
    assert (inductor.status, inductor.reason) == ("failed", "timed out after 60 s")
    assert dynamo.status == "ok" and dynamo.breakdown is not None
    assert f"guards are not told from the frame around them: {frame.failure}" in dynamo.notes
    assert [(c.base, c.variant) for c in review.comparisons] == [("eager", "dynamo")]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("absent", 2, "has no function 'absent'"), ("raising", 4, "the step fails when run as it is: KeyError")],
)
def test_the_workers_own_errors_reach_the_caller(
    factory: str, tmp_path: Path, name: str, code: int, message: str
) -> None:
    with pytest.raises(TaxbreakError, match=message) as caught:
        supervise(request(f"{factory}:{name}"), tmp_path, lambda event: None)
    assert caught.value.exit_code == code


def test_a_model_is_not_built_while_another_review_measures(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = tmp_path / "log"
    built = tmp_path / "built"
    Path(factory).write_text(FACTORY + f"\nopen({str(built)!r}, 'w').close()\n")
    with open(log, "w+b") as file:
        with Turn("cpu")():
            worker = Worker(request(f"{factory}:make"), file)
            assert worker._line(60.0) == WAITING
            assert not built.exists()
        told: list[int] = []
        assert worker.ready(lambda: told.append(1)).error is None
        assert built.exists() and told
        worker.stop()


def test_ctrl_c_in_the_command_line_saves_the_review(factory: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "taxbreak_fx", "review", "gpt2-tiny", "--seq-len", "8", "--dtype", "float32"]
    command += ["--device", "cpu", "--variants", "dynamo,inductor", "--budget", "30", "--out", str(out), "--quiet"]
    # A shell starts background jobs with SIGINT ignored, and Python keeps that: give the command a terminal's default.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 240.0
        while not (out / "journal" / "01-timing-eager.json").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130, errors
    assert "interrupted; variants done: eager; saved in" in errors
    review = schema.load(out / "review.json")
    assert review.notes == ["interrupted by the user"]
    assert {variant.name: variant.status for variant in review.variants} == {
        "eager": "ok",
        "dynamo": "skipped",
        "inductor": "skipped",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_supervisor_that_is_killed_leaves_no_worker_at_work(factory: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "taxbreak_fx",
        "review",
        f"{factory}:slow",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    command += ["--variants", "dynamo", "--out", str(tmp_path), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        deadline = time.monotonic() + 240.0
        # Its first result is there: it is in a stage of 26 steps of 2 s.
        while not (tmp_path / "journal" / "00-host.json").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        (worker,) = [int(child) for child in children.read_text().split()]
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10.0
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(pid: int) -> bool:
    """Whether there is such a process, and it is no mere entry that waits to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
