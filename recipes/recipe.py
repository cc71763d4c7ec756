"""The files of this folder: a claim of a paper each, with its recorded results, and the table of them."""

import datetime
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rayface.machine import num_cpus

HERE = Path(__file__).parent
MARK = "# Written by `python -m recipes.run --record`.\n"
# Without the people of glint_deep in every recipe, so that their tables can be compared.
PAIRS = "$FACES/lfw_pairs/lfw_pairs_without_glint_deep.csv"
TESTS = {
    "lfw": ("LFW", {"pairs": PAIRS, "data": "$FACES/lfw_pairs"}),
    "lfw_small": ("LFW at 20 pixels", {"pairs": PAIRS, "data": "$MADE/lfw_small"}),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A file NAME.yaml of this folder.

    Attributes:
        title, paper, claim: what is claimed, and where.
        setting: how the runs on real faces show it.
        finding: what the measured table says; empty before it is measured.
        drawn, faces: stages as in a file of `rayface run`; they share the keys DRAWN and FACES.
        rows: the trainings of `faces` that the table shows, by stage, with their names.
        baseline: further rows of the table, measured by other recipes, as RECIPE/STAGE.
        tests: names in TESTS.
        losses: of the trainings of `drawn`, one after the other, by the number of workers.
        measured: results on real faces.
    """

    name: str
    title: str
    paper: str
    claim: str
    setting: str
    finding: str = ""
    drawn: Sequence[Mapping[str, Any]]
    faces: Sequence[Mapping[str, Any]]
    rows: Mapping[str, str]
    baseline: Sequence[str] = ()
    tests: Sequence[str] = ("lfw",)
    losses: Mapping[int, Sequence[float]]
    measured: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Accuracy of a trained model on a test, with its 95 % interval, and the training's steps and images/s."""

    row: str
    test: str
    seed: int
    accuracy: float
    interval: tuple[float, float]
    steps: int
    images_per_second: float
    date: str
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are written in a recipe's file."""
        return {**asdict(self), "interval": list(self.interval)}


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(name: str) -> Recipe:
    """Read a recipe.

    Raises:
        ValueError: there is none of this name.
    """
    path = HERE / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"recipe: {name!r}: must be one of {', '.join(names())}")
    return Recipe(name=name, **yaml.safe_load(path.read_text()))


def record(recipe: Recipe, *, losses: Mapping[int, Sequence[float]], measured: Iterable[Mapping[str, Any]]) -> None:
    """Replace the recorded results in a recipe's file."""
    path = HERE / f"{recipe.name}.yaml"
    lines = ["losses:", *(f"  {workers}: {_flow(list(values))}" for workers, values in losses.items())]
    results = [f"  - {_flow(dict(each))}" for each in measured]
    lines += ["measured:", *results] if results else ["measured: []"]
    path.write_text(path.read_text().partition(MARK)[0] + MARK + "\n".join(lines) + "\n")


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()


def write_experiment(
    path: Path, keys: Mapping[str, Any], stages: Iterable[Mapping[str, Any]], preset: str, places: Mapping[str, Path]
) -> Path:
    """Write a file for `rayface run`; $NAME in its values is replaced by a folder, trainings start from `preset`."""
    staged = [{**each, "train": {"preset": preset, **each["train"]}} if "train" in each else each for each in stages]
    text = json.dumps({"config": dict(keys), "stages": staged}, indent=1)
    for name, folder in places.items():
        text = text.replace(f"${name}", json.dumps(str(folder))[1:-1])
    path.write_text(text)
    return path


def results(recipe: Recipe, out: Path | None) -> list[Result]:
    """Return the recorded results, replaced by those in OUT."""
    found = [Result(**{**each, "interval": tuple(each["interval"])}) for each in recipe.measured]
    known = {(each.row, each.test, each.seed): each for each in found}
    for folder in sorted(out.glob(f"{recipe.name}/seed-*/")) if out else []:
        for row in recipe.rows:
            for test in recipe.tests:
                if (folder / f"{row}_{test}" / "evaluation.json").exists():
                    read = _result(folder, row, test)
                    known[read.row, read.test, read.seed] = read
    order = [*recipe.rows]
    return sorted(known.values(), key=lambda each: (order.index(each.row), each.test, each.seed))


def _result(folder: Path, row: str, test: str) -> Result:
    file = folder / f"{row}_{test}" / "evaluation.json"
    measured, trained = json.loads(file.read_text()), json.loads((folder / row / "result.json").read_text())
    low, high = measured["accuracy_interval"]
    return Result(
        row=row,
        test=test,
        seed=int(folder.name.removeprefix("seed-")),
        accuracy=round(measured["accuracy_mean"], 4),
        interval=(round(low, 4), round(high, 4)),
        steps=trained["steps"],
        images_per_second=round(trained["images_per_second"], 1),
        date=f"{datetime.date.fromtimestamp(file.stat().st_mtime)}",
        machine=machine(),
    )


def machine() -> str:
    """Return the processor of this machine and the number of its CPUs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpus = "1 CPU" if num_cpus() == 1 else f"{num_cpus()} CPUs"
    return f"{cpus}, {models[0] if models else 'unknown'}"


def table(recipe: Recipe, out: Path | None = None) -> str:
    """Return a Markdown table: the mean over seeds, and each seed's accuracy with its 95 % interval."""
    lines = [
        "| | test | mean of seeds | each seed, with 95 % interval | steps | images/s |",
        "|---|---|---|---|---|---|",
    ]
    others = [reference.split("/") for reference in recipe.baseline]
    shown = [*((load(name), row) for name, row in others), *((recipe, row) for row in recipe.rows)]
    for source, row in shown:
        for test in recipe.tests:
            same = [each for each in results(source, out) if (each.row, each.test) == (row, test)]
            lines.append(f"| {source.rows[row]} | {TESTS[test][0]} | {' | '.join(_cells(same))} |")
    return "\n".join(lines)


def _cells(same: Sequence[Result]) -> list[str]:
    if not same:
        return ["not measured yet", "", "", ""]
    percent = [100 * each.accuracy for each in same]
    spread = f" ± {statistics.stdev(percent):.1f}" if len(same) > 1 else ""
    intervals = [tuple(100 * limit for limit in each.interval) for each in same]
    each_seed = [f"{value:.1f} [{low:.1f}, {high:.1f}]" for value, (low, high) in zip(percent, intervals, strict=True)]
    steps = ", ".join(dict.fromkeys(f"{each.steps:,}" for each in same))
    speed = statistics.median(each.images_per_second for each in same)
    return [f"{statistics.mean(percent):.1f} %{spread}", ", ".join(each_seed), steps, f"{speed:,.0f}"]
