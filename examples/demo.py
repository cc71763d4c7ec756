"""All verbs on a synthetic dataset: draw faces, train with two Ray workers, evaluate, export; output is in ./demo.

Run by `make demo`. Downloads nothing and uses no photographs.
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from rayface.display import result_table
from rayface.tracking.origin import server_command

ROOT = Path("demo")
console = Console(stderr=True)


def rayface(*arguments: str) -> dict[str, object]:
    """Run a verb of the command line, with progress on the terminal, and return its result."""
    console.print(f"\n$ rayface {shlex.join(arguments)}", style="bold", soft_wrap=True, markup=False)
    done = subprocess.run(
        [sys.executable, "-m", "rayface.cli", *arguments, "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return dict(json.loads(done.stdout))


def draw(name: str, *options: str) -> Path:
    """Draw a synthetic dataset, or reuse a complete one of an earlier demo."""
    out = ROOT / "data" / name
    whole = (out / "dataset.json").exists() and (out / "pairs.csv").exists() == ("--pairs" in options)
    if not whole:
        shutil.rmtree(out, ignore_errors=True)
        rayface("synth", str(out), *options)
    return out


def new_run() -> Path:
    """Return demo/run, or the next of demo/run-2, demo/run-3 where earlier demos have left theirs."""
    names = itertools.chain(["run"], (f"run-{number}" for number in itertools.count(2)))
    return next(ROOT / name for name in names if not (ROOT / name).exists())


def main() -> None:
    """Draw, train, evaluate and export; then print the paths."""
    start = time.monotonic()
    train_set = draw("train", "--identities", "200", "--images-per-identity", "20")
    # Another seed gives other identities, so the verification identities are unseen.
    test_set = draw("test", "--identities", "100", "--images-per-identity", "10", "--seed", "1", "--pairs", "1000")
    run = new_run()
    trained = rayface(
        "train",
        "--preset=mini",
        "-c",
        os.path.relpath(Path(__file__).with_name("demo.yaml")),
        f"data.train={train_set}",
        f"evaluate.pairs={test_set / 'pairs.csv'}",
        f"evaluate.data={test_set}",
        f"train.output={run}",
    )
    exported = rayface("export", "--model", str(run), "--onnx", str(run / "model.onnx"))
    result_table(
        "\nA face-recognition model, trained from nothing on drawn faces",
        {
            "accuracy before": f"{trained['accuracy_before']:.1%}  (chance is 50%)",
            "accuracy after": f"{trained['accuracy_mean']:.1%} ± {trained['accuracy_std']:.1%}  (people it never saw)",
            "speed": f"{trained['images_per_second']:,.0f} images/s, two workers, class centers split between them",
            "model": str(trained["model"]),
            "ONNX": f"{run / 'model.onnx'}  (differs from PyTorch by {exported['max_abs_error']:.0e})",
            "report": str(trained["report"]),
            "took": f"{time.monotonic() - start:.0f} s",
        },
    )
    print(f"MLflow: {trained['tracking_link']}\nserved by:\n{server_command(str(trained['tracking']))}")


if __name__ == "__main__":
    main()
