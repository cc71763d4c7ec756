"""Parquet files read in the calling thread alone: Arrow's own threads would hold a Python file when Python ends."""

import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data.index import read_keys_at
from rayface.data.keys import read_keys
from rayface.storage import DataError, Source, parquet
from rayface.storage.parquet import open_parquet, read_table
from tests.conftest import ObjectStore

TABLE = pa.table({"a": range(10_000), "b": [f"{n}" for n in range(10_000)], "c": [n / 7 for n in range(10_000)]})


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Threads that have read from a Source."""
    read, found = Source.read, set()

    def noted(source: Source, offset: int, count: int) -> bytes:
        found.add(threading.get_native_id())
        return read(source, offset, count)

    monkeypatch.setattr(Source, "read", noted)
    return found


READS: list[Callable[[pq.ParquetFile], pa.Table]] = [
    lambda file: file.read(),
    lambda file: file.read(columns=["c", "a"]),
    lambda file: pa.Table.from_batches(file.iter_batches(900, columns=["a", "b"])),
    lambda file: pa.concat_tables(file.read_row_group(group, ["b"]) for group in range(file.num_row_groups)),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("options", [{}, {"buffer_size": 4096}])
def test_parquet_file_is_read_in_the_calling_thread(
    tmp_path: Path, threads: set[int], read: Callable[[pq.ParquetFile], pa.Table], options: dict[str, int]
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(TABLE, path, row_group_size=3000)
    with open_parquet(str(path), **options) as file:
        found = read(file)
    assert threads == {threading.get_native_id()}
    assert found.equals(TABLE.select(found.column_names))


def test_parquet_file_in_a_store_is_read_as_on_a_disk(tmp_path: Path, object_store: ObjectStore) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    object_store.put("t.parquet", (tmp_path / "t.parquet").read_bytes())
    with open_parquet(object_store.uri("t.parquet")) as file:
        assert file.read().equals(TABLE)


def test_parquet_file_that_is_missing_or_corrupt_raises_and_keeps_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DataError, match="missing"):
        open_parquet(str(tmp_path / "missing"))
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(pa.ArrowInvalid):
        open_parquet(str(tmp_path / "text"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Evil:
    """A pickle of it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.path, "")


EXTENSION = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}


@pytest.mark.parametrize("nested", ["plain", "struct", "list", "map", "fixed list"])
def test_parquet_column_of_pickles_is_refused_and_not_unpickled(tmp_path: Path, nested: str) -> None:
    import ray.data  # noqa: F401  registers the type

    field = pa.field("item", pa.large_binary(), metadata=EXTENSION)
    content = pickle.dumps(Evil(tmp_path / "executed"))
    kind, value = {
        "plain": (pa.large_binary(), content),
        "struct": (pa.struct([field]), {"item": content}),
        "list": (pa.list_(field), [content]),
        "map": (pa.map_(pa.string(), field), [("a", content)]),
        "fixed list": (pa.list_(field, 1), [content]),
    }[nested]
    schema = pa.schema(
        [pa.field("identity", kind, metadata=EXTENSION if nested == "plain" else None), ("n", pa.int64())]
    )
    pq.write_table(pa.Table.from_pydict({"identity": [value], "n": [5]}, schema), tmp_path / "t.parquet")
    columns = ["identity.item", "n"] if nested == "struct" else ["identity", "n"]
    for max_value in (None, 4096):
        with open_parquet(str(tmp_path / "t.parquet"), max_value=max_value) as file:
            for read in (
                file.read,
                lambda names: list(file.iter_batches(columns=names)),
                partial(file.read_row_group, 0),
            ):
                for names in (columns, None):
                    with pytest.raises(DataError, match="identity: is of an extension type"):
                        read(names)
            assert file.read(["n"]).to_pydict() == file.read_row_group(0, ["n"]).to_pydict() == {"n": [5]}
            assert [batch.to_pydict() for batch in file.iter_batches(columns=["n"])] == [{"n": [5]}]
    assert not (tmp_path / "executed").exists()


def test_parquet_text_of_arrows_own_extension_type_is_read_and_refused_if_it_is_long(tmp_path: Path) -> None:
    for kind in (pa.json_(), pa.opaque(pa.string(), "text", "me")):
        for size in (5, 5000):
            values = pa.ExtensionArray.from_storage(kind, pa.array([f'"{"x" * size}"'] * 3))
            pq.write_table(pa.table({"key": values}), tmp_path / "t.parquet")
            if size == 5:
                assert read_table(tmp_path / "t.parquet").equals(pa.table({"key": values}))
            else:
                with pytest.raises(DataError, match="key: a value has more than 4,096 bytes"):
                    read_table(tmp_path / "t.parquet")
    values = pa.array(["a"]).dictionary_encode()
    values = pa.ExtensionArray.from_storage(pa.opaque(values.type, "text", "me"), values)
    pq.write_table(pa.table({"key": values}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="key: is of an extension type"):  # Arrow would end the process
        read_table(tmp_path / "t.parquet")


CODINGS = {
    "dictionary": {},
    "dictionary that overflows": {"dictionary_pagesize_limit": 1000, "data_page_size": 1000},
    **{
        coding: {"use_dictionary": False, "column_encoding": {"key": coding}}
        for coding in ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
    },
}


@pytest.fixture(params=["few texts", "many texts"])
def num_texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many texts is read in another way."""
    if request.param == "many texts":
        monkeypatch.setattr(parquet, "_LARGE_CHUNK", 0)


@pytest.mark.usefixtures("num_texts")
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()])
def test_parquet_texts_of_every_encoding_are_read_in_their_type(tmp_path: Path, coding: str, kind: pa.DataType) -> None:
    texts = pa.array([f"{n // 2}" if n % 7 else None for n in range(5000)])
    table = pa.table({"n": range(5000), "key": texts.cast(kind)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3000, **CODINGS[coding])
    with open_parquet(str(tmp_path / "t.parquet")) as file:
        assert file.read().equals(table)
        batches = list(file.iter_batches(2000, row_groups=[1], columns=["key"]))
    assert pa.Table.from_batches(batches).equals(table.slice(3000).select(["key"]))


def test_parquet_text_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"key": [f"{n:08d}" for n in range(50_000)]}), tmp_path / "t.parquet")
    read, sizes = Source.read, []
    monkeypatch.setattr(Source, "read", lambda *args: (sizes.append(args[2]), read(*args))[1])
    assert sum(map(len, read_keys(str(tmp_path / "t.parquet")))) == 50_000
    assert sum(sizes) < 1.3 * (tmp_path / "t.parquet").stat().st_size


@pytest.mark.usefixtures("num_texts")
@pytest.mark.parametrize("coding", ["dictionary", "category", "delta"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()])
def test_parquet_text_that_a_small_file_repeats_is_refused_before_it_is_expanded(
    tmp_path: Path, coding: str, kind: pa.DataType
) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 100_000], kind))
    how = {"use_dictionary": False, "column_encoding": {"key": "DELTA_BYTE_ARRAY"}} if coding == "delta" else {}
    if coding == "delta":
        column = column.take(pa.array(range(2000))).cast(kind)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"key": column}), path, compression="zstd", store_schema=coding == "category", **how)
    assert path.stat().st_size < 20_000
    before = pa.total_allocated_bytes()
    for read in (read_table, lambda path: list(read_keys(str(path))), lambda path: read_keys_at(str(path), [5])):
        with pytest.raises(DataError, match="key: a value has more than 4,096 bytes"):
            read(path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_parquet_dictionary_of_many_texts_is_checked_in_every_row_group(tmp_path: Path) -> None:
    """The long one is in neither the first group nor the first row, and no dictionary can hold all texts."""
    texts = [f"{n:020d}" for n in range(200_000)]
    pq.write_table(pa.table({"key": texts}), tmp_path / "t.parquet", row_group_size=100_000)
    assert read_table(tmp_path / "t.parquet")["key"].to_pylist() == texts
    texts[100_500] = "x" * 5000
    pq.write_table(pa.table({"key": texts}), tmp_path / "t.parquet", row_group_size=100_000)
    rule = "key: a value has more than 4,096 bytes"
    with open_parquet(str(tmp_path / "t.parquet")) as file, pytest.raises(DataError, match=rule):
        next(file.iter_batches(10))


def test_parquet_table_far_larger_than_its_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MAX_TABLE", 1 << 20)
    pq.write_table(pa.table({"key": ["x" * 4000] * 1000, "n": [0] * 1000}), tmp_path / "t.parquet")
    assert len(read_table(tmp_path / "t.parquet", ["n"])) == 1000
    with pytest.raises(DataError, match=r"its table has more than [0-9,]+ bytes, 100 times the file's"):
        read_table(tmp_path / "t.parquet")


def test_parquet_texts_in_lists_are_refused_and_float16_lists_are_read(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.5] * 4, pa.float16()), 2)
    pq.write_table(pa.table({"embedding": vectors, "texts": [["a"], ["b"]]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["embedding"])["embedding"].to_pylist() == [[1.5, 1.5]] * 2
    with pytest.raises(DataError, match=r"texts.list.element: must be numbers or texts"):
        read_table(tmp_path / "t.parquet")
