"""The process that holds the weights.  Started by the supervisor as ``python -m taxbreak_fx.worker FD REQUEST``.

It reads one stage per line from stdin and writes one reply per line to the file descriptor it was given, behind lines
that say it waits for its turn; its stdout and stderr belong to the libraries and go to a log.  It ends when its stdin
closes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

import msgspec

from taxbreak_fx.errors import DeviceError, TaxbreakError
from taxbreak_fx.record import Record
from taxbreak_fx.request import ReviewRequest, check_variants
from taxbreak_fx.stages import WAITING, Ready, Stage

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end_with_supervisor() -> None:
    """Ask the kernel (Linux) to kill this process when the one that started it is gone, however that ended.

    Else a worker would finish its stage first, and disturb on the device what is measured next.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Load the workload, answer, then run stages until stdin closes."""
    _end_with_supervisor()
    descriptor, request = int(sys.argv[1]), msgspec.json.decode(sys.argv[2].encode(), type=ReviewRequest)
    replies = os.fdopen(descriptor, "wb", buffering=0)

    def reply(message: Record) -> None:
        replies.write(msgspec.json.encode(message) + b"\n")

    def waiting() -> None:
        replies.write(WAITING + b"\n")

    try:
        from taxbreak_fx.models import import_code, load, resolve_device

        device = resolve_device(request.device)
        variants = check_variants(request.variants, device)
        from taxbreak_fx.pipeline import Runner
        from taxbreak_fx.turn import turn_on

        turn = turn_on(device, waiting)
        import_code(request)  # before the turn: others measure meanwhile
        with turn():
            workload = load(request, device)
        runner = Runner(workload, device, request.budget_s, turn)
    except TaxbreakError as error:
        reply(Ready(error=str(error), exit_code=error.exit_code))
        return
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        failure = DeviceError(f"{request.model} does not fit in the device's memory: choose a smaller model or batch")
        reply(Ready(error=str(failure), exit_code=failure.exit_code))
        return
    gc.freeze()  # imports and weights live as long as the process: the collections around timed regions skip them
    # All tokens are timed once, where the step in the middle is reviewed.
    generates = request.phase == "generate" and request.token == request.tokens // 2
    reply(Ready(device=device, variants=variants, generates=generates))
    for line in sys.stdin.buffer:
        outcome = runner.run(msgspec.json.decode(line, type=Stage))
        reply(outcome)
        if outcome.fatal:
            # The context is poisoned: even its destructors may hang, so leave without them.
            os._exit(3)


if __name__ == "__main__":
    main()
