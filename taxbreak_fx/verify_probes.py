"""Small steps that reach what models seldom do: every library, every SDPA backend, and the edges of the op rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from taxbreak_fx.verify import Step

Run = Callable[[], Any]
Make = Callable[[str], Run]

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def probe_steps(device: str) -> list[Step]:
    """Every probe as an optional step; its tensors are made when it first runs, so that a failure costs it alone."""
    return [Step(name, _made_once(make, device), optional=True) for name, make in _probes().items()]


def _made_once(make: Make, device: str) -> Run:
    made: list[Run] = []

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls some of what is probed here beta, or deprecated
            if not made:
                made.append(make(device))
            return made[0]()

    return run


def _call(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: torch.dtype = FP32, **options: Any) -> Make:
    """``function`` on random tensors of those shapes."""

    def make(device: str) -> Run:
        tensors = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]
        return lambda: function(*tensors, **options)

    return make


def _module(build: Callable[[], torch.nn.Module], shape: tuple[int, ...], dtype: torch.dtype = FP32) -> Make:
    """A module in eval mode on one random tensor."""

    def make(device: str) -> Run:
        module = build().to(device, dtype).eval()
        inputs = torch.randn(shape, device=device, dtype=dtype)
        return lambda: module(inputs)

    return make


def _channels_last(build: Callable[[], torch.nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> Make:
    """As ``_module``, its input in the channels-last memory format."""

    def make(device: str) -> Run:
        module = build().to(device, dtype).eval()
        inputs = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        return lambda: module(inputs)

    return make


def _spd(function: Callable[[torch.Tensor], Any], shape: tuple[int, ...]) -> Make:
    """``function`` on symmetric positive definite matrices."""

    def make(device: str) -> Run:
        half = torch.randn(shape, device=device)
        matrix = half @ half.mT + shape[-1] * torch.eye(shape[-1], device=device)
        return lambda: function(matrix)

    return make


def _sdpa(backend: SDPBackend | None, dtype: torch.dtype, query: int = 128, **options: Any) -> Make:
    """Attention of ``query`` tokens over 128, 4 heads of 64, in one backend (None: torch's own choice)."""

    def make(device: str) -> Run:
        q, k, v = (torch.randn(2, 4, length, 64, device=device, dtype=dtype) for length in (query, 128, 128))

        def run() -> Any:
            if backend is None:
                return F.scaled_dot_product_attention(q, k, v, **options)
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, **options)

        return run

    return make


def _sparse(layout: str, function: Callable[..., Any], **dense: tuple[int, ...]) -> Make:
    """``function`` on a random half-empty 64 x 64 matrix in ``layout`` ("coo" or "csr"), and dense operands."""

    def make(device: str) -> Run:
        full = torch.relu(torch.randn(64, 64, device=device))
        matrix = full.to_sparse_coo().coalesce() if layout == "coo" else full.to_sparse_csr()
        operands = [torch.randn(shape, device=device) for shape in dense.values()]
        return lambda: function(matrix, *operands)

    return make


def _semi_structured(device: str) -> Run:
    """A 2:4 sparse weight times a dense matrix."""
    pattern = torch.tensor([0, 0, 1, 1], device=device, dtype=FP16).tile(128, 32)
    weight = torch.sparse.to_sparse_semi_structured(pattern)
    inputs = torch.randn(128, 128, device=device, dtype=FP16)
    return lambda: torch.mm(weight, inputs)


def _int_mm(device: str) -> Run:
    a, b = (torch.randint(-8, 8, (64, 64), device=device, dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def _scaled_mm(rowwise: bool) -> Make:
    """An fp8 product with one scale per tensor, or per row and column."""

    def make(device: str) -> Run:
        a, b = (torch.randn(64, 64, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        shapes = ((64, 1), (1, 64)) if rowwise else ((), ())
        one, two = (torch.ones(shape, device=device) for shape in shapes)
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=two, out_dtype=BF16)

    return make


def _grouped_mm(dtype: torch.dtype) -> Make:
    def make(device: str) -> Run:
        tokens = torch.randn(64, 64, device=device, dtype=dtype)
        weights = torch.randn(4, 64, 64, device=device, dtype=dtype)
        ends = torch.tensor([16, 32, 48, 64], device=device, dtype=torch.int32)
        return lambda: torch._grouped_mm(tokens, weights, offs=ends)

    return make


def _batch_norm(training: bool, dtype: torch.dtype) -> Make:
    def make(device: str) -> Run:
        inputs = torch.randn(4, 8, 16, 16, device=device, dtype=dtype)
        mean, variance, weight, bias = (torch.ones(8, device=device, dtype=FP32) for _ in range(4))
        return lambda: F.batch_norm(inputs, mean, variance, weight, bias, training=training)

    return make


def _ctc(cudnn: bool) -> Make:
    """CTC loss; cuDNN's takes 32-bit targets on the host, ATen's own kernel 64-bit ones on the device."""

    def make(device: str) -> Run:
        scores = torch.randn(32, 2, 16, device=device).log_softmax(-1)
        place, dtype = ("cpu", torch.int32) if cudnn else (device, torch.int64)
        targets = torch.ones(8, dtype=dtype, device=place)
        return lambda: torch.ctc_loss(scores, targets, [32, 32], [4, 4])

    return make


def _grid_sampler(device: str) -> Run:
    """What ``grid_sample`` may run for aligned corners, and the grid that belongs to it."""
    images, angles = torch.randn(2, 3, 16, 16, device=device), torch.randn(2, 2, 3, device=device)

    def run() -> Any:
        grid = F.affine_grid(angles, [2, 3, 16, 16], align_corners=True)
        return F.grid_sample(images, grid, align_corners=True)

    return run


def _cudnn_grid(device: str) -> Run:
    angles = torch.randn(2, 2, 3, device=device)
    return lambda: torch.ops.aten.cudnn_affine_grid_generator(angles, 2, 3, 16, 16)


def _conv_backward(device: str) -> Run:
    inputs, weight = torch.randn(2, 8, 16, 16, device=device), torch.randn(8, 8, 3, 3, device=device)
    out = torch.randn(2, 8, 14, 14, device=device)
    sides = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
    return lambda: torch.ops.aten.convolution_backward(out, inputs, weight, None, *sides)


def _products(dtype: torch.dtype) -> dict[str, Make]:
    """Matrix products, and each condition on which ATen chooses between cuBLAS and cuBLASLt."""
    name = str(dtype)[6:]
    return {
        f"mm {name}": _call(torch.mm, (64, 128), (128, 64), dtype=dtype),
        f"mm one row {name}": _call(torch.mm, (1, 128), (128, 64), dtype=dtype),
        f"mm one column {name}": _call(torch.mm, (64, 128), (128, 1), dtype=dtype),
        f"mm transposed {name}": _call(lambda a, b: torch.mm(a, b.t()), (64, 128), (64, 128), dtype=dtype),
        f"bmm {name}": _call(torch.bmm, (4, 64, 128), (4, 128, 64), dtype=dtype),
        f"bmm batch 1 {name}": _call(torch.bmm, (1, 64, 128), (1, 128, 64), dtype=dtype),
        f"baddbmm {name}": _call(torch.baddbmm, (4, 64, 64), (4, 64, 128), (4, 128, 64), dtype=dtype),
        f"mv {name}": _call(torch.mv, (64, 128), (128,), dtype=dtype),
        f"addmv {name}": _call(torch.addmv, (64,), (64, 128), (128,), dtype=dtype),
        f"dot {name}": _call(torch.dot, (128,), (128,), dtype=dtype),
        f"outer {name}": _call(torch.outer, (64,), (64,), dtype=dtype),
        f"linear {name}": _call(F.linear, (2, 16, 128), (64, 128), dtype=dtype),
        f"linear bias {name}": _call(F.linear, (2, 16, 128), (64, 128), (64,), dtype=dtype),
        f"linear bias one row {name}": _call(F.linear, (1, 128), (64, 128), (64,), dtype=dtype),
        f"linear bias one feature {name}": _call(F.linear, (16, 128), (1, 128), (1,), dtype=dtype),
        f"linear bias unaligned {name}": _call(F.linear, (15, 127), (63, 127), (63,), dtype=dtype),
        f"addmm matrix bias {name}": _call(torch.addmm, (64, 64), (64, 128), (128, 64), dtype=dtype),
        f"addmm column bias {name}": _call(torch.addmm, (64, 1), (64, 128), (128, 64), dtype=dtype),
        f"addmm strided bias {name}": _call(
            lambda bias, a, b: torch.addmm(bias[::2], a, b), (128,), (64, 128), (128, 64), dtype=dtype
        ),
        f"addmm row bias {name}": _call(torch.addmm, (1, 64), (64, 128), (128, 64), dtype=dtype),
        f"addmm beta 0.5 {name}": _call(torch.addmm, (64,), (64, 128), (128, 64), dtype=dtype, beta=0.5),
        f"addmm alpha 0.5 {name}": _call(torch.addmm, (64,), (64, 128), (128, 64), dtype=dtype, alpha=0.5),
        f"addmm gelu {name}": _call(
            torch._addmm_activation, (64,), (64, 128), (128, 64), dtype=dtype, use_gelu=True
        ),
        f"addbmm {name}": _call(torch.addbmm, (64, 64), (4, 64, 128), (4, 128, 64), dtype=dtype),
        f"einsum {name}": _call(lambda a, b: torch.einsum("bij,bjk->bik", a, b), (4, 8, 16), (4, 16, 8), dtype=dtype),
    }  # fmt: skip


def _convolutions(dtype: torch.dtype) -> dict[str, Make]:
    name = str(dtype)[6:]
    nn = torch.nn
    return {
        f"conv1d {name}": _module(lambda: nn.Conv1d(8, 16, 3), (2, 8, 64), dtype),
        f"conv1d depthwise causal {name}": _module(lambda: nn.Conv1d(8, 8, 4, groups=8, padding=3), (2, 8, 64), dtype),
        f"conv2d {name}": _module(lambda: nn.Conv2d(8, 16, 3), (2, 8, 32, 32), dtype),
        f"conv2d 1x1 {name}": _module(lambda: nn.Conv2d(8, 16, 1), (2, 8, 32, 32), dtype),
        f"conv2d patches {name}": _module(lambda: nn.Conv2d(3, 64, 16, stride=16), (2, 3, 64, 64), dtype),
        f"conv2d depthwise {name}": _module(lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 32, 32), dtype),
        f"conv2d depthwise wide {name}": _module(lambda: nn.Conv2d(64, 64, 3, groups=64), (2, 64, 32, 32), dtype),
        f"conv2d depthwise strided {name}": _module(
            lambda: nn.Conv2d(64, 64, 3, stride=2, groups=64), (2, 64, 32, 32), dtype
        ),
        f"conv2d depthwise channels last {name}": _channels_last(
            lambda: nn.Conv2d(8, 8, 3, groups=8), (2, 8, 32, 32), dtype
        ),
        f"conv1d depthwise wide {name}": _module(lambda: nn.Conv1d(64, 64, 4, groups=64), (2, 64, 64), dtype),
        f"conv2d dilated {name}": _module(lambda: nn.Conv2d(8, 16, 3, dilation=2), (2, 8, 32, 32), dtype),
        f"conv3d {name}": _module(lambda: nn.Conv3d(8, 16, 3), (2, 8, 8, 16, 16), dtype),
        f"conv_transpose2d {name}": _module(lambda: nn.ConvTranspose2d(8, 16, 3), (2, 8, 16, 16), dtype),
    }


def _attention() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for backend, dtypes in {
        SDPBackend.FLASH_ATTENTION: (BF16, FP16),
        SDPBackend.EFFICIENT_ATTENTION: (BF16, FP32),
        SDPBackend.CUDNN_ATTENTION: (BF16, FP16),
        SDPBackend.MATH: (BF16, FP32),
    }.items():
        for dtype in dtypes:
            found[f"sdpa {backend.name.lower()} {str(dtype)[6:]}"] = _sdpa(backend, dtype, is_causal=True)
    for dtype in (BF16, FP16, FP32, FP64):
        found[f"sdpa default {str(dtype)[6:]}"] = _sdpa(None, dtype)
        found[f"sdpa default one query {str(dtype)[6:]}"] = _sdpa(None, dtype, query=1)
    return found


def _linear_algebra() -> dict[str, Make]:
    la = torch.linalg
    one, batch = (64, 64), (16, 8, 8)
    found: dict[str, Make] = {}
    for name, function in {
        "cholesky": la.cholesky,
        "cholesky_inverse": torch.cholesky_inverse,
        "lu_factor": la.lu_factor,
        "qr": la.qr,
        "svd": la.svd,
        "svdvals": la.svdvals,
        "eigh": la.eigh,
        "eigvalsh": la.eigvalsh,
        "eig": la.eig,
        "inv": la.inv,
        "det": la.det,
        "slogdet": la.slogdet,
        "pinv": la.pinv,
        "matrix_exp": la.matrix_exp,
        "matrix_power": lambda a: la.matrix_power(a, 5),
        "matrix_rank": la.matrix_rank,
        "ldl_factor": la.ldl_factor,
        "solve": lambda a: la.solve(a, a),
        "lstsq": lambda a: la.lstsq(a, a),
        "lu_solve": lambda a: la.lu_solve(*la.lu_factor(a), a),
        "lu_solve few": lambda a: la.lu_solve(*la.lu_factor(a), a[..., :4].contiguous()),
        "qr r": lambda a: la.qr(a, mode="r").R,
        "solve_triangular": lambda a: la.solve_triangular(a, a, upper=True),
        "cholesky_solve": lambda a: torch.cholesky_solve(a, a),
        "multi_dot": lambda a: la.multi_dot([a, a, a]) if a.dim() == 2 else a,
    }.items():
        found[f"linalg {name}"] = _spd(function, one)
        found[f"linalg {name} batch"] = _spd(function, batch)
    return found


def _probes() -> dict[str, Make]:
    """Every probe by name; the numbers in a name are what makes it differ from its neighbour."""
    fft, nn = torch.fft, torch.nn
    probes: dict[str, Make] = {}
    for dtype in (BF16, FP16, FP32, FP64):
        probes |= _products(dtype)
    for dtype in (BF16, FP16, FP32):
        probes |= _convolutions(dtype)
    probes |= _attention() | _linear_algebra()
    return probes | {
        "conv2d backward": _conv_backward,
        "int_mm": _int_mm,
        "scaled_mm per tensor": _scaled_mm(rowwise=False),
        "scaled_mm per row": _scaled_mm(rowwise=True),
        "grouped_mm bfloat16": _grouped_mm(BF16),
        "grouped_mm float32": _grouped_mm(FP32),
        "lstm": _module(lambda: nn.LSTM(32, 64), (16, 4, 32)),
        "lstm bfloat16": _module(lambda: nn.LSTM(32, 64), (16, 4, 32), BF16),
        "gru": _module(lambda: nn.GRU(32, 64), (16, 4, 32)),
        "lstm_cell": _module(lambda: nn.LSTMCell(32, 64), (4, 32)),
        "batch_norm eval": _batch_norm(False, FP32),
        "batch_norm train": _batch_norm(True, FP32),
        "batch_norm eval bfloat16": _batch_norm(False, BF16),
        "layer_norm": _module(lambda: nn.LayerNorm(64), (4, 64)),
        "group_norm": _module(lambda: nn.GroupNorm(2, 8), (4, 8, 16, 16)),
        "instance_norm": _module(lambda: nn.InstanceNorm2d(8), (4, 8, 16, 16)),
        "softmax": _call(torch.softmax, (4, 64), dim=-1),
        "ctc_loss": _ctc(cudnn=False),
        "ctc_loss cudnn": _ctc(cudnn=True),
        "grid_sample aligned": _grid_sampler,
        "cudnn_affine_grid_generator": _cudnn_grid,
        "addr": _call(torch.addr, (64, 32), (64,), (32,)),
        "fft": _call(fft.fft, (4, 128)),
        "fft prime length": _call(fft.fft, (4, 127)),
        "fft long": _call(fft.fft, (1 << 16,)),
        "rfft": _call(fft.rfft, (4, 128)),
        "irfft": _call(fft.irfft, (4, 65), dtype=torch.complex64),
        "fft2": _call(fft.fft2, (4, 32, 32)),
        "fftn float64": _call(fft.fftn, (8, 8, 8), dtype=FP64),
        "stft": _call(lambda x: torch.stft(x, 64, window=torch.ones(64, device=x.device), return_complex=True), (512,)),
        "sparse csr mm": _sparse("csr", torch.mm, b=(64, 32)),
        "sparse csr mv": _sparse("csr", torch.mv, b=(64,)),
        "sparse csr addmm": _sparse("csr", lambda a, c, b: torch.addmm(c, a, b), c=(64, 32), b=(64, 32)),
        "sparse csr times csr": _sparse("csr", lambda a: a @ a),
        "sparse csr plus csr": _sparse("csr", lambda a: a + a),
        "sparse csr sampled_addmm": _sparse("csr", torch.sparse.sampled_addmm, a=(64, 32), b=(32, 64)),
        "sparse csr triangular_solve": _sparse("csr", lambda a, b: torch.triangular_solve(b, a), b=(64, 4)),
        "sparse csr to dense": _sparse("csr", lambda a: a.to_dense()),
        "sparse coo mm": _sparse("coo", torch.sparse.mm, b=(64, 32)),
        "sparse coo addmm": _sparse("coo", lambda a, c, b: torch.sparse.addmm(c, a, b), c=(64, 32), b=(64, 32)),
        "sparse coo times coo": _sparse("coo", lambda a: torch.sparse.mm(a, a)),
        "sparse coo bmm": _sparse("coo", lambda a, b: torch.bmm(torch.stack([a, a]), b), b=(2, 64, 32)),
        "sparse coo to csr": _sparse("coo", lambda a: a.to_sparse_csr()),
        "sparse 2:4 mm": _semi_structured,
    }
