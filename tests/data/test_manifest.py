"""dataset.json and identities.parquet: what is read, what is refused in one line, what a scan says of bare shards."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.manifest import (
    Manifest,
    ShardEntry,
    digest_of,
    manifest_of_scan,
    names_digest,
    read_identities,
    read_manifest,
    read_parquet,
)
from rayface.data.shards.samples import Fault
from rayface.data.shards.scan import ShardScan, index_table
from rayface.storage import DataError, list_names, remember_server
from tests.conftest import ObjectStore
from tests.data.shard_files import small_dataset


def scan(
    labels: list[int], *, image_size: tuple[int, int] | None = None, faults: list[Fault] | None = None
) -> ShardScan:
    """The scan of a shard with these labels."""
    rows = range(len(labels))
    table = index_table(
        ([f"k{row}" for row in rows], [0] * len(labels), [512 * row for row in rows], [512] * len(labels), labels)
    )
    return ShardScan(table=table, faults=faults or [], num_bytes=9, sha256="s", image_size=image_size)


def test_manifest_written_and_read_back_is_equal_and_leaves_out_empty_prefixes(tmp_path: Path) -> None:
    entries = [
        ShardEntry(path="a.tar", num_images=2, num_bytes=9, sha256="s"),
        ShardEntry(path="b.tar", num_images=1, num_bytes=5, key_prefix="b.tar/"),
    ]
    manifest = Manifest(name="set", num_classes=3, num_images=3, shards=entries)
    (tmp_path / "dataset.json").write_bytes(manifest.to_json())
    assert read_manifest(str(tmp_path)) == manifest
    first, second = json.loads(manifest.to_json())["shards"]
    assert "key_prefix" not in first
    assert second["key_prefix"] == "b.tar/"
    assert "selection" not in json.loads(manifest.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, r"num_classes: Input should be greater than or equal to 1; run `rayface check"),
        ({"num_classes": 2**31 + 1}, r"num_classes: Input should be less than or equal to 2147483648"),
        ({"num_images": -1}, r"num_images: Input should be greater than or equal to 0"),
        ({"shards": [{"path": "a.tar", "num_images": -1, "num_bytes": 1}]}, r"shards.0.num_images: Input should be"),
        ({"shards": [{"path": "a.tar", "num_images": 1, "num_bytes": -1}]}, r"shards.0.num_bytes: Input should be"),
        ({"shards": [{"path": "..", "num_images": 1, "num_bytes": 1}]}, r"'\.\.' must be the name of a file"),
        ({"name": None}, r"name: Input should be a valid string"),
        ({"shards": [{"path": "x/a.tar", "num_images": 1, "num_bytes": 1}]}, r"'x/a.tar' must be the name of a file"),
    ],
)
def test_read_manifest_with_a_wrong_field_names_it_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = small_dataset(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(str(folder))
    assert str(caught.value).startswith(f"{folder}/dataset.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 2], ["a", "b"], r"label: must be every number from 0 to 1 once"),
        ([0, 1], ["a", "a"], r"identity: names must be unique"),
        ([0], ["a"], r"label: must be every number from 0 to 1 once"),
    ],
)
def test_read_identities_of_impossible_labels_or_names_is_refused(
    tmp_path: Path, labels: list[int], names: list[str], message: str
) -> None:
    pq.write_table(pa.table({"label": labels, "identity": names}), tmp_path / "identities.parquet")
    with pytest.raises(DataError, match=message):
        read_identities(str(tmp_path), 2, exact=True)


def test_read_identities_in_any_order_returns_names_by_label(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [2, 0, 1], "identity": ["c", "a", "b"]}), tmp_path / "identities.parquet")
    assert read_identities(str(tmp_path), 3, exact=True) == ["a", "b", "c"]
    assert read_identities(str(tmp_path), 2, exact=False) == ["a", "b", "c"]  # one without an image
    with pytest.raises(DataError, match="every number from 0 to 1"):
        read_identities(str(tmp_path), 2, exact=True)


def test_read_parquet_without_a_column_names_the_columns_in_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: not a parquet file with columns label, key \(") as caught:
        read_parquet(str(tmp_path / "a.parquet"), ["label", "key"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "layout"), [([0, 0, 0, 1, 1, 1], "by_identity"), ([0, 1, 2, 0, 1, 2], "shuffled"), ([4, 4], "shuffled")]
)
def test_manifest_of_scan_guesses_the_layout_from_neighbours(labels: list[int], layout: str) -> None:
    manifest = manifest_of_scan("/x/set", ["a.tar"], [scan(labels)])
    assert (manifest.layout, manifest.num_classes, manifest.num_images) == (layout, max(labels) + 1, len(labels))
    assert manifest.name == "set"


def test_manifest_of_scan_with_images_of_two_sizes_has_no_size() -> None:
    names = ["a.tar", "b.tar"]
    same = [scan([0], image_size=(32, 32)), scan([1], image_size=(32, 32))]
    assert manifest_of_scan("s3://b/set?region=x", names, same).image_size == (32, 32)
    assert manifest_of_scan("s3://b/set?region=x", names, same).name == "set"
    assert manifest_of_scan("x", names, [same[0], scan([1], image_size=(64, 64))]).image_size is None


def test_manifest_of_scan_without_a_readable_sample_names_the_first_fault() -> None:
    fault = Fault(shard="a.tar", member="k.jpg", offset=3, reason="corrupt", kind="header")
    with pytest.raises(DataError, match=r"^/x: no readable sample .* in 1 shard; the first fault: a.tar: k.jpg"):
        manifest_of_scan("/x", ["a.tar"], [scan([], faults=[fault])])


def test_digest_of_equal_shards_ignores_names_unless_a_digest_is_missing() -> None:
    def manifest(*entries: dict[str, Any], selection: str | None = None) -> Manifest:
        shards = [ShardEntry(num_images=1, num_bytes=7, **entry) for entry in entries]
        return Manifest(name="set", num_classes=1, num_images=1, selection=selection, shards=shards)

    hashed = digest_of(manifest({"path": "a.tar", "sha256": "s"}))
    assert hashed == digest_of(manifest({"path": "b.tar", "sha256": "s"}))
    assert hashed != digest_of(manifest({"path": "a.tar", "sha256": "t"}))
    assert hashed != digest_of(manifest({"path": "a.tar", "sha256": "s"}, selection="x"))
    assert digest_of(manifest({"path": "a.tar"})) != digest_of(manifest({"path": "b.tar"}))


def selection(folder: Path, *places: str) -> Path:
    shards = [ShardEntry(path=place, num_images=1, num_bytes=10) for place in places]
    manifest = Manifest(name="n", num_classes=1, num_images=1, selection="0" * 64, shards=shards)
    (folder / "dataset.json").write_bytes(manifest.to_json())
    return folder


@pytest.fixture
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayface.storage.servers._known", set())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


CHINA = "blob_storage_authority=.blob.core.chinacloudapi.cn&dfs_storage_authority=.dfs.core.chinacloudapi.cn"


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/a.tar?region=eu",
        "s3://bucket/a.tar?region=eu&scheme=https",
        "abfs://account@images/a.tar",
        "abfs://images/a.tar",
        "abfs://images@a.dfs.core.windows.net/a.tar",
        "abfss://images@a.dfs.core.usgovcloudapi.net/a.tar",
        f"abfs://account@images/a.tar?{CHINA}",
    ],
)
def test_read_manifest_of_a_selection_on_the_servers_of_a_provider_is_read(
    tmp_path: Path, no_server: None, place: str
) -> None:
    assert read_manifest(str(selection(tmp_path, place))).shards[0].path == place


@pytest.mark.parametrize(
    ("query", "url"),
    [
        ("endpoint_override=evil:9&scheme=http", "http://evil:9"),
        ("region=eu&endpoint%5Foverride=evil:9", "https://evil:9"),
        ("endpoint_override=http%3A//evil:9/", "http://evil:9"),
        ("endpoint_override=http://evil:9&scheme=https", "http://evil:9"),
    ],
)
def test_read_manifest_of_a_selection_on_a_server_that_nobody_named_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_server: None, query: str, url: str
) -> None:
    selection(tmp_path, "s3://bucket/a.tar?region=eu", f"s3://bucket/b.tar?{query}")
    rule = (
        f"dataset.json: shards: s3://bucket/b.tar.*: '{url}': must be a server that .* set AWS_ENDPOINT_URL_S3 to it$"
    )
    for other in ("", "http://evil:99"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", other)
        with pytest.raises(DataError, match=rule):
            read_manifest(str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{url}/")
    assert read_manifest(str(tmp_path)).num_images == 1


@pytest.mark.parametrize(
    ("place", "server"),
    [
        ("gs://b/a.tar?endpoint_override=evil:9&scheme=http", "http://evil:9"),
        ("s3://b/a.tar?endpoint_override=evil:9&endpoint_override=mine:9", "https://evil:9"),  # Arrow takes the first
        ("abfs://127.0.0.1:10000/account/c/a.tar", "127.0.0.1:10000"),
        ("abfs://a@c/a.tar?blob_storage_authority=127.0.0.1:9", "127.0.0.1:9"),
        ("abfs://c@evil%2Ecom/a.tar", "evil.com"),
        ("abfs://evil.com#@c/a.tar", "evil.com"),
        ("abfs://c@evil.com%2F.core.windows.net/a.tar", "evil.com/.core.windows.net"),
    ],
)
def test_read_manifest_of_a_selection_on_a_server_of_another_kind_names_a_remedy_that_works(
    tmp_path: Path, no_server: None, place: str, server: str
) -> None:
    remember_server("s3://b/x?endpoint_override=mine:9")
    selection(tmp_path, place)
    with pytest.raises(
        DataError, match=f": '{server}': must be a server that you name, .* if you trust it, s"
    ) as caught:
        read_manifest(str(tmp_path))
    assert ("open it from there" in str(caught.value)) == (not place.startswith("s3"))
    remember_server(place)  # as opening it from there does
    assert read_manifest(str(tmp_path)).num_images == 1


def test_names_digest_depends_on_every_name_and_its_label() -> None:
    digests = {names_digest(names) for names in (["a", "b"], ["b", "a"], ["a", "b", ""], ["ab"], ["a1 b"], ["a", "ü"])}
    assert len(digests) == 6


def test_open_dataset_with_a_selection_on_the_server_of_a_later_directory_reads_its_manifest(
    tmp_path: Path, no_server: None
) -> None:
    query = "?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    selection(tmp_path, f"s3://b/a.tar{query}")
    with pytest.raises(DataError, match="must be a server that you name"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}: index.parquet is missing"):  # so the manifest was read
        open_dataset([tmp_path, f"s3://b/x{query}"])


def test_read_manifest_of_a_selection_on_the_server_of_an_opened_uri_is_read(
    tmp_path: Path, object_store: ObjectStore, no_server: None
) -> None:
    list_names(object_store.uri(""))
    assert read_manifest(str(selection(tmp_path, object_store.uri("set/a.tar")))).num_images == 1
