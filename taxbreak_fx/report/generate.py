"""What a review of ``--phase generate`` adds: all tokens as a whole, and the steps that were reviewed."""

from __future__ import annotations

from taxbreak_fx.generate_record import GenerateStep, GenerateTimes
from taxbreak_fx.model import Review
from taxbreak_fx.report import format as fmt
from taxbreak_fx.report.format import MISSING
from taxbreak_fx.report.tables import Column, Table, table


def generate_table(review: Review) -> Table | None:
    """``generate`` with its own loop and with the reviewed one; None for a review of another phase."""
    one = review.generate
    if one is None:
        return None
    columns = (
        Column("generate()"), Column("wall [95 %]"), Column("TTFT", right=True), Column("TPOT", right=True),
        Column("tokens/s", right=True),
    )  # fmt: skip
    under = [f"not timed: {one.unmeasured['own']}"] if one.own is None else []
    if one.ratio is not None:
        equal = "the same tokens" if one.tokens_equal else "OTHER TOKENS"
        under.append(f"reviewed ÷ transformers' loop: {fmt.interval(one.ratio)} [99.9 %], {equal}")
    if one.steps_share is not None:
        under.append(
            f"the reviewed steps, on a line between them, account for {100 * one.steps_share:.0f} % of the wall"
        )
    elif one.own is not None:
        under.append(f"what the steps account for is not known: {one.unmeasured['steps_share']}")
    plural = "" if one.tokens == 1 else "s"
    title = f"{one.tokens} token{plural} after {one.prompt}, batch {one.batch} (ms; TTFT: generate() of one token)"
    rows = [_times("transformers' loop", one.transformers), _times("the loop that is reviewed", one.own)]
    return table(title, columns, rows, under)


def _times(name: str, times: GenerateTimes | None) -> list[str]:
    if times is None:
        return [name, *[MISSING] * 4]
    further = MISSING if times.tpot_us is None else fmt.ms(times.tpot_us.median)
    wall, first = fmt.interval(times.wall_us, 1e-3), fmt.ms(times.ttft_us.median)
    return [name, wall, first, further, fmt.number(times.tokens_per_s)]


def steps_table(review: Review) -> Table | None:
    """The decomposition of each reviewed eager step; None for a review of another phase."""
    one = review.generate
    if one is None:
        return None
    columns = (
        Column("step of token"), Column("cached", right=True), Column("wall [95 %]"), Column("host", right=True),
        Column("device", right=True), Column("launches", right=True), Column("kernels", right=True),
        Column("ΔFT", right=True), Column("ΔCT", right=True), Column("ΔKT", right=True), Column("HDBI", right=True),
    )  # fmt: skip
    under = [f"token {s.token}: {s.unmeasured['t_wall_us']}" for s in one.steps if s.t_wall_us is None]
    return table("Steps of generate(), eager (ms)", columns, [_step(step, one.reviewed) for step in one.steps], under)


def _step(step: GenerateStep, reviewed: int) -> list[str]:
    wall = step.t_wall_us
    noise = None if wall is None else wall.high - wall.low
    name = "0, prefill" if step.token == 0 else f"{step.token}{', as above' if step.token == reviewed else ''}"
    return [
        name,
        fmt.count(step.cached),
        fmt.interval(wall, 1e-3),
        fmt.ms(None if step.t_host_us is None else step.t_host_us.median),
        fmt.ms(step.device_active_us),
        fmt.count(step.launches),
        fmt.count(step.kernels),
        *(fmt.term(us, noise) for us in (step.ft_us, step.ct_us, step.kt_us)),
        fmt.index(step.hdbi),
    ]
