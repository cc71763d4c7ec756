"""Prune without a model at hand: train a small proxy on some identities, embed with it, prune."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from rayface import config as configs
from rayface.config import Config, EmbedConfig, PruneConfig, require_keys
from rayface.credentials import masked
from rayface.curate.prune.core_set import PROXY
from rayface.curate.prune.core_set import prune as prune_embeddings
from rayface.curate.prune.result import PruneResult
from rayface.curate.prune.settings import check_settings
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.selection import select, write_selection
from rayface.embedding.embed import embed
from rayface.embedding.embeddings import open_embeddings
from rayface.files import write_json
from rayface.session import ray_session
from rayface.storage import on_disk
from rayface.tracking import shared_tracking
from rayface.training.run_directory import RunDirectory
from rayface.training.trainer import train

_JOB = "proxy.json"


def prune(config: Config) -> PruneResult:
    """Select a core set, of embeddings or, with `prune.proxy_fraction`, by a proxy model that is trained first.

    Raises:
        ValueError: bad input, one line.
    """
    settings = config.prune
    if settings.proxy_fraction is not None:
        return prune_by_proxy(config)
    if settings.embeddings is None:
        raise ValueError(
            "prune.embeddings, prune.proxy_fraction: neither is set: must be one of the two: what `rayface embed` "
            "wrote, or the share of the identities to train a proxy on"
        )
    return prune_embeddings(config)


def prune_by_proxy(config: Config) -> PruneResult:
    """Sample identities, train a proxy model on them, embed all of `prune.data` with it, and prune.

    A chain of the stages train, embed and prune; each leaves its result in `prune.out`/proxy (data, run, embeddings)
    and is skipped when that is there. The other groups of `config` are those of the proxy's training.

    Raises:
        ValueError: bad input, one line.
    """
    require_keys(config, "prune.out", "prune.data")
    check_settings(config)
    if config.clean.exclude is not None:
        open_embeddings(config.clean.exclude)
    settings = config.prune
    folder = on_disk(str(settings.out), "prune.out").absolute() / PROXY
    config = replace(config, tracking=shared_tracking(config.tracking, folder.parent))
    data = config.data
    dataset = open_dataset(settings.data, max_corrupt_fraction=data.max_corrupt_fraction, join=data.join)
    _check_same(folder, config, dataset)
    num_cpus = config.train.max_workers * config.train.cpus_per_worker
    with ray_session(config.cluster.address, num_cpus=num_cpus, debug=config.cluster.debug):
        _sample_identities(folder / "data", settings, dataset)
        _train(folder, config)
        embeddings = str(folder / "embeddings")
        embed(replace(config, embed=EmbedConfig(model=str(folder / "run"), data=settings.data, out=embeddings)))
        return prune_embeddings(replace(config, prune=replace(settings, proxy_fraction=None, embeddings=embeddings)))


def _check_same(folder: Path, config: Config, dataset: Dataset) -> None:
    """Refuse to resume with another proxy than the folder was started with."""
    trained = configs.flat(replace(config, data=replace(config.data, train=())), configs.TRAINING)
    job = {
        "dataset_digest": dataset.digest,
        "fraction": config.prune.proxy_fraction,
        "seed": config.prune.seed,
        **{key: value for key, value in trained.items() if not key.startswith("tracking.")},
    }
    job = json.loads(json.dumps(masked(job)))
    path = folder / _JOB
    if not path.exists():
        if folder.parent.exists() and any(folder.parent.iterdir()):
            raise ValueError(f"prune.out: {folder.parent}: is not empty: choose another directory")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, job)
        return
    before = json.loads(path.read_text())
    for key, value in job.items():
        if before.get(key) != value:
            raise ValueError(
                f"prune.out: {folder.parent}: its proxy was begun with {key} {before.get(key)}, this is {value}: "
                "choose another directory"
            )


def _sample_identities(out: Path, settings: PruneConfig, dataset: Dataset) -> None:
    """Write the training set of the proxy: all images of a random sample of the identities."""
    if (out / "dataset.json").exists():
        return
    labels = np.unique(dataset.index.label)
    count = max(2, round(float(settings.proxy_fraction or 0) * len(labels)))
    chosen = np.random.default_rng(settings.seed).permutation(labels)[:count]
    rows = np.flatnonzero(np.isin(dataset.index.label, chosen))
    out.mkdir(exist_ok=True)
    write_selection(str(out), select(dataset, rows), name=f"{count} identities of {dataset.name}")


def _train(folder: Path, config: Config) -> None:
    run = RunDirectory(folder / "run")
    if run.is_finished():
        return
    resume = run.has_started()
    if run.path.exists() and not resume:
        shutil.rmtree(run.path)  # it was interrupted before its config was written
    config = replace(
        config,
        data=replace(config.data, train=(str(folder / "data"),)),
        train=replace(config.train, output=str(run.path)),
    )
    train(config, resume=resume, address=config.cluster.address, debug=config.cluster.debug)
