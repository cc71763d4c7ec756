"""Prune with a proxy: train a small model on a sample of the identities, embed the dataset with it, prune."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rayface import config as configs
from rayface.config import Config, EmbedConfig, PruneConfig, require_keys
from rayface.curate.prune.core_set import PROXY
from rayface.curate.prune.core_set import prune as prune_embeddings
from rayface.curate.prune.result import PruneResult
from rayface.curate.prune.settings import check_settings
from rayface.data.configured import open_configured
from rayface.data.dataset import Dataset
from rayface.data.selection import select, write_selection
from rayface.embedding.embed import embed
from rayface.embedding.embeddings import open_embeddings
from rayface.job_folder import exclusive_job_folder, require_empty
from rayface.session import ray_session
from rayface.stages.settings import changed_key
from rayface.storage import on_disk
from rayface.tracking import shared_tracking
from rayface.training.run_directory import RunDirectory
from rayface.training.trainer import train_or_resume

_JOB = "proxy.json"


def prune(config: Config) -> PruneResult:
    """Select a core set from embeddings or, with `prune.proxy_fraction`, with a proxy model that is trained first.

    Raises:
        ValueError: bad input, one line.
    """
    settings = config.prune
    if settings.proxy_fraction is not None:
        return prune_by_proxy(config)
    if settings.embeddings is None:
        raise ValueError(
            "prune.embeddings, prune.proxy_fraction: neither is set: set one of the two, the output of `rayface embed` "
            "or the fraction of the identities to train a proxy on"
        )
    return prune_embeddings(config)


def prune_by_proxy(config: Config) -> PruneResult:
    """Sample identities, train a proxy model on them, embed all of `prune.data` with it, and prune.

    Runs the stages train, embed and prune; each writes its result into `prune.out`/proxy (data, run, embeddings) and is
    skipped if the result exists. The other groups of `config` configure the training of the proxy.

    Raises:
        ValueError: bad input, one line.
    """
    require_keys(config, "prune.out", "prune.data")
    check_settings(config)
    if config.clean.exclude is not None:
        open_embeddings(config.clean.exclude, "clean.exclude")
    settings = config.prune
    folder = on_disk(str(settings.out), "prune.proxy_fraction, prune.out").absolute() / PROXY
    config = replace(config, tracking=shared_tracking(config.tracking, folder.parent))
    dataset = open_configured("prune.data", settings.data, config.data)
    if not (folder / _JOB).exists() and folder.parent.exists():
        require_empty(str(folder.parent), key="prune.out", beside=[PROXY])
    num_cpus = config.train.max_workers * config.train.cpus_per_worker
    with (
        exclusive_job_folder(str(folder), _job(config, dataset), _JOB, key="prune.out", changed=changed_key),
        ray_session(
            config.cluster.address,
            num_cpus=num_cpus,
            debug=config.cluster.debug,
            prometheus=config.tracking.prometheus,
        ),
    ):
        _sample_identities(folder / "data", settings, dataset)
        _train(folder, config)
        embeddings = str(folder / "embeddings")
        embed(replace(config, embed=EmbedConfig(model=str(folder / "run"), data=settings.data, out=embeddings)))
        settings = replace(settings, proxy_fraction=None, proxy_preset=PruneConfig.proxy_preset, embeddings=embeddings)
        return prune_embeddings(replace(config, prune=settings))


def _job(config: Config, dataset: Dataset) -> dict[str, object]:
    """Return what decides the proxy's embeddings; a resume must not change it."""
    trained = configs.flat(replace(config, data=replace(config.data, train=())), configs.TRAINING)
    return {
        "dataset_digest": dataset.digest,
        "fraction": config.prune.proxy_fraction,
        "seed": config.prune.seed,
        **{key: value for key, value in trained.items() if not key.startswith("tracking.")},
        **_weights_digests(config),
    }


def _weights_digests(config: Config) -> dict[str, str]:
    """Return the digests of the files that the training starts from or distils; of those that are there."""
    from rayface.models.model_files import weights_digest, weights_file  # PyTorch takes a second to import

    models = {"backbone.weights": config.backbone.weights, "train.teacher": config.train.teacher}
    files = {key: weights_file(model) for key, model in models.items() if model is not None}
    return {f"{key} sha256": weights_digest(file) for key, file in files.items() if file.is_file()}


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
    config = replace(
        config,
        data=replace(config.data, train=(str(folder / "data"),)),
        train=replace(config.train, output=str(run.path)),
    )
    train_or_resume(config, address=config.cluster.address, debug=config.cluster.debug)
