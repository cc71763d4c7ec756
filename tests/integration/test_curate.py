"""The road embed, prune and train on the core set, on a real Ray: nothing lost or repeated, safe to kill and resume."""

import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayface import config as configs
from rayface.backbones import build_backbone
from rayface.bench.nms import double_loop
from rayface.bench.prune import PruneBench, bench_prune
from rayface.config import Config
from rayface.curate.clean import job as clean_job
from rayface.curate.partitions import partition_by_identity, read_partition
from rayface.curate.prune.core_set import prune
from rayface.curate.prune.result import PruneResult
from rayface.curate.work_files import WorkPath
from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.manifest import Parent
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault
from rayface.embedding.embed import embed
from rayface.embedding.embedder import load_embedder
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part
from rayface.models.model_files import save_model
from rayface.stages.proxy import prune as prune_by_proxy
from rayface.training.trainer import train

pytestmark = pytest.mark.usefixtures("local_ray")
QUIET = configs.load(overrides=["tracking.enabled=false"])
SIZE = 16


def settings_of(**values: Any) -> dict[str, Any]:
    """Settings by name, those of cleaning below "clean"."""
    return values


def embed_into(out: Path, data: Path, model: Path, *, config: Config = QUIET, **settings: Any) -> Mapping[str, Any]:
    keys = {"model": str(model), "data": [str(data)], "out": str(out), **settings}
    given = {f"embed.{key}": value for key, value in keys.items()}
    return embed(configs.with_overrides(config, given)).manifest


def build(settings: dict[str, Any], source: Path, out: Path, **more: Any) -> PruneResult:
    """Prune embeddings with settings by name; `exclude` is of cleaning."""
    own = {"embeddings": str(source), "out": str(out), **settings, **more}
    clean = {**own.pop("clean", {}), **({"exclude": str(own.pop("exclude"))} if "exclude" in own else {})}
    keys = {f"prune.{key}": value for key, value in own.items()}
    return prune(configs.with_overrides(QUIET, {**keys, **{f"clean.{key}": value for key, value in clean.items()}}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained net."""
    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=SIZE, image_size=32, width=0.25)
    net(torch.randn(16, 3, 32, 32))
    folder = tmp_path_factory.mktemp("model")
    save_model(
        folder,
        net,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=32,
        embedding_size=SIZE,
        licence="",
        training_digest="",
        metrics={},
    )
    return folder


@pytest.fixture(scope="module")
def embedded(model: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn set, embedded."""
    out = tmp_path_factory.mktemp("embedded") / "emb"
    embed_into(out, drawn, model)
    return out


def read(folder: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Label and embedding by key; keys are unique."""
    found: dict[str, tuple[int, np.ndarray]] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
        for key, label, vector in zip(table["key"].to_pylist(), table["label"].to_pylist(), vectors, strict=True):
            assert key not in found
            found[key] = (label, vector)
    return found


def test_embed_of_a_dataset_embeds_every_image_once_as_the_model_does(embedded: Path, model: Path, drawn: Path) -> None:
    """One file per shard; embeddings of image and mirror image, of length 1."""
    dataset = open_dataset(drawn)
    found = read(embedded)
    assert len(list(embedded.glob("*.parquet"))) == len(dataset.shards) > 1
    assert {key: label for key, (label, _) in found.items()} == dict(
        zip(dataset.keys(), dataset.index.label.tolist(), strict=True)
    )
    samples = read_samples(dataset.shard_paths(), dataset.index)
    images, _ = decode_images([sample.jpeg for sample in samples if not isinstance(sample, Fault)], 32)
    wanted, dataset_keys = load_embedder(model)(images), dataset.keys()
    assert np.abs(np.array([found[key][1] for key in dataset_keys]) - wanted).max() < 1e-3  # fp16
    manifest = json.loads((embedded / "embeddings.json").read_text())
    assert (manifest["num_rows"], manifest["flip"], manifest["faults"]) == (dataset.num_images, True, [])
    assert sum(part["num_rows"] for part in manifest["parts"]) == dataset.num_images


def test_embed_run_again_resumes_and_refuses_another_model_or_dataset(embedded: Path, model: Path, drawn: Path) -> None:
    """Finished shards are not embedded again; another setting, model or dataset is refused."""
    before = {path: path.read_bytes() for path in embedded.glob("*.parquet")}
    lost = sorted(before)[1]
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in before if path != lost}
    again = embed_into(embedded, drawn, model)
    assert again["parts_skipped"] == len(before) - 1
    assert {path: path.read_bytes() for path in embedded.glob("*.parquet")} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(ValueError, match="was started with flip True, this job has False: choose another"):
        embed_into(embedded, drawn, model, flip=False)
    with pytest.raises(ValueError, match=r"embed\.out: .* is not empty"):
        embed_into(drawn, drawn, model)


def test_embed_of_corrupt_images_names_and_counts_them(model: Path, drawn: Path, tmp_path: Path) -> None:
    """Up to the allowed share; all other images are embedded."""
    data, out = tmp_path / "data", tmp_path / "emb"
    shutil.copytree(drawn, data)
    dataset = open_dataset(data)
    row = 5
    shard = Path(dataset.shards[int(dataset.index.shard[row])].path)
    content = bytearray(shard.read_bytes())
    start = int(dataset.index.offset[row]) + 512
    content[start : start + 200] = bytes(200)  # the JPEG's own header
    shard.write_bytes(content)
    settings = settings_of(flip=False, dtype="fp32")
    with pytest.raises(ValueError, match=r"1 of 240 images are corrupt, more than data.max_corrupt_fraction"):
        embed_into(out, data, model, **settings)
    allowed = configs.with_overrides(QUIET, ["data.max_corrupt_fraction=0.01"])
    manifest = embed_into(out, data, model, config=allowed, **settings)
    assert manifest["num_rows"] == 239
    assert dataset.keys()[row] in manifest["faults"][0]
    assert str(shard) in manifest["faults"][0]
    assert set(dataset.keys()) - set(read(out)) == {dataset.keys()[row]}


@pytest.fixture(scope="module")
def faces() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, labels and embeddings (float16) of 60 identities, a large one among them, in no order."""
    random = np.random.default_rng(0)
    sizes = np.r_[150, random.geometric(0.15, 59)]
    labels = np.repeat(random.permutation(1000)[:60], sizes)
    centers = np.repeat(random.standard_normal((60, SIZE)), sizes, axis=0)
    noise = random.standard_normal(centers.shape) * random.uniform(0.3, 1.2, (len(centers), 1))
    order = random.permutation(len(labels))
    keys = [f"k{number:04d}" for number in random.permutation(len(labels))]
    return keys, labels[order], (centers + noise)[order].astype(np.float16)


def put(folder: Path, keys: list[str], labels: np.ndarray, vectors: np.ndarray, files: int = 3) -> Path:
    """Write embeddings into a few files of small row groups."""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(keys)), files)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), vectors.shape[1])
        table = pa.table({"key": [keys[row] for row in rows], "label": labels[rows], "embedding": lists})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=50)
    return folder


def decided(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Rows of a core set by key, without the score, whose last digits depend on its neighbours."""
    rows = pq.read_table(folder / "core_set.parquet").to_pylist()
    return {row["key"]: (row["label"], row["kept"], row["suppressed_by"], row["reason"]) for row in rows}


def test_prune_of_rows_in_any_order_selects_as_a_plain_loop(faces: Any, tmp_path: Path) -> None:
    """Shuffled or by identity, in one partition or many."""
    keys, labels, vectors = faces
    place = {key: number for number, key in enumerate(keys)}
    order = np.lexsort((keys, labels))
    wanted: dict[str, bool] = {}
    for _, group_ in itertools.groupby(order.tolist(), key=lambda row: labels[row]):
        rows = list(group_)
        wanted |= dict(zip([keys[row] for row in rows], double_loop(vectors[rows], 0.6), strict=True))
    sorted_ = put(tmp_path / "sorted", [keys[row] for row in order], labels[order], vectors[order])
    shuffled = put(tmp_path / "shuffled", keys, labels, vectors)
    found = []
    for source, block_size in itertools.product((shuffled, sorted_), (1500, 2**20)):
        out = tmp_path / f"{source.name}{block_size}"
        result = build(settings_of(threshold=0.6, block_size=block_size), source, out)
        found.append(decided(out))
        assert result.counts.faces_out == sum(wanted.values()) == sum(row[1] for row in found[-1].values())
        assert result.mean_cosine_after < result.mean_cosine_before
        assert result.baselines["random"].faces == result.counts.faces_out
        assert not (out / ".work").exists()
    assert all(other == found[0] for other in found)
    assert {key: row[1] for key, row in found[0].items()} == wanted
    for key, (label, kept, by, reason) in found[0].items():
        assert label == labels[place[key]]
        assert (by is None) == kept == (reason == "kept")
        if by is not None:
            a, b = (vectors[place[each]].astype(np.float64) for each in (key, by))
            assert found[0][by][1]
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.6


def test_partitions_of_shuffled_rows_hold_whole_identities_within_a_block(faces: Any, tmp_path: Path) -> None:
    """Every row is in one partition; a partition is at most a block and the identity that fills it."""
    keys, labels, vectors = faces
    block = 40
    for name, order in (("shuffled", np.arange(len(keys))), ("sorted", np.argsort(labels, kind="stable"))):
        source = put(tmp_path / name, [keys[row] for row in order], labels[order], vectors[order])
        partitions = partition_by_identity(
            open_embeddings(source), WorkPath(root=tmp_path / f"runs_{name}"), block * SIZE * 2
        )
        read_ = [read_partition(partition)[0] for partition in partitions.partitions]
        assert sorted(key for rows in read_ for key in rows.keys.to_pylist()) == sorted(keys)
        identities = [set(rows.labels.tolist()) for rows in read_]
        assert sum(map(len, identities)) == len(set().union(*identities)) == 60
        for partition, rows in zip(partitions.partitions, read_, strict=True):
            assert partition.num_rows == len(rows.labels) < block + np.bincount(labels)[rows.labels].max()
        assert (tmp_path / f"runs_{name}").exists() == (name == "shuffled")


def stop_at(count: int) -> Callable[[int, int | None], None]:
    """Interrupts when it is called for the count-th time."""
    calls = itertools.count(1)

    def stop(done: int, total: int | None) -> None:
        if next(calls) == count:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("stopped_at", [2, 9, 20])
def test_prune_interrupted_in_any_stage_resumes_to_the_same_bytes(
    faces: Any, tmp_path: Path, stopped_at: int, recorder: Any
) -> None:
    """A finished job returns its result without work; another job is refused."""
    source = put(tmp_path / "emb", *faces)
    settings = settings_of(keep=0.6, block_size=3000)
    build(settings, source, tmp_path / "whole")
    out = tmp_path / "stopped"
    recorder.on_advance = stop_at(stopped_at)
    with pytest.raises(KeyboardInterrupt):
        build(settings, source, out)
    recorder.on_advance = lambda done, total: None
    result = build(settings, source, out)
    assert abs(result.keep - 0.6) <= 0.005
    assert (out / "core_set.parquet").read_bytes() == (tmp_path / "whole" / "core_set.parquet").read_bytes()
    recorder.on_advance = stop_at(1)
    assert build(settings, source, out).job.seconds == result.job.seconds
    with pytest.raises(ValueError, match=r"was started with keep 0.6, this job has 0.5: choose another"):
        build(settings | {"keep": 0.5}, source, out)


@pytest.fixture(scope="module")
def unclean(faces: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Images with faults of every kind, a test set, and settings that drop and merge."""
    keys, labels, vectors = faces
    root = tmp_path_factory.mktemp("unclean")
    labels = np.where(labels == np.bincount(labels).argmax(), 1001 + np.arange(len(labels)) % 2, labels)
    shared = np.flatnonzero(labels < 1000)[[0, -1]]
    vectors = vectors.copy()
    vectors[shared[0]] = vectors[shared[1]]
    test = put(root / "test", ["t0", "t1"], np.zeros(2, int), vectors[labels == labels[5]][:2], files=1)
    look = settings_of(
        outliers=0.3, duplicates=0.9, conflicts=0.95, above=0.8, drop=("outliers", "conflicts"), merge=True
    )
    return put(root / "emb", keys, labels, vectors), test, settings_of(keep=0.6, block_size=3000, clean=look)


def read_all(out: Path) -> dict[str, bytes]:
    """The core set and what was found, byte for byte."""
    return {path.name: path.read_bytes() for path in (out / "core_set.parquet", *(out / "found").iterdir())}


@pytest.mark.long
def test_prune_killed_while_it_cleans_resumes_to_the_same_bytes(
    unclean: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any
) -> None:
    """Cleaning starts over if it was interrupted, and is not repeated once it is finished."""
    source, test, settings = unclean
    whole = build(settings, source, tmp_path / "whole", exclude=test)
    assert all(whole.found[name] for name in ("outliers", "duplicates", "conflicts", "test"))
    out, real = tmp_path / "killed", clean_job.write_findings

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clean_job, "write_findings", killed)
    with pytest.raises(KeyboardInterrupt):
        build(settings, source, out, exclude=test)
    monkeypatch.setattr(clean_job, "write_findings", real)

    def killed_when_clean(done: int, total: int | None) -> None:
        if (out / ".work" / "clean" / "done.json").exists():
            raise KeyboardInterrupt

    recorder.on_advance = killed_when_clean
    with pytest.raises(KeyboardInterrupt):
        build(settings, source, out, exclude=test)
    recorder.on_advance = lambda done, total: None
    monkeypatch.setattr(clean_job, "describe", killed)
    again = build(settings, source, out, exclude=test)
    assert again.found == whole.found
    assert read_all(out) == read_all(tmp_path / "whole")


@pytest.mark.long
def test_prune_of_an_identity_of_50_000_images_selects_as_a_plain_loop(tmp_path: Path) -> None:
    """In blocks of a fortieth of it; the selection equals that of a plain loop over rows of cosines."""
    random = np.random.default_rng(2)
    views = random.standard_normal((200, SIZE))
    large = views[random.integers(200, size=50_000)] + 0.02 * random.standard_normal((50_000, SIZE))
    small = random.standard_normal((3_000, SIZE))
    labels = np.r_[np.full(50_000, 7), 10 + np.arange(3_000) // 10]
    order = random.permutation(53_000)
    vectors, labels = np.r_[large, small].astype(np.float16)[order], labels[order]
    folder = tmp_path / "emb"
    folder.mkdir()
    keys = [f"{row:05d}" for row in range(53_000)]
    rows = [(keys[k : k + 6000], labels[k : k + 6000], vectors[k : k + 6000]) for k in range(0, 53_000, 6000)]
    write_part(str(folder / "0.parquet"), rows, size=SIZE, dtype="fp16", note={})
    block = 1250 * SIZE * 2
    result = build(settings_of(threshold=0.95, block_size=block), folder, tmp_path / "out")
    found = decided(tmp_path / "out")
    mine = np.flatnonzero(labels == 7)
    units = vectors[mine].astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    kept = np.ones(len(mine), bool)
    for row in np.argsort(-np.round(1 - units @ units.mean(axis=0), 12), kind="stable"):
        if kept[row]:
            kept[units @ units[row] > 0.95] = False
            kept[row] = True
    assert [found[keys[row]][1] for row in mine] == kept.tolist()
    assert 200 <= kept.sum() < 1000
    assert result.counts.faces_out == kept.sum() + sum(row[1] for row in found.values() if row[0] != 7)


def test_prune_after_a_killed_writer_deletes_its_files_alone(faces: Any, tmp_path: Path, recorder: Any) -> None:
    """Files of other writers stay."""
    source, out = put(tmp_path / "emb", *faces), tmp_path / "out"
    recorder.on_advance = stop_at(1)
    with pytest.raises(KeyboardInterrupt):
        build(settings_of(threshold=0.6), source, out)
    recorder.on_advance = lambda done, total: None
    for folder in (out, source):
        (folder / ".core_set.parquet.0123abcd.tmp").write_bytes(b"half")
    build(settings_of(threshold=0.6), source, out)
    assert not (out / ".core_set.parquet.0123abcd.tmp").exists()
    with pytest.raises(ValueError, match="is not empty"):
        build(settings_of(threshold=0.6), source, source)
    assert (source / ".core_set.parquet.0123abcd.tmp").exists()


def test_bench_prune_of_a_whole_job_measures_every_stage() -> None:
    """All images are selected from, and every stage has its seconds; memory is measured if the system allows it."""
    settings = PruneBench(faces=1500, identities=60, embedding_size=SIZE, block_bytes=8000, largest=300, cpus=2)
    found = bench_prune(settings).as_dict()
    assert (found["identities"], found["embedding_bytes"], found["files"]) == (61, 1500 * SIZE * 2, 1)
    assert abs(found["kept"] - 0.6) <= 0.005
    assert set(found["stage_seconds"]) == {"group", "choose", "write", "compare"}
    hours = found["projected_hours_42m_64_cores"]
    assert hours["group"] / hours["write"] == pytest.approx(
        found["stage_seconds"]["group"] / found["stage_seconds"]["write"] / 32
    )
    if Path("/proc/self/clear_refs").exists():
        assert found["driver_bytes"] >= 0
        assert found["task_bytes"] >= 0
    with pytest.raises(ValueError, match="largest 20: from 0 to the number"):
        bench_prune(PruneBench(faces=10, largest=20))


def test_prune_with_other_methods_keeps_the_share_and_min_images(faces: Any, tmp_path: Path) -> None:
    """Random and herding keep the share exactly; no identity falls below min_images; global_weight changes ranks."""
    keys, labels, _ = faces
    source = put(tmp_path / "emb", *faces)
    for method in ("random", "herding"):
        build(settings_of(method=method, keep=0.6, block_size=4000), source, tmp_path / method)
        kept = [row[1] for row in decided(tmp_path / method).values()]
        assert sum(kept) == round(0.6 * len(keys))
    least = settings_of(threshold=0.0, min_images=3, block_size=4000)
    build(least, source, tmp_path / "least")
    left = np.bincount([row[0] for row in decided(tmp_path / "least").values() if row[1]], minlength=1000)
    assert (left >= np.minimum(np.bincount(labels, minlength=1000), 3)).all()
    plain = settings_of(threshold=0.6)
    build(plain, source, tmp_path / "plain")
    build(plain | {"global_weight": 1.0}, source, tmp_path / "global")
    assert decided(tmp_path / "plain") != decided(tmp_path / "global")


def test_prune_with_cleaning_finds_drops_and_merges_before_it_selects(faces: Any, tmp_path: Path) -> None:
    """An outlier, an identity under two labels and one of the test set are found, and dropped if asked for."""
    keys, labels, vectors = faces
    random = np.random.default_rng(1)
    largest = np.bincount(labels).argmax()
    rows = np.flatnonzero(labels == largest)
    labels, vectors = labels.copy(), vectors.copy()
    labels[rows[:70]] = 1001
    vectors[rows[0]] = -vectors[rows].astype(np.float32).mean(axis=0)
    taken = np.flatnonzero(labels == labels[labels < 1000][np.bincount(labels)[labels[labels < 1000]].argmin()])
    source = put(tmp_path / "emb", keys, labels, vectors)
    noisy = vectors[taken] + random.normal(0, 0.01, (len(taken), SIZE)).astype(np.float16)
    test = put(tmp_path / "test", [f"t{k}" for k in taken], np.zeros(len(taken), int), noisy, files=1)
    look = settings_of(outliers=-0.5, duplicates=0.95)
    settings = settings_of(threshold=1.0, clean=look, block_size=3000)
    result = build(settings, source, tmp_path / "found")
    assert result.found == {"outliers": 1, "duplicates": 1, "conflicts": 0, "bytes": 0, "test": 0}
    assert (result.counts.faces_cleaned, result.counts.faces_out) == (0, len(keys))
    outliers = pq.read_table(tmp_path / "found" / "found" / "outliers.parquet")
    assert outliers["key"].to_pylist() == [keys[rows[0]]]
    asked = settings | {"clean": look | {"above": 0.99, "drop": ("outliers",), "merge": True}}
    build(asked, source, tmp_path / "dropped", exclude=test)
    found = decided(tmp_path / "dropped")
    assert set(found) == set(keys)
    gone = {key: row[3] for key, row in found.items() if not row[1]}
    assert gone == {keys[rows[0]]: "outlier"} | dict.fromkeys([keys[row] for row in taken], "in the test set")
    assert {found[keys[row]][0] for row in rows[1:]} == {largest}
    with pytest.raises(ValueError, match=r"clean.exclude, clean.above: must be given together"):
        build(asked, source, tmp_path / "one")


def test_prune_with_merged_identities_writes_one_class_for_them(embedded: Path, drawn: Path, tmp_path: Path) -> None:
    """The shards keep their labels; of equal files one stays."""
    look = settings_of(duplicates=-0.99, merge=True, bytes=True, drop=("bytes",))
    result = build(
        settings_of(threshold=1.0, clean=look),
        embedded,
        tmp_path / "out",
        data=[str(drawn)],
    )
    dataset = open_dataset(tmp_path / "out", max_corrupt_fraction=0)
    assert (dataset.num_classes, dataset.num_images) == (1, 240)
    assert result.found["bytes"] == 0
    samples = read_samples(dataset.shard_paths(), dataset.index)
    assert not any(isinstance(sample, Fault) for sample in samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, v: (k, np.where(np.arange(len(v))[:, None] == 7, np.nan, v)), "has NaN or infinity"),
        (lambda k, v: (k, np.where(np.arange(len(v))[:, None] == 7, 0, v)), "is all zeros"),
        (lambda k, v: ([*k[:-1], k[0]], v), "occurs 2 times: keys must be unique"),
    ],
)
def test_prune_of_bad_rows_is_refused_in_one_line(
    faces: Any, tmp_path: Path, change: Callable[..., Any], message: str
) -> None:
    keys, labels, vectors = faces
    keys, vectors = change(keys, vectors)
    source = put(tmp_path / "emb", keys, labels, vectors.astype(np.float16))
    with pytest.raises(ValueError, match=message) as raised:
        build(settings_of(threshold=0.6), source, tmp_path / "out")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (settings_of(keep=0.0), "prune.keep: 0.0: input should be greater than 0"),
        (settings_of(keep=1.2), "prune.keep: 1.2: input should be less than or equal to 1"),
        (settings_of(), "neither is given"),
        (settings_of(keep=0.5, threshold=0.5), "both are given"),
        (settings_of(threshold=1.5), "prune.threshold: 1.5: input should be less than or equal to 1"),
        (settings_of(method="random", threshold=0.5), "prune.threshold: random has no threshold: set prune.keep"),
        (settings_of(method="best", keep=0.5), "prune.method: 'best': must be one of"),
        (settings_of(keep=0.5, min_images=0), "prune.min_images: 0: input should be greater than 0"),
        (settings_of(keep=0.5, global_weight=float("nan")), "prune.global_weight: nan: input should be"),
        (
            settings_of(keep=0.5, head="nowhere", baselines=("diffprob",)),
            "prune.head: .*nowhere: is not a run",
        ),
        (settings_of(keep=0.5, clean=settings_of(drop=("outliers",))), "clean.drop: 'outliers': needs clean.outliers"),
    ],
)
def test_prune_with_bad_settings_is_refused_in_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(settings, tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pruned_dataset_by_reference_or_as_shards_holds_the_kept_images(
    embedded: Path, drawn: Path, faces: Any, tmp_path: Path
) -> None:
    """For embeddings of other images, or with other labels, the key is named."""
    for name, write_shards in (("reference", False), ("shards", True)):
        out = tmp_path / name
        result = build(
            settings_of(keep=0.6),
            embedded,
            out,
            data=[str(drawn)],
            write_shards=write_shards,
        )
        dataset, source = open_dataset(out, max_corrupt_fraction=0), open_dataset(drawn)
        kept = {key for key, row in decided(out).items() if row[1]}
        assert set(dataset.keys()) == kept
        assert result.dataset is not None
        assert result.dataset.images == dataset.num_images == result.counts.faces_out == len(kept)
        assert dataset.identities == source.identities
        assert dataset.about.parent == Parent(path=str(drawn), digest=source.digest)
        labels = dict(zip(source.keys(), source.index.label.tolist(), strict=True))
        assert all(
            labels[key] == label for key, label in zip(dataset.keys(), dataset.index.label.tolist(), strict=True)
        )
    assert check(tmp_path / "shards", deep=True).ok
    lost = [tmp_path / "shards" / name for name in ("core_set.parquet", "shard-000001.tar")]
    before = [path.read_bytes() for path in lost]
    for path in lost:  # prune.json says that they are there
        path.unlink()
    build(settings_of(keep=0.6), embedded, tmp_path / "shards", data=[str(drawn)], write_shards=True)
    assert [path.read_bytes() for path in lost] == before
    with pytest.raises(ValueError, match=r"has no key 'k\d+' \(\d+ of \d+ are missing\)"):
        build(
            settings_of(threshold=0.6),
            put(tmp_path / "emb", *faces),
            tmp_path / "other",
            data=[str(drawn)],
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_prune_by_proxy_samples_trains_embeds_and_prunes_once(drawn: Path, tmp_path: Path) -> None:
    """Sample, train, embed, prune, and train on the core set, logged to MLflow; run again, it repeats nothing."""
    settings = [f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", "train.batch_size=24", "data.window_images=48"]
    out = tmp_path / "core"

    def prune_with(fraction: float) -> PruneResult:
        own = [f"prune.proxy_fraction={fraction}", "prune.keep=0.6", f"prune.data={drawn}", f"prune.out={out}"]
        return prune_by_proxy(configs.load("debug", overrides=[*settings, *own]))

    result = prune_with(0.3)
    assert result.tracked is not None
    assert result.tracked.delivered
    sample = open_dataset(out / "proxy" / "data")
    assert (sample.num_classes, sample.num_images) == (6, 72)
    assert abs(result.keep - 0.6) <= 0.005
    weights = (out / "proxy" / "run" / "model.safetensors").stat().st_mtime_ns
    assert prune_with(0.3).counts.faces_out == result.counts.faces_out
    assert (out / "proxy" / "run" / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ValueError, match=r"proxy: was started with fraction 0\.3, this job has 0\.5"):
        prune_with(0.5)
    overrides = [f"data.train={out}", f"train.output={tmp_path / 'run'}", *settings]
    trained = train(configs.load("debug", overrides=overrides)).as_dict()
    assert trained["steps"] == result.counts.faces_out // 24

    import mlflow

    runs = mlflow.MlflowClient(tracking_uri=settings[0].partition("=")[2]).search_runs(["1"])
    logged = {run.info.run_name: run.data for run in runs}
    assert set(logged) == {f"{tmp_path.name}/core", "proxy/embeddings", "proxy/run", f"{tmp_path.name}/run"}
    assert logged[f"{tmp_path.name}/core"].metrics["faces_out"] == result.counts.faces_out
    assert logged[f"{tmp_path.name}/core"].params["keep"] == "0.6"
