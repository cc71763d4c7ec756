"""Source: a dataset folder of the Hugging Face Hub, parquet files by split."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rayface.data.sources.parquet import ParquetSettings, ParquetSource
from rayface.data.sources.parquet_files import find_files
from rayface.hub_card import CARD, front_matter
from rayface.storage import DataError, exists, join, read_bytes

logger = logging.getLogger(__name__)

_NAMED = 5  # files in a message
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= {"eval": "test", "evaluation": "test"}
_SPLITS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True, kw_only=True)
class HubSettings(ParquetSettings):
    """Settings of a dataset folder of the Hub.

    Attributes:
        split: split to read.
        config: configuration of the dataset; None: the only one, or the default.
    """

    split: str = "train"
    config: str | None = None


class HubSource(ParquetSource):
    """The parquet files of one split: as the card README.md says, else by the names of files and folders.

    Without any split in the names, all files are the split train.
    """

    kind = "hub"
    settings_class = HubSettings

    def files(self) -> list[str]:
        """Return the names of the split's files.

        Raises:
            DataError: no such split or configuration, or a card that cannot be read; one line.
        """
        settings = self.settings
        assert isinstance(settings, HubSettings)
        names = find_files(self.root)
        splits = _by_card(self.root, names, settings.config)
        if splits is None:
            splits = _by_name(names)
        if not (found := splits.get(settings.split)):
            has = ", ".join(split for split, files in splits.items() if files)
            raise DataError(f"{self.root}: convert.options.split: {settings.split!r}: must be one of {has}")
        return found


def _by_card(root: str, names: Sequence[str], config: str | None) -> dict[str, list[str]] | None:
    """Return the files of each split by the card's configurations; None if it lists no files."""
    card = join(root, CARD)
    try:
        listed = front_matter(read_bytes(card)).get("configs") if exists(card) else None
    except ValueError as error:
        raise DataError(f"{card}: {error}") from None
    configs = [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
    configs = [each for each in configs if each.get("data_files")]
    if not configs:
        return None
    by_name = {str(each.get("config_name", "default")): each for each in configs}
    default = next((name for name, each in by_name.items() if each.get("default")), "default")
    name = config or (next(iter(by_name)) if len(by_name) == 1 else default)
    if name not in by_name:
        raise DataError(f"{root}: convert.options.config: {name!r}: must be one of {', '.join(by_name)}")
    splits: dict[str, list[str]] = {}
    for split, pattern in _patterns(by_name[name]["data_files"]):
        splits.setdefault(split, []).extend(each for each in names if _matches(each, pattern))
    return splits


def _patterns(given: object) -> Iterator[tuple[str, str]]:
    """Yield (split, pattern) of `data_files`: a pattern, a list of patterns, or of mappings with split and path."""
    for each in given if isinstance(given, list) else [given]:
        split, paths = (each.get("split", "train"), each.get("path")) if isinstance(each, Mapping) else ("train", each)
        for path in paths if isinstance(paths, list) else [paths]:
            yield str(split), str(path)


def _matches(name: str, pattern: str) -> bool:
    """Return whether a path matches, part by part; ** is any number of folders."""
    parts, wanted = name.split("/"), pattern.removeprefix("./").split("/")

    def rest(i: int, j: int) -> bool:
        if j == len(wanted):
            return i == len(parts)
        if wanted[j] == "**":
            return any(rest(k, j + 1) for k in range(i, len(parts) + 1))
        return i < len(parts) and fnmatchcase(parts[i], wanted[j]) and rest(i + 1, j + 1)

    return rest(0, 0)


def _by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split whose word is in the name of the file or, if none is there, of its folders."""
    found: dict[str, list[str]] = {}
    for name in names:
        splits = [_SPLITS[word] for word in reversed(re.split(r"[^A-Za-z]+", name.lower())) if word in _SPLITS]
        found.setdefault(splits[0] if splits else "", []).append(name)
    unnamed = found.pop("", [])
    if unnamed and not found:
        found["train"] = unnamed
    elif unnamed:
        logger.warning(
            "%d parquet files belong to no split by their names, and are left out: %s%s",
            len(unnamed),
            ", ".join(unnamed[:_NAMED]),
            ", ..." if len(unnamed) > _NAMED else "",
        )
    return found
