"""The verbs in the order of the road."""

import typer

from rayface.cli.command_line import app
from rayface.cli.verbs import VERBS


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
