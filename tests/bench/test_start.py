"""The times of whole commands: processes by their titles, phases in their order, medians of rounds."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayface.bench import start
from rayface.bench.start import bench_start
from rayface.data.synth import synthesize

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which only Linux has")


def test_processes_of_a_root_are_those_that_descend_from_it() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()', 'marker'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        own, other = start._Processes(parent.pid), start._Processes(-1)
        deadline = time.monotonic() + 60
        while not own.seen("marker") and time.monotonic() < deadline:
            own.read()
        other.read()
        assert own.seen("marker")
        assert not other.seen("marker")
        assert own.cpu_seconds()["driver"] >= 0
        assert parent.stdin is not None
        parent.stdin.close()


def test_title_is_seen_whose_first_bytes_are_those_of_the_one_before() -> None:
    """The kernel's name of a process has 15 of them."""
    code = (
        "import sys; from ray._raylet import setproctitle\n"
        "for line in sys.stdin: setproctitle(line.strip()); print(flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found = start._Processes(process.pid)
        for title in ("ray::RayTrainWorker", "ray::RayTrainWorker.run_train_fn"):
            process.stdin.write(f"{title}\n".encode())
            process.stdin.flush()
            process.stdout.readline()
            found.read()
            assert found.seen(title)
        process.stdin.close()


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::RayTrainWorker.run_train_fn", "RayTrainWorker"),
        ("ray::MapBatches(read)", "MapBatches"),
        ("/opt/ray/gcs/gcs_server --port=0", "gcs_server"),
        ("/opt/python3 -u /opt/ray/log_monitor.py --x", "log_monitor.py"),
    ],
)
def test_kind_of_a_title_is_the_program_or_actor(title: str, kind: str) -> None:
    assert start._kind(title) == kind


def test_summary_of_rounds_is_their_medians() -> None:
    events = [float(place) for place in range(1, len(start._PHASES) + 1)]
    rounds = [start._Round(events=[at * factor for at in events], cpu={"driver": factor}) for factor in (1, 5, 2)]
    found = start._summary(rounds, workers=2)
    assert [each.seconds for each in found.phases] == [2.0] * len(events)
    assert found.first_step_seconds == 2.0 * 6
    assert found.end_seconds == 2.0 * 3
    assert found.cpu_seconds == {"driver": 2}


def test_bench_start_of_a_run_that_fails_raises_its_last_line() -> None:
    with pytest.raises(RuntimeError, match=r"rayface train: .*unused: no such dataset folder"):
        bench_start(["data.train=unused"], rounds=1)


@pytest.mark.long
def test_bench_start_of_a_small_run_shows_every_phase(tmp_path: Path) -> None:
    synthesize(tmp_path / "images", identities=8, images_per_identity=8, image_size=32)
    overrides = ["backbone.name=mini", "backbone.width=0.25", "data.image_size=32", "train.batch_size=16"]
    found = bench_start(
        [f"data.train={tmp_path / 'images'}", *overrides, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"],
        workers=2,
        rounds=1,
    )
    assert [each.phase for each in found.phases] == [name for name, _ in start._PHASES]
    assert all(each.seconds >= 0 for each in found.phases)
    start_seconds = sum(each.seconds for each in found.phases if each.part == start.START)
    assert found.first_step_seconds == pytest.approx(start_seconds)
    assert {"driver", "RayTrainWorker", "TrainController", "Dealer"} <= found.cpu_seconds.keys()
    # Actors that a local Ray needs not, each 1 s of CPU time before the first step.
    unused = {
        "DatasetManager",
        "PreemptionWatcher",
        "SynchronizationActor",
        "_AutoscalingCoordinatorActor",
        "_StatsActor",
    }
    assert not unused & found.cpu_seconds.keys()
