"""A prompt and the tokens generated from it: what a review of ``--phase generate`` adds to the review of one step.

Token 0 comes of the prefill, token k of the k-th decode step; each is chosen by transformers' own greedy code.
"""

from __future__ import annotations

from taxbreak_fx.record import Interval, Measured, Record


class GenerateRaw(Record, frozen=True, kw_only=True):
    """Un-instrumented walls in microseconds, one entry per round; in a round all four are run, in alternating order.

    ``own_us`` and ``theirs_us``: ``generate`` with the loop that was reviewed, and with its own.  ``own_first_us`` and
    ``theirs_first_us``: the same for one token only.  ``token_us``: per round, for each token, the time from the one
    before it (from the call, for token 0) until the loop knew whether to go on, in the reviewed loop.
    """

    own_us: list[float]
    theirs_us: list[float]
    own_first_us: list[float]
    theirs_first_us: list[float]
    token_us: list[list[float]]
    tokens_equal: bool


class GenerateTimes(Measured, frozen=True, kw_only=True):
    """One way of generating all tokens; microseconds, un-instrumented.

    ``ttft_us``: wall time of ``generate`` for one token, set-up and prefill included.  ``tpot_us`` = (``wall_us`` −
    ``ttft_us``) ÷ (tokens − 1), of each round.  ``tokens_per_s``: of the whole batch, over ``wall_us``.
    """

    MEASUREMENTS = ("tpot_us",)

    wall_us: Interval
    ttft_us: Interval
    tpot_us: Interval | None
    tokens_per_s: float


class GenerateStep(Measured, frozen=True, kw_only=True):
    """The decomposition of the eager step that yields ``token``, with ``cached`` tokens of each sequence before it."""

    MEASUREMENTS = (
        "t_wall_us",
        "t_host_us",
        "device_active_us",
        "launches",
        "kernels",
        "ft_us",
        "ct_us",
        "kt_us",
        "orchestration_us",
        "hdbi",
    )

    token: int
    cached: int
    t_wall_us: Interval | None
    t_host_us: Interval | None
    device_active_us: float | None
    launches: int | None
    kernels: int | None
    ft_us: float | None
    ct_us: float | None
    kt_us: float | None
    orchestration_us: float | None
    hdbi: float | None


class Generate(Measured, frozen=True, kw_only=True):
    """``tokens`` generated after a prompt of ``prompt`` tokens per sequence, ``batch`` sequences.

    ``reviewed``: the token whose step the review's variants are of.  ``own``: ``generate`` with the loop whose steps
    were reviewed; ``transformers``: with its own; ``ratio``: own ÷ transformers, paired, 99.9 % interval.
    ``token_us``: median per token, in the reviewed loop.  ``steps_share``: walls of the reviewed steps, on a line
    between them, summed over all tokens, ÷ ``own.wall_us``: what of ``generate`` its steps account for.
    """

    MEASUREMENTS = ("own", "transformers", "ratio", "tokens_equal", "steps_share")

    tokens: int
    prompt: int
    batch: int
    reviewed: int
    own: GenerateTimes | None
    transformers: GenerateTimes | None
    ratio: Interval | None
    tokens_equal: bool | None
    steps_share: float | None
    token_us: list[float] = []
    steps: list[GenerateStep] = []
