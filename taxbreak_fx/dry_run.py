"""What Inductor would launch for a step on a GPU that is absent, planned in a process of its own.

Planning changes torch in many places (``dry_run_patches``) and takes seconds to minutes; here it can neither leave
anything behind nor outlast its time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Literal

import msgspec

from taxbreak_fx.dry_run_worker import Reply
from taxbreak_fx.errors import CaptureError, TaxbreakError, UsageError
from taxbreak_fx.predicted import DryRun, FakeStep
from taxbreak_fx.request import ReviewRequest

DRY_RUN_TIMEOUT_S = 600.0
What = Literal["plan", "step", "captured step"]


def dry_run(request: ReviewRequest, timeout_s: float = DRY_RUN_TIMEOUT_S, target: str = "h200") -> DryRun:
    """The launches, origins and allocations of Inductor's default mode for the step of ``request`` on ``target``.

    Raises ``UsageError`` for a time limit that is not positive, what the step's own mistakes raise elsewhere (with
    their exit codes), and ``CaptureError`` where torch is not covered, compilation fails or the time is over.
    """
    plan = _apart("plan", request, timeout_s, target).plan
    assert plan is not None
    return plan


def record_apart(
    request: ReviewRequest, timeout_s: float = DRY_RUN_TIMEOUT_S, target: str = "h200", capturing: bool = False
) -> FakeStep:
    """As ``absent_step.record_fake_step``, in a process that sees no CUDA device.  Raises as ``dry_run`` does."""
    step = _apart("captured step" if capturing else "step", request, timeout_s, target).step
    assert step is not None
    return step


def _apart(what: What, request: ReviewRequest, timeout_s: float, target: str) -> Reply:
    """The worker's answer, which is no error.  Raises as ``dry_run`` does."""
    if not timeout_s > 0:
        raise UsageError(f"the time limit must be positive, not {timeout_s:g} s")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "reply.json"
        command = [
            *("env", "CUDA_VISIBLE_DEVICES="),  # a GPU that is there would answer instead of the absent one
            *(sys.executable, "-m", "taxbreak_fx.dry_run_worker"),
            *(str(out), what, msgspec.json.encode(request).decode(), target),
        ]
        with open(Path(scratch) / "log", "w+b") as log:
            # A session of its own: whatever the compiler starts ends with it.
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = worker.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise CaptureError(
                    f"{request.model} took longer than {timeout_s:g} s: allow more time, or choose a smaller model"
                ) from None
            finally:
                _end(worker)
            if code or not out.exists():
                raise CaptureError(f"the dry run of {request.model} {_epitaph(code)}{_last_words(log)}")
        reply = msgspec.json.decode(out.read_bytes(), type=Reply)
    if reply.error is not None:
        kinds = {kind.exit_code: kind for kind in TaxbreakError.__subclasses__()}
        raise kinds.get(reply.exit_code, TaxbreakError)(reply.error)
    return reply


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _epitaph(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _last_words(log: IO[bytes]) -> str:
    """What the worker said last, for the reason: the first line of the error that ended it, else its last line."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - (1 << 16)))
    lines = log.read().decode(errors="replace").strip().splitlines()
    # torch's errors go on for dozens of lines behind the one that tells what happened.
    frame = max((number for number, line in enumerate(lines) if line.startswith("  File ")), default=None)
    said = [] if frame is None else [line for line in lines[frame + 1 :] if line and not line.startswith(" ")]
    return f": {(said[:1] or lines[-1:])[0].strip()[:200]}" if lines else ""
