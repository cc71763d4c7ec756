"""Checks of a run that need neither PyTorch nor Ray: settings, output and data."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from rayface import tracking
from rayface.config import Config
from rayface.data.classes import described
from rayface.data.configured import open_configured
from rayface.data.dataset import Dataset
from rayface.data.streaming.micro_batches import check_pieces, micro_batches
from rayface.data.streaming.orders import order_samples
from rayface.data.streaming.sample_order import SampleOrder, StreamKind
from rayface.evaluation.protocols import open_protocols
from rayface.storage import DataError, is_local, path_of
from rayface.training.run_directory import RunDirectory
from rayface.training.run_output import DataFacts, check_data, check_output

logger = logging.getLogger(__name__)

# Of the heads that are imported with PyTorch, which takes a second: it is loaded while Ray starts.
_STREAMS: dict[str, StreamKind] = {"partial_fc": "images", "dcq": "pairs", "f2c": "pairs_and_images"}


@dataclass(frozen=True, kw_only=True)
class ValidRun:
    """A run whose config, data and, for a resume, directory were checked."""

    config: Config
    resume: bool
    dataset: Dataset
    sample_order: SampleOrder

    @property
    def total_steps(self) -> int:
        """Number of training steps."""
        return self.sample_order.total_steps(self.config.train.epochs)

    @property
    def resumed(self) -> RunDirectory | None:
        """The run directory that is resumed; None for a new run."""
        output = self.config.train.output
        return RunDirectory(path_of(output).absolute()) if self.resume and output is not None else None

    @property
    def data_facts(self) -> DataFacts:
        """Facts of the training data that a resume compares."""
        return DataFacts.of(self.dataset)


def open_run(config: Config, *, resume: bool = False) -> ValidRun:
    """Check settings and output, and open the data; nothing is written. `model_check.check_model` checks the rest.

    Raises:
        ValueError: bad input; one line.
    """
    _check_plain_settings(config)
    check_output(config, resume)
    dataset = _open_dataset(config, resume)
    logger.info("data %s", data_text(dataset))
    run = ValidRun(config=config, resume=resume, dataset=dataset, sample_order=_sample_order(config, dataset))
    if directory := run.resumed:
        with directory.exclusive():
            check_data(directory, run.data_facts)
    return run


def dry_run(config: Config, *, data_of: RunDirectory | None = None) -> int:
    """Check settings and data, without the output and the backbone.

    Args:
        data_of: a run with the same data, if it exists.

    Returns:
        The number of training steps.

    Raises:
        ValueError: bad input; one line.
    """
    check_settings(config)
    dataset = _open_dataset(config, resume=False)
    run = ValidRun(config=config, resume=False, dataset=dataset, sample_order=_sample_order(config, dataset))
    if data_of is not None:
        check_data(data_of, run.data_facts)
    return run.total_steps


def data_text(dataset: Dataset) -> str:
    """Return name and counts of a dataset."""
    counts = described(len(dataset.index), dataset.num_classes, dataset.num_classes_with_images)
    return f"{dataset.name}: {counts}"


def _open_dataset(config: Config, resume: bool) -> Dataset:
    data = config.data
    if resume and data.join is None and config.train.output is not None:
        # As it was started: an older rayface joined by names what is ambiguous, and refused, in a new run.
        facts = RunDirectory(path_of(config.train.output).absolute()).read_data_facts() or {}
        data = replace(data, join=facts.get("join"))
    try:
        dataset = open_configured("data.train", data.train, data)
    except DataError as error:
        moved = "; if the data was moved, resume with its new path: data.train=DIR" if resume else ""
        raise DataError(f"{error}{moved}") from error
    if data.cache_size and all(is_local(path) for path in dataset.shard_paths()):
        raise DataError(f"data.cache_size: {data.cache_size}: all shards are on a disk already: leave it out")
    return dataset


def _sample_order(config: Config, dataset: Dataset) -> SampleOrder:
    return order_samples(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        chunk_images=config.data.chunk_images,
        window_images=config.data.window_images,
        stream=_stream(config.head.name),
        weights=config.data.weights,
    )


def _stream(head: str) -> StreamKind:
    """Return what a head trains on."""
    if head not in _STREAMS:
        from rayface.heads import head_class

        return head_class(head).stream
    return _STREAMS[head]


def check_settings(config: Config) -> None:
    """Refuse settings that are invalid regardless of the training data.

    Raises:
        ValueError: one line.
    """
    from rayface.training.model_check import check_names  # imports PyTorch

    _check_plain_settings(config)
    check_names(config)


def _check_plain_settings(config: Config) -> None:
    train, data = config.train, config.data
    if not data.train:
        raise ValueError("data.train: is not set: must be a dataset directory, for example data.train=faces")
    check_pieces(train)
    _check_static_graph(config)
    tracking.require_packages(config.tracking)
    if config.tracking.enabled and config.tracking.uri is not None:
        tracking.tracking_uri(config.tracking, Path())
    # Open them once here, so that errors are found before a worker starts.
    open_protocols(config.evaluate, image_size=16, join=data.join)


def _check_static_graph(config: Config) -> None:
    """Refuse gradient accumulation with a static graph: PyTorch fails with an internal error."""
    train = config.train
    if not train.static_graph:
        return
    counts = range(train.min_workers, train.max_workers + 1)
    pieces = max(len(micro_batches(train.batch_size, 0, n, train.max_batch_per_worker)) for n in counts)
    if pieces > 1 and train.resize == "accumulate":
        raise ValueError(
            f"train.static_graph: true: cannot be combined with gradient accumulation ({pieces} micro-batches a step): "
            "leave it out, or raise train.max_batch_per_worker"
        )
    if config.backbone.compile:
        raise ValueError("train.static_graph: true: cannot be combined with backbone.compile: choose one of them")
