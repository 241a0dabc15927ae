"""Drives one worker process at a time through the stages of a review; touches no device itself.

A stage that crashes its worker, poisons its device context or outlasts its time costs that stage only: it is reported
with its reason, a new worker is started, and every later variant is again paired with eager inside that worker.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from taxbreak_fx.errors import CaptureError, TaxbreakError
from taxbreak_fx.model import Review
from taxbreak_fx.record import Record
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import INTERRUPTED, WAITING, Outcome, Ready, Stage, assemble, journal, plan, unneeded

START_TIMEOUT_S = 900.0  # building a large model on the device, imports included


class Event(Record, frozen=True, kw_only=True):
    """Progress for whoever shows it: ``kind`` is start, done, failed or note."""

    kind: str
    stage: str
    variant: str | None
    message: str
    done: int
    total: int


class WorkerLost(Exception):
    """The worker ended or fell silent; the message says how."""


class Worker:
    """One worker process and the two pipes to it."""

    def __init__(self, request: ReviewRequest, log: IO[bytes]) -> None:
        read, write = os.pipe()
        command = [sys.executable, "-m", "taxbreak_fx.worker", str(write), msgspec.json.encode(request).decode()]
        self._log = log
        # A session of its own: Ctrl-C reaches the supervisor alone, which then decides what to save.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(write,), start_new_session=True
        )
        os.close(write)
        self._replies, self._buffer = read, b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(read, selectors.EVENT_READ)

    def ready(self, waiting: Callable[[], None]) -> Ready:
        """The first reply.  Raises ``WorkerLost``.  ``waiting``: as for ``run``."""
        while (line := self._line(START_TIMEOUT_S)) == WAITING:
            waiting()
        return msgspec.json.decode(line, type=Ready)

    def run(self, stage: Stage, timeout_s: float, waiting: Callable[[], None]) -> Outcome:
        """Run one stage.  Raises ``WorkerLost`` when the worker dies or outlasts ``timeout_s``.

        ``waiting`` is called while another process has the device; the time begins anew after that.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(stage) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerLost(self._epitaph()) from None
        while (line := self._line(timeout_s)) == WAITING:
            waiting()
        return msgspec.json.decode(line, type=Outcome)

    def stop(self) -> None:
        """End the worker and everything it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        os.close(self._replies)

    def _line(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise WorkerLost(f"timed out after {timeout_s:g} s")
            chunk = os.read(self._replies, 1 << 20)
            if not chunk:
                raise WorkerLost(self._epitaph())
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _epitaph(self) -> str:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._log.flush()
        tail = _last_line(self._log)
        return f"the worker {how}" + (f": {tail}" if tail else "")


def supervise(request: ReviewRequest, out: Path | None, on_event: Callable[[Event], None]) -> Review:
    """Run a review in worker processes; every finished stage is in ``out/journal`` before the next starts.

    On Ctrl-C the review of what is done is returned, with the note "interrupted by the user".  Raises the worker's own
    ``TaxbreakError`` for a user's mistake, and ``CaptureError`` when no worker can be started.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out) if out is not None else Path(scratch)
        log_path = folder / "worker.log"
        with open(log_path, "w+b") as log:
            return _Supervision(request, folder / "journal", log, on_event).run()


class _Supervision:
    def __init__(self, request: ReviewRequest, folder: Path, log: IO[bytes], on_event: Callable[[Event], None]) -> None:
        self._request, self._folder, self._log, self._on_event = request, folder, log, on_event
        self._outcomes: list[Outcome] = []
        self._notes: list[str] = []
        self._worker: Worker | None = None
        self._stages: list[Stage] = []
        self._waited: set[Stage | None] = set()

    def run(self) -> Review:
        """Start a worker, run the plan, assemble."""
        for old in self._folder.glob("*.json"):
            old.unlink()
        try:
            ready = self._start()
            assert ready.device is not None
            self._stages = plan(ready.variants, ready.device, ready.generates)
            try:
                self._run_stages(self._stages)
            except KeyboardInterrupt:
                if not any(outcome.stage.kind == "host" for outcome in self._outcomes):
                    raise
                self._notes.append(INTERRUPTED)
                done = {outcome.stage.title for outcome in self._outcomes}
                for stage in self._stages:
                    if stage.title not in done:
                        self._outcomes.append(Outcome(stage=stage, seconds=0.0, failure=INTERRUPTED))
        finally:
            if self._worker is not None:
                self._worker.stop()
        return assemble(self._outcomes, ready.variants, ready.device, self._notes)

    def _run_stages(self, stages: Sequence[Stage]) -> None:
        for number, stage in enumerate(stages):
            skip = unneeded(stage, self._outcomes)
            if skip is not None:
                self._record(Outcome(stage=stage, seconds=0.0, failure=skip), number)
                continue
            self._tell("start", stage, "", number)
            started = time.monotonic()
            try:
                if self._worker is None:
                    self._start()
                assert self._worker is not None
                outcome = self._worker.run(stage, self._request.timeout_s, partial(self._wait, stage, number))
            except WorkerLost as lost:
                outcome = Outcome(stage=stage, seconds=time.monotonic() - started, failure=str(lost), fatal=True)
            self._record(outcome, number)
            if outcome.fatal and self._worker is not None:
                self._worker.stop()
                self._worker = None
            self._tell("failed" if outcome.failure else "done", stage, outcome.failure or "", number + 1)

    def _wait(self, stage: Stage | None, number: int) -> None:
        if stage not in self._waited:
            self._waited.add(stage)
            self._tell("note", stage, "waiting for another review on this device", number)

    def _record(self, outcome: Outcome, number: int) -> None:
        self._outcomes.append(outcome)
        journal(outcome, self._folder, number)

    def _start(self) -> Ready:
        self._worker = Worker(self._request, self._log)
        try:
            ready = self._worker.ready(partial(self._wait, None, len(self._outcomes)))
        except WorkerLost as lost:
            self._worker.stop()
            self._worker = None
            if self._outcomes:
                raise
            raise CaptureError(f"the worker did not start: {lost}; the log is {self._log.name}") from None
        if ready.error is not None:
            if self._outcomes:  # it did start before: what is measured must not be lost with this attempt
                self._worker.stop()
                self._worker = None
                raise WorkerLost(ready.error)
            error = TaxbreakError(ready.error)
            error.exit_code = ready.exit_code
            raise error
        return ready

    def _tell(self, kind: str, stage: Stage | None, message: str, done: int) -> None:
        """``stage``: None while the worker starts."""
        name, variant = (stage.kind, stage.variant) if stage is not None else ("start", None)
        total = len(self._stages)
        self._on_event(Event(kind=kind, stage=name, variant=variant, message=message, done=done, total=total))


def _last_line(log: IO[bytes]) -> str:
    """The last line that libraries or Python wrote, for the reason of a crash."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4096))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""
