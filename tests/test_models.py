"""Models by name, by directory and by factory: what they compute, and what each mistake is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from taxbreak_fx.errors import CaptureError, DeviceError, TaxbreakError, UsageError
from taxbreak_fx.model_configs import find
from taxbreak_fx.models import load, registry, resolve_device
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.workload import Workload


def load_tiny(model: str, **chosen: Any) -> Workload:
    defaults: dict[str, Any] = {"batch": 2, "seq_len": 12, "dtype": "float32"}
    return load(ReviewRequest(model=model, **(defaults | chosen)), "cpu")


def run(workload: Workload) -> Any:
    with torch.no_grad():
        return workload.run()


def test_the_code_of_a_model_is_imported_before_anything_is_built() -> None:
    """In a process of its own: whatever is in this one has been imported already."""
    program = (
        "import sys, torch\n"
        "from taxbreak_fx.models import import_code\n"
        "from taxbreak_fx.request import ReviewRequest\n"
        "import_code(ReviewRequest(model='OLMoE-1B-7B', phase='decode'))\n"
        "assert 'transformers.models.olmoe.modeling_olmoe' in sys.modules\n"
        "for name in ('no-such-model', 'step.py:step', './no/folder'):\n"
        "    import_code(ReviewRequest(model=name, phase='decode'))\n"  # whose mistakes are told by load
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# As published with each release, in billions.
PUBLISHED = {
    "gpt2": 0.1244,
    "Llama-3.2-1B": 1.236,
    "Llama-3.2-3B": 3.21,
    "Llama-3.1-8B": 8.03,
    "Qwen2.5-0.5B": 0.494,
    "Qwen3-0.6B": 0.596,
    "Qwen3-8B": 8.19,
    "OLMoE-1B-7B": 6.92,
    "Qwen1.5-MoE-A2.7B": 14.3,
    "Qwen3-30B-A3B": 30.5,
    "Mixtral-8x7B": 46.7,
    "Gemma-2-2B": 2.614,
    "Mamba-130M": 0.1291,
    "BERT-base": 0.1095,
    "ViT-base": 0.0864,
    "T5-small": 0.0605,
    "Whisper-base": 0.0726,
}
AUTO_CLASSES = {"Bert": "AutoModel", "ViT": "AutoModel", "T5": "AutoModelForSeq2SeqLM",
                "Whisper": "AutoModelForSpeechSeq2Seq"}  # fmt: skip


@pytest.mark.parametrize("entry", registry(), ids=lambda entry: entry.name)
def test_parameter_counts(entry: Any) -> None:
    config = getattr(transformers, entry.config_class)(**entry.config)
    architecture = entry.config_class.removesuffix("Config")
    auto: Any = getattr(transformers, AUTO_CLASSES.get(architecture, "AutoModelForCausalLM"))
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    assert (config.num_hidden_layers, config.hidden_size) == (entry.layers, entry.hidden)
    if not entry.name.endswith("-tiny"):
        assert entry.parameters / 1e9 == pytest.approx(PUBLISHED[entry.name], rel=2e-3)


def test_registry_has_every_published_model_once() -> None:
    names = [entry.name for entry in registry()]
    assert len({name.casefold() for name in names}) == len(names)
    assert [name for name in names if not name.endswith("-tiny")] == list(PUBLISHED)
    found = find("llama-3.2-1b")
    assert found is not None and found.params_description.startswith("1.236 B parameters")


@pytest.mark.parametrize("model", ["gpt2-tiny", "llama-tiny", "qwen3-tiny", "olmoe-tiny", "gemma2-tiny", "mamba-tiny"])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_decode_continues_the_prompt(model: str, cache: Any) -> None:
    """One decode step equals the last position of a whole forward over prompt and token."""
    workload = load_tiny(model, cache=cache)
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(256, (2, 1), generator=generator)
    prompt = torch.randint(256, (2, 12), generator=generator)
    assert torch.equal(workload.kwargs["input_ids"], token)
    with torch.no_grad():
        whole = workload.call(input_ids=torch.cat([prompt, token], dim=1), use_cache=False).logits[:, -1:]
    step = run(workload).logits
    assert step.shape == (2, 1, 256)
    torch.testing.assert_close(step, whole)
    assert workload.step.options["cache"] == cache
    assert workload.step.options.get("max_cache_len") == ("32" if cache == "static" else None)


def test_prefill_returns_logits_in_the_chosen_dtype() -> None:
    workload = load_tiny("gpt2-tiny", phase="prefill", dtype="bfloat16")
    output = run(workload)
    assert output.logits.shape == (2, 12, 256) and output.logits.dtype == torch.bfloat16
    assert output.past_key_values is None
    assert not workload.call.training
    step = workload.step
    assert (step.phase, step.batch, step.seq_len, step.dtype, step.device) == ("prefill", 2, 12, "bfloat16", "cpu")


def test_encoder_prefill() -> None:
    assert run(load_tiny("bert-tiny", phase="prefill")).last_hidden_state.shape == (2, 12, 64)


def test_image_prefill() -> None:
    workload = load_tiny("vit-tiny", phase="prefill")
    assert workload.kwargs["pixel_values"].shape == (2, 3, 32, 32)
    assert run(workload).last_hidden_state.shape == (2, 1 + 4 * 4, 64)  # a class token and 32/8 x 32/8 patches
    assert workload.step.seq_len is None


# whisper-tiny: two spectrogram frames per encoder position, 50 positions
@pytest.mark.parametrize(("model", "shape"), [("t5-tiny", (2, 12)), ("whisper-tiny", (2, 16, 100))])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_encoder_decoder(model: str, shape: tuple[int, ...], cache: Any) -> None:
    """Prefill runs both halves; the decode step equals the last position of a whole forward and runs no encoder."""
    prefill = load_tiny(model, phase="prefill")
    name = prefill.call.main_input_name
    assert prefill.kwargs[name].shape == shape and prefill.kwargs["decoder_input_ids"].shape == (2, 12)
    assert run(prefill).logits.shape == (2, 12, 256)

    decode = load_tiny(model, cache=cache)
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids":
        source = torch.randint(256, shape, generator=generator)
    else:
        source = torch.randn(shape, generator=generator)
    token = torch.randint(256, (2, 1), generator=generator)
    prompt = torch.randint(256, (2, 12), generator=generator)
    assert name not in decode.kwargs and torch.equal(decode.kwargs["decoder_input_ids"], token)
    with torch.no_grad():
        tokens = torch.cat([prompt, token], dim=1)
        whole = decode.call(**{name: source}, decoder_input_ids=tokens, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(run(decode).logits, whole)


def test_the_seed_decides_the_weights_and_the_callers_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_tiny("gpt2-tiny", seed=seed).call.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_experts_implementation_is_what_was_asked_for(experts: str) -> None:
    workload = load_tiny("olmoe-tiny", experts_implementation=experts)
    assert workload.step.options["experts_implementation"] == experts
    assert workload.call.get_experts_implementation()[""] == experts


def test_attention_implementation_is_what_was_asked_for() -> None:
    workload = load_tiny("llama-tiny", attn_implementation="eager")
    assert workload.step.options["attn_implementation"] == workload.call.config._attn_implementation == "eager"


def test_building_leaves_the_registry_as_it_was() -> None:
    entry = find("llama-tiny")
    assert entry is not None
    before = repr(entry)
    load_tiny("llama-tiny")
    assert repr(entry) == before


def test_local_directory_with_and_without_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(7)
    saved: Any = load_tiny("gpt2-tiny", phase="prefill", seed=7).call
    saved.save_pretrained(tmp_path)
    random = load_tiny(str(tmp_path), phase="prefill")
    pretrained = load_tiny(str(tmp_path), phase="prefill", weights=True)
    assert random.step.options["weights"] == "random" and pretrained.step.options["weights"] == "pretrained"
    assert torch.equal(pretrained.call.lm_head.weight, saved.lm_head.weight)
    assert not torch.equal(random.call.lm_head.weight, saved.lm_head.weight)
    assert random.model == str(tmp_path)


MISTAKES: list[tuple[dict[str, Any], type[TaxbreakError], str]] = [
    ({"model": "gtp2"}, UsageError, "did you mean gpt2"),
    ({"model": "./no-such-folder"}, UsageError, "no directory ./no-such-folder"),
    ({"model": "gpt2-tiny", "batch": 0}, UsageError, "batch must be at least 1"),
    ({"model": "gpt2-tiny", "seq_len": 0}, UsageError, "seq-len must be at least 1"),
    ({"model": "gpt2-tiny", "seq_len": 1024}, UsageError, "needs 1025 positions, and gpt2-tiny has 1024"),
    ({"model": "bert-tiny"}, UsageError, "use --phase prefill"),
    ({"model": "whisper-tiny", "seq_len": 1024}, UsageError, "needs 1025 positions, and whisper-tiny has 1024"),
    ({"model": "gpt2-tiny", "experts_implementation": "eager"}, UsageError, "is dense"),
    ({"model": "olmoe-tiny", "experts_implementation": "grouped"}, UsageError, "did you mean grouped_mm"),
    ({"model": "gpt2-tiny", "attn_implementation": "flash"}, UsageError, "attn-implementation 'flash'"),
    ({"model": "gpt2-tiny", "weights": True}, UsageError, "for --weights"),
]


@pytest.mark.parametrize(("chosen", "error", "words"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes(chosen: dict[str, Any], error: type[TaxbreakError], words: str) -> None:
    with pytest.raises(error) as caught:
        load_tiny(**chosen)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_position_is_usable() -> None:
    assert run(load_tiny("gpt2-tiny", seq_len=1023)).logits.shape == (2, 1, 256)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"no config for openai/gpt-2: .*did you mean gpt2"):
        load_tiny("openai/gpt-2")


def test_remote_code_needs_its_flag(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "novel", "auto_map": {"AutoConfig": "c.Config"}}')
    with pytest.raises(UsageError, match="add --trust-remote-code"):
        load_tiny(str(tmp_path))


def test_input_without_a_default_is_refused(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4}
    transformers.Wav2Vec2Config(**sizes, num_conv_pos_embedding_groups=4).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="takes 'input_values', which has no default"):
        load_tiny(str(tmp_path), phase="prefill")


def test_weights_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path) -> str:
        assert str(path) == "/proc/meminfo"
        return "MemTotal: 200 kB\nMemAvailable:     100 kB\n"

    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(DeviceError, match=r"gpt2-tiny needs 0\.0 GB .* 0\.0 GB free"):
        load_tiny("gpt2-tiny")


FACTORIES = """
import torch
from neighbour import WIDTH

def good(device, dtype, batch):
    linear = torch.nn.Linear(WIDTH, 3, device=device, dtype=dtype)
    return linear, (torch.ones(batch, WIDTH, device=device, dtype=dtype),), {}

def plain():
    return lambda x: x + 1, [torch.ones(2, dtype=torch.float64)], {}

def on_meta():
    return torch.relu, (torch.ones(2, device="meta"),), {}

def wants_more(device, width):
    return None

def raises():
    raise RuntimeError("first line\\nsecond line")

def exits():
    raise SystemExit(3)

def exhausts():
    raise torch.OutOfMemoryError("CUDA out of memory")

def two():
    return torch.relu, ()

def not_callable():
    return 3, (), {}

def bad_args():
    return torch.relu, torch.ones(2), {}

CONSTANT = 3
"""


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 4")
    (tmp_path / "mine.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("import no_such_dependency")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # so that sys.path is put back afterwards
    return tmp_path


def test_factory_gets_what_its_parameters_name(user_file: Path) -> None:
    workload = load_tiny("mine.py:good", dtype="bfloat16", batch=5)
    assert run(workload).shape == (5, 3)
    step = workload.step
    assert (step.phase, step.batch, step.seq_len, step.dtype) == ("forward", None, None, "bfloat16")
    again = load_tiny("mine:good", dtype="bfloat16", batch=5)
    assert torch.equal(again.call.weight, workload.call.weight)  # the seed is set around the factory


def test_factory_without_parameters(user_file: Path) -> None:
    workload = load_tiny("mine.py:plain")
    assert run(workload).tolist() == [2.0, 2.0]
    assert workload.step.dtype == "float64"


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("none.py:good", UsageError, "no file none.py"),
        ("no_such_package.mod:good", UsageError, "no module 'no_such_package.mod'"),
        ("mine.py:goood", UsageError, "has no function 'goood'; did you mean good"),
        ("mine.py:CONSTANT", UsageError, "has no function 'CONSTANT'"),
        ("mine.py:wants_more", UsageError, "wants 'width'"),
        ("mine.py:on_meta", UsageError, "made tensors on meta"),
        ("mine.py:two", UsageError, "returned tuple, not (callable, args, kwargs)"),
        ("mine.py:not_callable", UsageError, "is a int, not callable"),
        ("mine.py:bad_args", UsageError, "args must be a tuple"),
        ("mine.py:raises", CaptureError, "raised RuntimeError: first line"),
        ("mine.py:exits", CaptureError, "raised SystemExit: 3"),
        ("mine.py:exhausts", DeviceError, "out of memory on cpu"),
        ("broken.py:good", CaptureError, "importing broken.py raised ModuleNotFoundError"),
        ("broken:good", CaptureError, "importing broken raised ModuleNotFoundError"),
    ],
)
def test_factory_mistakes(user_file: Path, spec: str, error: type[TaxbreakError], words: str) -> None:
    with pytest.raises(error) as caught:
        load_tiny(spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pretend(*, cuda: bool, built: bool = True, hip: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.version, "hip", hip)

    return pretend


def test_device_resolution(machine: Any) -> None:
    machine(cuda=True)
    assert [resolve_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    machine(cuda=False)
    assert [resolve_device(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(DeviceError, match="nvidia-smi"):
        resolve_device("cuda")
    machine(cuda=False, built=False)
    with pytest.raises(DeviceError, match=r"install a CUDA build of torch, or use --device cpu"):
        resolve_device("cuda")
    machine(cuda=True, hip="6.4")
    with pytest.raises(DeviceError, match="ROCm"):
        resolve_device("auto")
    for name in ("mps", "xpu"):
        with pytest.raises(DeviceError, match="not supported"):
            resolve_device(name)
    with pytest.raises(UsageError, match="unknown device"):
        resolve_device("cuda:1")
