"""A workload: the callable that is one step, with its inputs and its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taxbreak_fx.model import StepInfo


@dataclass(frozen=True)
class Workload:
    """``call(*args, **kwargs)`` is one step (method.md, "The step"); it may mutate state reachable from its inputs.

    ``state`` lists further objects the step writes (a cache held in a closure): they are snapshotted with the inputs.
    ``generation``: where the step is one of ``tokens`` that ``generate`` yields, what runs them all
    (``generate_loop.Generation``).
    """

    call: Callable[..., Any]
    model: str
    step: StepInfo
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    state: tuple[Any, ...] = ()
    seed: int | None = None
    generation: Any | None = None
    tokens: int = 0

    def run(self) -> Any:
        """Run one step as the user would."""
        return self.call(*self.args, **self.kwargs)
