"""Checks of the settings of a prune job before it starts, beside the validators of their fields; its fingerprint."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

from rayface.config import CleanConfig, Config
from rayface.curate.clean.clean import check_options
from rayface.curate.prune.methods import check_methods
from rayface.curate.prune.result import Values
from rayface.data.dataset import Dataset
from rayface.embedding.embeddings import MANIFEST, Embeddings, check_one_model
from rayface.files import sha256_of
from rayface.models.digests import DIGESTS
from rayface.models.model_info import DESCRIPTION
from rayface.models.run_files import checkpoints_in
from rayface.storage import StorageError, one_line, path_of

logger = logging.getLogger(__name__)


def check_settings(config: Config) -> None:
    """Raise ValueError, one line, for settings that contradict each other."""
    settings = config.prune
    check_options(config.clean)
    if settings.threshold is None and settings.keep is None:
        raise ValueError(
            "prune.threshold, prune.keep: neither is given: set one of them, for example prune.keep=0.6; prune.keep=1 "
            "keeps all that cleaning leaves"
        )
    check_methods(settings)
    if settings.write_shards and not settings.data:
        raise ValueError("prune.write_shards: requires prune.data, the dataset that was embedded")
    check_exclude(config.clean)


def check_exclude(clean: CleanConfig) -> None:
    if (clean.above is None) != (clean.exclude is None):
        raise ValueError("clean.exclude, clean.above: must be given together: embeddings of a test set, and a cosine")


def check_clean(clean: CleanConfig, source: Embeddings, test: Embeddings | None, dataset: Dataset | None) -> None:
    """Raise ValueError, one line, if the inputs of cleaning do not fit together."""
    if test is not None:
        check_one_model(source, test, source_key="prune.embeddings", key="clean.exclude")
    if clean.bytes and dataset is None:
        raise ValueError("clean.bytes: requires prune.data, the dataset with the files")


def check_head(run: str, source: Embeddings) -> None:
    """Refuse class centers of another model than that of the embeddings, whose labels and lengths may be the same.

    Raises:
        ValueError: the run's model is another one; one line.
    """
    try:
        model = json.loads((path_of(run) / DESCRIPTION).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError, StorageError):  # an unfinished run has no model yet
        model = ""
    rule = "must be the run whose model embedded the images"
    if not model or not source.model:
        lacking = f"the run has no {DESCRIPTION}" if not model else f"the embeddings have no {MANIFEST}"
        logger.warning("prune.head: %s: cannot be compared with prune.embeddings, as %s: %s", run, lacking, rule)
    elif model != source.model:
        raise ValueError(
            f"prune.head: {run}: its model is {model[:12]}, that of prune.embeddings {source.model[:12]}: {rule}"
        )


def fingerprint(config: Config, source: Embeddings, test: Embeddings | None, dataset: Dataset | None) -> Values:
    """Return the fingerprint that must be equal to resume in a folder or reuse its result."""
    settings, clean = asdict(config.prune), asdict(config.clean)
    names = ("method", "threshold", "keep", "min_images", "global_weight", "seed", "baselines", "head")
    looked_for = ("outliers", "duplicates", "conflicts", "bytes")
    job = {
        **{name: settings[name] for name in names},
        "clean": {
            **{name: clean[name] for name in looked_for},
            "test": clean["above"],
            "drop": config.clean.dropped,
            "merge": clean["merge"],
        },
        "block_size": settings["block_size"],
        "embeddings": source.digest,
        "exclude": test.digest if test else None,
        "dataset_digest": dataset.digest if dataset else None,
        "write_shards": settings["write_shards"],
    }
    if settings["head"] is not None:
        job["head_digest"] = _head_digest(settings["head"])
    if settings["options"]:  # omitted if empty, so that jobs of versions without options resume
        job["options"] = settings["options"]
    found: Values = json.loads(json.dumps(job))
    return found


def _head_digest(run: str) -> str:
    """Return a digest of the checkpoint that holds the class centers: the run at a path may be another one later."""
    try:
        return sha256_of(checkpoints_in(path_of(run))[-1] / DIGESTS)
    except (ValueError, OSError, StorageError) as error:
        raise ValueError(
            f"prune.head: {run}: has no readable checkpoint ({one_line(error)}): give a run with one"
        ) from None
