"""The command line: exit codes, one line per mistake, and files where they were asked for.  Nothing is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sample_review import sample_review

from taxbreak_fx import __version__, cli, schema
from taxbreak_fx.cli import main
from taxbreak_fx.errors import DeviceError
from taxbreak_fx.model import Review, Variant
from taxbreak_fx.report.html import html
from taxbreak_fx.report.markdown import markdown
from taxbreak_fx.report.text import terminal
from taxbreak_fx.request import ReviewRequest

Capture = pytest.CaptureFixture[str]


class FakeSupervisor:
    """Stands for ``taxbreak_fx.supervisor``: records what it was asked and returns ``result``, or raises it."""

    def __init__(self) -> None:
        self.requests: list[ReviewRequest] = []
        self.folders: list[Path | None] = []
        self.events: list[SimpleNamespace] = []
        self.result: Review | BaseException = sample_review()

    def supervise(self, request: ReviewRequest, out: Path | None, on_event: Callable[[Any], None]) -> Review:
        self.requests.append(request)
        self.folders.append(out)
        for event in self.events:
            on_event(event)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture(autouse=True)
def supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeSupervisor]:
    fake = FakeSupervisor()
    monkeypatch.setattr("taxbreak_fx.supervisor.supervise", fake.supervise)
    monkeypatch.chdir(tmp_path)
    yield fake


def refused(capsys: Capture, code: int, *argv: str) -> str:
    """Run a command that must fail with ``code``, nothing on stdout and one line on stderr; return that line."""
    assert main(list(argv)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("taxbreak: ")
    return lines[0]


def test_review_writes_three_files_and_prints_the_report(
    capsys: Capture, supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    assert main(["review", "gpt2", "--out", "result"]) == 0
    printed = capsys.readouterr()
    folder = tmp_path / "result"
    assert printed.out == terminal(sample_review())
    assert printed.err == "taxbreak: wrote result/review.json, report.md, report.html\n"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.md", "review.json"]
    assert schema.load(folder / "review.json") == sample_review()
    assert (folder / "report.md").read_text(encoding="utf-8") == markdown(sample_review())
    assert (folder / "report.html").read_text(encoding="utf-8") == html(sample_review())
    assert supervisor.requests == [ReviewRequest(model="gpt2")]
    assert supervisor.folders == [Path("result")]


def test_review_passes_every_option_on(supervisor: FakeSupervisor) -> None:
    options = (
        "--phase prefill --batch 2 --seq-len 64 --dtype float32 --cache dynamic --attn-implementation sdpa "
        "--experts-implementation eager --device cpu --variants dynamo,eager --variants inductor --timeout 10 "
        "--budget 1.5 --weights --trust-remote-code --seed 7"
    )
    assert main(["review", "org/model", *options.split()]) == 0
    assert supervisor.requests == [
        ReviewRequest(
            model="org/model", phase="prefill", batch=2, seq_len=64, dtype="float32", cache="dynamic",
            attn_implementation="sdpa", experts_implementation="eager", device="cpu",
            variants=("eager", "dynamo", "inductor"), timeout_s=10.0, budget_s=1.5, weights=True,
            trust_remote_code=True, seed=7,
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("gpt2", "gpt2-decode-b1-s512"),
        ("meta-llama/Llama-3.2-1B", "meta-llama-Llama-3.2-1B-decode-b1-s512"),
        ("../x/my model.py:make", "my-model.py-make-decode-b1-s512"),
        ("..", "model-decode-b1-s512"),
    ],
)
def test_default_folder_stays_below_taxbreak_out(model: str, folder: str, supervisor: FakeSupervisor) -> None:
    assert main(["review", model, "--quiet"]) == 0
    assert supervisor.folders == [Path("taxbreak-out") / folder]
    assert (Path("taxbreak-out") / folder / "review.json").is_file()


def test_json_and_quiet(capsys: Capture) -> None:
    assert main(["review", "gpt2", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.out.encode() == schema.encode(sample_review())
    assert printed.err == ""


def test_failed_variant_is_a_result_failed_eager_an_error(capsys: Capture, supervisor: FakeSupervisor) -> None:
    assert any(variant.status == "failed" for variant in sample_review().variants)
    assert main(["review", "gpt2", "--quiet"]) == 0
    capsys.readouterr()
    failed = Variant.unavailable("eager", "failed", "CUDA out of memory")
    supervisor.result = msgspec.structs.replace(sample_review(), variants=[failed], comparisons=[])
    assert main(["review", "gpt2"]) == 4
    printed = capsys.readouterr()
    assert "eager failed: CUDA out of memory" in printed.err and printed.err.count("\n") == 1
    assert "eager failed: CUDA out of memory" in printed.out  # the report is printed all the same


def test_interrupt_keeps_what_was_done(capsys: Capture, supervisor: FakeSupervisor, tmp_path: Path) -> None:
    sample = sample_review()
    rest = Variant.unavailable("inductor", "skipped", "interrupted")
    supervisor.result = msgspec.structs.replace(
        sample, variants=[sample.variants[0], rest], comparisons=[], notes=["interrupted by the user"]
    )
    assert main(["review", "gpt2", "--out", "r"]) == 130
    err = capsys.readouterr().err
    assert err == "taxbreak: interrupted; variants done: eager; saved in r/review.json\n"
    assert schema.load(tmp_path / "r" / "review.json") == supervisor.result


def test_interrupt_before_anything_was_done(capsys: Capture, supervisor: FakeSupervisor) -> None:
    supervisor.result = KeyboardInterrupt()
    assert "interrupted" in refused(capsys, 130, "review", "gpt2")


def test_our_errors_give_their_code_and_line(capsys: Capture, supervisor: FakeSupervisor) -> None:
    supervisor.result = DeviceError("no CUDA device:\nuse --device cpu \x1b[31m")
    line = refused(capsys, 3, "review", "gpt2")
    assert line == "taxbreak: no CUDA device: use --device cpu \\x1b[31m"


def test_a_bug_keeps_its_traceback(supervisor: FakeSupervisor) -> None:
    supervisor.result = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["review", "gpt2"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("review gpt2 --pahse decode", "--phase"),
        ("review gpt2 --phase training", "'training' is not one of 'prefill', 'decode'"),
        ("review gpt2 --dtype int8", "bfloat16"),
        ("review gpt2 --batch x", "--batch"),
        ("review gpt2 --batch 0", "--batch must be at least 1, got 0"),
        ("review gpt2 --seq-len -3", "--seq-len must be at least 1, got -3"),
        ("review gpt2 --timeout 0", "--timeout must be a positive number of seconds, got 0"),
        ("review gpt2 --timeout nan", "--timeout must be a positive number"),
        ("review gpt2 --budget inf", "--budget must be a positive number"),
        ("review gpt2 --seed -1", "--seed must be"),
        ("review gpt2 --variants indctor", "unknown variant 'indctor'; did you mean inductor"),
        ("review gpt2 --device cpu --variants eager-graph", "'eager-graph' needs a CUDA device"),
        ("review gpt2 --variants ,", "--variants names no variant"),
        ("review", "MODEL"),
        ("review gpt2 llama", "llama"),
        ("revew gpt2", "review"),
        ("", "taxbreak --help"),
    ],
)
def test_usage_errors(capsys: Capture, supervisor: FakeSupervisor, argv: str, expected: str, tmp_path: Path) -> None:
    assert expected in refused(capsys, 2, *argv.split())
    assert supervisor.requests == []
    assert list(tmp_path.iterdir()) == []


def test_empty_model(capsys: Capture) -> None:
    assert "MODEL is empty" in refused(capsys, 2, "review", " ")


def test_unwritable_out_is_found_before_measuring(capsys: Capture, supervisor: FakeSupervisor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        line = refused(capsys, 7, "review", "gpt2", "--out", out)
        assert f"--out {out} cannot be written" in line and "choose another folder" in line
    assert supervisor.requests == []


def test_report_is_printed_even_when_it_cannot_be_saved(
    capsys: Capture, supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    (tmp_path / "r" / "review.json").mkdir(parents=True)  # a folder stands where the file should go
    assert main(["review", "gpt2", "--out", "r"]) == 7
    printed = capsys.readouterr()
    assert printed.out == terminal(sample_review())
    assert printed.err.startswith("taxbreak: r/review.json: cannot be written")


def test_show_renders_every_format(capsys: Capture, tmp_path: Path) -> None:
    sample = sample_review()
    schema.save(sample, tmp_path / "r.json")
    expected = {
        "text": terminal(sample), "markdown": markdown(sample), "html": html(sample),
        "json": schema.encode(sample).decode(),
    }  # fmt: skip
    for name, text in expected.items():
        assert main(["show", "r.json", "--format", name]) == 0
        assert capsys.readouterr().out == text
    assert main(["show", "r.json"]) == 0
    assert capsys.readouterr().out == expected["text"]


def test_show_refuses_what_it_cannot_read(capsys: Capture, tmp_path: Path) -> None:
    assert "cannot be read" in refused(capsys, 6, "show", "absent.json")
    (tmp_path / "broken.json").write_text("{")
    assert "broken.json" in refused(capsys, 6, "show", "broken.json")
    content = json.loads(schema.encode(sample_review())) | {"schema_version": "3.0.0"}
    (tmp_path / "newer.json").write_text(json.dumps(content))
    assert "upgrade taxbreak_fx" in refused(capsys, 6, "show", "newer.json")
    refused(capsys, 2, "show", "newer.json", "--format", "pdf")


def test_models_lists_the_registry(capsys: Capture) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    # GPT-2's published size.
    assert next(line for line in out.splitlines() if line.split()[0] == "gpt2").split()[1:4] == [
        "12",
        "768",
        "124,439,808",
    ]


def test_schema_and_version(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema.json_schema()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"taxbreak_fx {__version__}\n"


def test_progress_shows_stages_and_failures(
    capsys: Capture, supervisor: FakeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def event(kind: str, stage: str, variant: str | None, message: str, done: int) -> SimpleNamespace:
        return SimpleNamespace(kind=kind, stage=stage, variant=variant, message=message, done=done, total=4)

    supervisor.events = [
        event("start", "load", None, "", 0),
        event("failed", "time", "cudagraphs", "out of\x1b memory", 1),
        event("done", "time", "eager", "", 4),
    ]
    assert main(["review", "gpt2"]) == 0
    assert "cudagraphs" not in capsys.readouterr().err  # not a terminal: no bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["review", "gpt2"]) == 0
    err = capsys.readouterr().err
    assert "cudagraphs: out of\\x1b memory\n" in err
    assert "eager: time: 100%" in err and "4/4" in err
    assert main(["review", "gpt2", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_help_names_every_command_and_loads_no_torch() -> None:
    code = (
        "import sys; from taxbreak_fx.cli import main; code = main(['--help']);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    for command in ("review", "show", "models", "schema"):
        assert f"  {command} " in done.stdout


def test_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['taxbreak', 'schema']; from taxbreak_fx.cli import entry; entry()"
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_documented_commands_and_options_exist() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    import typer

    command = typer.main.get_command(cli.app)
    context = command.make_context("taxbreak", ["models"])
    for name in ("review", "show", "models", "schema"):
        assert f"taxbreak {name}" in documented
        found: Any = command.get_command(context, name)  # type: ignore[attr-defined]
        options = {flag for parameter in found.params for flag in parameter.opts if flag.startswith("--")}
        missing = {flag for flag in options - {"--help"} if f"`{flag}`" not in documented}
        assert not missing
