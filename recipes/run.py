"""Run recipes: one claim each, re-run in minutes on a drawn set and measured on real faces.

    python recipes/run.py [NAME ...]                          drawn set: twice, on 1 and on 2 workers; checks losses
    python recipes/run.py [NAME ...] --faces FACES --out OUT  real faces: train, evaluate, print tables

FACES holds celeba_wild, celeba_small, glint_deep and lfw_pairs. The command may be interrupted and started again, which
resumes the runs; several may share OUT, and each takes another recipe and seed. --record writes the results into the
recipes' files. Results are read from OUT, also those of runs that are still going on.
"""

import argparse
import datetime
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import yaml

from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_image
from rayface.data.selection import Selection, write_selection
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.synth import synthesize
from rayface.data.writer import write_dataset
from rayface.experiment.runner import run as run_experiment
from rayface.files import exclusive_folder
from rayface.machine import num_cpus
from rayface.session import ray_session
from rayface.storage import DataError
from rayface.tracking import read_metrics

HERE = Path(__file__).parent
MARK = "# Written by `python recipes/run.py --record`.\n"
WORKERS = (1, 2)
# Largest relative difference of a loss from the recorded one: other CPUs sum in another order.
TOLERANCE = 1e-2
# Config keys of every training on real faces, beside the preset mini, and on the drawn set, beside debug.
CELEBA = ["$FACES/celeba_wild", "$FACES/celeba_small"]
FACES = {
    "data.train": CELEBA,
    "data.join": "labels",
    "backbone.width": 0.5,
    "train.batch_size": 128,
    "train.epochs": 4,
    "train.num_workers": 1,
    "tracking.enabled": False,
}
DRAWN = {
    "data.train": "$FACES",
    "data.window_images": 60,
    "train.batch_size": 24,
    "train.log_every": 1,
    "train.precision": "fp32",
    "tracking.enabled": False,
}
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


# The drawn set.


def draw(folder: Path) -> Path:
    """Draw the set on which every recipe runs: 20 identities with 12 images each."""
    synthesize(folder, identities=20, images_per_identity=12, seed=1, image_size=64, shard_size=300_000, processes=1)
    return folder


def drawn_losses(recipe: Recipe, drawn: Path, out: Path, workers: int) -> list[float]:
    """Run a recipe on the drawn set, in the Ray session that is open; return the losses of its trainings."""
    out.mkdir(parents=True)
    file = write_experiment(out / "recipe.yaml", DRAWN, recipe.drawn, "debug", {"FACES": drawn})
    run_experiment(file, [f"train.num_workers={workers}"], out=str(out / "run"))
    trained = [out / "run" / stage["name"] for stage in recipe.drawn if "train" in stage]
    return [value for run in trained for _, value, _ in read_metrics(run / "journal")["train/loss"]]


def digest(losses: Sequence[float]) -> str:
    """Return a digest of losses to the last bit."""
    return hashlib.sha256(np.array(losses).tobytes()).hexdigest()[:12]


def difference(losses: Sequence[float], recorded: Sequence[float]) -> float:
    """Return the largest relative difference of two runs' losses; infinite if they have not as many steps."""
    if len(losses) != len(recorded):
        return float("inf")
    return float(np.max(np.abs(np.array(losses) / np.array(recorded) - 1)))


def run_drawn(recipes: Sequence[Recipe], *, recording: bool) -> bool:
    """Run recipes twice on 1 and on 2 workers; return whether all have the recorded losses, and equal digests."""
    good = True
    with tempfile.TemporaryDirectory() as scratch, ray_session(num_cpus=2 * max(WORKERS)):
        drawn = draw(Path(scratch) / "drawn")
        for recipe in recipes:
            found = {}
            for workers in WORKERS:
                runs = [
                    drawn_losses(recipe, drawn, Path(scratch, recipe.name, f"{workers}-{n}"), workers) for n in "ab"
                ]
                found[workers] = [round(loss, 6) for loss in runs[0]]
                away = difference(runs[0], found[workers] if recording else recipe.losses.get(workers, ()))
                same = digest(runs[0]) == digest(runs[1])
                good = good and same and away <= TOLERANCE
                twice = "twice" if same else f"then {digest(runs[1])}: FAILED"
                verdict = "" if away <= TOLERANCE else ": FAILED"
                print(
                    f"{recipe.name}, workers {workers}: {len(runs[0])} steps, losses {digest(runs[0])} {twice}, "
                    f"{away:.1e} from the recorded ones{verdict}",
                    flush=True,
                )
            if recording:
                record(recipe, losses=found, measured=recipe.measured)
    return good


# Real faces.


def split_identities(faces: Path, out: Path) -> None:
    """Write celeba with conflicting labels: 40 % of the images of each identity that has 4 or more get a label of
    their own, as if a crawl had met that person under two names."""
    source = open_dataset([str(faces / "celeba_wild"), str(faces / "celeba_small")], join="labels")
    labels = source.index.label.astype(np.int64)
    random, new = np.random.default_rng(0), source.num_classes
    for label in range(source.num_classes):
        images = np.flatnonzero(labels == label)
        if len(images) >= 4:
            labels[random.permutation(images)[: round(0.4 * len(images))]] = new
            new += 1
    everything = Selection(
        source=source, rows=np.arange(len(labels)), labels=labels.astype(np.int32), identities=None, num_classes=new
    )
    out.mkdir(parents=True, exist_ok=True)
    write_selection(str(out), everything, name=out.name)


def shrink_lfw(faces: Path, out: Path) -> None:
    """Write the images of lfw_pairs scaled down to 20 pixels and up again."""
    source = open_dataset(str(faces / "lfw_pairs"))

    def samples() -> Iterator[tuple[str, int, bytes]]:
        for sample in read_samples(source.shard_paths(), source.index):
            assert isinstance(sample, Sample)
            small = cv2.resize(decode_image(sample.jpeg), (20, 20), interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)
            yield sample.key, sample.label, simplejpeg.encode_jpeg(np.ascontiguousarray(image), 95)

    identities = source.identities or [str(label) for label in range(source.num_classes)]
    write_dataset(out, samples(), name=out.name, identities=identities, image_size=(112, 112))


MADE: dict[str, Callable[[Path, Path], None]] = {"celeba_split": split_identities, "lfw_small": shrink_lfw}
"""Sets that are made of real faces, which stages name as $MADE/NAME; the functions take FACES and the new folder."""


def staged(recipe: Recipe) -> list[Mapping[str, Any]]:
    """Return the stages on real faces, each row's training followed by its evaluations."""
    stages: list[Mapping[str, Any]] = []
    for stage in recipe.faces:
        stages.append(stage)
        if (name := stage["name"]) in recipe.rows:
            tests = {test: TESTS[test][1] for test in recipe.tests}
            stages += [
                {"name": f"{name}_{test}", "evaluate": {"model": f"${{{name}}}", **keys}}
                for test, keys in tests.items()
            ]
    return stages


def missing(recipe: Recipe, seed: int) -> list[Mapping[str, Any]]:
    """Return the stages of the rows of which no result with this seed is recorded, and those that they refer to."""
    recorded = {(each["row"], each["test"]) for each in recipe.measured if each["seed"] == seed}
    open_rows = [row for row in recipe.rows if any((row, test) not in recorded for test in recipe.tests)]
    kept: list[Mapping[str, Any]] = []
    for stage in reversed(staged(recipe)):
        wanted = [row for row in open_rows if stage["name"] in (row, *(f"{row}_{test}" for test in recipe.tests))]
        if wanted or f"${{{stage['name']}}}" in json.dumps(kept):
            kept.insert(0, stage)
    return kept


def run_faces(
    recipe: Recipe, stages: Sequence[Mapping[str, Any]], seed: int, faces: Path, out: Path, overrides: Sequence[str]
) -> bool:
    """Run, or resume, stages of a recipe with a seed in OUT/NAME/seed-SEED; return whether they are complete.

    A recipe and seed that another process runs is left to it.
    """
    root, made = out / recipe.name, out / "made"
    try:
        with exclusive_folder(root, f"{recipe.name}, seed {seed}", lock=f".seed-{seed}.lock"):
            for name in MADE:
                if f"$MADE/{name}" in json.dumps(stages):
                    _make(name, faces, made)
            places = {"FACES": faces.resolve(), "MADE": made.resolve()}
            file = write_experiment(root / f"seed-{seed}.json", FACES, stages, "mini", places)
            settings = [f"train.seed={seed}", f"prune.seed={seed}", *overrides]
            command = ["run", str(file), *settings, f"--out={root / f'seed-{seed}'}"]
            done = subprocess.run([sys.executable, "-m", "rayface.cli", *command], stdout=sys.stderr, check=False)
    except DataError as error:
        print(error, file=sys.stderr)
        return True
    return not done.returncode


def _make(name: str, faces: Path, made: Path) -> None:
    with exclusive_folder(made, f"the set {name}", lock=f".{name}.lock"):
        if not (made / name / "dataset.json").exists():
            MADE[name](faces, made / name)


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
    return f"{num_cpus()} CPUs, {models[0] if models else 'unknown'}"


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


def main() -> int:
    """Run what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes (default: all), and config keys KEY=VALUE of every stage")
    parser.add_argument("--faces", type=Path, help="folder of the real faces")
    parser.add_argument("--out", type=Path, help="folder of the runs on real faces")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--missing", action="store_true", help="leave out what the recipes' files have recorded")
    parser.add_argument("--record", action="store_true", help="write the results into the recipes' files")
    parser.add_argument("--list", action="store_true", help="print the recipes and their tables so far; run nothing")
    given = parser.parse_args()
    overrides = [name for name in given.names if "=" in name]
    try:
        recipes = [load(name) for name in given.names if "=" not in name] or [load(name) for name in names()]
    except ValueError as error:
        parser.error(str(error))
    if (given.faces is None) != (given.out is None) and not given.list:
        parser.error("--faces, --out: one is missing: give both, or none for the drawn set")
    if given.faces is None and not given.list:
        return int(not run_drawn(recipes, recording=given.record))
    complete = True
    for seed, recipe in [] if given.list else [(seed, recipe) for seed in given.seeds for recipe in recipes]:
        stages = missing(recipe, seed) if given.missing else staged(recipe)
        complete &= not stages or run_faces(recipe, stages, seed, given.faces, given.out, overrides)
    for recipe in recipes:
        print(f"\n{recipe.name}: {recipe.title}\n\n{table(recipe, given.out)}")
        if given.record:
            record(recipe, losses=recipe.losses, measured=[_plain(each) for each in results(recipe, given.out)])
    return int(not complete)


def _plain(result: Result) -> dict[str, Any]:
    return {**asdict(result), "interval": list(result.interval)}


if __name__ == "__main__":
    sys.exit(main())
