"""The function of every worker, with a recorder in place of Ray Train, stream and training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from rayface import config as configs
from rayface.data.streaming.sample_order import SampleOrder
from rayface.plan.memory import job_of
from rayface.training import worker
from rayface.training.run_directory import RunDirectory
from rayface.training.worker import WorkerJob, train_worker
from tests.training.small_run import FACTS


class Recorder:
    """What a worker called, by name."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.start = 4
        self.log = SimpleNamespace(tags=lambda tags: self.calls.update(tags=tags))

    def training(self, *args: Any, **options: Any) -> "Recorder":
        self.calls["training"] = (args, options)
        return self

    def fit(self, batches_from: Callable[[int], Iterator[Any]]) -> None:
        self.calls["batches"] = list(batches_from(self.start))


@pytest.fixture
def run_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs one worker of a group; returns what it called."""

    def run(
        rank: int, size: int, *overrides: str, held_cpus: float = 0.0, mirrored: bool = False, start: int = 4
    ) -> dict[str, Any]:
        recorder = Recorder()
        recorder.start = start

        def deal(*args: Any, **options: Any) -> str:
            recorder.calls.setdefault("deals", []).append(options["start"])
            recorder.calls.setdefault("order", []).append("deal")
            recorder.calls["deal"] = options
            return "dealt"

        def preflight(*args: Any, node: str) -> dict[str, str]:
            recorder.calls["preflight"] = (args[2], node)
            recorder.calls.setdefault("order", []).append("preflight")
            return {"preflight": "measured"}

        places: dict[str, object] = {"get_world_rank": rank, "get_world_size": size, "get_local_world_size": size}
        places["get_experiment_name"] = "experiment"
        context = SimpleNamespace(**{name: lambda value=value: value for name, value in places.items()})
        monkeypatch.setattr(ray.train, "get_context", lambda: context)
        monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
        monkeypatch.setattr(worker, "from_rank_0", lambda value, world: "dealt" if world.rank else value)
        monkeypatch.setattr(worker, "train_batches", lambda dealt, rank: iter([(dealt, rank)]))
        monkeypatch.setattr(worker, "Training", recorder.training)
        monkeypatch.setattr(worker, "preflight", preflight)
        monkeypatch.setattr(worker, "deal", deal)
        monkeypatch.setattr(worker, "ActorStores", lambda name: f"stores of {name}")
        config = configs.load("debug", None, ["data.train=unused", *overrides])
        configs.dump(config, tmp_path / "config.yaml")
        train_worker(
            WorkerJob(
                config=config,
                run=RunDirectory(tmp_path),
                dataset=FACTS,
                num_classes=6,
                samples=None,
                sample_order=SampleOrder(num_samples=24, batch_size=4),
                total_steps=9,
                local=True,
                known_faults=(),
                held_cpus=held_cpus,
                first_shard="shard-000000.tar",
                shape=job_of(config, 6, gpu=False),
                mirrored=mirrored,
            )
        )
        return recorder.calls

    return run


def test_worker_of_rank_0_starts_the_stream_and_leaves_cpus_to_training(run_worker: Callable[..., Any]) -> None:
    """The CPUs of all workers, and those that concurrent runs hold."""
    calls = run_worker(0, 3, "train.cpus_per_worker=2", "data.image_size=48", held_cpus=1.5)
    dealt = calls["deal"]
    assert (dealt["start"], dealt["stop"], dealt["world_size"], dealt["image_size"]) == (4, 9, 3, 48)
    assert dealt["local"]
    assert dealt["reserved"] == {"CPU": 3 * 2 + 1.5, "GPU": 0.0}
    assert calls["batches"] == [("dealt", 0)]


def test_worker_of_a_new_run_starts_the_stream_before_the_preflight(run_worker: Callable[..., Any]) -> None:
    calls = run_worker(0, 2, start=0)
    assert calls["order"] == ["deal", "preflight"]
    assert calls["deals"] == [0]
    assert run_worker(1, 2, start=0)["order"] == ["preflight"]


def test_worker_of_another_rank_takes_the_stream_of_rank_0(run_worker: Callable[..., Any]) -> None:
    calls = run_worker(2, 3)
    assert "deal" not in calls
    assert calls["batches"] == [("dealt", 2)]


def test_worker_among_others_runs_the_preflight_and_logs_what_it_found(run_worker: Callable[..., Any]) -> None:
    calls = run_worker(1, 2)
    assert calls["preflight"] == (["shard-000000.tar"], "10.0.0.1")
    assert calls["tags"] == {"preflight": "measured"}


def test_worker_alone_runs_no_preflight(run_worker: Callable[..., Any]) -> None:
    calls = run_worker(0, 1)
    assert "preflight" not in calls
    assert calls["tags"] == {}
    args, options = calls["training"]
    assert (args[2].rank, args[2].size, options["num_classes"]) == (0, 1, 6)


def test_worker_of_a_mirrored_run_trains_with_the_stores_of_its_experiment(run_worker: Callable[..., Any]) -> None:
    assert run_worker(0, 1)["training"][1]["stores"] is None
    stores = run_worker(0, 1, mirrored=True)["training"][1]["stores"]
    assert stores == "stores of experiment"


def test_worker_of_a_run_without_checkpoints_starts_its_stream_before_the_model_is_built(
    run_worker: Callable[..., Any], tmp_path: Path
) -> None:
    """Not where it is of no use: another stream is started wherever the training begins."""
    assert run_worker(0, 1, start=0)["deals"] == [0]
    RunDirectory(tmp_path).add_restart("worker 1 died")
    assert run_worker(0, 1, start=4)["deals"] == [4]
    RunDirectory(tmp_path).clear_restarts()
    saved = tmp_path / "checkpoints" / "step_00000004"
    saved.mkdir(parents=True)
    (saved / "progress.json").write_text("{}")
    assert run_worker(0, 1, start=4)["deals"] == [4]


def test_restarted_worker_without_checkpoints_starts_one_stream_where_the_mirrored_state_is(
    run_worker: Callable[..., Any], tmp_path: Path
) -> None:
    RunDirectory(tmp_path).add_restart("worker 1 died")
    assert run_worker(0, 1, start=4)["deals"] == [4]
