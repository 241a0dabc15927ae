"""A review of ``--phase generate``: one step in all variants, others in eager only, and ``generate`` as a whole.

The step in the middle is reviewed in every variant, in the process that also times ``generate``; the prefill's, the
first and the last decode step follow, each in a process of its own.  What fails there costs that step only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from taxbreak_fx.breakdown_generate import failed_step, step_of, with_steps
from taxbreak_fx.errors import TaxbreakError
from taxbreak_fx.generate_record import GenerateStep
from taxbreak_fx.model import Review
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.stages import INTERRUPTED
from taxbreak_fx.supervisor import Event, supervise


def middle(tokens: int) -> int:
    """The token whose step is reviewed in all variants."""
    return tokens // 2


def reviewed_tokens(tokens: int) -> list[int]:
    """The tokens whose steps are reviewed, the middle one first."""
    return list(dict.fromkeys((middle(tokens), 0, min(1, tokens - 1), tokens - 1)))


def supervise_generate(request: ReviewRequest, out: Path | None, on_event: Callable[[Event], None]) -> Review:
    """As ``supervise``, for a request of phase ``generate``; journals of the other steps are in ``out/token-K``.

    On Ctrl-C the review of what is done is returned, with the note "interrupted by the user".
    """
    first, *others = reviewed_tokens(request.tokens)
    review = supervise(msgspec.structs.replace(request, token=first), out, on_event)
    steps = [step_of(first, request.seq_len, review.variant("eager"))]
    for token in others:
        if INTERRUPTED in review.notes:
            steps.append(failed_step(token, request.seq_len, INTERRUPTED))
            continue
        step, notes = _step(request, token, out, on_event)
        steps.append(step)
        review = msgspec.structs.replace(review, notes=[*review.notes, *notes])
    return with_steps(review, steps)


def _step(
    request: ReviewRequest, token: int, out: Path | None, on_event: Callable[[Event], None]
) -> tuple[GenerateStep, list[str]]:
    folder = None if out is None else out / f"token-{token}"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    wanted = msgspec.structs.replace(request, token=token, variants=("eager",))
    try:
        review = supervise(wanted, folder, on_event)
    except KeyboardInterrupt:
        return failed_step(token, request.seq_len, INTERRUPTED), [INTERRUPTED]
    except TaxbreakError as error:
        return failed_step(token, request.seq_len, str(error)), []
    return step_of(token, request.seq_len, review.variant("eager")), [n for n in review.notes if n == INTERRUPTED]
