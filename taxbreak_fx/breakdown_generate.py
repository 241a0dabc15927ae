"""From what was timed and reviewed of a generation to its record; the equations are in the docstrings of the record."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from taxbreak_fx.generate_record import Generate, GenerateRaw, GenerateStep, GenerateTimes
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.stats import interval, ratio

ONE_TOKEN = "one token is the prefill's: there is no time per further token"


def times(walls: Sequence[float], firsts: Sequence[float], tokens: int, batch: int) -> GenerateTimes:
    """TTFT, TPOT and tokens per second from walls of ``tokens`` tokens and of one, per round; microseconds."""
    further = [(wall - first) / (tokens - 1) for wall, first in zip(walls, firsts, strict=True)] if tokens > 1 else []
    wall = interval(walls)
    return GenerateTimes(
        wall_us=wall,
        ttft_us=interval(firsts),
        tpot_us=interval(further) if further else None,
        tokens_per_s=1e6 * batch * tokens / wall.median,
        unmeasured={} if further else {"tpot_us": ONE_TOKEN},
    )


def generated(raw: GenerateRaw | None, failure: str, tokens: int, prompt: int, batch: int, reviewed: int) -> Generate:
    """The record without its steps; ``failure`` says why ``raw`` is missing."""
    known: dict[str, Any] = dict.fromkeys(Generate.MEASUREMENTS)
    if raw is not None:
        known |= {
            "own": times(raw.own_us, raw.own_first_us, tokens, batch),
            "transformers": times(raw.theirs_us, raw.theirs_first_us, tokens, batch),
            "ratio": ratio(raw.own_us, raw.theirs_us),
            "tokens_equal": raw.tokens_equal,
        }
    reasons = dict.fromkeys((name for name, value in known.items() if value is None), failure)
    return Generate(
        tokens=tokens,
        prompt=prompt,
        batch=batch,
        reviewed=reviewed,
        token_us=[statistics.median(column) for column in zip(*raw.token_us, strict=True)] if raw is not None else [],
        unmeasured={**reasons, "steps_share": failure if raw is None else "no step was reviewed"},
        **known,
    )


def step_of(token: int, prompt: int, variant: Variant) -> GenerateStep:
    """The step of ``token`` from its eager variant."""
    terms = variant.breakdown
    values: dict[str, Any] = {
        name: getattr(variant, name) for name in ("t_wall_us", "t_host_us", "device_active_us", "launches", "kernels")
    }
    values |= {
        name: getattr(terms, name) if terms else None
        for name in ("ft_us", "ct_us", "kt_us", "orchestration_us", "hdbi")
    }
    known = {**(terms.unmeasured if terms else {}), **variant.unmeasured}
    reasons = {
        name: known.get(name) or variant.reason or "not measured" for name, value in values.items() if value is None
    }
    return GenerateStep(token=token, cached=cached(token, prompt), unmeasured=reasons, **values)


def cached(token: int, prompt: int) -> int:
    """Tokens in the cache as the step of ``token`` begins: none before the prefill; then the prompt, and every token
    but the one that the step takes."""
    return prompt + token - 1 if token else 0


def failed_step(token: int, prompt: int, reason: str) -> GenerateStep:
    """A step that could not be reviewed."""
    return step_of(token, prompt, Variant.unavailable("eager", "failed", reason))


def steps_us(walls: dict[int, float], tokens: int) -> float | None:
    """Sum over all tokens of step walls known for some: on a line between these.  None where the prefill's, the first
    or the last decode step's is not known."""
    if not {0, min(1, tokens - 1), tokens - 1} <= set(walls):
        return None
    total, decode = walls[0], sorted(token for token in walls if token)
    for token in range(1, tokens):
        above = next(known for known in decode if known >= token)
        below = max(known for known in decode if known <= token)
        share = (token - below) / (above - below) if above > below else 0.0
        total += walls[below] + share * (walls[above] - walls[below])
    return total


def with_steps(review: Review, steps: Sequence[GenerateStep]) -> Review:
    """``review`` with the reviewed steps in its generation, and what of its wall time they account for."""
    one = review.generate
    assert one is not None
    ordered = sorted(steps, key=lambda step: step.token)
    walls = {step.token: step.t_wall_us.median for step in ordered if step.t_wall_us is not None}
    total = steps_us(walls, one.tokens)
    reasons = {name: why for name, why in one.unmeasured.items() if name != "steps_share"}
    share = None if total is None or one.own is None else total / one.own.wall_us.median
    if share is None:
        reasons["steps_share"] = one.unmeasured["own"] if one.own is None else "a step that it needs has no wall time"
    made = msgspec.structs.replace(one, steps=ordered, steps_share=share, unmeasured=reasons)
    return msgspec.structs.replace(review, generate=made)
