"""Sources of images for `rayface convert`, one file each; a plugin adds its own to SOURCES."""

from pathlib import Path

from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.folder import FolderSource
from rayface.data.sources.webdataset import WebDatasetSource
from rayface.plugins import ensure_loaded

__all__ = [
    "SOURCES",
    "DatasetSource",
    "FaultLog",
    "FolderSource",
    "PartListing",
    "SourceImage",
    "SourceSettings",
    "WebDatasetSource",
    "open_source",
]

SOURCES: dict[str, type[DatasetSource]] = {"folder": FolderSource, "webdataset": WebDatasetSource}


def open_source(kind: str, src: str | Path, settings: SourceSettings | None = None) -> DatasetSource:
    """Return a source by its name in SOURCES; settings None: its defaults.

    Raises:
        ValueError: an unknown name.
    """
    ensure_loaded()
    if kind not in SOURCES:
        raise ValueError(f"--from: {kind!r}: must be one of {', '.join(sorted(SOURCES))}, or added with --import")
    return SOURCES[kind](src, settings)
