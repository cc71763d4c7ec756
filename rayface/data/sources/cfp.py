"""Source: the CFP test set (frontal and profile faces) in its own layout, with its pairs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rayface.data.dataset import Dataset
from rayface.data.manifest import PAIRS
from rayface.data.sources.base import SourceSettings
from rayface.data.sources.folder import FolderSettings, FolderSource, key_of
from rayface.data.sources.pairs_csv import write_pairs_csv
from rayface.storage import DataError, normalise, on_disk, one_line


@dataclass(frozen=True, kw_only=True)
class CfpSettings(FolderSettings):
    """Settings of CFP.

    Attributes:
        protocol: pairs of a frontal and a profile image (FP), or of two frontal ones (FF).
    """

    protocol: Literal["FP", "FF"] = "FP"


class CfpSource(FolderSource):
    """The folder of CFP with `Data/Images/001/frontal/01.jpg` and `Protocol/Split/FP/01/same.txt`.

    The pairs of the protocol become `pairs.csv` beside the dataset.
    """

    kind = "cfp"
    settings_class = CfpSettings
    expects = "the folder of CFP with Data/Images and Protocol"
    beside = PAIRS

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        self._home = str(on_disk(normalise(src), "convert.source"))
        super().__init__(os.path.join(self._home, "Data", "Images"), settings)
        assert isinstance(self.settings, CfpSettings)
        self._protocol = self.settings.protocol
        self._pairs: list[tuple[str, str, bool, int]] = []  # keys, genuine, fold

    @property
    def title(self) -> str:
        return f"{self.kind} {os.path.basename(self._home)}"

    def prepare(self, near: str) -> None:
        self._pairs = self._read_pairs()
        super().prepare(near)

    def write_beside(self, dataset: Dataset) -> None:
        a, b, is_same, fold = zip(*self._pairs, strict=True)
        write_pairs_csv(dataset, a, b, np.array(is_same), np.array(fold))

    def _read_pairs(self) -> list[tuple[str, str, bool, int]]:
        """Read the pairs of all folds; DataError if a file is missing or invalid."""
        protocol = Path(self._home, "Protocol")
        frontal = _keys(protocol / "Pair_list_F.txt")
        second = frontal if self._protocol == "FF" else _keys(protocol / "Pair_list_P.txt")
        split = protocol / "Split" / self._protocol
        folds = sorted(path for path in split.glob("*") if path.name.isdecimal())
        pairs = []
        for fold, folder in enumerate(folds):
            for name, is_same in (("same.txt", True), ("diff.txt", False)):
                for line in _lines(folder / name):
                    match = re.fullmatch(r"(\d+)\s*,\s*(\d+)", line)
                    if not match or match[1] not in frontal or match[2] not in second:
                        raise DataError(f"{folder / name}: {line[:60]!r} must be two numbers of the lists of images")
                    pairs.append((frontal[match[1]], second[match[2]], is_same, fold))
        if not pairs:
            raise DataError(f"{split}: no pairs in its folders 01, 02, ...: give the folder of CFP that has Protocol")
        return pairs


def _keys(path: Path) -> dict[str, str]:
    """Return the key of each image of a list, by its number: lines `1 ../Data/Images/001/frontal/01.jpg`."""
    keys = {}
    for line in _lines(path):
        number, _, image = line.partition(" ")
        parts = image.strip().replace("\\", "/").split("/")[-3:]
        if not number.isdecimal() or len(parts) < 3:
            raise DataError(f"{path}: {line[:60]!r} must be a number and the path of an image")
        keys[number] = key_of("/".join(parts))
    return keys


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}): give the folder of CFP") from None
