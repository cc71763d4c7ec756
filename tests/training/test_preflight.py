"""The pre-flight on three gloo processes: what fits together, and every way in which it does not."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayface import config as configs
from rayface.data.synth import synthesize
from rayface.plan.memory import Job, job_of
from rayface.tracking.journal import PREFLIGHT, PREFLIGHT_WARNINGS
from rayface.training import measured_rates, preflight
from rayface.training.distributed import World
from rayface.training.run_directory import RunDirectory
from tests.ranks import run_ranks

SIZE = 3
CASES = ("whole", "clock", "other version", "own disk", "no data", "does not come")


def answer_of(case: str, world: World, folder: Path, shape: Job, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a rank's pre-flight returns or says; rank 1 is the one that is different."""
    timeout = 1.0 if case == "does not come" else 60.0
    run, shard, odd = folder / case, folder / "set" / "shard-000000.tar", world.rank == 1
    versions, clock = preflight._versions(), time.time
    if odd and case == "clock":
        monkeypatch.setattr(time, "time", lambda: clock() + 5)
    if odd and case == "other version":
        monkeypatch.setattr(preflight, "_versions", lambda: {**versions, "torch": "2.0.0"})
    if odd and case == "own disk":
        run = folder / "elsewhere"
    if odd and case == "no data":
        shard = folder / "nothing.tar"
    if odd and case == "does not come":
        return {}
    monkeypatch.setattr(preflight, "_FILES_SECONDS", 0.5)
    run.mkdir(exist_ok=True)
    try:
        found = preflight.preflight(
            world,
            RunDirectory(run),
            [str(shard)],
            shape,
            node=f"10.0.0.{world.rank}",
            timeout=timeout,
        )
    except preflight.PreflightError as error:
        return {"error": str(error)}
    return {**found, "left": str(list(run.iterdir()))}


def rank_main(rank: int, folder: str) -> None:
    world = World(rank=rank, size=SIZE, local_size=SIZE, device=torch.device("cpu"))
    torch.set_num_threads(1)
    shape = job_of(configs.load("debug"), 20, gpu=False)
    answers = {}
    for case in CASES:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{case}.store", rank=rank, world_size=SIZE)
        with pytest.MonkeyPatch.context() as monkeypatch:
            answers[case] = answer_of(case, world, Path(folder), shape, monkeypatch)
        dist.barrier()
        dist.destroy_process_group()
    (Path(folder) / f"answers_{rank}.json").write_text(json.dumps(answers))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, str]]]:
    """Of every rank, by case."""
    folder = tmp_path_factory.mktemp("preflight")
    synthesize(folder / "set", identities=2, images_per_identity=2, seed=0)
    run_ranks(rank_main, (str(folder),), SIZE)
    return [json.loads((folder / f"answers_{rank}.json").read_text()) for rank in range(SIZE)]


def test_preflight_of_matching_ranks_measures_them(answers):
    found = [own["whole"] for own in answers]
    assert all(own[PREFLIGHT].startswith("3 ranks on 3 nodes (cpu), clocks 0.0") for own in found)
    assert all(float(own["preflight.all_reduce_gb_per_second"]) > 0.01 for own in found)
    assert [fact["node"] for fact in json.loads(found[0]["preflight.ranks"])] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert found[0]["left"] == "[]"


def test_preflight_with_a_clock_that_is_off_warns(answers):
    warning = answers[0]["clock"][PREFLIGHT_WARNINGS]
    assert "the clock of rank 1 on 10.0.0.1 is 5.0 s ahead of that of rank" in warning
    assert "should be under 2 s" in warning


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("other version", "rank 1 on 10.0.0.1 has torch 2.0.0, rank 0 on 10.0.0.0 has"),
        ("own disk", "rank 0 on 10.0.0.0 does not see what rank 1 on 10.0.0.1 writes there: must be one disk"),
        ("no data", "rank 1 on 10.0.0.1: "),
        ("does not come", "rank 1 of 3 ranks did not answer within 1 s"),
    ],
)
def test_preflight_with_a_rank_that_does_not_fit_raises_one_line_on_every_rank(answers, case, text):
    for rank, own in enumerate(answers):
        if case == "does not come" and rank == 1:
            continue
        assert text in own[case]["error"]
        assert "\n" not in own[case]["error"]


def test_preflight_of_rank_0_refuses_a_directory_without_the_files_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_FILES_SECONDS", 0.0)
    run = RunDirectory(tmp_path / "own disk" / "run")
    with pytest.raises(preflight.PreflightError) as error:
        preflight.require_driver_disk(run, "10.0.0.7")
    assert str(error.value) == (
        f"pre-flight: train.output: {run}: rank 0 on 10.0.0.7 does not see what the driver writes there: must be one "
        "disk that all nodes share: mount it on all, or name another"
    )
    run.path.mkdir(parents=True)
    run.write_config(configs.load("debug"))
    preflight.require_driver_disk(run, "10.0.0.7")


def test_preflight_whose_all_reduce_opens_no_connection_raises_one_line(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: threading.Event().wait())
    monkeypatch.setattr(measured_rates, "_MARGIN_SECONDS", 0.1)
    world = World(rank=1, size=2, local_size=1, device=torch.device("cpu"))
    facts = [preflight.Facts(rank=rank, node=f"10.0.0.{rank}", device="cpu", versions={}) for rank in range(2)]
    rule = "between 2 ranks on 10.0.0.0, 10.0.0.1, seen by rank 1 on 10.0.0.1: it opens no connection: must end within"
    with pytest.raises(preflight.PreflightError, match=rule):
        preflight._bandwidth(world, facts, 0.1)


def test_preflight_with_a_slow_link_between_nodes_warns():
    shape = job_of(configs.load("debug", overrides={"train.num_workers": 8}), 20, gpu=False)
    network, computing = preflight._step_parts(shape, bandwidth=0.001, tflops=0.1)
    assert network > computing
    (line,) = preflight._slow_link(0.001, network, computing)
    assert "all-reduce reaches 0.001 GB/s" in line
    fast = preflight._step_parts(shape, bandwidth=1000.0, tflops=0.001)
    assert preflight._slow_link(1000.0, *fast) == []
