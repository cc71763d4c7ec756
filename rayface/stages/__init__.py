"""The chain of stages: every verb that makes something of a Config, for the command line, experiments and sweeps."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rayface.config import OPERATIONAL, TRAINING, Config, flat, require_keys
from rayface.stages import fingerprints
from rayface.stages.fingerprints import Fingerprint

Kind = Literal["data", "embeddings", "model", "onnx", "numbers"]
Result = Mapping[str, Any]
"""What a stage has done, as --json prints it."""


logger = logging.getLogger(__name__)


def _all(result: Result) -> Result:
    return result


@dataclass(frozen=True, kw_only=True)
class StageType:
    """A verb: a function of a Config, what of the Config decides its result, and how that is recognised.

    Attributes:
        summary: what it does, one line.
        function: does it; called with the config and whether to resume an interrupted result.
        flags: options of the command line, and names in experiment files, to config keys.
        arguments: flags that the command line takes by position.
        decisive: config keys, or groups of them, that decide the result; operational keys are not looked at.
        required: config keys that must be set, beside that of the output.
        output: config key of the place of the result.
        output_kind: what the result is to later stages.
        fingerprint: of a folder with the result.
        file: the file of a stage's folder that is the result; "": the folder.
        resumable: run again, it resumes where it was interrupted; else it starts in an empty folder.
        uses_ray: it runs on Ray.
        title: of the result; the output is put in for {}.
        shown: what of a result a table shows.
    """

    summary: str
    function: Callable[[Config, bool], Result]
    flags: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    decisive: tuple[str, ...]
    required: tuple[str, ...] = ()
    output: str
    output_kind: Kind
    fingerprint: Fingerprint
    file: str = ""
    resumable: bool = False
    uses_ray: bool = False
    title: str
    shown: Callable[[Result], Result] = _all

    def run(self, config: Config, *, resume: bool = False) -> Result:
        """Do it.

        Args:
            resume: an interrupted result; embed and prune resume without being asked.

        Raises:
            ValueError: bad input, one line.
        """
        require_keys(config, *self.required)
        return self.function(config, resume)

    def settings(self, config: Config) -> dict[str, Any]:
        """What of a config decides the result, by key."""
        groups = self.decisive
        if self.output == "prune.out" and config.prune.proxy_fraction is not None:
            groups = (*groups, *TRAINING)
        found = {
            key: value
            for key, value in flat(config).items()
            if key not in OPERATIONAL and (key in groups or key.partition(".")[0] in groups)
        }
        if "train" in groups:
            found["distils from a cache"] = config.train.teacher_cache is not None
        return found


def _synth(config: Config, resume: bool) -> Result:
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


def _convert(config: Config, resume: bool) -> Result:
    from collections import Counter

    from rayface.data.convert import ConvertSettings, convert
    from rayface.data.sources import open_source

    given = config.convert
    settings = ConvertSettings(layout=given.layout, shard_size=given.shard_size, seed=given.seed)
    dataset = convert(open_source(str(given.kind), str(given.source), given.options), str(given.out), settings)
    left_out: Counter[str] = Counter()
    for fault in dataset.faults:
        logger.warning("%s", fault)
        left_out[fault.kind] += fault.num_lost
    return {**_facts(dataset, given.out), "left_out": dict(left_out)}


def _facts(dataset: Any, out: str | None) -> Result:
    return {
        "dataset": out,
        "images": dataset.num_images,
        "identities": dataset.num_classes,
        "identities_with_images": dataset.num_classes_with_images,
        "shards": len(dataset.shards),
        "faults": len(dataset.faults),
    }


def _embed(config: Config, resume: bool) -> Result:
    from rayface.embedding.embed import embed

    result = embed(config).as_dict()
    for fault in result["faults"]:
        logger.warning("%s", fault)
    return {"out": config.embed.out, **result}


def _shown_embeddings(result: Result) -> Result:
    names = ("model", "data", "num_rows", "num_classes", "embedding_size", "flip", "parts_skipped", "seconds")
    return {**{name: result[name] for name in names}, "faults": len(result["faults"])}


def _prune(config: Config, resume: bool) -> Result:
    from rayface.stages.proxy import prune

    return {"out": config.prune.out, **prune(config).as_dict()}


def _shown_core_set(result: Result) -> Result:
    return {name: value for name, value in result.items() if name not in ("out", "config", "created_by")}


def _train(config: Config, resume: bool) -> Result:
    from rayface.training.trainer import train

    return train(config, resume=resume, address=config.cluster.address, debug=config.cluster.debug).as_dict()


def _evaluate(config: Config, resume: bool) -> Result:
    from rayface.evaluation.evaluate import evaluate

    return evaluate(config)


def _export(config: Config, resume: bool) -> Result:
    from rayface.models.model_files import load_model
    from rayface.models.onnx_export import export_onnx
    from rayface.storage import on_disk

    given = config.export
    onnx = on_disk(str(given.onnx), "export.onnx")
    result = export_onnx(load_model(str(given.model), backbone=given.backbone), onnx, external_data=given.external_data)
    return {"onnx": str(onnx), **result}


def _flags(group: str, *names: str, **others: str) -> dict[str, str]:
    return {**{name: f"{group}.{name}" for name in names}, **others}


STAGES: dict[str, StageType] = {
    "synth": StageType(
        summary="Draw a set of faces; nobody's likeness, the same for a seed.",
        function=_synth,
        arguments=("out",),
        flags=_flags("synth", "out", "identities", "images_per_identity", "seed", "pairs", "image_size", "shard_size"),
        decisive=("synth",),
        required=("synth.out",),
        output="synth.out",
        output_kind="data",
        fingerprint=fingerprints.of_dataset,
        title="drawn into {}",
    ),
    "convert": StageType(
        summary="Convert images of identities to a dataset of tar shards.",
        function=_convert,
        arguments=("src", "out"),
        flags={"src": "convert.source", "from": "convert.kind"}
        | _flags("convert", "out", "shard_size", "layout", "seed"),
        decisive=("convert",),
        required=("convert.source", "convert.kind", "convert.out"),
        output="convert.out",
        output_kind="data",
        fingerprint=fingerprints.of_dataset,
        title="converted into {}",
    ),
    "embed": StageType(
        summary="Embed a dataset with a model, as a Ray Data job: one parquet file of key, label, embedding per shard.",
        function=_embed,
        flags=_flags("embed", "model", "data", "out", "backbone", "flip", "precision", "dtype", "workers"),
        decisive=("embed", "data.join"),
        required=("embed.model", "embed.data", "embed.out"),
        output="embed.out",
        output_kind="embeddings",
        fingerprint=fingerprints.of_embeddings,
        resumable=True,
        uses_ray=True,
        title="embedded into {}",
        shown=_shown_embeddings,
    ),
    "prune": StageType(
        summary="Select a core set of embedded images, as a job on Ray.",
        function=_prune,
        flags=_flags(
            "prune",
            "out",
            "embeddings",
            "data",
            "threshold",
            "keep",
            "method",
            "head",
            "min_images",
            "global_weight",
            "proxy_fraction",
            "proxy_preset",
            "seed",
            "block_size",
            "write_shards",
            baseline="prune.baselines",
        )
        | _flags("clean", "outliers", "duplicates", "conflicts", "bytes", "exclude", "above", "drop", "merge"),
        decisive=("prune", "clean", "data.join"),
        required=("prune.out",),
        output="prune.out",
        output_kind="data",
        fingerprint=fingerprints.of_core_set,
        resumable=True,
        uses_ray=True,
        title="core set in {}",
        shown=_shown_core_set,
    ),
    "train": StageType(
        summary="Train a model into a run directory, logged to MLflow.",
        function=_train,
        decisive=TRAINING,
        output="train.output",
        output_kind="model",
        fingerprint=fingerprints.of_run,
        resumable=True,
        uses_ray=True,
        title="trained",
    ),
    "evaluate": StageType(
        summary="Measure verification accuracy (10 folds, mirrored images added) on pairs.",
        function=_evaluate,
        flags=_flags("evaluate", "model", "protocol", "pairs", "data", "out", "backbone", "batch_size"),
        decisive=("evaluate",),
        required=("evaluate.model", "evaluate.out"),
        output="evaluate.out",
        output_kind="numbers",
        fingerprint=fingerprints.of_file("evaluation.json"),
        title="evaluated",
    ),
    "export": StageType(
        summary="Export a model to ONNX with a dynamic batch, checked against PyTorch.",
        function=_export,
        flags=_flags("export", "model", "onnx", "backbone", "external_data"),
        decisive=("export",),
        required=("export.model", "export.onnx"),
        output="export.onnx",
        output_kind="onnx",
        fingerprint=fingerprints.of_file("model.onnx"),
        file="model.onnx",
        title="exported",
    ),
}

INPUT_KINDS: dict[str, tuple[Kind, ...]] = {
    "data.train": ("data",),
    "embed.data": ("data",),
    "prune.data": ("data",),
    "evaluate.data": ("data",),
    "prune.embeddings": ("embeddings",),
    "clean.exclude": ("embeddings",),
    "train.teacher_cache": ("embeddings",),
    "embed.model": ("model", "onnx"),
    "evaluate.model": ("model", "onnx"),
    "export.model": ("model", "onnx"),
    "train.teacher": ("model", "onnx"),
    "backbone.weights": ("model",),
    "prune.head": ("model",),
}
"""Config keys that take the result of a stage, and of which kind; other keys take any path."""

INPUT_PATHS = (*(key for key in INPUT_KINDS if key != "train.teacher_cache"), "convert.source", "evaluate.pairs")
"""Config keys that name something which must exist, unless they name a stage."""
