"""Registry of image sources for `rayface convert`; a plugin adds to SOURCES."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.bin import BinSource
from rayface.data.sources.cfp import CfpSource
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.folder import FolderSource
from rayface.data.sources.hub import HubSource
from rayface.data.sources.listed_files import ListSource
from rayface.data.sources.lmdb import LmdbSource
from rayface.data.sources.parquet import ParquetSource
from rayface.data.sources.rec import RecSource
from rayface.data.sources.webdataset import WebDatasetSource
from rayface.data.sources.webface_zip import WebfaceZipSource
from rayface.plugins import ensure_loaded

__all__ = [
    "SOURCES",
    "BinSource",
    "CfpSource",
    "DatasetSource",
    "FaultLog",
    "FolderSource",
    "ListSource",
    "LmdbSource",
    "ParquetSource",
    "PartListing",
    "RecSource",
    "SourceImage",
    "SourceSettings",
    "WebDatasetSource",
    "WebfaceZipSource",
    "open_source",
]

SOURCES: dict[str, type[DatasetSource]] = {
    "bin": BinSource,
    "cfp": CfpSource,
    "folder": FolderSource,
    "hub": HubSource,
    "list": ListSource,
    "lmdb": LmdbSource,
    "parquet": ParquetSource,
    "rec": RecSource,
    "webdataset": WebDatasetSource,
    "webface-zip": WebfaceZipSource,
}


def open_source(kind: str, src: str | Path, options: Mapping[str, object] | None = None) -> DatasetSource:
    """Return a source by its name in SOURCES; `options` are settings of its settings_class by name.

    Raises:
        ValueError: an unknown name, or an option that the source does not take; one line.
    """
    ensure_loaded()
    if kind not in SOURCES:
        raise ValueError(
            f"convert.kind: {kind!r}: must be one of {', '.join(sorted(SOURCES))}, or registered by a plugin"
        )
    settings_class = SOURCES[kind].settings_class
    known = [field.name for field in fields(settings_class)]
    for name in options or {}:
        if name not in known:
            raise ValueError(f"convert.options.{name}: {kind} has no such setting: it has {', '.join(known)}")
    try:
        settings = TypeAdapter(settings_class).validate_python(dict(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        rule = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # of the settings' own check, which names the setting and its value
            raise ValueError(f"convert.options.{rule}") from None
        where = ".".join(["convert.options", *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['input']!r}: {rule[0].lower()}{rule[1:]}") from None
    return SOURCES[kind](src, settings)
