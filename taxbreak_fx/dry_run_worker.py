"""The process that pretends to have a GPU: ``python -m taxbreak_fx.dry_run_worker OUT WHAT REQUEST TARGET``.

``WHAT`` is ``plan``, ``step`` or ``captured step``.  It writes one ``Reply`` as JSON to the file ``OUT``; its stdout
and stderr belong to the libraries.  It must see no CUDA device: whoever starts it hides them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.predicted import DryRun, FakeStep
from taxbreak_fx.record import Record
from taxbreak_fx.request import ReviewRequest


class Reply(Record, frozen=True, kw_only=True):
    """The plan or the step, or the one line that says why there is none, with its exit code."""

    plan: DryRun | None = None
    step: FakeStep | None = None
    error: str | None = None
    exit_code: int = 0


def main() -> None:
    """Plan or record the step of the request, answer, end."""
    out, what, target = Path(sys.argv[1]), sys.argv[2], sys.argv[4]
    request = msgspec.json.decode(sys.argv[3].encode(), type=ReviewRequest)
    try:
        if what == "plan":
            from taxbreak_fx.dry_run_step import plan_step

            reply = Reply(plan=plan_step(request, target))
        else:
            from taxbreak_fx.absent_step import record_fake_step

            reply = Reply(step=record_fake_step(request, target, capturing=what == "captured step"))
    except TaxbreakError as error:
        reply = Reply(error=str(error), exit_code=error.exit_code)
    out.write_bytes(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()
