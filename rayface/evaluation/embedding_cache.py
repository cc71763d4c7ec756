"""Cache of the embeddings of a dataset's images by one model, kept by row of the dataset's index."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayface.data.scan_cache import cache_folders
from rayface.files import write_file

logger = logging.getLogger(__name__)

_VERSION = 1


class EmbeddingCache:
    """Embeddings by row, in a file of the user's cache directory; damaged files count as missing.

    Memory: the cached rows.
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

    def load(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        """Return which rows are cached, (n,), and the embeddings of these (m, D); None if no row is."""
        for file in self._files:
            try:
                with np.load(file) as stored:
                    known, embeddings = stored["rows"], stored["embeddings"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            places = np.minimum(np.searchsorted(known, rows), len(known) - 1)
            found = known[places] == rows
            if found.any():
                return found, embeddings[places[found]]
        return np.zeros(len(rows), bool), None

    def store(self, rows: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Add rows (n,) and their embeddings (n, D) to the cached ones; without a writable folder nothing is cached."""
        for file in self._files:
            try:
                with np.load(file) as stored:
                    rows, embeddings = (
                        np.concatenate([rows, stored["rows"]]),
                        np.concatenate([embeddings, stored["embeddings"]]),
                    )
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                pass
            rows, first = np.unique(rows, return_index=True)
            content = io.BytesIO()
            np.savez(content, rows=rows, embeddings=embeddings[first])
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_file(file, content.getbuffer())
                return
            except OSError as error:
                logger.warning("embeddings are not cached: %s: %s", file.parent, error.strerror)
