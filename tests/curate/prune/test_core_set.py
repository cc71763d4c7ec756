"""A prune job, its tasks in the test's own process: what it leaves, and what it finds again or refuses."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface import config as configs
from rayface.curate.prune import core_set as module
from rayface.curate.prune.core_set import prune
from rayface.curate.prune.keep_ratio import UnreachableKeepError
from rayface.curate.prune.methods.herding import Herding
from rayface.curate.prune.result import PruneResult
from rayface.curate.prune.selection import Selector
from tests.curate.interrupted_tracking import check_tracked_once_when_run_again

pytestmark = pytest.mark.usefixtures("in_process")
QUIET = configs.load(overrides=["tracking.enabled=false"])


@pytest.fixture
def job(tmp_path: Path, drawn: Any, put_embeddings: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PruneResult]:
    """A function of config keys -> the result of pruning 20 identities into tmp_path/core, without Ray."""
    for name in ("ray_session", "quiet_data"):
        monkeypatch.setattr(module, name, lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(module, "is_cluster", lambda address: False)
    embeddings, _ = drawn(np.full(20, 8), size=16)
    put_embeddings(np.repeat(np.arange(20), 8), embeddings)

    def job(**keys: Any) -> PruneResult:
        own = {"embeddings": str(tmp_path / "emb"), "out": str(tmp_path / "core"), **keys}
        groups = {key.replace("__", "."): value for key, value in own.items()}
        named = {key if "." in key else f"prune.{key}": value for key, value in groups.items()}
        return prune(configs.with_overrides(QUIET, named))

    return job


def test_prune_for_a_share_keeps_it_and_writes_what_it_decided(job: Any, tmp_path: Path) -> None:
    result = job(keep=0.6, baselines=["herding"], block_size=4 * 16 * 30)
    assert (result.method, result.counts.faces_in, result.counts.identities) == ("face_nms", 160, 20)
    assert abs(result.keep - 0.6) <= 0.01
    table = pq.read_table(tmp_path / "core" / "core_set.parquet")
    kept = table["kept"].to_numpy()
    assert (table.num_rows, int(kept.sum())) == (160, result.counts.faces_out)
    by = dict(zip(table["key"].to_pylist(), table["suppressed_by"].to_pylist(), strict=True))
    assert {by[key] for key in by if by[key]} <= {key for key, is_kept in zip(by, kept, strict=True) if is_kept}
    assert set(table["reason"].to_pylist()) == {"kept", "too alike"}
    assert set(result.baselines) == {"random", "herding"}
    assert result.mean_cosine_after < result.mean_cosine_before
    assert {path.name for path in (tmp_path / "core").iterdir()} >= {"core_set.parquet", "prune.json", "report.html"}
    assert not (tmp_path / "core" / ".work").exists()
    assert json.loads((tmp_path / "core" / "prune.json").read_text())["faces_out"] == result.counts.faces_out


def test_prune_run_again_returns_the_result_without_a_task(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job(threshold=0.7)
    (tmp_path / "core" / ".work").mkdir()  # as a crash between the two leaves it
    monkeypatch.setattr(module, "partition_by_identity", None)  # would fail
    second = job(threshold=0.7)
    assert second.counts == first.counts
    assert not (tmp_path / "core" / ".work").exists()


def test_prune_for_a_share_that_no_threshold_keeps_leaves_the_folder_to_another(job: Any, tmp_path: Path) -> None:
    (tmp_path / "core" / "proxy").mkdir(parents=True)
    with pytest.raises(UnreachableKeepError, match=r"^keep 0\.01: no threshold .* keeps 0\.1250: ask for that share"):
        job(keep=0.01)
    assert {path.name for path in (tmp_path / "core").iterdir()} == {".lock", "proxy"}
    assert job(keep=0.125).counts.faces_out == 20


def test_prune_with_a_baseline_that_cannot_keep_the_share_compares_the_others(
    job: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Selector.fit

    def fit_others(self: Selector, method: Any, keep: float | None) -> Any:
        if isinstance(method, Herding):
            raise UnreachableKeepError("keep 0.6: no threshold")
        return fit(self, method, keep)

    monkeypatch.setattr(Selector, "fit", fit_others)
    assert set(job(keep=0.6, baselines=["herding"]).baselines) == {"random"}
    assert "prune.baselines: herding is not compared: keep 0.6: no threshold" in caplog.text


def test_prune_interrupted_while_it_selects_resumes_and_ends_with_the_same_core_set(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job(threshold=0.7, out=str(tmp_path / "whole"))

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job(threshold=0.7)
    assert (tmp_path / "core" / ".work" / "runs").is_dir() or (tmp_path / "core" / ".work" / "decisions").is_dir()
    assert job(threshold=0.7).counts == whole.counts
    tables = [pq.read_table(tmp_path / name / "core_set.parquet") for name in ("core", "whole")]
    assert tables[0].equals(tables[1])


def test_prune_into_the_folder_of_another_job_is_refused_with_the_key_that_differs(job: Any) -> None:
    job(threshold=0.7)
    with pytest.raises(ValueError, match="threshold") as caught:
        job(threshold=0.8)
    assert "\n" not in str(caught.value)


def test_prune_with_cleaning_leaves_out_what_it_drops_and_lists_what_it_found(job: Any, tmp_path: Path) -> None:
    result = job(threshold=0.7, clean__outliers=0.75, clean__drop=["outliers"])
    assert result.counts.faces_cleaned == result.found["outliers"] > 0
    table = pq.read_table(tmp_path / "core" / "core_set.parquet")
    assert table.num_rows == 160
    assert table["reason"].to_pylist().count("outlier") == result.counts.faces_cleaned
    assert pq.read_table(tmp_path / "core" / "found" / "outliers.parquet").num_rows == result.found["outliers"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"^prune.threshold, prune.keep: neither is given"),
        ({"threshold": 0.5, "embeddings": "nowhere"}, r"nowhere: no such folder of embeddings"),
        ({"threshold": 0.5, "write_shards": True}, r"^prune.write_shards: requires prune.data"),
        ({"threshold": 0.5, "clean__bytes": True}, r"^clean.bytes: requires prune.data, the dataset with the files"),
        ({"threshold": 0.5, "clean__drop": ["outliers"]}, r"^clean.drop: 'outliers': needs clean.outliers"),
    ],
)
def test_prune_with_settings_that_contradict_is_refused_before_anything_is_written(
    job: Any, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        job(**keys)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "core").exists()


def test_prune_killed_before_its_result_was_tracked_tracks_it_when_run_again(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, journal = job(threshold=0.7), tmp_path / "core" / "journal" / "driver.jsonl"
    monkeypatch.setattr(module, "_run", None)  # would fail
    check_tracked_once_when_run_again(journal, lambda: job(threshold=0.7), "faces_out", first.counts.faces_out)
    assert job(threshold=0.7).counts == first.counts
