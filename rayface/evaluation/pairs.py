"""The pairs protocol: 10-fold verification accuracy and TAR at FAR on pairs of images (LFW, CFP-FP, AgeDB-30, ...)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.config import EvaluateConfig
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_images
from rayface.data.keys import find_keys
from rayface.data.shards.members import parse_name
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault
from rayface.data.sources.bin_file import open_bin
from rayface.evaluation.identification import tar_at_far
from rayface.evaluation.pairs_file import lfw_names, read_pairs
from rayface.evaluation.protocol import EvaluationProtocol, Figure, ProtocolResult, Roc
from rayface.evaluation.verification import fold_accuracy, pair_scores, roc_of
from rayface.storage import normalise

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """P pairs of images: `images` uint8 RGB (n, size, size, 3), and the indices `a` and `b` (P,) into it."""

    name: str
    images: NDArray[np.uint8]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    is_same: NDArray[np.bool_]
    fold: NDArray[np.int64]


class MissingMembersError(ValueError):
    """The pairs name `count` images that the dataset does not have."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def load_pairs(pairs_csv: str | Path, data: str | Path | Sequence[str], *, image_size: int) -> PairSet:
    """Read a pairs file and the images that it names, each once.

    Args:
        pairs_csv: columns `path_a,path_b,is_same,fold`: names of tar members, 0 or 1, and the number of the fold; or a
            file in the format of LFW's pairs.txt.
        data: dataset directory with the images, or several.
        image_size: side of the images, pixels.

    Raises:
        ValueError: a column or a member is missing, a value is out of range, or an image cannot be decoded.
    """
    pairs, is_lfw = read_pairs(Path(pairs_csv))
    members = list(dict.fromkeys(member for pair in pairs for member in (pair.a, pair.b)))
    place = {member: i for i, member in enumerate(members)}
    names = [lfw_names(member) if is_lfw else [member] for member in members]
    return PairSet(
        name=Path(pairs_csv).stem,
        images=_first_found([list(column) for column in zip(*names, strict=True)], data, image_size, str(pairs_csv)),
        a=np.array([place[pair.a] for pair in pairs], np.int64),
        b=np.array([place[pair.b] for pair in pairs], np.int64),
        is_same=np.array([pair.is_same for pair in pairs], bool),
        fold=np.array([pair.fold for pair in pairs], np.int64),
    )


def load_bin(path: str | Path, *, image_size: int) -> PairSet:
    """Read the pairs and images of a .bin file of InsightFace, equal images once.

    Raises:
        ValueError: it is not one, or an image cannot be decoded.
    """
    file = open_bin(normalise(path))
    numbers, place = np.unique(file.first_equal(), return_inverse=True)
    jpegs = [b"" if isinstance(data, ValueError) else data for data in file.read(numbers.tolist())]
    images, bad = decode_images(jpegs, image_size)
    for i, reason in bad.items():
        raise ValueError(f"evaluate.bin: {path}: image {numbers[i]} cannot be decoded: {reason}")
    return PairSet(
        name=Path(path).stem, images=images, a=place[0::2], b=place[1::2], is_same=file.is_same, fold=file.fold
    )


def _first_found(
    spellings: list[list[str]], data: str | Path | Sequence[str], image_size: int, pairs: str
) -> NDArray[np.uint8]:
    """Return the images by the first spelling of the member names that the dataset has."""
    errors = []
    for members in spellings:
        try:
            return _images(members, data, image_size, pairs)
        except MissingMembersError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.count)  # the error of the spelling with the fewest missing members


def _rows_of(members: Sequence[str], dataset: Dataset, pairs: str) -> NDArray[np.int64]:
    """Return the rows of members in the index, by key, or by their name in a shard if it is unique."""
    keys = pa.array([parse_name(member).key for member in members], pa.string())
    rows = dataset.find([keys])
    missing = np.flatnonzero(rows < 0)
    if len(missing) and any(dataset.key_prefixes):
        rows[missing], times = find_keys([keys.take(pa.array(missing))], dataset.own_key_batches())
        for place in missing[times > 1].tolist():
            full = dataset.key_prefixes[dataset.index.shard[rows[place]]] + members[place]
            raise ValueError(
                f"pairs {pairs} name {members[place]}, which several shards of {', '.join(dataset.roots)} have: name "
                f"the shard too, for example {full}"
            )
        missing = np.flatnonzero(rows < 0)
    if len(missing):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingMembersError(
            f"pairs {pairs} name {members[missing[0]]}{more}, not found in {', '.join(dataset.roots)}: give the "
            "dataset of these pairs",
            len(missing),
        )
    return rows


def _images(members: Sequence[str], data: str | Path | Sequence[str], image_size: int, pairs: str) -> NDArray[np.uint8]:
    dataset = open_dataset(data, join="separate")  # labels are not used
    rows = _rows_of(members, dataset, pairs)
    order = np.argsort(rows)  # neighbours in a shard are read together
    samples = read_samples([shard.path for shard in dataset.shards], dataset.index.select(rows[order]))
    jpegs = []
    for i, sample in zip(order, samples, strict=True):
        if isinstance(sample, Fault):
            raise ValueError(f"pairs {pairs} need {members[i]}, which is corrupt: {sample}")
        jpegs.append(sample.jpeg)
    images, bad = decode_images(jpegs, image_size)
    for i, reason in bad.items():
        where = ", ".join(dataset.roots)
        raise ValueError(f"pairs {pairs} need {members[order[i]]} of {where}, which cannot be decoded: {reason}")
    return images[np.argsort(order)]


@dataclass(frozen=True, kw_only=True)
class PairResult(ProtocolResult):
    """Result of verification on pairs.

    Attributes:
        accuracy_mean, accuracy_std: mean and standard deviation over the folds.
        tar_at_far: {"1e-03": rate, ...} for the rates that the number of impostor pairs can resolve.
        num_pairs: number of pairs.
    """

    accuracy_mean: float
    accuracy_std: float
    tar_at_far: Mapping[str, float]
    num_pairs: int

    def figures(self) -> dict[str, Figure]:
        return {
            "accuracy_mean": self.accuracy_mean,
            "accuracy_std": self.accuracy_std,
            "tar_at_far": dict(self.tar_at_far),
            "num_pairs": self.num_pairs,
        }

    @property
    def main_figure(self) -> float:
        return self.accuracy_mean


class PairsProtocol(EvaluationProtocol):
    """Verification on the pairs of evaluate.pairs, whose images are in evaluate.data, or on those of evaluate.bin."""

    def __init__(self, pairs: PairSet, file: str) -> None:
        self.pairs, self._file = pairs, file

    @classmethod
    def is_configured(cls, settings: EvaluateConfig) -> bool:
        if settings.bin is not None:
            if settings.pairs is not None or settings.data:
                raise ValueError("evaluate.bin: holds pairs and images: leave evaluate.pairs and evaluate.data out")
            return True
        if (settings.pairs is None) != (not settings.data):
            raise ValueError("evaluate.pairs: requires evaluate.data, the dataset that holds the named images")
        return settings.pairs is not None

    @classmethod
    def open(cls, settings: EvaluateConfig, *, image_size: int) -> PairsProtocol:
        if settings.bin is not None:
            return cls(load_bin(settings.bin, image_size=image_size), settings.bin)
        pairs = str(settings.pairs)
        for path in (pairs, *settings.data):
            if "://" not in path and not Path(path).exists():
                raise ValueError(
                    f"evaluate: {path}: does not exist: give the path of the pairs file and of its dataset"
                )
        return cls(load_pairs(pairs, settings.data, image_size=image_size), pairs)

    @property
    def inputs(self) -> dict[str, str]:
        return {"pairs": self._file}

    @property
    def num_images(self) -> int:
        return len(self.pairs.images)

    def read_images(self, first: int, last: int) -> NDArray[np.uint8]:
        return self.pairs.images[first:last]

    def score(self, embeddings: NDArray[np.float32], done: Callable[[], None] = lambda: None) -> PairResult:
        return evaluate_pairs(embeddings, self.pairs, done)


def evaluate_pairs(
    embeddings: NDArray[np.float32], pairs: PairSet, done: Callable[[], None] = lambda: None
) -> PairResult:
    """Measure verification on a set of pairs.

    Args:
        embeddings: (n, D), of the images of the set.
        pairs: the set.
        done: called after every block of pairs.

    Raises:
        ValueError: see `ten_fold_accuracy`.
    """
    distance, score = pair_scores(embeddings, pairs.a, pairs.b, done)
    mean, std = fold_accuracy(distance, pairs.is_same, pairs.fold)
    genuine, impostor = score[pairs.is_same], score[~pairs.is_same]
    fars = [far for far in FARS if far * len(impostor) >= 1] if len(genuine) else []
    tars = tar_at_far(genuine, impostor, fars) if fars else np.empty(0)
    both = len(genuine) > 0 and len(impostor) > 0
    return PairResult(
        accuracy_mean=mean,
        accuracy_std=std,
        tar_at_far={f"{far:.0e}": float(tar) for far, tar in zip(fars, tars, strict=True)},
        num_pairs=len(pairs.is_same),
        roc=Roc(*roc_of(score, pairs.is_same)[:2]) if both else None,
    )
