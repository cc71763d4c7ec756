"""The scripts of examples/ that no other test runs."""

import subprocess
import sys
from pathlib import Path

from rayface.data.synth import synthesize

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_plain_pytorch_on_a_small_dataset_prints_its_speed(tmp_path: Path) -> None:
    synthesize(tmp_path / "images", identities=4, images_per_identity=4, image_size=64)
    options = ["--steps", "5", "--batch-size", "8", "--threads", "1"]
    script = [sys.executable, str(EXAMPLES / "plain_pytorch.py"), str(tmp_path / "images"), *options]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "images/s (median), loss" in done.stdout
