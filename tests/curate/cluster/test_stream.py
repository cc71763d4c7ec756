"""A folder that grows, clustered again and again: each file once, whatever kills the job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface import config as configs
from rayface.curate.affinity import base_cosine
from rayface.curate.cluster import stream as module
from rayface.curate.cluster.cluster import cluster
from rayface.curate.cluster.result import ClusterResult, read_result
from rayface.curate.cluster.stream import cluster_stream
from rayface.embedding.part_file import write_part
from rayface.job_folder import exclusive_job_folder
from rayface.stages.fingerprints import of_clusters
from rayface.storage import DataError

People = Callable[..., Any]
Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path, people: People) -> Put:
    """A function of numbers -> writes these of six parts, of 20 persons' 480 images, into a folder."""
    vectors, labels = people(20, 24, spread=0.6, size=64)

    def put(*parts: int, folder: str = "emb", name: str = "{}") -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        for part in parts:
            rows = np.arange(80 * part, 80 * part + 80)
            batch = ([f"k{row:03d}" for row in rows], labels[rows], vectors[rows])
            path = tmp_path / folder / f"{name.format(part)}.parquet"
            write_part(str(path), [batch], size=64, dtype="fp32", note={})

    return put


def stream(tmp_path: Path, out: str = "out", **keys: Any) -> ClusterResult:
    own = {"embeddings": str(tmp_path / "emb"), "out": str(tmp_path / out), "method": "ogmc", "stream": True}
    given = {f"clustering.{key}": value for key, value in {**own, "threshold": 0.4, **keys}.items()}
    return cluster_stream(configs.load(overrides=given))


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("stream.npz", "labels.parquet")]


def test_stream_takes_each_file_once_however_the_folder_grows(tmp_path: Path, put: Put) -> None:
    for part in range(6):
        put(part)
        assert stream(tmp_path).counts.images == 80 * (part + 1)
    before = written(tmp_path / "out")
    again = stream(tmp_path)
    assert again.scores is not None
    assert again.scores.pairwise_f > 0.97
    assert again.counts.clusters == again.scores.num_clusters
    assert written(tmp_path / "out") == before
    stream(tmp_path, "whole")
    assert written(tmp_path / "whole") == before
    keys = pq.read_table(tmp_path / "out" / "labels.parquet")["key"].to_pylist()
    assert keys == [f"k{row:03d}" for row in range(480)]


@pytest.mark.parametrize("at", range(1, 12))
def test_stream_killed_before_any_write_ends_with_the_same_bytes(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    put(*range(6))
    monkeypatch.setattr(module, "_SAVE_EVERY", 100)
    stream(tmp_path, "whole")
    calls = []

    def dying(write: Callable[..., Any]) -> Callable[..., Any]:
        def die(*args: Any, **options: Any) -> Any:
            calls.append(write)
            if len(calls) == at:
                raise KeyboardInterrupt
            return write(*args, **options)

        return die

    with monkeypatch.context() as patched:
        for name in ("_take", "atomic_stream", "write_json"):
            patched.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(KeyboardInterrupt):
            stream(tmp_path)
    stream(tmp_path)
    assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_stream_result_is_complete_unless_its_labels_are_those_of_a_later_run(tmp_path: Path, put: Put) -> None:
    put(0)
    first, out = stream(tmp_path), tmp_path / "out"
    content = (out / "cluster.json").read_bytes()
    assert read_result(out) == first
    put(1)
    stream(tmp_path)
    assert of_clusters(out) is not None
    (out / "cluster.json").write_bytes(content)  # as a kill between the two files leaves it
    assert of_clusters(out) is None


def test_stream_refuses_a_file_that_changed_after_it_was_taken(tmp_path: Path, put: Put) -> None:
    put(0, 1)
    stream(tmp_path)
    before = written(tmp_path / "out")
    put(2, name="0")
    with pytest.raises(DataError, match=r"0\.parquet: has changed since it was clustered: restore it"):
        stream(tmp_path)
    assert written(tmp_path / "out") == before
    put(0)  # the same content with another time
    assert stream(tmp_path).counts.images == 160


def test_stream_resumes_after_files_that_were_taken_are_deleted(tmp_path: Path, put: Put) -> None:
    put(0, 1)
    stream(tmp_path)
    (tmp_path / "emb" / "0.parquet").unlink()
    put(2)
    assert stream(tmp_path).counts.images == 240


def test_stream_in_three_orders_finds_nearly_the_same(tmp_path: Path, put: Put) -> None:
    found = []
    for seed in range(3):
        for place, part in enumerate(np.random.default_rng(seed).permutation(6).tolist()):
            put(part, folder=f"emb{seed}", name=f"{place}-{{}}")
        result = stream(tmp_path, f"out{seed}", embeddings=str(tmp_path / f"emb{seed}"))
        assert result.scores is not None
        found.append(result.scores.pairwise_f)
    assert min(found) > 0.97
    assert max(found) - min(found) < 0.03


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "NaN or infinity"), (0.0, "all zeros")])
def test_stream_of_a_bad_vector_names_its_key_and_keeps_its_state(
    tmp_path: Path, put: Put, bad: float, message: str
) -> None:
    put(0)
    stream(tmp_path)
    before = written(tmp_path / "out")
    x = np.ones((2, 64))
    x[1] = bad
    batch = (["a", "b"], np.zeros(2, np.int64), x)
    write_part(str(tmp_path / "emb" / "9.parquet"), [batch], size=64, dtype="fp32", note={})
    with pytest.raises(ValueError, match=f"embedding of b: .*{message}"):
        stream(tmp_path)
    assert written(tmp_path / "out") == before


def test_stream_refuses_a_key_that_was_taken_before(tmp_path: Path, put: Put) -> None:
    put(0)
    stream(tmp_path)
    put(0, name="copy")
    with pytest.raises(DataError, match=r"copy\.parquet: key: 'k000': occurs twice"):
        stream(tmp_path)


def one_by_one(folder: Path, vectors: Any, first: int = 0) -> None:
    """Write a file for each vector."""
    folder.mkdir(exist_ok=True)
    for row in range(first, len(vectors)):
        batch = ([f"k{row:03d}"], np.zeros(1, np.int64), vectors[row : row + 1])
        write_part(str(folder / f"{row:03d}.parquet"), [batch], size=vectors.shape[1], dtype="fp32", note={})


def test_stream_of_many_files_looks_at_each_key_once_a_run(
    tmp_path: Path, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    count = module.pc.value_counts
    monkeypatch.setattr(module.pc, "value_counts", lambda keys: looked.append(len(keys)) or count(keys))
    vectors, _ = people(5, 8)
    one_by_one(tmp_path / "emb", vectors[:30])
    stream(tmp_path)
    one_by_one(tmp_path / "emb", vectors, first=30)
    stream(tmp_path)
    stream(tmp_path)
    assert looked == [30, 40]


def test_stream_of_many_files_saves_its_state_more_rarely_the_more_it_took(
    tmp_path: Path, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    write = module._write
    monkeypatch.setattr(module, "_SAVE_EVERY", 1)
    monkeypatch.setattr(module, "_write", lambda path, state: taken.append(len(state.files)) or write(path, state))
    one_by_one(tmp_path / "emb", people(5, 8)[0])
    stream(tmp_path)
    assert taken == [*range(1, 9), 10, 12, 14, 16, 19, 22, 26, 30, 35, 40]


def test_stream_whose_first_files_hold_few_persons_measures_strangers_on_more_files(
    tmp_path: Path, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    vectors, labels = people(20, 24, spread=0.6, size=64)
    vectors = vectors[np.argsort(labels, kind="stable")]
    (tmp_path / "emb").mkdir()
    for number, rows in enumerate(np.split(np.arange(480), [1, 24, 48, 96, 192])):
        batch = ([f"k{row:03d}" for row in rows], np.zeros(len(rows), np.int64), vectors[rows])
        write_part(str(tmp_path / "emb" / f"{number}.parquet"), [batch], size=64, dtype="fp32", note={})
    assert stream(tmp_path).base == pytest.approx(base_cosine(vectors, 0.4), abs=0.05)
    assert not caplog.records


@pytest.mark.parametrize("images", [1, 24])
def test_stream_without_strangers_warns_in_one_line(
    tmp_path: Path, people: People, caplog: pytest.LogCaptureFixture, images: int
) -> None:
    one_by_one(tmp_path / "emb", people(1, images, spread=0.2)[0])
    assert stream(tmp_path).base == 0
    [warning] = caplog.messages
    assert "rests on 0 pairs below the threshold 0.4, 0% of all" in warning
    assert "\n" not in warning
    stream(tmp_path)
    assert len(caplog.records) == 1


def test_stream_of_equal_vectors_is_one_cluster(tmp_path: Path) -> None:
    (tmp_path / "emb").mkdir()
    batch = ([f"k{row}" for row in range(300)], np.zeros(300, np.int64), np.ones((300, 8)))
    write_part(str(tmp_path / "emb" / "0.parquet"), [batch], size=8, dtype="fp32", note={})
    assert stream(tmp_path).counts.clusters == 1


def test_stream_beside_another_job_or_of_another_threshold_is_refused(tmp_path: Path, put: Put) -> None:
    put(0)
    stream(tmp_path)
    with pytest.raises(DataError, match=r"was started with threshold 0.4, this job has 0.5"):
        stream(tmp_path, threshold=0.5)
    with (
        exclusive_job_folder(str(tmp_path / "new"), {}, ".stream_job.json", key="clustering.out"),
        pytest.raises(DataError, match="another process owns it"),
    ):
        stream(tmp_path, "new")


def test_stream_whose_state_is_corrupt_is_refused_in_one_line(tmp_path: Path, put: Put) -> None:
    put(0)
    stream(tmp_path)
    (tmp_path / "out" / "stream.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"stream.npz: is corrupt"):
        stream(tmp_path)


def test_stream_calibrated_on_labelled_embeddings_finds_persons(tmp_path: Path, put: Put) -> None:
    put(0, 1, 2, 3)
    put(4, 5, folder="known")
    result = stream(tmp_path, threshold=None, calibrate=str(tmp_path / "known"))
    assert result.scores is not None
    assert result.scores.pairwise_f > 0.95


@pytest.mark.parametrize(
    ("size", "labels", "reason"), [(32, 4, "of length 32, .* of 64: .* one model"), (64, 1, "one label")]
)
def test_stream_calibrated_on_what_cannot_calibrate_it_is_refused(
    tmp_path: Path, put: Put, size: int, labels: int, reason: str
) -> None:
    put(0)
    (tmp_path / "known").mkdir()
    vectors = np.random.default_rng(0).standard_normal((8, size)).astype(np.float32)
    batch = ([f"c{row}" for row in range(8)], np.arange(8) % labels, vectors)
    write_part(str(tmp_path / "known" / "0.parquet"), [batch], size=size, dtype="fp32", note={})
    with pytest.raises(ValueError, match=f"^clustering.calibrate: .*{reason}"):
        stream(tmp_path, threshold=None, calibrate=str(tmp_path / "known"))


def test_stream_through_cluster_returns_a_result_that_opens_in_pandas(tmp_path: Path, put: Put) -> None:
    put(0)
    config = configs.load(
        overrides={
            "clustering.embeddings": str(tmp_path / "emb"),
            "clustering.out": str(tmp_path / "out"),
            "clustering.method": "ogmc",
            "clustering.stream": True,
            "clustering.threshold": 0.4,
        }
    )
    assert list(cluster(config).to_pandas().columns) == ["key", "cluster"]


def test_stream_without_ogmc_or_threshold_is_refused(tmp_path: Path) -> None:
    for keys in ({"method": "average"}, {"threshold": None}):
        with pytest.raises(ValueError, match="stream: true: must be with method ogmc"):
            stream(tmp_path, **keys)
