"""All-vs-all on a dataset: rates over all pairs and inside groups; degenerate sets say so."""

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.cli.command_line import _outcome
from rayface.config import EvaluateConfig
from rayface.data.synth import synthesize
from rayface.data.writer import write_dataset
from rayface.evaluation.all_vs_all import all_vs_all
from rayface.evaluation.all_vs_all_protocol import AllVsAllProtocol, AllVsAllSettings
from rayface.evaluation.embedding import embed_protocol
from rayface.evaluation.pairs import FARS
from rayface.models.embedded import Embedded
from tests.small_model import save_small_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "set"
    synthesize(folder, identities=12, images_per_identity=6, image_size=32, processes=1)
    return folder


def opened(data: Path, **settings: object) -> AllVsAllProtocol:
    return AllVsAllProtocol.open(AllVsAllSettings(data=(str(data),), **settings), image_size=32)


def random_embeddings(n: int, seed: int = 0) -> Embedded:
    rows = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return Embedded(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.ones(n, np.float32))


def table(protocol: AllVsAllProtocol, by: str) -> list[tuple[object, str]]:
    """Rows of a table of groups: odd labels, or odd images, are in group b."""
    dataset = protocol.source.dataset
    values = {"label": range(12), "identity": dataset.identities, "key": dataset.keys()}[by]
    return [(value, "ab"[place % 2]) for place, value in enumerate(values)]


@pytest.mark.parametrize("by", ["label", "identity", "key"])
def test_all_vs_all_protocol_with_groups_equals_the_function(data: Path, tmp_path: Path, by: str) -> None:
    rows = table(opened(data), by)
    (tmp_path / "groups.csv").write_text(f"{by},mask\n" + "".join(f"{value},{group}\n" for value, group in rows))
    protocol = opened(data, group_by=("mask",), groups=str(tmp_path / "groups.csv"))
    labels = protocol.source.dataset.index.label
    embedded = random_embeddings(72)
    result = protocol.score(embedded)
    figures = result.figures()
    groups = np.array(list("ab"))[(np.arange(72) if by == "key" else labels) % 2]
    wanted = all_vs_all(embedded.embeddings, labels, FARS, groups)
    assert figures["tar_at_far"] == {
        f"{far:.0e}": tar if far >= 1e-3 else None for far, tar in zip(FARS, wanted["all"], strict=True)
    }
    for name in ("a", "b"):
        own = figures["groups"]["mask"][name]
        assert own["tar_at_far"]["1e-02"] == wanted[name][1]
        low, high = own["tar_at_far_interval"]["1e-02"]
        assert 0 <= low <= own["tar_at_far"]["1e-02"] <= high < 1
        assert own["num_genuine"] + own["num_impostor"] == 36 * 35 // 2
    assert list(figures["tar_at_far_interval"]) == ["1e-01", "1e-02", "1e-03"]
    assert figures["num_genuine"] == 12 * 15
    assert result.main_figure == wanted["all"][2]
    assert result.not_measured["tar_at_far.1e-04"].endswith("resolve no FAR below 4.2e-04")
    assert result.roc is not None


def test_all_vs_all_protocol_with_a_group_named_all_measures_it(data: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("label,mask\n" + "".join(f"{i},{('all', '01')[i % 2]}\n" for i in range(12)))
    protocol = opened(data, group_by=("mask",), groups=str(tmp_path / "groups.csv"))
    result = protocol.score(random_embeddings(72))
    assert {name: own.num_genuine for name, own in result.groups["mask"].items()} == {"all": 90, "01": 90}
    assert result.rates.num_genuine == 180


def test_all_vs_all_protocol_with_images_that_are_not_readable_leaves_them_out(tmp_path: Path) -> None:
    jpeg = simplejpeg.encode_jpeg(np.full((32, 32, 3), 90, np.uint8))
    samples = [(f"k{i}", i // 2, b"no picture" if i == 3 else jpeg) for i in range(8)]
    write_dataset(tmp_path / "set", samples, name="set", identities=list("abcd"), image_size=(32, 32))
    protocol = opened(tmp_path / "set")
    net = save_small_model(tmp_path / "model")
    embedded = embed_protocol(protocol, net, np.arange(8), batch_size=4, device="cpu")
    assert (embedded.embeddings == 0).all(axis=1).tolist() == [i == 3 for i in range(8)]
    figures = protocol.score(embedded).figures()
    assert (figures["num_images"], figures["num_left_out"]) == (7, 1)
    assert figures["num_genuine"] == 3


@pytest.mark.parametrize(
    ("labels", "bad", "reason"),
    [
        (np.zeros(72, np.int32), None, "there are no impostor pairs"),
        (np.arange(72, dtype=np.int32), None, "there are no genuine pairs"),
        (None, 5, "1 of 72 embeddings are NaN"),
    ],
)
def test_all_vs_all_protocol_of_a_degenerate_set_says_so(data: Path, labels: object, bad: int, reason: str) -> None:
    protocol, embedded = opened(data), random_embeddings(72)
    if labels is not None:
        protocol.source.dataset.index.label[:] = labels
    if bad is not None:
        embedded.embeddings[bad] = np.nan
    result = protocol.score(embedded)
    assert result.not_measured["tar_at_far"].startswith(reason)
    assert set(result.figures()["tar_at_far"].values()) == {None}
    assert result.roc is None
    assert np.isnan(result.main_figure)


def test_all_vs_all_protocol_without_a_readable_image_gives_no_figure(data: Path) -> None:
    protocol = opened(data)
    result = protocol.score_without(np.ones(72, bool), random_embeddings(72))
    assert result.not_measured["tar_at_far"].startswith("there are no genuine pairs")
    assert (result.num_images, result.num_left_out) == (0, 72)


def test_evaluate_all_vs_all_writes_null_and_says_why(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    save_small_model(tmp_path / "model")
    options = [f"--model={tmp_path / 'model'}", f"--all-vs-all={data}", f"--out={tmp_path / 'out'}"]
    assert _outcome(["evaluate", *options, "--json"]) == (0, "")
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert printed["tar_at_far"]["1e-06"] is None
    assert 0 <= written["tar_at_far"]["1e-03"] <= 1
    curve = written["curves"]["all_vs_all"]["roc"]
    assert curve["far"] == sorted(curve["far"])
    assert (curve["far"][0], curve["tar"][0], curve["tar"][-1]) == (0, 0, 1)
    assert curve["tar"] == sorted(curve["tar"])
    assert _outcome(["evaluate", *options]) == (0, "")
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"group_by": ["race"]}, r"^evaluate.group_by: requires evaluate.all_vs_all"),
        ({"groups": "g.csv"}, r"^evaluate.groups: requires evaluate.group_by"),
        ({"all_vs_all": ["set"], "groups": "g.csv"}, r"^evaluate.groups: requires evaluate.group_by"),
    ],
)
def test_all_vs_all_protocol_with_incomplete_settings_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AllVsAllProtocol.settings_of(EvaluateConfig(**given))
