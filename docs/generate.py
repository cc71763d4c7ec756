"""Pages that are generated: config keys and command line from the code, recipes from their files."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer

from rayface import config as configs
from rayface.cli.command_line import app
from rayface.config_fields import Mark, marked
from rayface.values import to_text

sys.path.insert(0, str(Path(__file__).parent.parent))
from recipes import faces
from recipes import recipe as recipes

# Keys and options stay in one piece.
_STYLE = "<style>td:first-child code { white-space: nowrap; }</style>"
# Options of many verbs, described once.
_SHARED = {"--json", "--verbose", "--debug", "--address", "--import", "--help"}


def config_page() -> Iterator[str]:
    """Yield the lines of the page of config keys."""
    yield "# Config keys"
    yield ""
    yield "Set by `KEY=VALUE`, a YAML file or a preset; see [Configuration](../configuration.md). *Fixed*: must not"
    yield "change when a run is resumed. *Operational*: does not change results, except by rounding."
    config = configs.Config()
    texts, values = configs.descriptions(), configs.flat(config)
    fixed, operational = marked(config, Mark.FIXED), marked(config, Mark.OPERATIONAL)
    group = None
    for key, value in values.items():
        if key.partition(".")[0] != group:
            group = key.partition(".")[0]
            yield from ["", f"## {group}", "", "| key | default | |", "|---|---|---|"]
        marks = [name for name, keys in (("*Fixed.*", fixed), ("*Operational.*", operational)) if key in keys]
        text = " ".join([texts.get(key, ""), *marks]).replace("|", "\\|")
        yield f"| `{key}` | `{to_text(value)}` | {text} |"


def cli_page() -> Iterator[str]:
    """Yield the lines of the page of verbs."""
    yield "# Command line"
    yield ""
    yield "Exit codes and the options that most verbs share (`--json`, `--verbose`, `--debug`, `--address`) are in"
    yield "[Configuration](../configuration.md), `--import` in [Extending](../plugins.md)."
    command = typer.main.get_command(app)
    yield from _commands(command, "rayface")


def _commands(command: Any, name: str) -> Iterator[str]:
    for verb, own in sorted(command.commands.items()):
        if hasattr(own, "commands"):
            yield from _commands(own, f"{name} {verb}")
            continue
        arguments = [part for part in own.params if part.param_type_name == "argument"]
        options = [part for part in own.params if part.param_type_name == "option" and not _SHARED & {*part.opts}]
        shown = " ".join([f"{name} {verb} [OPTION]...", *(part.metavar or part.name.upper() for part in arguments)])
        yield from ["", f"## {f'{name} {verb}'.removeprefix('rayface ')}", ""]
        yield from [f"`{shown}`", "", " ".join((own.help or "").split()), "", "| option | |", "|---|---|"]
        for part in arguments:
            yield f"| `{part.name}` | {_text(part.help)} |"
        for part in options:
            names = ", ".join(f"`{each}`" for each in (*part.opts, *part.secondary_opts))
            yield f"| {names} | {_text(part.help)} |"


def recipes_page() -> Iterator[str]:
    """Yield the lines of the page of recipes: every claim with its table on real faces."""
    yield "# Recipes"
    yield ""
    yield "A recipe is one file in `recipes/`: a claim of a paper, a run on a drawn set that takes seconds and repeats"
    yield "its losses to the last bit, on 1 and on 2 workers, and a table on real faces."
    yield from ["", "```bash", "make recipes                              # drawn set: all recipes, minutes"]
    yield "make recipes FACES=faces ARGS=adaface     # real faces: train, evaluate, print the table; resumes"
    yield from ["python -m recipes.run --help", "```", ""]
    keys = faces.FACES
    yield f"Real faces: the preset `mini` with `backbone.width={keys['backbone.width']}`, one worker, batches of"
    yield f"{keys['train.batch_size']} images, {keys['train.epochs']} epochs of celeba (12,944 images of 2,944"
    yield "identities) unless stated otherwise; 3 seeds; LFW without the people of glint_deep (5,936 pairs). Intervals:"
    yield "bootstraps over the identities of LFW, ± is the standard deviation over seeds. Nets, sets and trainings are"
    yield "small: a table says what a method does *here*, not what it does to millions of identities. Runs were on"
    yield "different machines (each row's is in the recipe's file), and many shared theirs with another run"
    yield "or were paused: images/s are no measure of a method's speed."
    for name in recipes.names():
        recipe = recipes.load(name)
        yield from ["", f"## {recipe.title}", "", f"**Claim** ([paper]({recipe.paper})): {recipe.claim}", ""]
        yield from [recipe.setting, "", recipes.table(recipe), "", recipe.finding or "Not measured yet."]
        if machines := sorted({f"{each['date']}, {each['machine']}" for each in recipe.measured}):
            yield from ["", f"`python -m recipes.run {name} --faces FACES --out OUT`; {'; '.join(machines)}."]


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


for path, page in (
    ("reference/config.md", config_page),
    ("reference/cli.md", cli_page),
    ("recipes.md", recipes_page),
):
    with mkdocs_gen_files.open(path, "w") as file:
        file.write("\n".join([*page(), "", _STYLE]) + "\n")
