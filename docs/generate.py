"""Pages that are generated: config keys, command line and modules from the code, recipes from their files."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import mkdocs_gen_files
import typer

import rayface
from rayface import config as configs
from rayface.cli.command_line import app
from rayface.config_fields import (
    Bytes,
    DatabaseUri,
    DiskPath,
    Mark,
    Names,
    Numbers,
    Options,
    Paths,
    PathText,
    Workers,
    field_texts,
    marked,
)
from rayface.tuning import spec as sweeps
from rayface.values import to_text

sys.path.insert(0, str(Path(__file__).parent.parent))
from recipes import faces
from recipes import recipe as recipes

_PLAIN = {str: "text", int: "integer", float: "number", bool: "`true`, `false`"}
_KINDS = {
    Bytes: "size",
    DatabaseUri: "URI",
    DiskPath: "path on disk",
    Names: "name, or `[a,b]`",
    Numbers: "number, or `[1,2]`",
    Options: "mapping",
    Paths: "path, or `[a,b]`",
    PathText: "path or URI",
    Workers: "integer, or `[least,most]`",
}
# On a narrow screen the cells of a row stand below each other.
_NARROW = """<style>@media (max-width: 60em) {
.md-typeset table:not([class]) thead { display: none }
.md-typeset table:not([class]) td { display: block; border: 0; padding: .2em 1em }
.md-typeset table:not([class]) tr { display: block; padding: .6em 0; border-bottom: .05rem solid #8884 }
.md-typeset td:nth-child(3):not(:last-child)::before { content: "default: " }
}</style>"""
# Options of many verbs, described once.
_SHARED = {"--json", "--verbose", "--debug", "--address", "--import", "--help"}


def config_page() -> Iterator[str]:
    """Yield the lines of the page of config keys."""
    yield "# Config keys"
    yield ""
    yield "Set by `KEY=VALUE`, a YAML file or a preset; see [Configuration](../configuration.md). *Fixed*: must not"
    yield "change when a run is resumed. *Operational*: does not change results, except by rounding. `null`: not set."
    yield "The keys of `sweep` are the search settings of `rayface tune`."
    config = configs.Config()
    texts, values, types = configs.descriptions(), configs.flat(config), _types(configs.Config)
    texts = texts | {f"sweep.{name}": text for name, text in field_texts(sweeps)["SweepConfig"].items()}
    values |= {f"sweep.{name}": value for name, value in asdict(sweeps.SweepConfig()).items()}
    types |= _types(sweeps.SweepConfig, "sweep.")
    fixed, operational = marked(config, Mark.FIXED), marked(config, Mark.OPERATIONAL)
    group = None
    for key, value in values.items():
        if key.partition(".")[0] != group:
            group = key.partition(".")[0]
            yield from ["", f"## {group}", "", "| key | type | default | description |", "|---|---|---|---|"]
        marks = [name for name, keys in (("*Fixed.*", fixed), ("*Operational.*", operational)) if key in keys]
        kind, unit = types[key], 2**20
        shown = f"{value // unit} MiB" if kind == _KINDS[Bytes] else f"`{to_text(value)}`"
        yield f"| `{key}` | {kind} | {shown} | {_text(' '.join([texts[key], *marks]))} |"
    yield from ["", _NARROW]


def _types(tree: Any, prefix: str = "") -> dict[str, str]:
    """Return the type of every key in words."""
    found: dict[str, str] = {}
    for name, hint in get_type_hints(tree, include_extras=True).items():
        base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        found |= _types(base, f"{name}.") if is_dataclass(base) else {f"{prefix}{name}": _type(hint)}
    return found


def _type(hint: Any) -> str:
    """Return a type in words: `sgd` or `adamw`; integer, > 0; path, or null."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_type(part) for part in get_args(hint) if part is not type(None)]
        return f"{' or '.join(parts)}, or `null`"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is not Annotated:
        return _PLAIN[hint]
    base, *metadata = get_args(hint)
    metadata = [part for part in metadata if not isinstance(part, Mark)]
    if not metadata:
        return _type(base)
    own = Annotated[(base, *metadata)]
    if own in _KINDS:
        return _KINDS[own]
    return ", ".join([_type(base), *_bounds(metadata)])


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for rule in (rule for part in metadata for rule in getattr(part, "metadata", ())):
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("multiple_of", "a multiple of")):
            if hasattr(rule, name):
                yield f"{sign}\u00a0{getattr(rule, name)}"


def cli_page() -> Iterator[str]:
    """Yield the lines of the page of verbs."""
    yield "# Command line"
    yield ""
    yield "Exit codes and the options that most verbs share (`--json`, `--verbose`, `--debug`, `--address`) are"
    yield "described in [Configuration](../configuration.md), `--import` in [Extending](../plugins.md)."
    command = typer.main.get_command(app)
    yield from [*_commands(command, "rayface"), "", _NARROW]


def _commands(command: Any, name: str) -> Iterator[str]:
    for verb, own in sorted(command.commands.items()):
        if hasattr(own, "commands"):
            yield from _commands(own, f"{name} {verb}")
            continue
        arguments = [part for part in own.params if part.param_type_name == "argument"]
        options = [part for part in own.params if part.param_type_name == "option" and not _SHARED & {*part.opts}]
        shown = " ".join([f"{name} {verb} [OPTION]...", *map(_usage, arguments)])
        yield from ["", f"## {f'{name} {verb}'.removeprefix('rayface ')}", ""]
        yield from [f"`{shown}`", "", " ".join((own.help or "").split()), ""]
        yield from ["| argument or option | description |", "|---|---|"]
        for part in arguments:
            yield f"| `{part.metavar or part.name.upper()}` | {_text(part.help)} |"
        for part in options:
            names = ", ".join(f"`{each}`" for each in (*part.opts, *part.secondary_opts))
            yield f"| {names} | {_text(part.help)} |"


def _usage(argument: Any) -> str:
    text = argument.metavar or argument.name.upper()
    text = text if argument.required else f"[{text}]"
    return text if argument.nargs == 1 else f"{text}..."


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
    yield "or were paused: images/s are no measure of a method's speed. Until 2026-11-29 `data.brightness`, which"
    yield "`mini` sets, changed the contrast; earlier runs were not repeated."
    for name in recipes.names():
        recipe = recipes.load(name)
        yield from ["", f"## {recipe.title}", "", f"**Claim** ([paper]({recipe.paper})): {recipe.claim}", ""]
        yield from [recipe.setting, "", recipes.table(recipe), "", recipe.finding or "Not measured yet."]
        if machines := sorted({f"{each['date']}, {each['machine']}" for each in recipe.measured}):
            yield from ["", f"`python -m recipes.run {name} --faces FACES --out OUT`; {'; '.join(machines)}."]


def modules_page() -> Iterator[str]:
    """Yield the lines of the page of modules: what each is for, by its own first line."""
    yield "# Modules"
    yield ""
    yield "Every module of rayface in the words of its docstring; [Architecture](../architecture.md) has the layers."
    root, folder = Path(rayface.__file__).parent, None
    for path in sorted(root.rglob("*.py"), key=lambda path: (path.parent != root, path.parent, path.stem)):
        own, package = ast.get_docstring(ast.parse(path.read_text())), path.parent.relative_to(root.parent).as_posix()
        if not own:
            continue
        if package != folder:
            folder = package
            yield from ["", f"## {package}", "", "| module | description |", "|---|---|"]
        yield f"| `{path.name}` | {_text(own.split(chr(10) * 2)[0])} |"


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


for path, page in (
    ("reference/config.md", config_page),
    ("reference/cli.md", cli_page),
    ("reference/modules.md", modules_page),
    ("recipes.md", recipes_page),
):
    with mkdocs_gen_files.open(path, "w") as file:
        file.write("\n".join(page()) + "\n")
