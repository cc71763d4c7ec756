"""Compare heads on real faces: Partial FC at rates 1 and .1, DCQ and F2C with one backbone and equally many images.

    python examples/class_layers.py FACES OUT [--epochs 10] [--seeds 0 1 2] [KEY=VALUE ...]

FACES holds celeba_wild, celeba_small, glint_deep and lfw_pairs. A run's result is added to OUT/results.jsonl when it is
done. The command may be interrupted and started again, which resumes the run. With --epochs 0 it only prints the table
of the results so far.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rayface import config as configs
from rayface.data.dataset import open_dataset
from rayface.heads import head_class
from rayface.plan.memory import job_of

BATCH = 128  # images of a step: 64 pairs
DATA = {
    "celeba": ["celeba_wild", "celeba_small"],
    "celeba and glint_deep": ["celeba_wild", "celeba_small", "glint_deep"],
}
PAIRS = "lfw_pairs_without_glint_deep.csv"
METHODS = {
    "Partial FC, r 1": [f"train.batch_size={BATCH}"],
    "Partial FC, r .1": [f"train.batch_size={BATCH}", "head.sample_rate=0.1"],
    "DCQ": [f"train.batch_size={BATCH // 2}", "head.name=dcq", "head.options={queue_size: 1024, momentum: 0.9}"],
    "F2C": [f"train.batch_size={BATCH // 2}", "head.name=f2c", "head.options={pool_size: 1024, momentum: 0.9}"],
}


@dataclass(frozen=True)
class Result:
    """A finished run; accuracy and its 95 % interval are of the verb evaluate."""

    data: str
    method: str
    seed: int
    epochs: float
    accuracy: float
    interval: list[float | None]
    images_per_second: float
    head_bytes: int


def rayface(*arguments: str) -> dict[str, object]:
    """Run a verb and return its result."""
    command = [sys.executable, "-m", "rayface.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return dict(json.loads(done.stdout))


def run(faces: Path, out: Path, case: tuple[str, str, int, float], overrides: list[str]) -> Result:
    """Train, or resume, and evaluate one case: data, method, seed and epochs."""
    data, method, seed, epochs = case
    folder = out / f"{data}-{method}-{seed}-{epochs:g}".replace(" ", "_").replace(",", "")
    sets = f"[{','.join(str(faces / name) for name in DATA[data])}]"
    settings = [f"data.train={sets}", "data.join=labels", f"train.seed={seed}", f"train.epochs={epochs}"]
    settings += [*METHODS[method], *overrides]
    if (folder / "result.json").exists():
        trained = json.loads((folder / "result.json").read_text())
    elif (folder / "config.yaml").exists():
        trained = rayface("train", "--resume", f"train.output={folder}")
    else:
        trained = rayface("train", "--preset=mini", *settings, f"train.output={folder}")
    pairs, images = faces / "lfw_pairs" / PAIRS, faces / "lfw_pairs"
    measured = rayface("evaluate", f"--model={folder}", f"--pairs={pairs}", f"--data={images}", f"--out={folder}/lfw")
    config = configs.load("mini", None, settings)
    job = job_of(config, open_dataset(config.data.train, join="labels").num_classes, gpu=False)
    return Result(
        data=data,
        method=method,
        seed=seed,
        epochs=epochs,
        accuracy=float(str(measured["accuracy_mean"])),
        interval=list(measured.get("accuracy_interval") or [None, None]),  # type: ignore[call-overload]
        images_per_second=float(str(trained["images_per_second"])),
        head_bytes=sum(head_class(config.head.name).memory(job).device.values()),
    )


def table(results: list[Result]) -> str:
    """Return a Markdown table: the mean over seeds, and each seed's accuracy with its interval."""
    lines = [
        "| data | head | epochs | LFW, mean of seeds | seeds | images/s | head, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, method, epochs in dict.fromkeys((r.data, r.method, r.epochs) for r in results):
        same = [r for r in results if (r.data, r.method, r.epochs) == (data, method, epochs)]
        mean = statistics.mean(r.accuracy for r in same)
        spread = f" ± {statistics.stdev(r.accuracy for r in same):.1%}" if len(same) > 1 else ""
        speed = statistics.median(r.images_per_second for r in same)
        each = ", ".join(f"{r.accuracy:.1%}{_limits(r.interval)}" for r in same)
        cells = [
            data,
            method,
            f"{epochs:g}",
            f"{mean:.1%}{spread}",
            each,
            f"{speed:,.0f}",
            f"{same[0].head_bytes / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _limits(interval: list[float | None]) -> str:
    low, high = interval
    return "" if low is None or high is None else f" [{low:.1%}, {high:.1%}]"


def main() -> None:
    """Run what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", help="further settings of every run")
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    given = parser.parse_args()
    record = given.out / "results.jsonl"
    given.out.mkdir(parents=True, exist_ok=True)
    lines = record.read_text().splitlines() if record.exists() else []
    results = [Result(**json.loads(line)) for line in lines]
    cases = [(data, method, seed) for seed in given.seeds for data in given.data for method in given.methods]
    for data, method, seed in cases if given.epochs else []:
        if any((r.data, r.method, r.seed, r.epochs) == (data, method, seed, given.epochs) for r in results):
            continue
        results.append(run(given.faces, given.out, (data, method, seed, given.epochs), given.overrides))
        with record.open("a") as file:
            file.write(json.dumps(asdict(results[-1])) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
