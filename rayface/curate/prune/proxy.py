"""Prune without a model at hand: train a small proxy on some identities, embed with it, prune."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import masked
from rayface.curate.prune.core_set import PROXY, build
from rayface.curate.prune.settings import PruneSettings, check_exclude, check_settings
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.selection import select, write_selection
from rayface.embedding.embed import EmbedSettings, embed
from rayface.embedding.embeddings import open_embeddings
from rayface.files import write_json
from rayface.session import ray_session
from rayface.storage import on_disk
from rayface.tracking import shared_tracking
from rayface.training.run_directory import RunDirectory
from rayface.training.trainer import train

_JOB = "proxy.json"


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """The proxy: share of the identities that it is trained on, and how (`data.train` and `train.output` are set)."""

    fraction: float
    config: Config
    seed: int = 0


def prune_by_proxy(
    settings: PruneSettings,
    proxy: ProxySettings,
    data: Sequence[str],
    out: str | Path,
    *,
    exclude: str | Path | None = None,
    write_shards: bool = False,
    address: str | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Sample identities, train a proxy on them, embed all of `data` with it, and prune; see `core_set.build`.

    Each stage leaves its result in `out`/proxy (data, run, embeddings) and is skipped when that is there.

    Args:

    Raises:
        ValueError: bad input, one line.
    """
    check_settings(settings)
    check_exclude(exclude, settings.clean.test)
    if exclude is not None:
        open_embeddings(exclude)
    if not 0 < proxy.fraction <= 1:
        raise ValueError(f"--proxy-fraction: {proxy.fraction}: must be above 0 and at most 1, the share of identities")
    folder = on_disk(out, "--out").absolute() / PROXY
    tracking = shared_tracking(proxy.config.tracking, folder.parent)
    proxy = dataclasses.replace(proxy, config=dataclasses.replace(proxy.config, tracking=tracking))
    dataset = open_dataset(
        data, max_corrupt_fraction=proxy.config.data.max_corrupt_fraction, join=proxy.config.data.join
    )
    _check_same(folder, proxy, dataset)
    num_cpus = proxy.config.train.max_workers * proxy.config.train.cpus_per_worker
    with ray_session(address, num_cpus=num_cpus, debug=debug):
        _sample_identities(folder / "data", proxy, dataset)
        _train(folder, proxy, address=address, debug=debug)
        model = EmbedSettings(model=str(folder / "run"))
        found = folder / "embeddings"
        embed(model, data, found, config=proxy.config, address=address, debug=debug)
        return build(
            settings,
            found,
            out,
            data=data,
            exclude=exclude,
            write_shards=write_shards,
            config=proxy.config,
            address=address,
            debug=debug,
        )


def _check_same(folder: Path, proxy: ProxySettings, dataset: Dataset) -> None:
    """Refuse to go on with another proxy than the folder was begun with."""
    job = {
        "dataset_digest": dataset.digest,
        "fraction": proxy.fraction,
        "seed": proxy.seed,
        **{key: value for key, value in configs.flat(proxy.config).items() if not key.startswith("tracking.")},
    }
    job = json.loads(json.dumps(masked(job)))
    path = folder / _JOB
    if not path.exists():
        if folder.parent.exists() and any(folder.parent.iterdir()):
            raise ValueError(f"--out: {folder.parent}: is not empty: choose another directory")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, job)
        return
    before = json.loads(path.read_text())
    for key, value in job.items():
        if before.get(key) != value:
            raise ValueError(
                f"--out: {folder.parent}: its proxy was begun with {key} {before.get(key)}, this is {value}: choose "
                "another directory"
            )


def _sample_identities(out: Path, proxy: ProxySettings, dataset: Dataset) -> None:
    """Write the proxy's training set: all faces of identities chosen by chance."""
    if (out / "dataset.json").exists():
        return
    labels = np.unique(dataset.index.label)
    count = max(2, round(proxy.fraction * len(labels)))
    chosen = np.random.default_rng(proxy.seed).permutation(labels)[:count]
    rows = np.flatnonzero(np.isin(dataset.index.label, chosen))
    out.mkdir(exist_ok=True)
    write_selection(str(out), select(dataset, rows), name=f"{count} identities of {dataset.name}")


def _train(folder: Path, proxy: ProxySettings, *, address: str | None, debug: bool) -> None:
    run = RunDirectory(folder / "run")
    if run.is_finished():
        return
    resume = run.has_started()
    if run.path.exists() and not resume:
        shutil.rmtree(run.path)  # it never got as far as its config
    config = dataclasses.replace(
        proxy.config,
        data=dataclasses.replace(proxy.config.data, train=(str(folder / "data"),)),
        train=dataclasses.replace(proxy.config.train, output=str(run)),
    )
    train(config, resume=resume, address=address, debug=debug)
