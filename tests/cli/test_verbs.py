"""The verbs in the order of the road."""

from collections.abc import Iterator
from typing import Any

import typer

from rayface.cli.command_line import app
from rayface.cli.verbs import VERBS
from tests.cli.conftest import Call


def test_help_lists_each_verb_once_in_the_order_of_the_road() -> None:
    command = typer.main.get_command(app)
    listed = command.list_commands(None)
    assert sorted(listed) == sorted(command.commands)
    assert len(set(listed)) == len(listed)
    assert listed.index("convert") < listed.index("embed") < listed.index("train") < listed.index("evaluate")


def test_every_verb_is_in_the_panel_of_its_part_of_the_road() -> None:
    commands = typer.main.get_command(app).commands
    panels = {verb: panel for panel, verbs in VERBS.items() for verb in verbs}
    assert {verb: command.rich_help_panel for verb, command in commands.items()} == panels


def test_clean_is_answered_with_the_verb_that_cleans(call: Call) -> None:
    code, out, err = call("clean", "--merge")
    assert (code, out) == (2, "")
    assert err.startswith("Cleaning is a part of prune: rayface prune --keep 1")


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each verb with its name."""
    for verb, own in command.commands.items():
        if hasattr(own, "commands"):
            yield from commands(own, f"{name}{verb} ")
        else:
            yield f"{name}{verb}", own


def test_help_of_every_option_and_argument_is_a_sentence() -> None:
    parts = [(verb, part) for verb, own in commands(typer.main.get_command(app), "") for part in own.params]
    bare = [f"{verb} {part.name}" for verb, part in parts if not (part.help or "").endswith(".")]
    assert not bare
    fragments = ("Of ", "For ", "That ", "Without ", "Over ", "Default")
    assert not [f"{verb} {part.name}" for verb, part in parts if part.help.startswith(fragments)]


def test_arguments_of_every_verb_have_a_metavar() -> None:
    for verb, own in commands(typer.main.get_command(app), ""):
        for part in own.params:
            assert part.param_type_name == "option" or part.metavar, f"{verb} {part.name}"
