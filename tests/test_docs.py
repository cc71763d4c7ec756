"""The documentation says what exists: config keys, options, files; the quickstarts run as they stand."""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml

from rayface import config as configs
from rayface.cli.command_line import app
from rayface.config import Config
from rayface.tuning.spec import SweepConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
PAGES.remove(ROOT / "CHANGELOG.md")  # of versions that had other keys
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
KEYS = set(configs.flat(Config()))
_METHODS = {"head.step", "schedule.step"}  # of objects, in the page on how it is built
GROUPS = {key.partition(".")[0] for key in KEYS if "." in key}


@pytest.mark.parametrize("name", NAMES)
def test_config_keys_that_a_page_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(rf"`((?:{'|'.join(GROUPS)})\.[a-z_]+)[`=]", text)
    named += re.findall(rf"(?<=\s)((?:{'|'.join(GROUPS)})\.[a-z_]+)=", text)
    code = {f"{path.parent.name}.{path.stem}" for path in (ROOT / "rayface").rglob("*.py")} | _METHODS
    assert {key for key in named if key not in KEYS | code and not re.search(r"\.(json|yaml|lst)$", key)} == set()


def test_page_of_config_keys_describes_every_key_and_those_of_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: dict[str, str] = {}

    class Page(io.StringIO):
        def __init__(self, path: str, mode: str) -> None:
            super().__init__()
            self.path = path

        def close(self) -> None:
            pages[self.path] = self.getvalue()

    monkeypatch.setitem(sys.modules, "mkdocs_gen_files", SimpleNamespace(open=Page))
    runpy.run_path(str(ROOT / "docs" / "generate.py"))
    rows = dict(re.findall(r"^\| `([\w.]+)` \| .* \| .* \| (.*) \|$", pages["reference/config.md"], re.MULTILINE))
    assert rows.keys() == KEYS | {f"sweep.{field.name}" for field in fields(SweepConfig)}
    assert all(rows.values())


def commands() -> dict[str, Any]:
    """Every command of rayface, by its words."""
    found: dict[str, Any] = {}
    groups: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    for words, group in groups:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append((f"{words}{name} ", command))
            else:
                found[f"{words}{name}"] = {option for part in command.params for option in part.opts}
    return found


def test_options_of_every_verb_and_verbs_that_take_plugins_are_those_of_the_pages() -> None:
    assert [name for name, options in commands().items() if not {"--json", "--verbose", "--debug"} <= options] == []
    (listed,) = re.findall(r"It is an option of (.*?);", (ROOT / "docs" / "plugins.md").read_text(), re.DOTALL)
    named = {name.strip(" `\n") for name in re.split(r",| and (?=`)", " ".join(listed.split()))}
    assert named == {name for name, options in commands().items() if "--import" in options}


def commands_of(text: str) -> list[list[str]]:
    """The commands of rayface in a page's shell blocks, as words."""
    blocks = re.findall(r"```(?:bash|text)?\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(r"\s*(ray job submit.*-- )?rayface ", line)]


@pytest.mark.parametrize("name", NAMES)
def test_verbs_and_options_that_a_page_shows_exist(name: str) -> None:
    for words in commands_of((ROOT / name).read_text()):
        words = words[words.index("rayface") + 1 :]
        if words[0] == "submit":
            words = [word for word in words[1:] if word not in ("--no-wait",)]
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands") and words:
            if re.search(r"[A-Z|\[]", words[0]) or words[0].startswith("-"):  # VERB, --help
                break
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):
            continue
        known = {option for part in command.params for option in (*part.opts, *part.secondary_opts)} | {"--help", "-h"}
        assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, words


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_of_the_repository_links_exist(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text()):
        assert ((ROOT / name).parent / target).exists(), target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/-]+\.md", text))
    generated = {"reference/config.md", "reference/cli.md", "reference/modules.md", "recipes.md"}
    assert listed - generated == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_forms_for_issues_are_valid_yaml_with_a_required_question() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert any(part.get("validations", {}).get("required") for part in form["body"])


@pytest.mark.long
def test_commands_of_the_quickstarts_run_as_they_stand(tmp_path: Path, ray_address: str) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "rayface"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rayface.cli "$@"\n')
    program.chmod(0o755)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "quickstarts.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": ray_address,
    }
    script = "set -eu\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("runs/first/report.html", "results/evaluation.json", "core/report.html"):
        assert (tmp_path / name).exists()
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
