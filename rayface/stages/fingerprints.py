"""Fingerprints of stage outputs: a value that changes when the output does, None if the output is incomplete."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rayface.files import sha256_of
from rayface.storage import AnyPath, RemotePath, uri_of

Fingerprint = Callable[[AnyPath], str | None]


@contextmanager
def _unless_missing(path: AnyPath) -> Iterator[None]:
    """Suppress errors for missing files only: a file on a disk that is not mounted is unreadable, not missing.

    Raises:
        ValueError: a file cannot be read.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}: make it readable, or delete it") from error


def of_file(name: str) -> Fingerprint:
    """Fingerprint a folder by the content of a file in it."""

    def fingerprint(folder: AnyPath) -> str | None:
        with _unless_missing(folder / name):
            return sha256_of(folder / name)
        return None

    return fingerprint


def of_fields(name: str, *fields: str) -> Fingerprint:
    """Fingerprint a folder by some fields of a JSON file in it."""

    def fingerprint(folder: AnyPath) -> str | None:
        text = None
        with _unless_missing(folder / name):
            text = (folder / name).read_bytes()
        try:
            content = json.loads(text or "")
            return hashlib.sha256(json.dumps([content[field] for field in fields]).encode()).hexdigest()
        except (ValueError, KeyError, TypeError):
            return None

    return fingerprint


def of_dataset(folder: AnyPath) -> str | None:
    """Fingerprint a dataset by its manifest; its shards must exist."""
    found = of_file("dataset.json")(folder)
    if found is None:
        return None
    with _unless_missing(folder):
        try:
            shards = json.loads((folder / "dataset.json").read_text()).get("shards", [])
            sizes = {shard["path"]: shard["num_bytes"] for shard in shards}
        except (ValueError, KeyError, TypeError, AttributeError):
            return found  # a corrupt manifest is a changed output, not an incomplete one
        listed = folder.files() if isinstance(folder, RemotePath) else {}
        if all((listed.get(name) or (folder / name).stat()).st_size == size for name, size in sizes.items()):
            return found
    return None


def of_embeddings(folder: AnyPath) -> str | None:
    """Fingerprint embeddings by the settings that decide their bytes; the files of the manifest must exist."""
    from rayface.embedding.embeddings import MANIFEST, missing_parts

    # Not the whole manifest: a job that finds everything embedded rewrites it with other seconds.
    fields = ("model_sha256", "dataset_digest", "flip", "precision", "dtype", "num_rows")
    found = of_fields(MANIFEST, *fields)(folder)
    return None if found is None or missing_parts(uri_of(folder)) else found


def of_core_set(folder: AnyPath) -> str | None:
    """Fingerprint a core set by prune.json; the files listed in it must exist."""
    from rayface.curate.prune.result import RESULT, read_result

    found = of_file(RESULT)(folder)
    return None if found is None or read_result(folder) is None else found


def of_clusters(folder: AnyPath) -> str | None:
    """Fingerprint clusters by cluster.json; the files listed in it must exist."""
    from rayface.curate.cluster.result import RESULT, read_result

    found = of_file(RESULT)(folder)
    return None if found is None or read_result(folder) is None else found


def of_run(folder: AnyPath) -> str | None:
    """Fingerprint a run by its model, once it is finished."""
    from rayface.models.model_info import DESCRIPTION
    from rayface.training.run_directory import RunDirectory

    with _unless_missing(folder):
        return of_fields(DESCRIPTION, "sha256")(folder) if RunDirectory(folder).is_finished() else None
    return None
