"""The op stream of a step that is not run: the same as a real one's where the devices agree, and stable."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from taxbreak_fx.absent_gpu import H200, gpu, pretending, stand_in_guard
from taxbreak_fx.absent_step import record_fake_step
from taxbreak_fx.capture import OpRecorder, record_eager
from taxbreak_fx.errors import CaptureError, DeviceError, TaxbreakError, UsageError
from taxbreak_fx.families import classify_op
from taxbreak_fx.family_inputs import TensorInput, inputs_of, parse_inputs
from taxbreak_fx.known_values import KnownValues
from taxbreak_fx.models import load
from taxbreak_fx.predicted import FakeStep
from taxbreak_fx.request import ReviewRequest
from taxbreak_fx.sdpa_policy import POLICY, Attention, choose

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="run with CUDA_VISIBLE_DEVICES=")
ATTENTION = "_scaled_dot_product_"


def request(model: str, phase: Any = "decode", **more: Any) -> ReviewRequest:
    return ReviewRequest(model=model, phase=phase, seq_len=more.pop("seq_len", 16), **more)


def real(asked: ReviewRequest, inference: bool) -> OpRecorder:
    """The same step recorded on the CPU, with real tensors."""
    workload = load(asked, "cpu")
    kwargs = copy.deepcopy(dict(workload.kwargs))
    return record_eager(lambda: workload.call(**kwargs), [workload.call], set(), inference)


def plain(ops: list[str]) -> list[str]:
    """Without the name of the attention backend, on which the devices differ."""
    return ["attention" if ATTENTION in op else op for op in ops]


@pytest.mark.parametrize("model", ["gpt2-tiny", "llama-tiny", "bert-tiny", "vit-tiny", "whisper-tiny", "qwen3-tiny"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_stream_is_that_of_a_real_step(model: str, phase: str) -> None:
    if phase == "decode" and model in ("bert-tiny", "vit-tiny"):
        pytest.skip("an encoder has no decode step")
    asked = request(model, phase, cache="dynamic")
    fake = record_fake_step(asked)
    for inference in (True, False):
        busy = [site for site in fake.sites if (site.ops if inference else site.leaf_keys)]
        sites = [site for site in real(asked, inference).sites if site.ops]
        assert [site.target for site in busy] == [site.label.target for site in sites]
        assert [site.source for site in busy] == [site.label.source for site in sites]
        assert [site.module_path for site in busy] == [site.label.module_path for site in sites]
        if inference:
            assert [list(site.ops) for site in busy] == [site.ops for site in sites]
        else:
            assert plain([op.op for op in fake.ops]) == plain([op for site in sites for op in site.ops])
    assert sum(ATTENTION in op.op for op in fake.ops) >= 2


def test_eager_attention_is_that_of_a_real_step() -> None:
    """But for a constant of one value that it makes on the host: only to a GPU it has to be copied."""
    asked = request("gpt2-tiny", "decode", attn_implementation="eager", cache="dynamic")
    fake = record_fake_step(asked)
    moved = [op for op in fake.ops if op.op == "aten._to_copy.default"]
    assert [(op.kernels, op.memops, op.outputs) for op in moved] == [(0, 1, "bfloat16[]()")]
    sites = [site for site in real(asked, False).sites if site.ops]
    assert [op.op for op in fake.ops if op not in moved] == [op for site in sites for op in site.ops]
    assert any("softmax" in op.op for op in fake.ops) and not any(ATTENTION in op.op for op in fake.ops)


def test_the_inputs_are_those_of_a_real_step() -> None:
    """Shapes, strides, dtypes and scalars, but for the device that an op is told."""
    asked = request("gpt2-tiny", "decode", dtype="float32", cache="dynamic")
    fake = record_fake_step(asked)
    workload = load(asked, "cpu")
    leaves: dict[str, Any] = {}
    low = record_eager(workload.run, [workload.call], set(), False, {}, leaves)
    keys = [key for site in low.sites for key in site.leaf_keys]

    def told(key: str) -> Any:
        inputs = parse_inputs(inputs_of(key) or "")
        assert inputs is not None
        # The stride of a dimension of size 1 means nothing, and fake tensors keep another one.
        args = [(arg.dtype, arg.shape, _telling(arg)) if isinstance(arg, TensorInput) else arg for arg in inputs.args]
        options = {name: value for name, value in inputs.options.items() if name != "device"}
        return key.split("(")[0], args, options

    pairs = [(op.key, key) for op, key in zip(fake.ops, keys, strict=True) if ATTENTION not in key]
    assert [told(ours) for ours, _ in pairs] == [told(theirs) for _, theirs in pairs]


def _telling(tensor: TensorInput) -> list[int]:
    assert tensor.stride is not None
    return [stride for size, stride in zip(tensor.shape, tensor.stride, strict=True) if size != 1]


@pytest.fixture(scope="module")
def decode() -> FakeStep:
    return record_fake_step(request("llama-tiny", "decode"))


def test_it_is_the_same_every_time(decode: FakeStep) -> None:
    again = record_fake_step(request("llama-tiny", "decode"))
    assert msgspec.structs.replace(again, seconds=0.0) == msgspec.structs.replace(decode, seconds=0.0)


def test_it_survives_the_way_through_json(decode: FakeStep) -> None:
    assert msgspec.json.decode(msgspec.json.encode(decode), type=FakeStep) == decode


def test_every_op_belongs_to_a_line_of_the_author(decode: FakeStep) -> None:
    assert all(op.site is not None for op in decode.ops)
    keys = [key for site in decode.sites for key in site.leaf_keys]
    assert keys == [op.key for op in decode.ops]
    sources = [decode.sites[op.site or 0].source for op in decode.ops]
    assert all(source is not None and "transformers" in source.file for source in sources)
    assert all(op.device == "cuda" for op in decode.ops)


SMALL = [
    ("gpt2", "prefill", {}),
    ("Llama-3.2-1B", "decode", {}),
    ("OLMoE-1B-7B", "decode", {"experts_implementation": "grouped_mm"}),
    ("BERT-base", "prefill", {}),
    ("ViT-base", "prefill", {}),
    ("Whisper-base", "decode", {}),
]


@pytest.mark.parametrize(("model", "phase", "more"), SMALL, ids=[model for model, _, _ in SMALL])
def test_released_models_hold_no_op_without_a_family(model: str, phase: str, more: dict[str, Any]) -> None:
    step = record_fake_step(request(model, phase, **more))
    for op in step.ops:
        assert parse_inputs(op.inputs) is not None, op.key
        assert parse_inputs(op.outputs) is not None, op.outputs
        assert classify_op(op.op, "cuda", dtype=op.dtype, inputs=op.inputs).family != "unknown", op.key
    assert {op.op for op in step.ops if ATTENTION in op.op} == {"aten._scaled_dot_product_cudnn_attention.default"}
    # A decode step reads every weight once, but for the experts that are not hit and the rows of the embedding.
    if model == "Llama-3.2-1B":
        assert step.weight_bytes == pytest.approx(2 * 1_235_814_400, rel=1e-3)  # bf16, tied
        assert sum(op.read_bytes for op in step.ops) > step.weight_bytes
        products = sum(op.flops or 0 for op in step.ops if op.op == "aten.mm.default")
        assert products == pytest.approx(step.weight_bytes, rel=0.01)  # 2 FLOP per weight of 2 bytes


def test_work_and_launches_follow_from_shapes() -> None:
    step = record_fake_step(request("gpt2-tiny", "prefill", batch=2))
    by_op = {op.op: op for op in step.ops}
    view = by_op["aten.view.default"]
    assert (view.kernels, view.memops, view.read_bytes, view.written_bytes) == (0, 0, 0, 0)
    added = by_op["aten.add.Tensor"]
    # the last residual: [2, 16, 64] + [2, 16, 64], bf16
    assert (added.kernels, added.read_bytes, added.written_bytes) == (1, 2 * (2048 + 2048), 2 * 2048)
    addmm = next(op for op in step.ops if op.op == "aten.addmm.default")
    # the fused projection of 2 x 16 tokens from 64 to 192 values, with its bias
    assert addmm.flops == 2 * 32 * 64 * 192 and addmm.kernels is None
    assert (addmm.read_bytes, addmm.written_bytes) == (2 * (192 + 32 * 64 + 64 * 192), 2 * 32 * 192)
    attention = next(op for op in step.ops if ATTENTION in op.op)
    assert attention.flops == 2 * 2 * (2 * 4 * 16 * 16 * 16)  # two products, 4 heads of 16
    embedding = by_op["aten.embedding.default"]
    assert embedding.read_bytes == 16 * 8 + 16 * 64 * 2 and embedding.kernels == 1  # positions, and one row for each


def test_the_math_attention_launches_what_an_h200_launches() -> None:
    """With a mask of equal rows that is traced, as BERT's: 18 kernels a call, counted in a review of it on an H200."""
    step = record_fake_step(request("BERT-base", "prefill"), capturing=True)
    layers = 12
    attention = [
        op for op in step.ops
        if op.site is not None and (line := step.sites[op.site].source) and line.file.endswith("sdpa_attention.py")
        and "scaled_dot_product" in step.sites[op.site].target
    ]  # fmt: skip
    softmax = [op for op in attention if op.op == "aten._safe_softmax.default"]
    products = [op for op in attention if op.op == "aten.bmm.default"]
    assert (len(softmax), len(products)) == (layers, 2 * layers)
    assert sum(op.kernels or 0 for op in attention) + len(products) == 18 * layers
    scores = 12 * 16 * 16  # heads x positions, float32
    assert (softmax[0].read_bytes, softmax[0].written_bytes) == (13 * scores, 9 * scores)


def test_the_host_reads_back_what_it_reads_on_a_gpu() -> None:
    """transformers asks in a prefill whether positions are consecutive: the answer is known, the copy is counted."""
    step = record_fake_step(request("gpt2-tiny", "prefill"))
    reads = [op for op in step.ops if op.op == "aten._local_scalar_dense.default"]
    assert [(op.kernels, op.memops) for op in reads] == [(0, 1)]


@pytest.mark.parametrize("batch", [1, 3])
def test_eager_experts_take_the_expected_ones(batch: int) -> None:
    step = record_fake_step(request("olmoe-tiny", "decode", experts_implementation="eager", batch=batch))
    (assumption,) = step.assumptions
    assert assumption.startswith("routing is assumed uniform:") and f"by {batch} tokens" in assumption
    hit = int(assumption.split(":")[1].split()[0])
    layers = 2
    # zeros and a scatter: two kernels, as on the GPU
    hot = [op for op in step.ops if "aten.one_hot.default" in step.sites[op.site or 0].ops]
    assert [op.op for op in hot[:3]] == ["aten.zeros.default", "aten.unsqueeze.default", "aten.scatter_.value"]
    assert sum(op.kernels or 0 for op in hot) == 2 * layers
    projections = sum("experts" in (step.sites[op.site or 0].module_path or "") for op in step.ops if "mm" in op.op)
    assert projections == 2 * hit * layers  # gate and up in one, then down
    assert step.step.options["experts_implementation"] == "eager"


def test_grouped_experts_read_the_expected_ones() -> None:
    step = record_fake_step(request("olmoe-tiny", "decode"))
    grouped = [op for op in step.ops if op.op == "aten._grouped_mm.default"]
    assert len(grouped) == 4 and not step.assumptions
    parsed = parse_inputs(grouped[0].inputs)
    assert parsed is not None
    tokens, weights = parsed.tensors[:2]
    top, experts = tokens.shape[0], weights.shape[0]  # one token
    matrix = weights.shape[1] * weights.shape[2] * 2
    assert grouped[0].read_bytes == pytest.approx(top * matrix + tokens.shape[0] * tokens.shape[1] * 2, rel=0.05)
    assert grouped[0].flops == 2 * tokens.shape[0] * tokens.shape[1] * weights.shape[2] and top < experts


FACTORY = """
import torch
def reads(device):
    x = torch.ones(4, device=device)
    return (lambda x: x * torch.rand(4, device=device).sum().item()), (x,), {}
def sizes(device):
    return (lambda x: x[x > 0]), (torch.rand(4, device=device),), {}
def counts(device):
    n = torch.zeros(1, dtype=torch.long, device=device)
    def step(n):
        n.add_(2)
        return torch.ones(int(n), device=device)
    return step, (n,), {}
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "author.py"
    path.write_text(FACTORY)
    return path


@pytest.mark.parametrize(("name", "line"), [("reads", 5), ("sizes", 7)])
def test_a_step_that_needs_data_names_op_and_line(factory: Path, name: str, line: int) -> None:
    with pytest.raises(CaptureError, match=rf"^aten\..* at .*author\.py:{line} needs the data of a tensor") as caught:
        record_fake_step(request(f"{factory}:{name}"))
    assert "\n" not in str(caught.value)


def test_constants_are_followed_through_writes(factory: Path) -> None:
    step = record_fake_step(request(f"{factory}:counts"))
    assert step.ops[-1].outputs == "float32[2](1)"


BAD = [
    ({"model": "no-such-model"}, "h200", "no model 'no-such-model'"),
    ({"model": "gpt2-tiny"}, "a-gpu", "no GPU 'a-gpu' to pretend; known: h200"),
    ({"model": "gpt2-tiny", "batch": 0}, "h200", "batch must be at least 1"),
    ({"model": "gpt2-tiny", "seq_len": 1 << 20}, "h200", "needs 1048577 positions"),
    ({"model": "gpt2-tiny", "experts_implementation": "eager"}, "h200", "is dense"),
    ({"model": "bert-tiny", "phase": "decode"}, "h200", "is an encoder"),
]


@pytest.mark.parametrize(("asked", "target", "reason"), BAD, ids=[reason for _, _, reason in BAD])
def test_what_cannot_be_is_said_in_one_line(asked: dict[str, Any], target: str, reason: str) -> None:
    with pytest.raises(TaxbreakError, match=reason) as caught:
        record_fake_step(ReviewRequest(**asked), target)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


def test_a_model_too_large_for_the_target_is_refused() -> None:
    config = "Mixtral-8x7B"  # 93 GB in bf16, 187 GB in fp32
    with pytest.raises(TaxbreakError, match=r"needs 186\.8 GB for its weights and cuda has 141\.0 GB"):
        record_fake_step(request(config, "prefill", dtype="float32"))


def test_a_cache_too_large_for_the_target_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"needs .* GB for its weights, inputs and cache, and NVIDIA H200 has 141\.0"):
        record_fake_step(request("gpt2-tiny", batch=10_000_000))


def test_modules_are_converted_as_for_a_gpu_that_is_there(tmp_path: Path) -> None:
    """The common way to write a factory: made on the CPU, then moved; weights that are shared stay so."""
    (tmp_path / "author.py").write_text("""
import torch
class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 32, bias=False)
        self.head.weight = self.table.weight
        self.rnn = torch.nn.LSTM(16, 16)  # whose class converts itself in a way of its own
        self.register_buffer("scale", torch.ones(16))
    def forward(self, ids):
        return self.head(self.table(ids) * self.scale)
def moved(device):
    made = Tied().bfloat16().to(device)
    assert made.head.weight is made.table.weight and made.rnn._flat_weights[0] is made.rnn.weight_ih_l0
    assert {p.device.type for p in (*made.parameters(), made.scale)} == {device.split(":")[0]}
    return made, (torch.zeros(4, dtype=torch.long, device=device),), {}
""")
    step = record_fake_step(request(f"{tmp_path / 'author.py'}:moved"))
    assert [op.op for op in step.ops if op.kernels != 0] == [
        "aten.embedding.default", "aten.mul.Tensor", "aten.mm.default",
    ]  # fmt: skip
    assert step.weight_bytes == 2 * (32 * 16 + 4 * 16 * (16 + 16 + 2) + 16)
    assert {op.device for op in step.ops} == {"cuda"} and step.ops[-1].dtype == "bfloat16"


def test_nothing_pretended_stays_behind() -> None:
    from transformers import PreTrainedModel
    from transformers.utils import import_utils

    def state() -> list[Any]:
        return [
            torch.cuda.get_device_capability,
            torch.cuda.mem_get_info,
            torch.nn.init.trunc_normal_,
            torch.nn.Module._apply,
            import_utils.is_fake_tensor,
            PreTrainedModel.set_experts_implementation,
            PreTrainedModel.initialize_weights,
            torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE),
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
        ]

    before = state()
    record_fake_step(request("gpt2-tiny"))
    with pytest.raises(UsageError):
        record_fake_step(request("gpt2-tiny", experts_implementation="eager"))
    assert state() == before
    assert type(torch.ones(1)) is torch.Tensor


@pytest.mark.parametrize(
    ("shape", "kv", "options", "backend"),
    [
        ((1, 4, 8, 64), (1, 4, 8, 64), {"is_causal": True}, "cudnn"),
        ((1, 4, 1, 64), (1, 2, 8, 64), {"enable_gqa": True}, "cudnn"),
        ((1, 4, 1, 64), (1, 4, 8, 64), {"mask": (1, 1, 1, 8)}, "cudnn"),
        ((1, 4, 1, 64), (1, 4, 1, 64), {}, "flash"),  # cuDNN refuses a single key
        ((1, 4, 8, 256), (1, 4, 8, 256), {}, "flash"),
        ((1, 4, 8, 256), (1, 4, 8, 256), {"mask": (1, 1, 8, 8)}, "efficient"),
        ((1, 4, 8, 63), (1, 4, 8, 63), {}, "flash"),
        ((1, 4, 8, 63), (1, 4, 8, 63), {"mask": (1, 1, 8, 8)}, "math"),
        ((1, 4, 8, 64), (1, 4, 8, 64), {"dtype": torch.float32}, "efficient"),
        ((1, 4, 8, 64), (1, 2, 8, 64), {"dtype": torch.float32, "enable_gqa": True}, "math"),
        ((1, 4, 8, 64), (1, 4, 8, 64), {"dtype": torch.float64}, "math"),
        ((4, 8, 64), (4, 8, 64), {}, "math"),
    ],
)
def test_the_attention_policy(
    shape: tuple[int, ...], kv: tuple[int, ...], options: dict[str, Any], backend: str
) -> None:
    dtype = options.pop("dtype", torch.bfloat16)
    mask_shape = options.pop("mask", None)
    with pretending(H200):
        query, key = (torch.empty(size, dtype=dtype, device="cuda") for size in (shape, kv))
        mask = None if mask_shape is None else torch.ones(mask_shape, dtype=torch.bool, device="cuda")
        call = Attention(query, key, key, mask, **options)
        chosen = choose(call)
        assert chosen.name == backend
        with torch.no_grad():
            assert chosen.issue(call).shape == query.shape
    assert all(rule.condition and rule.source for rule in POLICY)


def test_known_values_end_where_data_begins() -> None:
    known = KnownValues()
    with pretending(H200), known:
        positions = torch.arange(8, device="cuda")
        assert known.of(positions + 1) is not None
        view = positions[2:4]
        assert bool((view == torch.tensor([2, 3], device="cuda")).all())
        data = torch.rand(8, device="cuda")
        assert known.of(data) is None and known.of(positions * data) is None
        positions.copy_(torch.randint(9, (8,), device="cuda"))
        assert known.of(positions) is None and known.of(view) is None


def test_the_guard_is_only_for_a_torch_without_cuda() -> None:
    assert (stand_in_guard() is None) == torch.backends.cuda.is_built()
    assert gpu("h200").capability == (9, 0)
