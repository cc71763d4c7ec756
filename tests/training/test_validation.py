"""Validation during training: figures on rank 0, progress while it scores."""

import types

import numpy as np
import pytest
import torch

from rayface import config as configs
from rayface.data.synth import synthesize
from rayface.evaluation import verification
from rayface.evaluation.pair_scores import read_pair_scores
from rayface.evaluation.pairs import PairSet, PairsProtocol
from rayface.training import validation
from rayface.training.distributed import World
from rayface.training.run_directory import RunDirectory
from rayface.training.validate import check_settings
from rayface.training.validation import Evaluation

CPU = torch.device("cpu")


@pytest.fixture
def phases():
    """What the watchdog was told: phases, and signs of life."""
    return []


@pytest.fixture
def watchdog(phases):
    return types.SimpleNamespace(at=lambda phase, step: phases.append(phase), alive=lambda: phases.append("alive"))


def backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))


def evaluation(run, rank: int = 0, size: int = 1) -> Evaluation:
    """Evaluation on fifty drawn pairs of six images."""
    world = World(rank=rank, size=size, local_size=size, device=CPU)
    made = Evaluation(configs.load("debug"), RunDirectory(run), world, bf16=False)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    pairs = {
        "a": np.arange(50) % 6,
        "b": np.arange(50) % 5,
        "is_same": np.arange(50) % 2 == 0,
        "fold": np.arange(50) % 10,
    }
    made._protocols = {"pairs": PairsProtocol(PairSet(name="drawn", images=images, **pairs), "drawn.csv")}
    return made


def test_validation_while_it_scores_pairs_reports_progress(tmp_path, monkeypatch, watchdog, phases):
    monkeypatch.setattr(verification, "_BLOCK", 20)
    assert evaluation(tmp_path).run(backbone(), 5, watchdog) is not None
    assert phases == ["evaluate", "alive", "score", "alive", "alive", "alive"]


def test_validation_on_rank_0_returns_the_main_figure_and_writes_all_of_them(tmp_path, watchdog):
    made = evaluation(tmp_path)
    accuracy = made.run(backbone(), 5, watchdog)
    assert made.result["accuracy_mean"] == accuracy
    written = RunDirectory(tmp_path).read_evaluation()
    assert (written["step"], written["accuracy_mean"]) == (5, accuracy)
    assert "roc" in written
    assert len(read_pair_scores(str(tmp_path))["pairs"].score) == 50


def test_validation_by_several_protocols_selects_by_the_first_and_reports_all(tmp_path, watchdog):
    made = evaluation(tmp_path)
    made._protocols["again"] = made._protocols["pairs"]
    accuracy = made.run(backbone(), 5, watchdog)
    assert made.main_figures == {"pairs": accuracy, "again": accuracy}
    assert made.result["protocols"]["again"]["accuracy_mean"] == made.result["accuracy_mean"] == accuracy
    assert list(RunDirectory(tmp_path).read_evaluation()["protocols"]) == ["pairs", "again"]
    assert made.all_figures["again/accuracy_mean"] == accuracy
    assert {"pairs/accuracy_std", "pairs/tar_at_far/1e-01", "pairs/threshold_at_far/1e-01"} <= made.all_figures.keys()


def test_validation_on_another_rank_embeds_its_share_and_returns_nothing(tmp_path, monkeypatch, watchdog, phases):
    given = {}

    def gather(rows: torch.Tensor, counts: list[int], world: World) -> torch.Tensor:
        given.update(rows=len(rows), counts=counts)
        return rows

    monkeypatch.setattr(validation, "gather_rows", gather)
    monkeypatch.setattr(validation, "average_buffers", lambda *args: None)
    made = evaluation(tmp_path, rank=1, size=4)
    assert made.run(backbone(), 5, watchdog) is None
    assert given == {"rows": 2, "counts": [1, 2, 1, 2]}
    assert phases[-1] == "checkpoint"
    assert made.result == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flip", [True, False])
def test_validation_embeds_as_the_settings_say_after_the_buffers_are_averaged(tmp_path, monkeypatch, watchdog, flip):
    calls, given, embed = [], {}, validation.embed_protocol

    def embedded(protocol, net, places, **options):
        calls.append("embed")
        given.update(options)
        return embed(protocol, net, places, **options)

    monkeypatch.setattr(validation, "embed_protocol", embedded)
    monkeypatch.setattr(validation, "average_buffers", lambda net, world: calls.append("average"))
    made = evaluation(tmp_path)
    made._config = configs.load("debug", overrides=[f"evaluate.flip={flip}", "evaluate.batch_size=5"])
    made._bf16 = not flip
    made.run(backbone(), 5, watchdog)
    assert calls == ["average", "embed"]
    found = {key: given[key] for key in ("batch_size", "device", "flip", "bf16", "done")}
    assert found == {"batch_size": 5, "device": CPU, "flip": flip, "bf16": not flip, "done": watchdog.alive}


def test_validation_gathers_embeddings_and_norms_of_all_images(tmp_path, watchdog, monkeypatch):
    given, made = [], evaluation(tmp_path)
    score = PairsProtocol.score
    monkeypatch.setattr(
        PairsProtocol, "score", lambda self, rows, *rest: given.append(rows) or score(self, rows, *rest)
    )
    net = backbone()
    made.run(net, 5, watchdog)
    protocol = made._protocols["pairs"]
    wanted = validation.embed_protocol(
        protocol, net, np.arange(6), batch_size=6, device=CPU, flip=made._config.evaluate.flip
    )
    np.testing.assert_allclose(given[0].embeddings, wanted.embeddings, rtol=1e-6)
    np.testing.assert_allclose(given[0].norms, wanted.norms, rtol=1e-6)
    assert given[0].norms.shape == (6,)


def test_validation_without_a_protocol_does_nothing(tmp_path, watchdog, phases):
    world = World(rank=0, size=1, local_size=1, device=CPU)
    assert (
        Evaluation(configs.load("debug"), RunDirectory(tmp_path), world, bf16=False).run(backbone(), 5, watchdog)
        is None
    )
    assert phases == []


def test_validation_of_pairs_without_their_data_raises_one_line(tmp_path):
    world = World(rank=0, size=1, local_size=1, device=CPU)
    config = configs.load("debug", overrides=["evaluate.pairs=pairs.csv"])
    with pytest.raises(ValueError, match=r"^evaluate\.pairs: requires evaluate\.data") as caught:
        Evaluation(config, RunDirectory(tmp_path), world, bf16=False)
    assert "\n" not in str(caught.value)


def test_validation_by_all_vs_all_joins_labels_as_data_join_says(tmp_path):
    for name in "ab":
        synthesize(tmp_path / name, identities=3, images_per_identity=2, image_size=32, processes=1)
    sets = [str(tmp_path / name) for name in "ab"]
    world = World(rank=0, size=1, local_size=1, device=CPU)

    def config(join: str) -> configs.Config:
        return configs.load("debug", overrides={"evaluate.all_vs_all": sets, "data.train": sets[0], "data.join": join})

    made = Evaluation(config("separate"), RunDirectory(tmp_path), world, bf16=False)
    assert made._protocols["all_vs_all"].source.dataset.num_classes == 6
    (tmp_path / "b" / "identities.parquet").unlink()
    with pytest.raises(ValueError, match=r"^evaluate.all_vs_all: data.join: names: b has no identities.parquet: set"):
        check_settings(config("names"))
