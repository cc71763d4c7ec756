"""Sets of embeddings on disk: parquet files with key, label and embedding, of any origin."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from rayface.credentials import masked
from rayface.embedding.rows import EmbeddingFile, kind_of, reading
from rayface.storage import (
    DataError,
    join,
    list_files,
    list_names,
    normalise,
    one_line,
    read_bytes,
    split,
)

MANIFEST = "embeddings.json"
JOB = "job.json"  # the job of an unfinished set
_THREADS = 16  # threads that open files and wait for the disk or the store


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A set of embedding files; small enough to send to workers.

    Attributes:
        files: ordered by name.
        size: dimension of an embedding, D.
        dtype: "float16" or "float32".
        model: SHA-256 of the model's weights by the manifest of `rayface embed`; None if unknown.
    """

    files: tuple[EmbeddingFile, ...]
    size: int
    dtype: str
    model: str | None = None

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def digest(self) -> str:
        """Digest of the files' names, rows and times."""
        return hashlib.sha256(json.dumps(masked([asdict(file) for file in self.files])).encode()).hexdigest()


def open_embeddings(path: str | Path, key: str | None = None) -> Embeddings:
    """Open a set of embeddings without reading it; sets of `rayface embed` are checked against their manifest.

    Args:
        path: a parquet file, or a folder of them (local or URI): `key` string, `label` integer, `embedding` list of
            float16, float32 or float64 (read as float32). Lists are of fixed size, plain or large; keys and labels may
            be dictionary-encoded.
        key: config key that names it, for messages.

    Raises:
        DataError: a column is missing or has another type, dimensions differ, there are no rows, or the files are not
            those of the manifest; one line.
    """
    try:
        return _open(normalise(path))
    except DataError as error:
        raise error if key is None else DataError(f"{key}: {error}") from error.__cause__


def check_one_model(source: Embeddings, other: Embeddings, *, source_key: str, key: str) -> None:
    """Refuse embeddings that are not of the model of `source`.

    Args:
        source_key, key: config keys that name the two, for messages.

    Raises:
        ValueError: lengths differ, or the models by both manifests; one line.
    """
    rule = "both must come from one model"
    if other.size != source.size:
        raise ValueError(f"{key}: its embeddings are of length {other.size}, {source_key} of {source.size}: {rule}")
    if other.model != source.model and other.model and source.model:
        raise ValueError(
            f"{key}: its embeddings are of the model {other.model[:12]}, {source_key} of {source.model[:12]}: {rule}"
        )


def _open(root: str) -> Embeddings:
    paths, expected, model = _paths(root)
    if not paths:
        raise DataError(f"{root}: no parquet files in this folder; give the output of `rayface embed`")
    with ThreadPoolExecutor(_THREADS) as pool:  # a folder may have 42,475 files
        looked = list(pool.map(_look, paths))
    kinds: dict[tuple[int, str], str] = {}
    for each, (rows, kind) in zip(paths, looked, strict=True):
        if rows != expected.get(each, rows):
            raise DataError(
                f"{each}: has {rows} rows, {MANIFEST} says {expected[each]}: delete it, and run the command that "
                "wrote it again"
            )
        if kind is not None:
            kinds.setdefault(kind, each)
    if not kinds:
        raise DataError(f"{root}: has no rows; there is nothing to select from")
    (size, dtype), *others = kinds
    if others:
        (other_size, other_dtype), first = others[0], kinds[size, dtype]
        raise DataError(
            f"{kinds[others[0]]}: embedding: is {other_dtype} of length {other_size}, in {first} it is {dtype} of "
            f"length {size}; all files must come from one model"
        )
    files = tuple(
        EmbeddingFile(path=each, num_rows=rows, modified=modified)
        for (each, modified), (rows, _) in zip(paths.items(), looked, strict=True)
    )
    return Embeddings(files=files, size=size, dtype=dtype, model=model)


def _paths(root: str) -> tuple[dict[str, int], dict[str, int], str | None]:
    """Return modification times of the parquet files at `root`, a folder or a file; rows and model by the manifest."""
    if root.partition("?")[0].endswith(".parquet"):
        folder, wanted = split(root)
        return {root: next((file.mtime_ns for file in list_files(folder) if file.name == wanted), 0)}, {}, None
    files = list_files(root, "folder of embeddings")
    names = {file.name for file in files}
    if JOB in names and MANIFEST not in names:
        raise DataError(
            f"{root}: the embeddings are unfinished: run `rayface embed` again with --out {root}, it resumes"
        )
    found = {
        join(root, file.name): file.mtime_ns
        for file in files
        if file.name.endswith(".parquet") and not file.name.startswith(".")
    }
    if MANIFEST not in names:
        return found, {}, None
    rows_by_name, model = _manifest(root)
    expected = {join(root, name): rows for name, rows in rows_by_name.items()}
    if missing := sorted(expected.keys() - found.keys()):
        raise DataError(
            f"{root}: {len(missing)} of {len(expected)} files in {MANIFEST} are missing ({missing[0]}): run "
            "the command that writes them again"
        )
    if unknown := sorted(found.keys() - expected.keys()):
        raise DataError(f"{unknown[0]}: is not in {MANIFEST}: must be a file of this job: move it elsewhere")
    return found, expected, model


def _manifest(root: str) -> tuple[dict[str, int], str | None]:
    """Return the rows of the files by name, and the digest of the model."""
    path = join(root, MANIFEST)
    try:
        content = json.loads(read_bytes(path))
        model = content.get("weights_sha256", content.get("model_sha256"))
        rows = {part["path"]: int(part["num_rows"]) for part in content["parts"]}
        return rows, model if isinstance(model, str) else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {one_line(error)}): delete it, and run the command that "
            "writes it again"
        ) from None


def missing_parts(root: str) -> list[str]:
    """Return the names of files in a folder's manifest that are missing.

    Raises:
        DataError: the manifest cannot be read.
    """
    there = set(list_names(root))
    return [name for name in _manifest(root)[0] if name not in there]


def _look(path: str) -> tuple[int, tuple[int, str] | None]:
    """Return the rows of a file, and the dimension and type of its embeddings if it has any."""
    with reading(path) as file:
        _check_columns(path, file.schema_arrow)
        rows: int = file.metadata.num_rows
        return rows, kind_of(path, file) if rows else None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_columns(path: str, schema: pa.Schema) -> None:
    for name in ("key", "label", "embedding"):
        if name not in schema.names:
            raise DataError(f"{path}: has no column {name}; embeddings need key, label and embedding")
    key, label, embedding = (_plain_type(schema.field(name).type) for name in ("key", "label", "embedding"))
    if not (pa.types.is_string(key) or pa.types.is_large_string(key) or pa.types.is_string_view(key)):
        raise DataError(f"{path}: key: is {key}, must be string")
    if not pa.types.is_integer(label):
        raise DataError(f"{path}: label: is {label}, must be int64")
    is_list = pa.types.is_fixed_size_list(embedding) or pa.types.is_list(embedding) or pa.types.is_large_list(embedding)
    if not is_list or not pa.types.is_floating(embedding.value_type):
        raise DataError(f"{path}: embedding: is {embedding}, must be a list of float16 or float32")
