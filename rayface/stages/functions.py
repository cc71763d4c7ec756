"""Functions of the stages: each passes a Config to the library and returns the result as --json prints it.

They import the library when called, so the command line shows its help without importing PyTorch and Ray.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rayface.config import Config

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
    return _facts(dataset, synth.out)


def convert_source(config: Config, resume: bool) -> Result:
    from rayface.stages.conversion import convert_sources, write_target

    if config.convert.to is not None:
        written = write_target(config)
        facts: Result = {"out": config.convert.out, "images": written.num_images, "files": written.num_files}
        faults = written.faults
    else:
        dataset = convert_sources(config)
        facts, faults = _facts(dataset, config.convert.out), dataset.faults
    return _with_faults(facts, faults)


def align_source(config: Config, resume: bool) -> Result:
    from rayface.stages.alignment import align_sources

    dataset = align_sources(config)
    return _with_faults(_facts(dataset, config.align.out), dataset.faults)


def _with_faults(facts: Result, faults: Sequence[Any]) -> Result:
    """Warn of each fault, and count what they lost by kind."""
    from collections import Counter

    left_out: Counter[str] = Counter()
    for fault in faults:
        logger.warning("%s", fault)
        left_out[fault.kind] += fault.num_lost
    return {**facts, "left_out": dict(left_out)}


def _facts(dataset: Any, out: str | None) -> Result:
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


def shown_embeddings(result: Result) -> Result:
    names = ("model", "data", "num_rows", "num_classes", "embedding_size", "flip", "parts_skipped", "seconds")
    return {**{name: result[name] for name in names}, "faults": len(result["faults"])}


def select_core_set(config: Config, resume: bool) -> Result:
    from rayface.stages.proxy import prune

    return {"out": config.prune.out, **prune(config).as_dict()}


def shown_core_set(result: Result) -> Result:
    return {name: value for name, value in result.items() if name not in ("out", "config", "created_by")}


def cluster_images(config: Config, resume: bool) -> Result:
    from rayface.curate.cluster.cluster import cluster

    result = cluster(config).as_dict()
    return {"out": config.clustering.out, **result["counts"], **result}


def shown_clusters(result: Result) -> Result:
    names = ("method", "threshold", "threshold_from")
    scores = result["scores"] or {}
    known = {name: scores[name] for name in ("pairwise_f", "bcubed_f", "nmi") if name in scores}
    return {**{name: result[name] for name in names}, **result["counts"], **known, "seconds": result["job"]["seconds"]}


def train_model(config: Config, resume: bool) -> Result:
    from rayface.training.trainer import train

    return train(config, resume=resume, address=config.cluster.address, debug=config.cluster.debug).as_dict()


def shown_run(result: Result) -> Result:
    """Return the values of a run with intervals beside their figures."""
    own = {name: value for name, value in result.items() if value is not None}
    return {**{name: None for name in result if not name.endswith("_interval")}, **_worded(own)}


def evaluate_model(config: Config, resume: bool) -> Result:
    from rayface.evaluation.evaluate import evaluate

    return evaluate(config).as_dict()


def shown_evaluation(result: Result) -> Result:
    """Return the figures of every protocol, with words for those that are not measured."""
    shown: dict[str, Any] = {name: value for name, value in result.items() if isinstance(value, str)}
    several = len(result["protocols"]) > 1
    for protocol, figures in result["protocols"].items():
        reasons = figures.get("not_measured", {})
        own = _worded({name: value for name, value in figures.items() if name != "not_measured"})
        if reasons:
            own["why not measured"] = "; ".join(dict.fromkeys(reasons.values()))
        shown |= {f"{protocol}: {name}" if several else name: value for name, value in own.items()}
    for protocol, certificate in result.get("leaks", {}).items():
        found = {way: "not examined" if n is None else n["images"] for way, n in certificate["counts"].items()}
        shown[f"{protocol}: leaked images" if several else "leaked images"] = found
        if without := certificate["without"]:
            names = ("accuracy_mean", "accuracy_interval", "tar_at_far", "tar_at_far_interval")
            worded = _worded({name: without[name] for name in names if name in without})
            shown[f"{protocol}: without them" if several else "without them"] = worded
    return shown


def _worded(figures: Mapping[str, Any], intervals: object = None) -> dict[str, Any]:
    """Return the figures with words for those that are not measured, and intervals beside their figures."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if name.endswith("_interval"):
            continue
        interval = figures.get(f"{name.removesuffix('_mean')}_interval")
        if interval is None and isinstance(intervals, Mapping):
            interval = intervals.get(name)
        if isinstance(value, Mapping):
            found[name] = _worded(value, interval)
        elif value is None:
            found[name] = "not measured"
        else:
            found[name] = value if interval is None or None in interval else _with_interval(value, interval)
    return found


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"


def export_model(config: Config, resume: bool) -> Result:
    from rayface.models.hub_folder import export_hub
    from rayface.models.model_files import load_model
    from rayface.models.onnx_export import export_onnx
    from rayface.storage import split, staged_folder

    given = config.export
    if given.onnx is None and given.hub is None:
        raise ValueError("export.onnx, export.hub: neither is set: give --onnx FILE.onnx, --hub DIR, or both")
    result: dict[str, Any] = {}
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
