"""The steps that a profile's framework costs are taken from: small models of the registry, and a program of mixed ops.

Kept out on purpose, so that predictions can be tested on them: every Qwen3, BERT and its kin, ViT and Whisper.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from taxbreak_fx.call_counts import call_counts
from taxbreak_fx.errors import MeasurementError
from taxbreak_fx.hardware import FitStep
from taxbreak_fx.hardware_costs import call_of
from taxbreak_fx.model import StepInfo
from taxbreak_fx.model_configs import find
from taxbreak_fx.models import load
from taxbreak_fx.profile_measure_fit import Row
from taxbreak_fx.recorders.bench import Bench
from taxbreak_fx.recorders.in_situ import in_situ
from taxbreak_fx.recorders.library import time_libraries
from taxbreak_fx.recorders.timing import Captured, capture_sites, reach_sites
from taxbreak_fx.recorders.tracing import trace_steps
from taxbreak_fx.recording import InSitu, LibraryTimes, Spans, TracedStep
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.workload import Workload

Device = Literal["cuda", "cpu"]
# On CUDA wide enough for the kernels that real models get, small enough for any GPU.  On the CPU so narrow that an op
# costs its dispatch and little else, since host and device are one there.
_WIDTHS: dict[str, dict[str, dict[str, int]]] = {
    "cuda": {
        "gpt2": {},
        "Llama-3.2-1B": {"vocab_size": 32_000},
        "OLMoE-1B-7B": {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 512},
        "Mixtral-8x7B": {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16},
    },
    "cpu": {
        "gpt2": {"vocab_size": 256, "n_embd": 32, "n_head": 4},
        "Llama-3.2-1B": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        "OLMoE-1B-7B": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        },
        "Mixtral-8x7B": {
            "vocab_size": 256,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    },
}


@dataclass(frozen=True)
class Fit:
    """A step of a registry model with few ``layers``; ``options`` go to its request."""

    model: str
    layers: int
    phase: Literal["prefill", "decode"]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``gpt2 ×4 decode, attn_implementation eager``."""
        more = "".join(f", {name} {value}" for name, value in self.options.items())
        return f"{self.model} ×{self.layers} {self.phase}{more}"


FITS = (
    Fit("gpt2", 4, "prefill"),
    Fit("gpt2", 4, "decode"),
    Fit("Llama-3.2-1B", 3, "decode"),
    Fit("Llama-3.2-1B", 3, "prefill"),
    Fit("OLMoE-1B-7B", 2, "prefill", {"experts_implementation": "grouped_mm"}),
    Fit("OLMoE-1B-7B", 2, "decode", {"experts_implementation": "grouped_mm"}),
    Fit("OLMoE-1B-7B", 2, "decode", {"experts_implementation": "eager"}),
    Fit("Mixtral-8x7B", 2, "decode", {"experts_implementation": "batched_mm"}),
    Fit("Mixtral-8x7B", 2, "prefill", {"experts_implementation": "eager"}),
    Fit("Llama-3.2-1B", 2, "decode", {"cache": "dynamic"}),
    Fit("gpt2", 2, "prefill", {"attn_implementation": "eager"}),
)


def fit_workload(fit: Fit, device: Device) -> Workload:
    """The step of ``fit`` on ``device``, in bfloat16 on CUDA and float32 on the CPU.  Raises as ``models.load``."""
    import transformers

    entry = find(fit.model)
    assert entry is not None
    layers = "n_layer" if entry.config_class == "GPT2Config" else "num_hidden_layers"
    sizes = {**copy.deepcopy(dict(entry.config)), **_WIDTHS[device][fit.model], layers: fit.layers}
    config = getattr(transformers, entry.config_class)(**sizes)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        request = ReviewRequest(
            model=folder,
            phase=fit.phase,
            seq_len=128 if device == "cuda" else 16,
            dtype="bfloat16" if device == "cuda" else "float32",
            device=device,
            **fit.options,
        )
        return load(request, device)


# Families and ops that the models above do not reach.  Compiled under a name of its own: call sites inside this package
# are not looked for.  Every line stands twice between others, as in a model.
_OPERATORS = """
    y = F.gelu(x); y = torch.relu(y); y = F.leaky_relu(y); y = torch.sigmoid(y); y = F.gelu(y, approximate="tanh")
    z = torch.exp(-y); z = z.clamp(min=0.1); z = torch.log(z); z = torch.sqrt(z.abs()); z = torch.where(z > 0.5, z, y)
    z = z.masked_fill(mask, 0.0); z = torch.maximum(z, y); z = z / 2.0; z = z.pow(2) - y; z = torch.erf(z) + 1
    s = z.sum(dim=-1, keepdim=True); s = s + z.mean(dim=-1, keepdim=True); s = s + z.amax(dim=-1, keepdim=True)
    v = torch.var(z, dim=-1); i = z.argmax(dim=-1); z = z * s; c = torch.cumsum(z, dim=-1); t = torch.topk(z, 4)
    o = torch.sort(z, dim=-1); n = F.layer_norm(z, (64,), g, b); n = F.rms_norm(n, (64,), g)
    p = torch.softmax(n, dim=-1); p = F.log_softmax(p, dim=-1)
    q = F.group_norm(image, 4); q = F.batch_norm(q, mean, variance); q = F.conv2d(q, kernel, bias, padding=1)
    q = torch.max_pool2d(q, 2); q = F.avg_pool2d(q, 2); q = F.adaptive_avg_pool2d(q, 1);
    a = F.conv1d(sound, filters, bias)
    r = q.flatten(1); u = torch.index_select(z, 0, index); u = torch.gather(z, 1, i[:, None]); u = z[index]
    e = F.embedding(index, table); h = torch.zeros_like(z); h.scatter_add_(1, i[:, None], s); h.index_add_(0, index, z)
    k = torch.cat((z, h), dim=-1); k = torch.stack((z, h)); k = torch.split(k, 1)[0].permute(1, 0, 2).contiguous()
    d = z.repeat(2, 1); d = z.expand(2, 8, 64).clone(); d = z.to(torch.float32); d = torch.arange(8, device=x.device)
    d = torch.ones(8, 8, device=x.device); d = torch.rand(8, 8, device=x.device); d = torch.tril(d); d = d.roll(1, 0)
    f = F.linear(z, w, g); f = torch.matmul(f, w); f = torch.bmm(three, three); f = torch.baddbmm(three, three, three)
    f = torch.einsum("bij,bjk->bik", three, three); f = F.scaled_dot_product_attention(four, four, four)
    f = F.scaled_dot_product_attention(four, four, four, is_causal=True); f = F.pad(z, (0, 8)); f = F.one_hot(i, 64)
    f = F.interpolate(image, scale_factor=2.0); f = torch.nonzero(i); f = z.unsqueeze(0).squeeze(0).reshape(64, 8)
    x = z.tanh()
"""


def operators_workload(device: Device) -> Workload:
    """One step of a program that runs each op of ``_OPERATORS`` twice, on small tensors."""
    names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    inputs = _operands(device)
    source = f"def operators({', '.join(inputs)}):{_OPERATORS * 2}    return x\n"
    exec(compile(source, "<operators of a profile>", "exec"), names)
    dtype = "bfloat16" if device == "cuda" else "float32"
    step = StepInfo(phase="forward", batch=None, seq_len=None, dtype=dtype, device=device)
    return Workload(call=names["operators"], model="operators", step=step, args=tuple(inputs.values()))


def _operands(device: Device) -> dict[str, torch.Tensor]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, device=device, dtype=dtype)

    return {
        "x": torch.linspace(-1, 1, 512, device=device, dtype=dtype).view(8, 64),
        "w": ones(64, 64),
        "g": ones(64),
        "b": ones(64),
        "mask": torch.zeros(8, 64, device=device, dtype=torch.bool),
        "index": torch.arange(8, device=device),
        "table": ones(16, 64),
        "image": ones(2, 8, 16, 16),
        "mean": ones(8),
        "variance": ones(8),
        "kernel": ones(8, 8, 3, 3),
        "bias": ones(8),
        "sound": ones(2, 8, 64),
        "filters": ones(8, 8, 3),
        "three": ones(4, 16, 16),
        "four": ones(2, 4, 16, 16),
    }


class MeasuredStep:
    """A step that was timed: its calls, and all that is known of their times.  ``traced``: filled in by ``trace``."""

    def __init__(self, name: str, workload: Workload, device: Device, budget_s: float) -> None:
        """Time the step.  Raises ``MeasurementError`` where its work differs between passes, ``CaptureError`` where it
        cannot be run or clocked."""
        self.name, self.device = name, device
        self.bench = Bench(workload, device, budget_s)
        self.built = self.bench.eager
        reach_sites(self.bench, self.built)
        self.captured: Captured = capture_sites(self.bench, self.built)
        self.captured.calls.clear()  # real arguments are kept for replays only
        self.captured.leaves.clear()
        sites = self.captured.sites
        self.spans: Spans
        self.clock: InSitu
        self.spans, self.clock, _ = in_situ(self.bench, self.built, len(sites))
        self.library: LibraryTimes | None = None
        if device == "cuda":
            self.library = time_libraries(self.bench, self.built, len(sites))
        self.traced: TracedStep | None = None
        self.modules, self.functions = 0, 0
        self.bench.snapshot.restore()
        with torch.no_grad():
            self.modules, self.functions = call_counts(workload.run)
        self.bench.snapshot.restore()

    def trace(self) -> None:
        """Count kernels and launches per call under the profiler; after all timing.  Raises ``MeasurementError``."""
        step = trace_steps(self.bench, self.built)[-1]
        if step.sites != len(self.captured.sites):
            raise MeasurementError(f"{self.name}: the traced step met other calls than the timed one")
        self.traced = step

    @property
    def fit_step(self) -> FitStep:
        """Counts and host time by place, without waits."""
        blocked = sum(site.blocked_us for site in self.library.sites) * self._speed if self.library else 0.0
        return FitStep(
            name=self.name,
            sites=len(self.captured.sites),
            modules=self.modules,
            functions=self.functions,
            host_us=self.spans.host_us,
            sites_us=max(0.0, self.spans.sites_us - blocked),
            glue_us=max(0.0, self.spans.glue_us),
        )

    @property
    def _speed(self) -> float:
        """From the host's speed while libraries were timed to that while sites were."""
        return self.clock.host_us / self.library.host_us if self.library is not None else 1.0

    def launches(self) -> tuple[float, int]:
        """Time in launch calls that were heard, and their number."""
        sites = self.library.sites if self.library is not None else []
        return (
            sum(site.launch_us for site in sites) * self._speed,
            sum(site.launches_inside + site.launches_beside for site in sites),
        )

    def rows(self, launch_us: float | None) -> list[Row]:
        """One row per call.  ΔFT = in-situ time − library time − launches − waiting; on the CPU device all in-situ
        time, the op's work on a few elements included.

        A library launches through a runtime of its own, unheard: what the trace has beyond the heard launches is taken
        from the call's library time at ``launch_us`` each, or from its ΔFT where no library was called.
        """
        entries = {site.site: site for site in self.library.sites} if self.library is not None else {}
        rows = []
        for index, (site, us) in enumerate(zip(self.captured.sites, self.clock.site_us, strict=True)):
            call, entry = call_of(site, self.device), entries.get(index)
            kernels, memops, launched = self._activities(index)
            ft_us, ct_us = us, None
            if self.library is not None:
                own = entry.own_us * self._speed if entry is not None else 0.0
                calls = entry.calls if entry is not None else 0
                heard = entry.launches_inside + entry.launches_beside if entry is not None else 0
                if entry is not None:
                    ft_us -= own + (entry.launch_us + entry.blocked_us) * self._speed
                unheard = max(0, launched - heard) if launched is not None and launch_us is not None else 0
                if calls:
                    # Untraced, nobody knows how many launches are still in the library's time.
                    ct_us = own - unheard * (launch_us or 0.0) if launched is not None else None
                else:
                    ft_us -= unheard * (launch_us or 0.0)
                    ct_us = own
            rows.append(Row(call, ft_us, ct_us, kernels, memops))
        return rows

    def _activities(self, index: int) -> tuple[int | None, int | None, int | None]:
        """Kernels, copies and fills, and kernel launches of one call, as traced."""
        if self.traced is None:
            return None, None, None
        own = [activity for activity in self.traced.activities if activity.site == index]
        kernels = sum(activity.kind == "kernel" for activity in own)
        launches = sum(launch.site == index and launch.kind == "kernel" for launch in self.traced.launches)
        return kernels, len(own) - kernels, launches
