"""transformers' greedy ``generate`` one iteration at a time: the same set-up, the same calls in the same order.

``generate`` itself prepares everything (cache, position ids, stopping criteria) and then hands over to a loop of ours,
which repeats what ``GenerationMixin._sample`` does with transformers' own methods.  That it does is checked: the tokens
of both are compared, and their times stand beside each other in the review (``recorders.generation``).

The end-of-sequence check runs with an id that no token has, so that all tokens are generated whatever the weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from taxbreak_fx.errors import CaptureError, UsageError
from taxbreak_fx.factory import first_line


class GenerateStepModule(torch.nn.Module):
    """One iteration of the loop as a step: ``forward()`` yields the scores (batch, vocabulary) that chose the token.

    ``ids`` (batch, length) are the tokens so far, ``taken`` what ``generate`` passes on to every forward call, with the
    cache in it; the step changes both.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.ids: torch.Tensor
        self.unfinished: torch.Tensor
        self.taken: dict[str, Any] = {}
        self.started = False
        self.finished = False
        self._processors: Any = None
        self._stopping: Any = None
        self._config: Any = None

    def begin(self, ids: torch.Tensor, processors: Any, stopping: Any, config: Any, taken: dict[str, Any]) -> None:
        """Take over from ``generate``."""
        self.ids, self.taken = ids, taken
        self._processors, self._stopping, self._config = processors, stopping, config
        self.unfinished = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        self.started = self.finished = False

    def forward(self) -> torch.Tensor:
        """The prefill and the first token, later one decode step with its token; blocks until the host knows whether to
        go on, as ``generate`` does.

        Raises ``CaptureError`` while a CUDA graph is captured, which cannot hold that: CUDA itself would not say why.
        """
        if _captured(self.ids):
            raise CaptureError("the host waits for every token to know whether to go on: a CUDA graph cannot hold that")
        model = self.model
        if self.started:
            length = 1 if self.taken["use_cache"] else None
            inputs = model.prepare_inputs_for_generation(self.ids, next_sequence_length=length, **self.taken)
            outputs = model(**inputs, return_dict=True)
        else:
            outputs = model._prefill(self.ids, self._config, self.taken, is_first_iteration=True)
        self.started = True
        self.taken = model._update_model_kwargs_for_generation(
            outputs, self.taken, is_encoder_decoder=model.config.is_encoder_decoder
        )
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self.ids.device)
        scores: torch.Tensor = self._processors(self.ids, logits)
        chosen = torch.argmax(scores, dim=-1)
        chosen = chosen * self.unfinished + self._config._pad_token_tensor * (1 - self.unfinished)
        self.ids = torch.cat([self.ids, chosen[:, None]], dim=-1)
        self.unfinished = self.unfinished & ~self._stopping(self.ids, ())
        self.finished = bool(self.unfinished.max() == 0)
        return scores


class Generation:
    """A prompt on a model, and the ways to generate from it.  Run under ``torch.no_grad()``."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor], cache: str, vocabulary: int) -> None:
        self.model, self.inputs = model, inputs
        self._inside = contextlib.ExitStack()
        self._options: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,  # whatever the generation config of a checkpoint says: this loop is the greedy one
            "eos_token_id": vocabulary,  # one past the last: checked for at every token, never met
            "pad_token_id": 0,
            "use_cache": True,
            # generate() would compile the forward of a static cache by itself, in a mode that no variant of ours is.
            "disable_compile": True,
        }
        if cache == "static":
            self._options["cache_implementation"] = "static"

    def theirs(self, tokens: int) -> torch.Tensor:
        """All tokens (batch, prompt + tokens) by transformers' own loop."""
        return self._generate(tokens)

    def own(self, tokens: int, marks: list[int] | None = None) -> torch.Tensor:
        """The same by the loop that is reviewed; ``marks`` receives ``perf_counter_ns`` behind each token."""

        def advance(step: GenerateStepModule) -> None:
            step()
            if marks is not None:
                marks.append(time.perf_counter_ns())

        def loop(step: GenerateStepModule) -> torch.Tensor:
            advance(step)  # the prefill runs the experts as they were chosen, like generate()'s
            with _decoding(self.model):
                while not step.finished:
                    advance(step)
            return step.ids

        return self._with_own(tokens, loop)

    def step(self, tokens: int, token: int) -> GenerateStepModule:
        """The step that yields ``token`` (0: the prefill's), everything before it done; the model is left as it is
        while ``generate`` runs that step.

        Raises ``CaptureError`` where ``generate`` fails, or is another one than this loop repeats.
        """
        ready: list[GenerateStepModule] = []

        def loop(step: GenerateStepModule) -> torch.Tensor:
            ready.append(step)
            if token:
                step()
                self._inside.enter_context(_decoding(self.model))
            for _ in range(1, token):
                step()
            return step.ids

        self._with_own(tokens, loop)
        # A static cache stays with the model, which would use it again, and overwrite it, in the next generate().
        if "_cache" in vars(self.model):
            del self.model._cache
        return ready[0]

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """The model as it is before ``generate`` is called, whatever ``step`` left it as."""
        decoding = self._inside.pop_all()
        experts = decoding_experts(self.model)
        decoding.close()
        try:
            yield
        finally:
            if experts != decoding_experts(self.model):
                self._inside.enter_context(_decoding(self.model))

    def _with_own(self, tokens: int, loop: Callable[[GenerateStepModule], torch.Tensor]) -> torch.Tensor:
        def take(
            model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
            **kwargs: Any,
        ) -> torch.Tensor:  # fmt: skip
            step = GenerateStepModule(model).eval()
            step.begin(input_ids, logits_processor, stopping_criteria, generation_config, kwargs)
            return loop(step)

        return self._generate(tokens, custom_generate=take)

    def _generate(self, tokens: int, **more: Any) -> torch.Tensor:
        try:
            found: torch.Tensor = self.model.generate(**self.inputs, **self._options, **more, max_new_tokens=tokens)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
            raise CaptureError(f"generate() of this transformers release failed: {first_line(error)}") from error
        return found


def _captured(ids: torch.Tensor) -> bool:
    """Whether this runs as written, on a stream that a CUDA graph is captured from."""
    return ids.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


def decoding_experts(model: Any) -> dict[str, Any]:
    """How the experts of each part of the model run now."""
    found: dict[str, Any] = model.get_experts_implementation()
    return found


def _decoding(model: Any) -> contextlib.AbstractContextManager[None]:
    """What ``generate`` changes of the model for its decode steps: experts that run otherwise, on a GPU."""
    found: contextlib.AbstractContextManager[None] = model._optimize_model_for_decode()
    return found


def check_tokens(tokens: int, token: int | None) -> None:
    """Raise ``UsageError`` for a number of tokens that cannot be, or a token that is none of them."""
    if tokens < 1:
        raise UsageError(f"--tokens must be at least 1, got {tokens}")
    if token is not None and not 0 <= token < tokens:
        raise UsageError(f"token {token} is none of {tokens}: they count from 0, the prefill's")
