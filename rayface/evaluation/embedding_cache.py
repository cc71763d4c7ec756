"""Cache of the embeddings of a dataset's images by one model, kept by row of the dataset's index."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayface.files import write_file
from rayface.models.embedded import Embedded
from rayface.storage import DAY, cache_folders, delete_temporary

logger = logging.getLogger(__name__)

_VERSION = 2
_MOST_BYTES = 20 * 2**30
_IN_USE_SECONDS = 24 * 3600  # entries used this recently are kept: another evaluation may be reading them
_ENTRY = re.compile(r"[0-9a-f]{32}(\.npz)?")


class EmbeddingCache:
    """Embeddings by row, in a file of the user's cache directory; corrupt files and embeddings of 0 count as missing.

    A directory holds at most 20 GiB: entries used longest ago are deleted, but not within a day of their use. Memory:
    the cached rows.
    """

    def __init__(self, *, model: str, dataset: str, flip: bool, folder: str | None = None) -> None:
        """Open the cache of a model and a dataset.

        Args:
            model, dataset: digests.
            flip: whether the embeddings of the mirror images are added.
            folder: directory of the caches; None: the user's cache directory.
        """
        key = hashlib.sha256(json.dumps([model, dataset, flip, _VERSION]).encode()).hexdigest()[:32]
        folders = [Path(folder)] if folder is not None else list(cache_folders("embeddings"))
        self._files = [each / f"{key}.npz" for each in folders]
        self.job_folder = str(self._files[0].with_suffix("").absolute())

    def load(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Embedded | None]:
        """Return which rows are cached, (n,), and the embeddings and norms of these; None if no row is."""
        for file in self._files:
            stored = _read(file)
            if stored is None:
                continue
            known, embedded = stored
            places = np.minimum(np.searchsorted(known, rows), len(known) - 1)
            found = (known[places] == rows) & _has_embedding(embedded)[places]
            if found.any():
                self.trim()
                return found, Embedded(*(column[places[found]] for column in embedded))
        return np.zeros(len(rows), bool), None

    def store(self, rows: NDArray[np.int64], embedded: Embedded) -> None:
        """Add rows (n,) and their embeddings to the cached ones; without a writable folder nothing is cached.

        Embeddings of 0, of images that are not readable, are left out: the dataset may be repaired.
        """
        readable = _has_embedding(embedded)
        if not readable.any():
            return
        rows, embedded = rows[readable], Embedded(*(column[readable] for column in embedded))
        for file in self._files:
            every, columns = rows, tuple(embedded)
            if stored := _read(file):
                every = np.concatenate([rows, stored[0]])
                columns = tuple(np.concatenate(pair) for pair in zip(embedded, stored[1], strict=True))
            every, first = np.unique(every, return_index=True)
            content = io.BytesIO()
            np.savez(content, rows=every, embeddings=columns[0][first], norms=columns[1][first])
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_file(file, content.getbuffer())
                self.trim()
                return
            except OSError as error:
                logger.warning("embeddings are not cached: %s: %s", file.parent, error.strerror)

    def trim(self) -> None:
        """Mark the own entries as used, and delete others where the directory is above its limit."""
        for file in self._files:
            for own in (file, file.with_suffix("")):
                with contextlib.suppress(OSError):
                    os.utime(own)
            with contextlib.suppress(OSError):
                delete_temporary(file.parent, min_age=DAY)
                _delete_oldest([each for each in file.parent.iterdir() if _ENTRY.fullmatch(each.name)])


def _delete_oldest(entries: list[Path]) -> None:
    used = {entry: entry.stat().st_mtime for entry in entries}
    sizes = {entry: sum(file.stat().st_size for file in [entry, *entry.glob("*")]) for entry in entries}
    total, recent = sum(sizes.values()), time.time() - _IN_USE_SECONDS
    for entry in sorted(entries, key=used.__getitem__):
        if total <= _MOST_BYTES or used[entry] > recent:
            return
        logger.info("cache of embeddings above %d GiB: delete %s", _MOST_BYTES >> 30, entry)
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
        total -= sizes[entry]


def _has_embedding(embedded: Embedded) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.any(embedded.embeddings, axis=1)
    return found


def _read(file: Path) -> tuple[NDArray[np.int64], Embedded] | None:
    """Return rows, in rising order, and embeddings of a file; None if it is missing or corrupt."""
    try:
        with np.load(file) as stored:
            return stored["rows"], Embedded(stored["embeddings"], stored["norms"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
