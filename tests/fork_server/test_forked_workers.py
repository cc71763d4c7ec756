"""Workers of the command line are forked, whatever its driver imports before it starts Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayface.data.synth import synthesize

# Imported by the driver and by every worker.
PLUGIN = """
import os
from pathlib import Path
parent = Path(f"/proc/{os.getppid()}/cmdline").read_text().split(chr(0))
(Path(__file__).parent / "seen" / str(os.getpid())).write_text(" ".join(parent))
"""


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a fork server on Linux only")


@pytest.mark.long
def test_workers_of_a_train_command_are_forked(tmp_path: Path) -> None:
    synthesize(tmp_path / "set", identities=20, images_per_identity=6, image_size=32, processes=1)
    (tmp_path / "seen").mkdir()
    (tmp_path / "parents.py").write_text(PLUGIN)
    settings = [f"data.train={tmp_path}/set", f"train.output={tmp_path}/run", "train.num_workers=2", "train.epochs=1"]
    settings.append("tracking.enabled=false")
    command = [sys.executable, "-m", "rayface.cli", "train", "--preset", "debug", "--import", "parents", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    parents = [path.read_text() for path in (tmp_path / "seen").iterdir()]
    assert sum("fork_server/server.py" in parent for parent in parents) >= 2, parents
