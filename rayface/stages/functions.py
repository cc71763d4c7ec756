"""Functions of the stages: each passes a Config to the library and returns the result as --json prints it.

They import the library when called, so the command line shows its help without importing PyTorch and Ray.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rayface.config import Config
from rayface.config_fields import refuse_ineffective

Result = Mapping[str, Any]
logger = logging.getLogger(__name__)


def draw(config: Config, resume: bool) -> Result:
    from rayface.data.synth import synthesize

    synth = config.synth
    dataset = synthesize(
        str(synth.out),
        identities=synth.identities,
        images_per_identity=synth.images_per_identity,
        seed=synth.seed,
        pairs=synth.pairs,
        image_size=synth.image_size,
        shard_size=synth.shard_size,
    )
    return dataset_facts(dataset, synth.out)


def convert_source(config: Config, resume: bool) -> Result:
    from rayface.stages.conversion import convert_sources, write_target

    if config.convert.to is not None:
        written = write_target(config)
        facts: Result = {"out": config.convert.out, "images": written.num_images, "files": written.num_files}
        faults = written.faults
    else:
        dataset = convert_sources(config)
        facts, faults = dataset_facts(dataset, config.convert.out), dataset.faults
    return _with_faults(facts, faults)


def align_source(config: Config, resume: bool) -> Result:
    from rayface.stages.alignment import align_sources

    dataset = align_sources(config)
    return _with_faults(dataset_facts(dataset, config.align.out), dataset.faults)


def _with_faults(facts: Result, faults: Sequence[Any]) -> Result:
    """Warn of each fault, and count what they lost by kind."""
    from collections import Counter

    left_out: Counter[str] = Counter()
    for fault in faults:
        logger.warning("%s", fault)
        left_out[fault.kind] += fault.num_lost
    return {**facts, "faults": sum(left_out.values()), "left_out": dict(left_out)}


def dataset_facts(dataset: Any, out: str | None) -> Result:
    """Return the result of a stage that writes a dataset."""
    return {
        "dataset": out,
        "images": dataset.num_images,
        "identities": dataset.num_classes_with_images,
        "label_space": dataset.num_classes,
        "shards": len(dataset.shards),
        "faults": len(dataset.faults),
    }


def embed_dataset(config: Config, resume: bool) -> Result:
    from rayface.embedding.embed import embed

    result = embed(config).as_dict()
    for fault in result["faults"]:
        logger.warning("%s", fault)
    return {"out": config.embed.out, **result}


def select_core_set(config: Config, resume: bool) -> Result:
    from rayface.stages.proxy import prune

    return {"out": config.prune.out, **prune(config).as_dict()}


def cluster_images(config: Config, resume: bool) -> Result:
    from rayface.curate.cluster.cluster import cluster

    result = cluster(config).as_dict()
    return {"out": config.clustering.out, **result["counts"], **result}


def train_model(config: Config, resume: bool) -> Result:
    from rayface.training.trainer import train

    return train(config, resume=resume, address=config.cluster.address, debug=config.cluster.debug).as_dict()


def evaluate_model(config: Config, resume: bool) -> Result:
    from rayface.evaluation.evaluate import evaluate

    return evaluate(config).as_dict()


def export_model(config: Config, resume: bool) -> Result:
    from rayface.models.hub_folder import export_hub
    from rayface.models.model_files import load_model
    from rayface.models.onnx_export import export_onnx
    from rayface.storage import split, staged_folder

    given = config.export
    if given.onnx is None and given.hub is None:
        raise ValueError("export.onnx, export.hub: neither is set: give --onnx FILE.onnx, --hub DIR, or both")
    refuse_ineffective(given, "external_data", given.onnx is not None, "must be with export.onnx", prefix="export.")
    result: dict[str, object] = {}
    with ExitStack() as outputs:  # what cannot be written is refused before the work
        hub = None if given.hub is None else outputs.enter_context(staged_folder(given.hub, "export.hub"))
        folder, name = split(given.onnx or "")
        onnx = None if given.onnx is None else outputs.enter_context(staged_folder(folder, "export.onnx")) / name
        model = load_model(str(given.model), backbone=given.backbone)
        if hub is not None:
            result |= {"hub": given.hub, **export_hub(model, hub)}
        if onnx is not None:
            facts = export_onnx(model, onnx, external_data=given.external_data)
            result |= {"onnx": given.onnx, **facts}
    return result
