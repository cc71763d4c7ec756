"""What the scenarios run on: a cluster of nodes, an undisturbed reference run, and a run directory for each."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from safetensors.numpy import load_file

from rayface import config as configs
from rayface.data.synth import synthesize
from rayface.tracking import read_metrics
from rayface.tracking.journal import RECOVERY
from rayface.training import fit, trainer
from rayface.training.checkpointing import checkpoint
from tests.clusters import light_nodes
from tests.faults import breakpoints as breakpoints_module
from tests.faults.breakpoints import Breakpoint, with_breakpoints
from tests.tracking.mlflow_server import MlflowServer

_ROOT = Path(__file__).parents[2]  # holds the packages rayface and tests
EVERY = 4  # steps between checkpoints
EXPERIMENT = "faults"
_OBJECT_STORE = 100 * 2**20
# Of Ray's own processes alone: what Ray Train finds in the driver's environment it passes on in a runtime environment,
# and a process with one cannot be a prestarted one.
_NODE_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_SETTINGS: dict[str, Any] = {
    "data.window_images": 48,
    "data.shift": 2,
    "data.brightness": 0.2,
    "backbone.dropout": 0.2,
    "head.sample_rate": 0.5,
    "train.batch_size": 24,
    "train.epochs": 2.4,  # 24 steps
    "train.num_workers": 2,
    "train.checkpoint_every": EVERY,
    "train.precision": "fp32",
    "tracking.experiment": EXPERIMENT,
}
# What is done at a breakpoint, given the worker that waits there; returns what the worker is told.
Action = Callable[[dict[str, Any]], str | None]


@dataclass(kw_only=True)
class Trained:
    """What a run has left: its model, its losses, and which image each row of each step was."""

    model: dict[str, np.ndarray]
    losses: list[tuple[int, float]]
    images: dict[tuple[int, int], str]


class TestCluster:
    """The cluster that scenarios share, made once: a head of one CPU and other nodes, the last of which may be lost.

    Args:
        cpus: of each node beside the head.
        settings: config keys of every run.
    """

    __test__ = False

    def __init__(self, folder: Path, *, cpus: Sequence[int] = (1,), settings: Mapping[str, Any] | None = None) -> None:
        os.environ["RAYFACE_CACHE"] = str(folder / "cache")
        fit._RESIZE_SECONDS = 2.0
        ray.cloudpickle.register_pickle_by_value(breakpoints_module)
        self.folder = folder
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self.data = folder / "set"
        synthesize(self.data, identities=20, images_per_identity=12, seed=1, shard_size=300_000, processes=1)
        self._nodes = contextlib.ExitStack()
        self._nodes.enter_context(light_nodes())
        node = {"num_cpus": 1, "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
        with patch.dict(os.environ, _NODE_ENVIRONMENT):
            self.ray_cluster = Cluster(initialize_head=True, head_node_args=node)
        # While there is no other node: a driver dies with the node that it is connected to.
        ray.init(self.ray_cluster.address, logging_level="ERROR", log_to_driver=False)
        self.settings = {**_SETTINGS, **(settings or {})}
        for each in cpus[:-1]:
            self._add(each)
        self._cpus = cpus[-1]
        self.node: Any = self._new_node()
        self.drained = False
        self._reference: Trained | None = None
        self.kept: list[Any] = []  # in the object store
        self.in_a_hurry = False
        (folder / "server").mkdir()
        self.server = MlflowServer(folder / "server")

    def have_all_nodes(self) -> None:
        """Repair what earlier scenarios left: one node, or one that is about to be taken away."""
        if self.drained:
            self.remove_node()
        if self.node is None:
            self.add_node()

    def remove_node(self) -> None:
        """Take a node away as a power cut does; returns when it is known to be gone, and its workers with it."""
        gone = self.node.node_id
        self.ray_cluster.remove_node(self.node, allow_graceful=False)
        RunFixture.wait_for(lambda: gone not in [node["NodeID"] for node in ray.nodes() if node["Alive"]])
        self.node, self.drained = None, False
        self._look_at_nodes()

    def drain_node(self) -> None:
        """Give notice of a minute that the node will be taken away, as a cloud does."""
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs = ray._raylet.GcsClient(address=self.ray_cluster.address)
        accepted, why = gcs.drain_node(self.node.node_id, reason, "a fault", int(1000 * (time.time() + 60)))
        assert accepted, why
        self.drained = True

    def add_node(self) -> None:
        self.ray_cluster._shutdown_at_exit = False  # it is done with signals, which only the main thread may set
        self.node = self._new_node()
        self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        """Have Ray Train know now what it would know within 20 s; for tests, which nobody measures recovery by."""
        if self.in_a_hurry:
            coordinator = get_or_create_autoscaling_coordinator()
            ray.get(coordinator.get_reserved_resources.remote("nobody", recompute=True))

    def _new_node(self) -> Any:
        return self._add(self._cpus)

    def _add(self, cpus: int) -> Any:
        with patch.dict(os.environ, _NODE_ENVIRONMENT):
            return self.ray_cluster.add_node(num_cpus=cpus, object_store_memory=_OBJECT_STORE)

    def close(self) -> None:
        self.server.kill()
        ray.shutdown()
        self.ray_cluster.shutdown()
        self._nodes.close()

    @property
    def reference(self) -> Trained:
        """The undisturbed run."""
        if self._reference is None:
            self.have_all_nodes()
            fixture = RunFixture(self, "undisturbed")
            fixture.train()
            self._reference = fixture.trained()
        return self._reference


@dataclass
class RunFixture:
    """One run directory, and everything that happens to it."""

    cluster: TestCluster
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    windows_per_execution: int | None = None
    notices_drains: bool = False  # Ray Train starts an actor for that, with every group of workers
    injected: dict[str, tuple[float, int]] = field(default_factory=dict)  # fault to monotonic seconds and step
    stopped: dict[str, tuple[float, str]] = field(default_factory=dict)  # fault to monotonic seconds and the one line
    result: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.cluster.folder / self.name
        self.run, self.breakpoints = self.folder / "run", self.folder / "breakpoints"
        self.data, self.uri = self.cluster.data, self.cluster.store
        self.breakpoints.mkdir(parents=True)

    def own_data(self) -> None:
        """Train on a copy of the set, which may be damaged."""
        self.data = self.folder / "set"
        if not self.data.exists():
            shutil.copytree(self.cluster.data, self.data)

    def keys(self) -> dict[str, Any]:
        """Dotted config keys of this run."""
        own = {"data.train": str(self.data), "train.output": str(self.run), "tracking.uri": self.uri}
        return {**self.cluster.settings, **own, **self.settings}

    def train(self, *faults: tuple[Breakpoint, Action], resume: bool = False) -> str | None:
        """Train in this process, with faults at breakpoints; the line with which the run stopped, if it did."""
        config = configs.with_overrides(configs.load("debug"), self.keys())
        worker = fit.train_worker
        watcher = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"} if self.notices_drains else {}
        breakpoints = [point for point, _ in faults]
        fit.train_worker = with_breakpoints(worker, breakpoints, self.breakpoints, self.windows_per_execution)
        try:
            with patch.dict(os.environ, watcher), self._at_breakpoints(faults, driver=os.getpid()):
                self.result = trainer.train(config, resume=resume).as_dict()
        except (RuntimeError, ValueError) as error:
            return str(error)
        finally:
            fit.train_worker = worker
        return None

    def command(self, *faults: tuple[Breakpoint, Action], code: int, resume: bool = False) -> str:
        """`rayface train` as a process of its own, which has to end with this exit code; its last line."""
        arguments = [f"{key}={value}" for key, value in self.keys().items()] + ["--resume"] * resume
        breakpoints = json.dumps([vars(point) for point, _ in faults])
        command = [sys.executable, "-m", "tests.faults.driver", breakpoints, str(self.breakpoints), "train"]
        command += ["--preset=debug", f"--address={self.cluster.ray_cluster.address}", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=_ROOT) as process:
            try:
                with self._at_breakpoints(faults, driver=process.pid):
                    _, errors = process.communicate(timeout=300)
            finally:
                process.kill()
        assert process.returncode == code, (process.returncode, errors)
        return (errors.strip().splitlines() or [""])[-1]

    @staticmethod
    def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it does not come"
            time.sleep(0.02)

    @contextlib.contextmanager
    def _at_breakpoints(self, faults: Sequence[tuple[Breakpoint, Action]], driver: int) -> Iterator[None]:
        """Start threads that wait for workers at the breakpoints, inject the faults, and let the workers go on."""
        done, failures = threading.Event(), []

        def watch(point: Breakpoint, action: Action) -> None:
            reached, opened = point.reached(self.breakpoints), point.opened(self.breakpoints)
            while not (reached.exists() and reached.stat().st_size):
                if done.wait(0.02):
                    failures.append(AssertionError(f"{self.name}: no worker came to {point}"))
                    return
            answer = ""
            try:
                last = point.step // EVERY * EVERY
                if point.place == "step" and last:  # how much is done again shall not depend on the speed of the disk
                    self.wait_for(lambda: done.is_set() or checkpoint.folder_of(self.run, last).exists())
                answer = action({**json.loads(reached.read_text()), "driver": driver, "step": point.step}) or ""
            except BaseException as error:  # raised again in the thread that trains, if it ever ends
                traceback.print_exc()
                failures.append(error)
            opened.with_suffix(".new").write_text(answer)
            opened.with_suffix(".new").replace(opened)

        threads = [threading.Thread(target=watch, args=fault, daemon=True) for fault in faults]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join(timeout=60)
        if failures:
            raise failures[0]

    def trained(self) -> Trained:
        """What this run has left."""
        images = {}
        for record in self.record():  # what was done last on a row is what the model has seen
            for place, image in enumerate(record["images"]):
                images[record["step"], record["first_row"] + place] = image
        return Trained(
            model=load_file(self.run / "model.safetensors"),
            losses=[(step, value) for step, value, _ in read_metrics(self.run / "journal")["train/loss"]],
            images=images,
        )

    def record(self) -> list[dict[str, Any]]:
        """Every rank's part of every step that was done, in the order of doing."""
        return [json.loads(line) for line in (self.breakpoints / "trained.jsonl").read_text().splitlines()]


@dataclass(kw_only=True)
class Outcome:
    """What faults did to a run, compared with the undisturbed one."""

    recovery_seconds: dict[str, float]  # from each fault to the end of the step that it hit
    steps_again: int
    repeated: int
    lost: int
    same_losses: bool
    same_model: bool
    losses: list[float]


def outcome(fixture: RunFixture) -> Outcome:
    """Measure, and hold what MLflow has against the journal."""
    check_tracked_once(fixture)
    reference, own = fixture.cluster.reference, fixture.trained()
    # with its step: the global batch of each one shall be the same, whichever worker had which part of it
    wanted, got = ([f"{step} {image}" for (step, _), image in t.images.items()] for t in (reference, own))
    steps = [record["step"] for record in fixture.record() if record["first_row"] == 0]
    return Outcome(
        recovery_seconds={name: _recovery(fixture, name) for name in fixture.injected},
        steps_again=len(steps) - len(set(steps)),
        repeated=_missing(got, wanted),
        lost=_missing(wanted, got),
        same_losses=own.losses == reference.losses,
        same_model=_same_model(reference.model, own.model),
        losses=[value for _, value in own.losses],
    )


def check_tracked_once(fixture: RunFixture) -> None:
    """Hold MLflow against the run: every point of every metric once, the last recovery told, and the run finished."""
    client = MlflowClient(fixture.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.data.tags["run_directory"] == str(fixture.run)]
    assert run.info.status == "FINISHED", run.info.status
    told = (fixture.run / "faults.log").read_text().splitlines()
    assert run.data.tags.get(RECOVERY) == (told[-1] if told else None)
    for name, points in read_metrics(fixture.run / "journal").items():
        journal = [(step, value) for step, value, _ in points]
        sent = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        assert sent == journal, name
        assert len({step for step, _ in sent}) == len(sent), name


def _recovery(fixture: RunFixture, name: str) -> float:
    injected, step = fixture.injected[name]
    since, _ = fixture.stopped.get(name, (injected, ""))  # where the run stopped for it, it is done in the next try
    return (
        min([r["time"] for r in fixture.record() if r["time"] > since and r["step"] >= step], default=np.inf) - injected
    )


def _same_model(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """To the bit, but for batch-norm statistics: a checkpoint at another step averages the ranks' once more."""
    statistics = [name for name in a if "running_" in name]
    weights = a.keys() - set(statistics)
    return (
        a.keys() == b.keys()
        and all(np.array_equal(a[name], b[name]) for name in weights)
        and all(np.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in statistics)
    )


def _missing(wanted: Sequence[str], got: Sequence[str]) -> int:
    """How many of `wanted`, each as often as it is there, are not in `got`."""
    names, counts = np.unique(np.array(wanted), return_counts=True)
    have = dict(zip(*np.unique(np.array(got), return_counts=True), strict=True))
    return int(sum(max(0, count - have.get(name, 0)) for name, count in zip(names, counts, strict=True)))
