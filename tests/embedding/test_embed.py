"""An embedding job without Ray: parts that are lost are refused and embedded again; room on a cluster."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from rayface import config as configs
from rayface.config import EmbedConfig, TrainConfig
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.embedding import embed as module
from rayface.embedding.embed import embed
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.shard_embedder import ShardEmbedder
from rayface.session import NoRoomError
from tests.autoscaler import autoscaled
from tests.small_model import save_small_model

QUIET = configs.load(overrides=["tracking.enabled=false"])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Embeds a small set into tmp_path/emb; this process is its only worker."""
    synthesize(tmp_path / "faces", identities=4, images_per_identity=5, seed=0, image_size=32, shard_size=30_000)
    save_small_model(tmp_path / "model")
    monkeypatch.setattr(module, "_VISIBLE_SECONDS", 0.0)
    monkeypatch.setattr(module, "ray_session", lambda *arguments, **options: contextlib.nullcontext())
    monkeypatch.setattr(module, "find_room", lambda device: (False, 1, 1))
    monkeypatch.setattr(module, "share", lambda dataset: SimpleNamespace(get=lambda: ([], dataset.index)))

    def here(
        worker: Any, arguments: dict[str, Any], parts: Sequence[Any], name: str, **options: Any
    ) -> Iterator[dict[str, Any]]:
        yield from map(worker(**arguments), parts)

    monkeypatch.setattr(module, "map_unordered_by_actors", here)

    def job(more: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
        paths = {"embed.model": tmp_path / "model", "embed.data": tmp_path / "faces", "embed.out": tmp_path / "emb"}
        return embed(configs.with_overrides(QUIET, {key: str(path) for key, path in paths.items()} | more)).manifest

    return job


def test_embed_whose_parts_did_not_arrive_is_refused_after_the_first_shard(
    job: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on a node that does not share the folder writes into a folder of its own."""
    called: list[int] = []

    class Elsewhere(ShardEmbedder):
        def __init__(self, **arguments: Any) -> None:
            (tmp_path / "elsewhere").mkdir()
            super().__init__(**{**arguments, "root": str(tmp_path / "elsewhere")})

        def __call__(self, work: Any) -> dict[str, Any]:
            called.append(work.number)
            return super().__call__(work)

    monkeypatch.setattr(module, "ShardEmbedder", Elsewhere)
    with pytest.raises(ValueError, match=r"embed.out: .*emb: 1 of 1 files that workers wrote are missing \("):
        job()
    assert called == [0]
    assert not (tmp_path / "emb" / "embeddings.json").exists()


def test_embed_that_loses_a_part_meanwhile_is_refused_and_embeds_it_again(
    job: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run embeds the lost part and completes the folder."""

    class Losing(ShardEmbedder):
        def __call__(self, work: Any) -> dict[str, Any]:
            if work.number == 1:
                (tmp_path / "emb" / "part-000000.parquet").unlink()
            return super().__call__(work)

    monkeypatch.setattr(module, "ShardEmbedder", Losing)
    with pytest.raises(ValueError, match=r"files that workers wrote are missing \(part-000000.parquet\)"):
        job()
    monkeypatch.setattr(module, "ShardEmbedder", ShardEmbedder)
    manifest = job()
    assert len(manifest["parts"]) - manifest["parts_skipped"] == 1
    assert open_embeddings(tmp_path / "emb").num_rows == manifest["num_rows"] == 20
    assert json.loads((tmp_path / "emb" / "embeddings.json").read_text())["num_rows"] == 20


def test_embed_again_of_finished_parts_starts_no_ray(
    job: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job()
    monkeypatch.setattr(module, "ray_session", None)
    again = job()
    assert again["parts_skipped"] == len(first["parts"])
    assert again["num_rows"] == first["num_rows"] == 20


def test_embed_again_embeds_the_images_of_a_shard_that_was_repaired(
    job: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shard = open_dataset(tmp_path / "faces").shards[0]
    whole, first = Path(shard.path).read_bytes(), int(open_dataset(tmp_path / "faces").index.offset[1])
    Path(shard.path).write_bytes(whole[: first + 600] + bytes(100) + whole[first + 700 :])
    with pytest.raises(ValueError, match=r"data.max_corrupt_fraction"):
        job()
    tolerant = {"data.max_corrupt_fraction": "0.5"}
    first_run, second_run = job(tolerant), job(tolerant)
    assert (first_run["num_rows"], second_run["num_rows"]) == (19, 19)
    assert second_run["parts_skipped"] == len(second_run["parts"])
    Path(shard.path).write_bytes(whole)
    repaired = job()
    assert (repaired["num_rows"], repaired["parts_skipped"]) == (20, len(repaired["parts"]) - 1)
    assert repaired["faults"] == []


def test_embed_on_an_empty_cluster_asks_for_nodes_and_then_uses_them(
    monkeypatch: pytest.MonkeyPatch, messages: Callable[[], list[str]]
) -> None:
    cluster = autoscaled(monkeypatch, most=4)
    module._wait_for_nodes(TrainConfig(wait_for_nodes=5), 4)
    assert cluster.asked == [[{"CPU": 1.0}] * 4, []]
    assert messages() == [
        "waiting up to 5 s for nodes: 4 workers of 1 CPU each, room for 0",
        "train.device: auto: no GPU in the cluster now: using CPUs; train.device=cuda waits for GPU nodes",
    ]
    assert module.find_room("auto") == (False, 4, 1)
    with pytest.raises(NoRoomError, match=r"^embed.workers: 9: each needs 1 CPU, the cluster has room for 8"):
        module._wait_for_nodes(TrainConfig(wait_for_nodes=0.1), 9)


@pytest.mark.parametrize(
    ("local", "workers", "most"), [(False, None, 5), (False, 2, 2), (True, None, 3)], ids=["cluster", "set", "local"]
)
def test_embed_takes_nodes_that_join_unless_the_number_of_workers_is_set(
    monkeypatch: pytest.MonkeyPatch, messages: Callable[[], list[str]], local: bool, workers: int | None, most: int
) -> None:
    pool: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "find_room", lambda device: (False, 3, 1))
    monkeypatch.setattr(module, "started_here", lambda: local)
    monkeypatch.setattr(module, "share", lambda dataset: None)
    monkeypatch.setattr(module, "shard_places", lambda dataset, missing: missing)
    monkeypatch.setattr(module, "map_unordered_by_actors", lambda *_, **options: pool.append(options) or iter(()))
    dataset = SimpleNamespace(shards=[SimpleNamespace(num_images=9)] * 5)
    work = module._Work(settings=EmbedConfig(workers=workers), dataset=dataset, root="", job=None, device="auto")
    assert list(work.embedded(range(5))) == []
    assert (pool[0]["actors"], pool[0]["most_actors"]) == (workers or 3, most)
    line = "embedding with 3 workers, and more on nodes that join (embed.workers waits for a number)"
    assert messages() == [line] * (most == 5)


def test_find_room_on_a_cluster_without_gpus_refuses_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = autoscaled(monkeypatch, most=2)
    cluster.request([{"CPU": 4.0}])
    with pytest.raises(ValueError, match=r"^train.device: cuda: the cluster has no GPU: leave it out$"):
        module.find_room("cuda")
