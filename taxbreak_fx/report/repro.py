"""A variant as a script of its own: it rebuilds the model and the step, and times the variant beside eager.

Everything that comes from the review enters the script as the ``repr`` of a value, never as code.
"""

from __future__ import annotations

from typing import Any

from taxbreak_fx.errors import UsageError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report.content import headline
from taxbreak_fx.request import CUDA_VARIANTS, closest

_COMPILED = """\
    compiled = torch.compile(workload.call, {arguments})

    def call():
        return compiled(*workload.args, **workload.kwargs)

    return call
"""
_GRAPH = """\
    # As torch's documentation asks: warm up on a side stream, then capture.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            snapshot.restore()
            workload.run()
    torch.cuda.current_stream().wait_stream(side)
    snapshot.restore()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = workload.run()

    def call():
        graph.replay()
        return outputs

    return call
"""
# How each variant is built with what torch offers to everyone.
BUILD = {
    "eager": "    return workload.run\n",
    "dynamo": _COMPILED.format(arguments="backend=lambda gm, example_inputs: gm.forward"),
    "inductor": _COMPILED.format(arguments='backend="inductor"'),
    "reduce-overhead": _COMPILED.format(arguments='mode="reduce-overhead"'),
    "cudagraphs": _COMPILED.format(arguments='backend="cudagraphs"'),
    "eager-graph": _GRAPH,
}
# What a serving loop calls between two steps, so that CUDA graph trees know where one ends.
MARK = dict.fromkeys(("reduce-overhead", "cudagraphs"), "torch.compiler.cudagraph_mark_step_begin")

_SCRIPT = '''\
"""Times one variant of a model's step beside eager, in pairs and un-instrumented.

taxbreak_fx rebuilds the model and restores what a step writes; the variant itself is made with torch alone.
"""

import gc
import statistics
import time

import torch

from taxbreak_fx.models import load
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.state import Snapshot

REVIEWED = {about}
VARIANT = {variant}
DEVICE = {device}
REQUEST = ReviewRequest({request})
WARM_UP, PAIRS = 8, 30


def build(workload, snapshot):
{build}

def main():
    for name, value in REVIEWED.items():
        print(f"reviewed {{name}}: {{value}}")
    print(f"here torch: {{torch.__version__}}")
    sync = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    mark = {mark}
    workload = load(REQUEST, DEVICE)
    # A step writes its KV cache and its position: put back outside the timed region, so that every step does the same.
    snapshot = Snapshot([workload.call, workload.args, dict(workload.kwargs), *workload.state])

    def timed(call):
        snapshot.restore()
        mark()
        sync()
        started = time.perf_counter_ns()
        output = call()
        returned = time.perf_counter_ns()
        sync()
        idle = time.perf_counter_ns()
        del output
        return (idle - started) / 1e3, (returned - started) / 1e3

    with torch.no_grad():
        workload.run()
        sync()
        snapshot.settle()
        snapshot.restore()
        variant = build(workload, snapshot)
        for _ in range(WARM_UP):
            timed(workload.run)
            timed(variant)
        gc.collect()
        gc.disable()
        pairs = []
        for number in range(PAIRS):
            if number % 2:
                own, eager = timed(variant), timed(workload.run)
            else:
                eager, own = timed(workload.run), timed(variant)
            pairs.append((eager, own))
    for name, side in (("eager", 0), (VARIANT, 1)):
        wall, host = (statistics.median(pair[side][clock] for pair in pairs) for clock in (0, 1))
        print(f"{{name}}: wall {{wall:.1f}} us, host {{host:.1f}} us, medians of {{PAIRS}}")
    ratio = statistics.median(own[0] / eager[0] for eager, own in pairs)
    print(f"wall ratio, {{VARIANT}} / eager: {{ratio:.4f}}, median of the paired ratios")


if __name__ == "__main__":
    main()
'''


def repro(review: Review, name: str) -> str:
    """A Python script that runs the variant called ``name``.

    Raises ``UsageError`` for a variant that the review lacks or that was predicted, and for a review whose step was
    handed over in Python, which no script can make again.
    """
    variant = next((v for v in review.variants if v.name == name), None)
    if variant is None:
        raise UsageError(f"the review has no variant {name!r}{closest(name, [v.name for v in review.variants])}")
    if variant.prediction is not None:
        raise UsageError(f"{name!r} was predicted, nobody ran it: ask for --variant {variant.prediction.base!r}")
    if name not in CUDA_VARIANTS:
        raise UsageError(f"{name!r} is no variant that this taxbreak_fx can build; known: {', '.join(CUDA_VARIANTS)}")
    if review.scope != "step" or (review.step.phase == "forward" and ":" not in review.model):
        raise UsageError(
            f"{review.model!r} was reviewed from Python, and its step is not in the review: a repro needs a model that "
            "`taxbreak review MODEL` can build"
        )
    request = ", ".join(f"{field}={value!r}" for field, value in _request(review).items())
    return _SCRIPT.format(
        about=repr(_about(review, variant)),
        variant=repr(name),
        device=repr("cuda" if review.step.device == "cuda" else "cpu"),
        request=request,
        build=BUILD[name],
        mark=MARK.get(name, "lambda: None"),
    )


def _request(review: Review) -> dict[str, Any]:
    """What of the review ``ReviewRequest`` takes; what it does not know stays at its default."""
    step, options = review.step, review.step.options
    found: dict[str, Any] = {"model": review.model}
    if step.phase != "forward":
        known = {
            "phase": step.phase, "batch": step.batch, "seq_len": step.seq_len, "dtype": step.dtype,
            "cache": options.get("cache"), "attn_implementation": options.get("attn_implementation"),
            "experts_implementation": options.get("prefill_experts", options.get("experts_implementation")),
        }  # fmt: skip
        found |= {name: value for name, value in known.items() if value not in (None, "None")}
        found |= {name: int(options[name]) for name in ("tokens", "token") if step.phase == "generate"}
        found |= {"weights": True} if options.get("weights") == "pretrained" else {}
    elif step.dtype in ("bfloat16", "float16", "float32"):
        found["dtype"] = step.dtype
    seed = review.machine.conditions.seed
    return found | ({"seed": seed} if seed is not None else {})


def _about(review: Review, variant: Variant) -> dict[str, str]:
    found = {"step": headline(review)[0], "device": review.machine.device, "torch": review.machine.torch}
    found |= {"transformers": review.machine.transformers} if review.machine.transformers is not None else {}
    found["date"] = review.machine.date
    if variant.t_wall_us is not None:
        found[f"wall of {variant.name}"] = f"{variant.t_wall_us.median:.1f} us"
    return found | ({"outcome": variant.reason} if variant.reason is not None else {})
