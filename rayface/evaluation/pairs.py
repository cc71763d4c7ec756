"""Evaluation sets of face pairs: read them, embed them, measure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_images
from rayface.data.images import normalize
from rayface.data.keys import find_keys
from rayface.data.shards.members import parse_name
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault
from rayface.evaluation.identification import tar_at_far
from rayface.evaluation.pairs_file import lfw_names, read_pairs
from rayface.evaluation.verification import fold_accuracy, pair_scores

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pairs of faces: `images` uint8 RGB (n, size, size, 3), and for P pairs the places `a` and `b` in it."""

    name: str
    images: NDArray[np.uint8]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    is_same: NDArray[np.bool_]
    fold: NDArray[np.int64]


class MissingMembersError(ValueError):
    """Pairs name images that the dataset does not have, `count` of them."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def load_pairs(pairs_csv: str | Path, data: str | Path | Sequence[str], *, image_size: int) -> PairSet:
    """Read a file of pairs and the images that it names, each once.

    Args:
        pairs_csv: columns `path_a,path_b,is_same,fold`: names of tar members, 0 or 1, and the fold's number; or of the
            form of LFW's pairs.txt.
        data: the dataset directory that holds the members, or several.
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


def _first_found(
    spellings: list[list[str]], data: str | Path | Sequence[str], image_size: int, pairs: str
) -> NDArray[np.uint8]:
    """Return the images by the spelling of the members that the dataset knows."""
    errors = []
    for members in spellings:
        try:
            return _images(members, data, image_size, pairs)
        except MissingMembersError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.count)  # of the spelling that it knows best


def _rows_of(members: Sequence[str], dataset: Dataset, pairs: str) -> NDArray[np.int64]:
    """Where members are in the index: by their keys, or by what a shard calls them where that is one sample's."""
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
            "dataset they are made for",
            len(missing),
        )
    return rows


def _images(members: Sequence[str], data: str | Path | Sequence[str], image_size: int, pairs: str) -> NDArray[np.uint8]:
    dataset = open_dataset(data, join="separate")  # labels are not looked at
    rows = _rows_of(members, dataset, pairs)
    order = np.argsort(rows)  # neighbours in a shard are read together
    samples = read_samples([shard.path for shard in dataset.shards], dataset.index.select(rows[order]))
    jpegs = []
    for i, sample in zip(order, samples, strict=True):
        if isinstance(sample, Fault):
            raise ValueError(f"pairs {pairs} need {members[i]}, which is damaged: {sample}")
        jpegs.append(sample.jpeg)
    images, bad = decode_images(jpegs, image_size)
    for i, reason in bad.items():
        where = ", ".join(dataset.roots)
        raise ValueError(f"pairs {pairs} need {members[order[i]]} of {where}, which cannot be decoded: {reason}")
    return images[np.argsort(order)]


def embed_images(
    model: nn.Module,
    images: NDArray[np.uint8],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    flip: bool = True,
    amp: Literal["bf16"] | None = None,
    done: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Embed images as the protocols do: the embedding of the image plus that of its mirror image, normalised.

    Args:
        model: (n, 3, size, size) in [-1, 1] -> (n, D), on `device`; used in evaluation mode, which is undone after.
        images: uint8 RGB (n, size, size, 3).
        batch_size: images at a time; the mirror images come on top.
        device: where the model is.
        flip: add the mirror image.
        amp: "bf16" for autocast; the sum and the norm are float32 all the same.
        done: called after every batch.

    Returns:
        (n, D) float32 of length 1; NaN where the model gives NaN, which `refuse_non_finite` names.
    """
    device = torch.device(device)
    cast = torch.autocast(device.type, torch.bfloat16) if amp == "bf16" else nullcontext()
    parts = []
    with _evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = normalize(torch.from_numpy(images[start : start + batch_size]).to(device))
            with cast:
                total = model(batch).float()
                if flip:
                    total = total + model(batch.flip(3)).float()
            parts.append(F.normalize(total, dim=1).cpu().numpy())
            done()
    return np.concatenate(parts)


def refuse_non_finite(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the embeddings (n, D), which must be numbers.

    Raises:
        ValueError: a model that gives NaN or infinity.
    """
    good = np.atleast_1d(np.isfinite(embeddings).all(axis=1))
    if not good.all():
        raise ValueError(
            f"model: gives NaN or infinity for {np.count_nonzero(~good)} of {len(good)} images, first for image "
            f"{int(np.argmin(good))}: its training had diverged, or the precision is too low; use another checkpoint"
        )
    return embeddings


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and, at the end, back in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def evaluate_pairs(embeddings: NDArray[np.float32], pairs: PairSet) -> dict[str, Any]:
    """Measure verification on a set of pairs.

    Args:
        embeddings: (n, D), one for each of the set's images.
        pairs: the set.

    Returns:
        accuracy_mean, accuracy_std (over the folds), tar_at_far {"1e-03": rate, ...} for the rates that the number of
        impostor pairs can resolve, num_pairs.

    Raises:
        ValueError: see `ten_fold_accuracy`.
    """
    return pair_result(*pair_scores(embeddings, pairs.a, pairs.b), pairs)


def pair_result(distance: NDArray[np.float64], score: NDArray[np.float64], pairs: PairSet) -> dict[str, Any]:
    """`evaluate_pairs` of squared distances and cosines (N,)."""
    mean, std = fold_accuracy(distance, pairs.is_same, pairs.fold)
    genuine, impostor = score[pairs.is_same], score[~pairs.is_same]
    fars = [far for far in FARS if far * len(impostor) >= 1] if len(genuine) else []
    tars = tar_at_far(genuine, impostor, fars) if fars else np.empty(0)
    return {
        "accuracy_mean": mean,
        "accuracy_std": std,
        "tar_at_far": {f"{far:.0e}": float(tar) for far, tar in zip(fars, tars, strict=True)},
        "num_pairs": len(pairs.is_same),
    }
