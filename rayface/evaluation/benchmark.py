"""Make a benchmark from a labelled dataset: hold out identities, write their lists, and the rest to train on."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from rayface.arrays import Floats, Ints, row_norms
from rayface.credentials import masked
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.index import count
from rayface.data.label_join import Join
from rayface.data.output_folder import new_folder
from rayface.data.selection import Selection, select, write_selection
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.rows import read_found
from rayface.evaluation.benchmark_lists import PairList, TemplateLists, draw_pairs, draw_templates
from rayface.progress import phase
from rayface.storage import DataError, join, make_folder, write_bytes
from rayface.version import VERSION

logger = logging.getLogger(__name__)

BENCHMARK = "benchmark.json"
TEST, TRAIN, README = "test", "train", "README.md"
_LISTS = ("pairs", "templates", "template_pairs", "gallery_1", "gallery_2", "probes")
_FILES = {TEST, TRAIN, README, BENCHMARK, *(f"{name}.csv" for name in _LISTS)}


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What a benchmark is drawn by.

    Attributes:
        identities: number of identities to hold out, of those with at least two images.
        pairs: number of verification pairs, half of them genuine.
        folds: folds of the pairs, without a common identity.
        template_size: maximum number of images of a template.
        embeddings: embeddings of the dataset by a reference model, for hard impostors; None: all impostors are random.
        hard: share of the impostor pairs that are nearest neighbours; with `embeddings`.
        seed: the same seed gives the same benchmark.
    """

    identities: int = 500
    pairs: int = 6000
    folds: int = 10
    template_size: int = 5
    embeddings: str | Path | None = None
    hard: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Size and digest of the test or the training set."""

    identities: int
    images: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a benchmark was made from and holds: the content of benchmark.json."""

    source: tuple[str, ...]
    source_digest: str
    settings: BenchmarkSettings
    test: Subset
    train: Subset
    pairs: dict[str, int]
    """Numbers of genuine and impostor pairs, and of the hard ones among these."""
    templates: dict[str, int]
    """Numbers of templates, of those in the galleries and of probes, and of template pairs."""
    created_by: str = f"rayface {VERSION}"

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return asdict(self)


def make_benchmark(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: BenchmarkSettings,
    *,
    join_by: Join | None = None,
) -> Benchmark:
    """Write a benchmark of held-out identities into a new folder.

    OUT/test and OUT/train are datasets that refer to the shards of `data`: the held-out identities, and all others.
    OUT/pairs.csv lists verification pairs; templates.csv, template_pairs.csv, gallery_1.csv, gallery_2.csv and
    probes.csv the templates with their 1:1 and 1:N lists; benchmark.json and README.md say how they were drawn.

    An interrupted call starts over, on a disk.

    Args:
        data: dataset directory, or several as one.
        join_by: how labels of several directories are joined, see `open_dataset`.

    Raises:
        ValueError: a setting out of range, too few identities, or `out` is not empty; one line.
    """
    settings = replace(settings, embeddings=settings.embeddings and str(settings.embeddings))
    _check(settings)
    dataset = open_dataset(data, join=join_by)
    held_out = _held_out(dataset, settings)
    chosen = select(dataset, held_out)
    with phase("draw lists"):
        keys, pairs, templates = _drawn(chosen, settings)
    rest = select(dataset, np.setdiff1d(np.arange(dataset.num_images), held_out, assume_unique=True))
    with new_folder(out, _FILES, key="OUT") as root:
        with phase("write datasets"):
            test = _write_dataset(chosen, join(root, TEST), f"test set of {dataset.name}")
            train = _write_dataset(rest, join(root, TRAIN), f"{dataset.name} without its test set")
        made = _made(dataset, settings, test, train, pairs, templates)
        _write_lists(root, [f"{key}.jpg" for key in keys], _names(chosen), pairs, templates)
        write_bytes(join(root, README), masked(_readme(made)).encode())
        write_bytes(join(root, BENCHMARK), (json.dumps(masked(made.as_dict()), indent=1) + "\n").encode())
    return made


def _made(
    dataset: Dataset, settings: BenchmarkSettings, test: Dataset, train: Dataset, pairs: PairList, lists: TemplateLists
) -> Benchmark:
    return Benchmark(
        source=dataset.roots,
        source_digest=dataset.digest,
        settings=settings,
        test=_subset(test),
        train=_subset(train),
        pairs=pairs.counts(),
        templates=lists.counts(),
    )


def _drawn(chosen: Selection, settings: BenchmarkSettings) -> tuple[list[str], PairList, TemplateLists]:
    """Return the keys of the listed images, and the lists."""
    keys, labels, embeddings = _images(chosen, settings.embeddings)
    random = np.random.default_rng(np.random.SeedSequence((settings.seed, 1)))
    pairs = draw_pairs(
        labels,
        num_pairs=settings.pairs,
        folds=settings.folds,
        hard=settings.hard,
        embeddings=embeddings,
        random=random,
    )
    return keys, pairs, draw_templates(labels, size=settings.template_size, random=random)


def _subset(dataset: Dataset) -> Subset:
    return Subset(identities=dataset.num_classes, images=dataset.num_images, digest=dataset.digest)


def _check(settings: BenchmarkSettings) -> None:
    has_hard = settings.embeddings is not None
    two_each = f"at least {2 * settings.folds}, two for each fold"
    rules = (
        ("identities", settings.identities, settings.identities >= 2 * settings.folds, two_each),
        ("folds", settings.folds, settings.folds >= 2, "at least 2"),
        ("pairs", settings.pairs, settings.pairs >= 2 * settings.folds, two_each),
        ("template-size", settings.template_size, settings.template_size >= 1, "at least 1"),
        ("hard", settings.hard, 0 <= settings.hard <= 1, "from 0 to 1"),
        ("hard", settings.hard, has_hard or settings.hard in (0, BenchmarkSettings.hard), "with --embeddings"),
    )
    for name, value, is_good, rule in rules:
        if not is_good:
            raise ValueError(f"--{name}: {value}: must be {rule}")


def _held_out(dataset: Dataset, settings: BenchmarkSettings) -> Ints:
    """Return the rows of the held-out identities in the index, rising."""
    counts = count(dataset.index.label, dataset.num_classes)
    fit = np.flatnonzero(counts >= 2)
    most = min(len(fit), int(np.count_nonzero(counts)) - 1)  # the training set keeps one identity at least
    if settings.identities > most:
        raise ValueError(
            f"--identities: {settings.identities}: {dataset.name} has {len(fit)} identities with two images of "
            f"{np.count_nonzero(counts)}: must be at most {most}"
        )
    random = np.random.default_rng(np.random.SeedSequence((settings.seed, 0)))
    chosen = np.zeros(dataset.num_classes, bool)
    chosen[random.permutation(fit)[: settings.identities]] = True
    return np.flatnonzero(chosen[dataset.index.label])


def _write_dataset(chosen: Selection, out: str, name: str) -> Dataset:
    make_folder(out)
    return write_selection(out, chosen, name=name)


def _images(chosen: Selection, embeddings: str | Path | None) -> tuple[list[str], Ints, Floats | None]:
    """Return keys and labels of the test images and, if given, their embeddings; only of images that have one."""
    keys, labels = _keys(chosen), chosen.labels.astype(np.int64)
    if embeddings is None:
        return keys, labels, None
    wanted = pa.array(keys, pa.string())
    place = {key: row for row, key in enumerate(keys)}
    opened = open_embeddings(embeddings, "--embeddings")
    values, found = np.zeros((len(keys), opened.size), np.float32), np.zeros(len(keys), bool)
    for file in opened.files:
        for rows in read_found(file.path, wanted):
            at = [place[key] for key in rows.keys.to_pylist()]
            values[at], found[at] = rows.embeddings, True
    lengths = row_norms(values)
    found &= np.isfinite(lengths) & (lengths > 0)
    if found.sum() < 0.9 * len(keys):
        raise DataError(
            f"--embeddings: {embeddings}: has {found.sum()} of {len(keys)} images of the test set: must be of the same "
            "dataset: embed it again"
        )
    if not found.all():
        logger.warning("%d test images have no embedding and are not listed", (~found).sum())
    kept = np.flatnonzero(found)
    return [keys[row] for row in kept], labels[kept], values[kept] / lengths[kept, None]


def _keys(chosen: Selection) -> list[str]:
    keys: list[str] = []
    done = 0
    for batch in chosen.source.key_batches():
        first, last = np.searchsorted(chosen.rows, [done, done + len(batch)])
        keys += batch.take(pa.array(chosen.rows[first:last] - done)).to_pylist()
        done += len(batch)
    return keys


def _names(chosen: Selection) -> list[str]:
    return list(chosen.identities) if chosen.identities else [str(label) for label in range(chosen.num_classes)]


def _write_lists(
    root: str, paths: Sequence[str], names: Sequence[str], pairs: PairList, templates: TemplateLists
) -> None:
    listed = zip(pairs.a.tolist(), pairs.b.tolist(), pairs.is_same.tolist(), pairs.fold.tolist(), strict=True)
    rows = [(paths[a], paths[b], int(same), fold) for a, b, same, fold in listed]
    _write_csv(root, "pairs.csv", ("path_a", "path_b", "is_same", "fold"), rows)
    media = [(number, image) for number, images in enumerate(templates.images) for image in images.tolist()]
    numbered = [(number, medium, paths[image]) for medium, (number, image) in enumerate(media)]
    _write_csv(root, "templates.csv", ("template", "media", "path"), numbered)
    compared = [(a, b, int(same)) for a, b, same in templates.pairs]
    _write_csv(root, "template_pairs.csv", ("template_a", "template_b", "is_same"), compared)
    for name, chosen in zip(
        ("gallery_1", "gallery_2", "probes"), (*templates.galleries, templates.probes), strict=True
    ):
        of = [(number, names[templates.identities[number]]) for number in chosen]
        _write_csv(root, f"{name}.csv", ("template", "identity"), of)


def _write_csv(root: str, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_bytes(join(root, name), file.getvalue().encode())


def _readme(made: Benchmark) -> str:
    settings, test, train, templates = made.settings, made.test, made.train, made.templates
    hard = made.pairs["hard_impostor"]
    nearest = f", {hard:,} of these nearest neighbours by the embeddings {settings.embeddings}" if hard else ""
    caution = "The reference model finds the hard impostors harder than others do: do not compare it on these pairs.\n"
    rows = {
        "`test/`": f"dataset of the held-out identities: {test.identities:,} identities, {test.images:,} images",
        "`train/`": f"dataset of all others, to train on: {train.identities:,} identities, {train.images:,} images",
        "`pairs.csv`": f"{made.pairs['genuine']:,} genuine and {made.pairs['impostor']:,} impostor pairs{nearest}; "
        f"{settings.folds} folds without a common identity",
        "`templates.csv`": f"{templates['count']:,} templates of at most {settings.template_size} images; every image "
        "is a medium of its own",
        "`template_pairs.csv`": f"{templates['pairs']:,} pairs of a gallery template and a probe template",
        "`gallery_1.csv`, `gallery_2.csv`": f"{templates['gallery_1']:,} and {templates['gallery_2']:,} templates; no "
        "identity is in both",
        "`probes.csv`": f"{templates['probes']:,} templates, each with a mate in one gallery and none in the other",
    }
    lines = [
        f"# Benchmark of {test.identities:,} held-out identities",
        "",
        f"Drawn by `rayface benchmark make` ({made.created_by}) from {', '.join(made.source)} with seed "
        f"{settings.seed}. benchmark.json has all settings and digests. The datasets refer to the source's shards.",
        "",
        "| file | content |",
        "|---|---|",
        *(f"| {name} | {content} |" for name, content in rows.items()),
        "",
        "```bash",
        "rayface evaluate --model MODEL --pairs pairs.csv --data test --out RESULTS",
        "```",
        "",
    ]
    return "\n".join([*lines, caution] if hard else lines)
