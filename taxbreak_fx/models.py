"""From ``--model`` to a workload: a registry name, a transformers directory or hub id, or a factory in user code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from taxbreak_fx.errors import CaptureError, DeviceError, TaxbreakError, UsageError
from taxbreak_fx.factory import first_line, from_factory, seeded
from taxbreak_fx.generate_loop import Generation, check_tokens, decoding_experts
from taxbreak_fx.model import StepInfo
from taxbreak_fx.model_configs import ModelEntry, find, registry
from taxbreak_fx.request import ReviewRequest, closest
from taxbreak_fx.workload import Workload

__all__ = ["ModelEntry", "load", "registry", "resolve_device"]

# Free positions behind the one that a decode step writes, and a length that vectorised attention kernels like.
CACHE_HEAD_ROOM = 8
CACHE_ALIGNMENT = 16


def resolve_device(device: str) -> Literal["cuda", "cpu"]:
    """The device that ``auto``, ``cuda`` or ``cpu`` means on this machine.

    Raises ``DeviceError`` for an accelerator that is absent or unsupported, ``UsageError`` for an unknown name.
    """
    if device == "cpu":
        return "cpu"
    if device in ("mps", "xpu", "hip", "rocm"):
        raise DeviceError(f"device {device!r} is not supported: use an NVIDIA GPU (cuda) or --device cpu")
    if device not in ("auto", "cuda"):
        raise UsageError(f"unknown device {device!r}; use auto, cuda or cpu (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    available = torch.cuda.is_available()
    if torch.version.hip is not None and (available or device == "cuda"):
        raise DeviceError("this torch is built for ROCm, which is not supported: use a CUDA build or --device cpu")
    if available:
        return "cuda"
    if device == "auto":
        return "cpu"
    built = torch.backends.cuda.is_built()
    mend = "check the driver (nvidia-smi)" if built else "install a CUDA build of torch"
    raise DeviceError(f"no CUDA device for torch {torch.__version__}: {mend}, or use --device cpu")


def import_code(request: ReviewRequest) -> None:
    """Import what ``load`` will need of transformers: seconds of work that touch no device.

    Nothing is raised: ``load`` meets what is wrong again, and tells it.
    """
    if ":" in request.model:
        return
    with suppress(Exception):
        config = _config(request)
        _auto_class(config, _kind(config))._model_mapping[type(config)]


def load(request: ReviewRequest, device: str) -> Workload:
    """Build the step that ``request`` names on ``device`` ("cuda" or "cpu").

    A transformers step calls the model itself, with everything that it writes in ``kwargs``.  Prefill takes
    ``input_ids`` (batch, seq_len) and returns logits (batch, seq_len, vocabulary), or hidden states for an encoder.
    Decode takes one token (batch, 1) at position ``seq_len``, the cache holding ``seq_len`` tokens of a real prefill.
    An encoder-decoder's prefill runs its encoder and ``seq_len`` decoder tokens, its decode step the decoder only.
    Pixels and audio features have the size that the config says, whatever ``seq_len``.
    Run steps under ``torch.no_grad()``.

    Raises ``UsageError`` for a model or a value that cannot be, ``DeviceError`` when memory runs out, ``CaptureError``
    when the model's own code fails.
    """
    for name in ("batch", "seq_len"):
        if getattr(request, name) < 1:
            raise UsageError(f"{name.replace('_', '-')} must be at least 1, not {getattr(request, name)}")
    if request.phase == "generate":
        check_tokens(request.tokens, request.token)
        if ":" in request.model:
            raise UsageError(f"--phase generate takes transformers models; {request.model} makes a step of its own")
    with _one_line_errors(request.model, device):
        if ":" in request.model:
            return from_factory(request, device)
        return _from_transformers(request, device)


@contextmanager
def _one_line_errors(model: str, device: str) -> Iterator[None]:
    """Give what a model's own code raises the class and the one line that the CLI shows."""
    try:
        yield
    except TaxbreakError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(model, device) from error
    except (Exception, SystemExit) as error:
        if "can't allocate memory" in str(error):  # what the CPU allocator says, in a plain RuntimeError
            raise _too_large(model, device) from error
        raise CaptureError(f"{model} could not be built: {first_line(error)}") from error


def _too_large(model: str, device: str) -> DeviceError:
    return DeviceError(f"out of memory on {device} while building {model}: choose a smaller model, batch or seq-len")


def _from_transformers(request: ReviewRequest, device: str) -> Workload:
    config = _config(request)
    text_config = config.get_text_config(decoder=True)
    kind = _kind(config)
    # The last of the generated tokens is never put in.
    positions = request.seq_len + {"prefill": 0, "decode": 1, "generate": request.tokens - 1}[request.phase]
    limit = getattr(text_config, "max_position_embeddings", None) or getattr(text_config, "max_target_positions", None)
    if kind == "encoder" and request.phase == "decode":
        raise UsageError(f"{request.model} is an encoder and has no decode step: use --phase prefill")
    if kind != "decoder" and request.phase == "generate":
        raise UsageError(f"--phase generate takes decoders, {request.model} is an {kind}: use --phase prefill")
    if limit is not None and positions > limit:
        raise UsageError(
            f"{request.phase} at seq-len {request.seq_len} needs {positions} positions, and "
            f"{request.model} has {limit}: use a smaller --seq-len"
        )

    model = _build(request, config, kind=kind, device=device)
    experts = _choose_experts(model, request)
    options = {
        "weights": "pretrained" if request.weights else "random",
        "attn_implementation": str(model.config._attn_implementation),
    }
    if experts is not None:
        options["experts_implementation"] = experts

    generator = torch.Generator().manual_seed(request.seed)  # on the CPU, so that every device gets the same tokens

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(text_config.vocab_size, (request.batch, length), generator=generator).to(device)

    if request.phase == "generate":
        return _generation(model, request, tokens(request.seq_len), options)
    kwargs: dict[str, Any] = {"return_dict": True}
    if kind == "decoder":
        kwargs["input_ids"] = tokens(1 if request.phase == "decode" else request.seq_len)
    else:
        kwargs |= _encoder_input(model, request, tokens, generator)
    if kind == "encoder-decoder":
        kwargs["decoder_input_ids"] = tokens(1 if request.phase == "decode" else request.seq_len)
    if request.phase == "decode":
        kwargs |= _after_prefill(model, request, kwargs, tokens(request.seq_len), experts)
        kwargs["use_cache"] = True
        options["cache"] = request.cache
        if request.cache == "static":
            options["max_cache_len"] = str(_static_length(request.seq_len))
        if kind == "encoder-decoder":
            del kwargs[model.main_input_name]
    elif kind != "encoder":
        kwargs["use_cache"] = False

    entry = find(request.model)
    sized = kind != "encoder" or "input_ids" in kwargs
    return Workload(
        call=model,
        model=request.model if entry is None else entry.name,
        step=StepInfo(
            phase=request.phase,
            batch=request.batch,
            seq_len=request.seq_len if sized else None,
            dtype=request.dtype,
            device=device,
            options=options,
        ),
        kwargs=kwargs,
        seed=request.seed,
    )


def _generation(model: Any, request: ReviewRequest, prompt: torch.Tensor, options: dict[str, str]) -> Workload:
    """The step that yields ``request.token`` of ``request.tokens`` generated after ``prompt`` (batch, seq_len)."""
    # State-space models have a cache of their own kind, which is neither.
    cache = request.cache if "past_key_values" in inspect.signature(model.forward).parameters else "dynamic"
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    generation = Generation(model, inputs, cache, vocabulary)
    with torch.no_grad():
        step = generation.step(request.tokens, request.token)
    experts = next((name for name in decoding_experts(model).values() if name), None)
    chosen = options.get("experts_implementation")
    if chosen is not None and experts not in (None, chosen):  # generate() itself changed them for this step
        options |= {"experts_implementation": str(experts), "prefill_experts": chosen}
    entry = find(request.model)
    return Workload(
        call=step,
        model=request.model if entry is None else entry.name,
        step=StepInfo(
            phase="generate",
            batch=request.batch,
            seq_len=request.seq_len,
            dtype=request.dtype,
            device=str(prompt.device.type),
            options={**options, "cache": cache, "tokens": str(request.tokens), "token": str(request.token)},
        ),
        seed=request.seed,
        generation=generation,
        tokens=request.tokens,
    )


def _encoder_input(
    model: Any, request: ReviewRequest, tokens: Callable[[int], torch.Tensor], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The model's main input: tokens (batch, seq_len), pixels (batch, channels, height, width) or audio features.

    Raises ``UsageError`` for an input of another kind.
    """
    name, config = str(model.main_input_name), model.config
    if name == "input_ids":
        return {name: tokens(request.seq_len)}
    shape: tuple[int, ...]
    if name == "pixel_values":
        shape = (request.batch, config.num_channels, config.image_size, config.image_size)
    elif name == "input_features" and hasattr(config, "num_mel_bins"):
        # Two spectrogram frames make one position of the encoder: its second convolution has stride 2.
        shape = (request.batch, config.num_mel_bins, 2 * config.max_source_positions)
    else:
        raise UsageError(f"{request.model} takes {name!r}, which has no default: give its step as file.py:factory")
    return {name: torch.randn(shape, generator=generator).to(model.device, getattr(torch, request.dtype))}


def _config(request: ReviewRequest) -> Any:
    """The transformers config: from the registry, a directory or the hub.  Raises ``UsageError`` when there is none."""
    import transformers

    entry = find(request.model)
    if entry is not None:
        if request.weights:
            raise UsageError(f"{entry.name} is built with random weights: name a directory or a hub id for --weights")
        # A copy: transformers completes rope_parameters in place.
        return getattr(transformers, entry.config_class)(**copy.deepcopy(dict(entry.config)))
    local = Path(request.model).is_dir()
    if not local and request.model.startswith((".", "/", "~")):
        raise UsageError(f"no directory {request.model}: name one with a config.json, or a file.py:factory")
    if not local and request.model.count("/") != 1:
        known = closest(request.model, [entry.name for entry in registry()])
        raise UsageError(
            f"no model {request.model!r}: not a name, a directory, an org/name of the hub or a file.py:factory{known}"
        )
    try:
        return transformers.AutoConfig.from_pretrained(request.model, trust_remote_code=request.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise UsageError(f"{request.model} brings its own code: read it, then add --trust-remote-code") from error
        near = "" if local else closest(request.model.partition("/")[2], [entry.name for entry in registry()])
        raise UsageError(f"no config for {request.model}: {first_line(error)}{near}") from error


Kind = Literal["decoder", "encoder", "encoder-decoder"]


def _kind(config: Any) -> Kind:
    """Which of the three the model is: only those with a decoder generate token by token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if config.is_encoder_decoder:
        return "encoder-decoder"
    if config.architectures:
        return "decoder" if any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in config.architectures) else "encoder"
    # BERT and its kin are in both mappings; without architectures they are encoders.
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return "decoder" if causal else "encoder"


def _auto_class(config: Any, kind: Kind) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING

    if kind == "decoder":
        return transformers.AutoModelForCausalLM
    if kind == "encoder":
        return transformers.AutoModel
    speech = type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    return transformers.AutoModelForSpeechSeq2Seq if speech else transformers.AutoModelForSeq2SeqLM


def _build(request: ReviewRequest, config: Any, *, kind: Kind, device: str) -> Any:
    """The module in eval mode, on ``device``, in the request's dtype; random weights come from its seed."""
    auto = _auto_class(config, kind)
    options: dict[str, Any] = {"dtype": getattr(torch, request.dtype), "trust_remote_code": request.trust_remote_code}
    if request.attn_implementation is not None:
        options["attn_implementation"] = request.attn_implementation
    try:
        with torch.device("meta"):
            outline = auto.from_config(copy.deepcopy(config), **options)
    except (ValueError, ImportError) as error:
        if request.attn_implementation is None:
            raise
        raise UsageError(f"attn-implementation {request.attn_implementation!r}: {first_line(error)}") from error
    _check_memory(request.model, outline, device)
    if request.weights:
        model = auto.from_pretrained(request.model, config=config, **options)
        return model.to(device).eval()
    with seeded(request.seed, device), torch.device(device):
        model = auto.from_config(config, **options)
    return model.eval()


def _check_memory(name: str, outline: torch.nn.Module, device: str) -> None:
    """Refuse weights that the device cannot hold.

    Needed on the CPU above all: Linux grants the memory, and later kills the process without an exception.
    """
    needed = sum(parameter.nbytes for parameter in outline.parameters())
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        meminfo = Path("/proc/meminfo")
        if not meminfo.exists():
            return  # not Linux: the allocator itself says no
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    if needed > free:
        raise DeviceError(
            f"{name} needs {needed / 1e9:.1f} GB for its weights and {device} has {free / 1e9:.1f} GB "
            "free: choose a smaller model or dtype"
        )


def _choose_experts(model: Any, request: ReviewRequest) -> str | None:
    """Set the experts' implementation by name, so that no default hides what ran; None for a dense model.

    Raises ``UsageError`` for an unknown implementation, or any of them on a dense model.
    """
    from transformers import PreTrainedModel
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    wanted = request.experts_implementation
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if not any(part._can_set_experts_implementation() for part in parts):
        if wanted is not None:
            raise UsageError(f"{request.model} is dense: --experts-implementation {wanted} does not apply")
        return None
    known = ["eager", *ALL_EXPERTS_FUNCTIONS.keys()]
    if wanted is not None and wanted not in known:
        raise UsageError(f"unknown experts-implementation {wanted!r}{closest(wanted, known)}")
    chosen = str(wanted or model.config._experts_implementation)
    model.set_experts_implementation(chosen)
    return chosen


def _static_length(seq_len: int) -> int:
    """Positions in a static cache that holds ``seq_len`` tokens before the step."""
    return -(-(seq_len + CACHE_HEAD_ROOM) // CACHE_ALIGNMENT) * CACHE_ALIGNMENT


def _cache(request: ReviewRequest, config: Any, length: int) -> Any:
    from transformers import DynamicCache, StaticCache

    return DynamicCache(config=config) if request.cache == "dynamic" else StaticCache(config, max_cache_len=length)


def _after_prefill(
    model: Any, request: ReviewRequest, inputs: dict[str, Any], prompt: torch.Tensor, experts: str | None
) -> dict[str, Any]:
    """What a decode step takes beside its token: a cache filled by running ``prompt`` (batch, seq_len), its position.

    A real prefill, because every kind of cache layer then holds what it should, and the experts that a decode step
    visits depend on it.  It runs with eager experts: ``batched_mm`` gathers a copy of the weights per token, which
    does not fit for a whole prompt, though it is right for the one token of the step.
    """
    parameters = inspect.signature(model.forward).parameters
    config = model.config.get_text_config(decoder=True)
    cache = _cache(request, config, _static_length(request.seq_len))
    # State-space models name their cache otherwise, and have no positions.
    name = "past_key_values" if "past_key_values" in parameters else "cache_params"
    given: dict[str, Any] = {name: cache}
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            from transformers import EncoderDecoderCache

            given["encoder_outputs"] = model.get_encoder()(inputs[model.main_input_name])
            cross = _cache(request, config, given["encoder_outputs"][0].shape[1])
            given[name] = EncoderDecoderCache(cache, cross)
        if experts is not None:
            model.set_experts_implementation("eager")
        # Only the last token's logits: those of a long prompt can outweigh the model.
        last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        tokens = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        model(**{tokens: prompt}, **given, use_cache=True, **last)
    if experts is not None:
        model.set_experts_implementation(experts)
    position = "decoder_position_ids" if model.config.is_encoder_decoder else "position_ids"
    if position in parameters:
        given[position] = torch.full((1, 1), request.seq_len, device=prompt.device)
    return given
