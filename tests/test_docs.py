"""README.md and docs match the results and the code: `python docs/renew.py` mends what is made there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import renew
import typer
from test_layers import LAYERS

import taxbreak_fx
from taxbreak_fx import errors
from taxbreak_fx.backend_options import BackendOptions
from taxbreak_fx.cli import app
from taxbreak_fx.cli_report import report
from taxbreak_fx.findings import RULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ALL_PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NO_TYPED_NUMBERS = ("README.md", "docs/tutorial.md")
MEASURED = re.compile(r"(?<![\w.-])(?:\d[\d,.]*\s?(?:ms|µs|us|%|×|kernels|launches|times)(?!\w)|0\.\d+)")
FOREIGN = re.compile(r"/(?:work|tmp|root|home)/|\bhelpers?\b|\bfounders?\b|\b(?:this|next|last|my|our) session\b", re.I)
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Without code blocks, in which a ``#`` is no heading and brackets are no link."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# What is made


@pytest.mark.parametrize("page", renew.PAGES, ids=named)
def test_what_is_made_is_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert renew.renewed(text) == text, "run: python docs/renew.py"


def test_the_picture_is_up_to_date() -> None:
    assert renew.picture() == renew.PICTURE.read_text(encoding="utf-8"), "run: python docs/renew.py"


def test_a_stale_value_and_a_stale_excerpt_would_be_seen() -> None:
    value = "<!--= wall bert:eager -->0.001 ms<!--.-->"
    lines = "<!-- made: variants bert:eager wall -->\n| variant |\n<!-- end -->"
    assert renew.renewed(value) != value and renew.renewed(lines) != lines
    assert renew.by_hand(value + lines) == ""


@pytest.mark.parametrize("page", renew.PAGES, ids=named)
def test_marks_are_complete(page: Path) -> None:
    left = renew.by_hand(page.read_text(encoding="utf-8"))
    assert not re.search(r"<!-- made:|<!--=|<!--\.-->", left), "a mark without its end, or of unknown form"


@pytest.mark.parametrize("page", NO_TYPED_NUMBERS)
def test_no_result_is_typed_in(page: str) -> None:
    assert MEASURED.findall(renew.by_hand(read(page))) == []


def test_a_typed_result_would_be_seen() -> None:
    for text in ("takes 12.9 ms", "47 % of it", "HDBI 0.123", "2,970 kernels", "3.4× as fast"):
        assert MEASURED.findall(text), text
    assert not MEASURED.findall("Llama-3.2-1B, Python ≥ 3.11, batch 1, sequence 512, arXiv 2603.12465")


# The code


def test_the_architecture_names_every_module_and_no_other() -> None:
    made = re.findall(r"^\| `([\w.]+)` \|", read("docs/architecture.md"), re.MULTILINE)
    assert sorted(made) == sorted(renew.parsed())
    layers = {int(n) for n in re.findall(r"^### Layer (\d)", read("docs/architecture.md"), re.MULTILINE)}
    assert layers == {layer for layer, _ in LAYERS}


def test_the_architectures_prose_names_no_module_that_is_gone() -> None:
    text = renew.by_hand(read("docs/architecture.md"))
    words = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", text)) | set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text))
    others = {
        "stages.assemble",
        "taxbreak_fx",
        "taxbreak_fx.review",
        "taxbreak",
        "os.environ",
        "review.json",
        "torch.compile",
    }
    assert words - {*renew.parsed(), "test_layers", *others} == set()


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(command: Any) -> dict[str, Any]:
    """Every option by each of its long names."""
    found = [p for p in command.params if p.param_type_name == "option"]
    return {name: option for option in found for name in [*option.opts, *option.secondary_opts]}


def section(command: str) -> str:
    """Of the command line's page; empty where there is none."""
    parts = re.split(r"^## ", read("docs/cli.md"), flags=re.MULTILINE)
    return next((part for part in parts if re.match(rf"`taxbreak {command}[ `]", part)), "")


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_has_its_section_with_every_option(command: str) -> None:
    text = section(command)
    assert text, f"docs/cli.md has no section `taxbreak {command} …`"
    known = options(commands()[command])
    in_text = set(re.findall(r"`(--[a-z-]+)", text))
    assert set(known) - in_text - {"--help"} == set(), "options that the section lacks"
    assert in_text - set(known) == set(), "options that the command lacks"


@pytest.mark.parametrize("command", sorted(commands()))
def test_the_defaults_in_the_manual_are_the_codes(command: str) -> None:
    known = options(commands()[command])
    for name, cell in re.findall(r"^\| `(--[a-z-]+)[^|]*\| ([^|]*) \|", section(command), re.MULTILINE):
        default = known[name].default
        if isinstance(default, bool):
            assert cell in ("off", f"`{name}`", f"`--no-{name[2:]}`"), f"{name}: {cell}"
        elif isinstance(default, int | float):
            assert cell == f"{default:g}", f"{name}: {cell}, and the code has {default:g}"
        elif isinstance(default, str):
            assert cell == f"`{default}`", f"{name}: {cell}, and the code has {default}"


def test_a_changed_default_would_be_seen() -> None:
    assert options(commands()["review"])["--budget"].default == 6.0 and "| `--budget` | 6 |" in section("review")


def test_the_manual_begins_with_every_command() -> None:
    overview = read("docs/cli.md").partition("## ")[0]
    assert [name for name in commands() if f"    taxbreak {name} " not in overview] == []


def test_the_manual_has_every_exit_code() -> None:
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    codes |= {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = re.findall(r"^\| (\d+) \|", read("docs/cli.md"), re.MULTILINE)
    assert {int(code) for code in table} == codes


def test_the_backends_options_and_defaults_are_the_codes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", read("docs/backend.md"), re.MULTILINE))
    fields = {field.name: field.default for field in msgspec.structs.fields(BackendOptions)}
    assert rows.keys() == fields.keys()
    for name, default in fields.items():
        shown = {None: None, (): None}.get(default, f'"{default}"' if isinstance(default, str) else f"{default!r}")
        assert shown is None or rows[name].strip("`") in (shown, shown.removesuffix(".0")), name


def test_every_rule_has_its_page() -> None:
    pages = {path.stem for path in (DOCS / "rules").glob("*.md")} - {"README"}
    assert pages == set(RULES)


def test_every_report_has_its_section() -> None:
    formats = get_args(get_type_hints(report)["format"])
    assert "sarif" in formats
    headings = [line[3:].lower() for line in read("docs/reports.md").splitlines() if line.startswith("## ")]
    wanted = [name.replace("-", " ") for name in [*formats, "text", "notebook", "repro"]]
    assert [name for name in wanted if not any(heading.startswith(name) for heading in headings)] == []


def test_the_api_page_has_every_public_name() -> None:
    text = read("docs/api.md")
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type)]
    names = [f"taxbreak_fx.{name}" for name in taxbreak_fx.__all__ if name != "__version__"]
    assert [name for name in [*names, *(f"class {kind}(" for kind in kinds)] if name not in text] == []


def test_signatures_are_the_codes() -> None:
    text = renew.api("api", "review_with", "Options")
    assert "review_with(options: Options, step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Review" in text
    assert "    budget_s: float = 6.0" in text
    with pytest.raises(AssertionError, match="lacks"):
        renew.api("api", "no_such_function")


def test_the_index_links_every_page() -> None:
    text = read("docs/index.md")
    others = [path.name for path in DOCS.glob("*.md") if path.name != "index.md"]
    assert [name for name in others if f"]({name})" not in text] == []


# The pages themselves


def anchors(page: Path) -> set[str]:
    lines = prose(page.read_text(encoding="utf-8")).splitlines()
    return {renew.slug(line.lstrip("#")) for line in lines if re.match(r"#+ ", line)}


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere, in its folder or to an anchor."""
    found = []
    text = re.sub(r"`[^`\n]*`", "", prose(page.read_text(encoding="utf-8")))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_links_and_anchors_resolve(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b_c` d\n[x](gone.md) [y](#a-b_c-d) [z](page.md#gone) [w](https://example.org)\n```\n# no\n```\n"
    )
    assert broken(page) == ["gone.md", "page.md#gone"]


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_no_page_speaks_of_how_it_was_made(page: Path) -> None:
    assert FOREIGN.findall(page.read_text(encoding="utf-8")) == []


def test_the_readme_is_short() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 80
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1 and text.count("<!-- made: ") == 1
    assert "make demo" in text and "make test" in text
