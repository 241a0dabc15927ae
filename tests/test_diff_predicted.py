"""A gate without a GPU: a model of the user's own is edited, both states are predicted, and the diff names the line."""

from __future__ import annotations

import msgspec
import pytest

from taxbreak_fx import schema
from taxbreak_fx.cli import main
from taxbreak_fx.diff_types import Diff
from taxbreak_fx.errors import EXIT_GATE

Capture = pytest.CaptureFixture[str]

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, device, dtype):
        super().__init__()
        self.up = nn.Linear(64, 256, device=device, dtype=dtype)
        self.down = nn.Linear(256, 64, device=device, dtype=dtype)

    def forward(self, x):
        y = F.gelu(self.up(x))
        return x + self.down(y)


def make(device, dtype, batch):
    model = nn.Sequential(*(Block(device, dtype) for _ in range(3)))
    return model, (torch.zeros(batch, 8, 64, device=device, dtype=dtype),), {}
"""
# One op more on the last line; and gelu, one kernel, by its formula, eight: two lines of it are new.
EDITED = MODEL.replace("return x + self.down(y)", "return x + 0.5 * self.down(y)").replace(
    "        y = F.gelu(self.up(x))\n",
    "        y = self.up(x)\n"
    "        z = 0.797885 * (y + 0.044715 * y**3)\n"
    "        y = 0.5 * y * (1.0 + torch.tanh(z))\n",
)


def line_of(source: str, text: str) -> int:
    return next(number for number, line in enumerate(source.splitlines(), 1) if text in line)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for name, source in {"base": MODEL, "again": MODEL, "edited": EDITED}.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "model.py").write_text(source)
        argv = ["predict", f"{folder}/model.py:make", "--phase", "prefill", "--variants", "eager", "--quiet"]
        assert main([*argv, "--out", str(folder / "out")]) == 0
        found[name] = str(folder / "out" / "review.json")
    return found


def compared(capsys: Capture, *argv: str) -> tuple[int, Diff]:
    capsys.readouterr()
    code = main(["diff", *argv, "--format", "json"])
    return code, msgspec.json.decode(capsys.readouterr().out, type=Diff)


def test_two_predictions_of_one_model_are_alike(reviews: dict[str, str], capsys: Capture) -> None:
    one, other = schema.load(reviews["base"]), schema.load(reviews["again"])
    assert one.variant("eager").nodes != [] and one.variant("eager").launches == other.variant("eager").launches
    argv = [reviews["base"], reviews["again"], "--fail-on", "launches>0", "--fail-on", "t_wall_us>0%"]
    code, found = compared(capsys, *argv)
    assert code == 0 and found.rows == [] and found.findings == []
    assert all(change.delta == 0 for change in found.changes)


def test_what_an_edit_adds_is_told_by_line(reviews: dict[str, str], capsys: Capture) -> None:
    # Per layer: 1 mul on the last line; − gelu, + pow, mul, add, mul (z), + mul, tanh, add, mul (y): 7 more; 3 layers.
    code, found = compared(capsys, reviews["base"], reviews["edited"], "--fail-on", "launches>+2%&>5")
    assert code == EXIT_GATE and found.change("launches", "eager").delta == 24
    assert [row.op for row in found.rows if row.presence == "removed"] == ["aten.gelu.default"]
    lines = {line.source.line: line for line in found.lines if line.source is not None}
    scaled = lines[line_of(EDITED, "0.5 * self.down")]
    assert (scaled.added, scaled.removed, scaled.launches, scaled.kernels) == (["aten.mul.Tensor"], [], 3, 3)
    assert scaled.host_us is not None and scaled.host_us > 0
    assert {line_of(EDITED, "z = "), line_of(EDITED, "tanh(z)")} <= set(lines)
    assert sum(line.launches for line in lines.values()) == 24
    assert any(change.state == "new" and "activation" in change.finding.title for change in found.findings)


def test_the_other_way_passes(reviews: dict[str, str], capsys: Capture) -> None:
    code, found = compared(capsys, reviews["edited"], reviews["base"], "--fail-on", "launches>+2%")
    assert code == 0 and found.change("launches", "eager").delta == -24
    assert any(change.state == "fixed" for change in found.findings)
