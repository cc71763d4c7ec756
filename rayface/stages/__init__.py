"""Registry of stages: every verb that runs from a Config, for the command line, experiments and sweeps."""

from rayface.config import TRAINING
from rayface.stages import fingerprints, functions
from rayface.stages.stage_type import Kind, Result, StageType

__all__ = ["INPUT_KINDS", "INPUT_PATHS", "STAGES", "Kind", "Result", "StageType"]


_PRUNE_FLAGS = (
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
)

_EVALUATE_FLAGS = (
    "model",
    "pairs",
    "data",
    "bin",
    "templates",
    "ijb",
    "target",
    "all_vs_all",
    "group_by",
    "groups",
    "out",
    "backbone",
    "embeddings",
    "batch_size",
    "flip",
    "cache",
    "leak_check",
    "leak_embeddings",
    "write_card",
)


def _flags(group: str, *names: str, **others: str) -> dict[str, str]:
    return {**{name: f"{group}.{name}" for name in names}, **others}


STAGES: dict[str, StageType] = {
    "synth": StageType(
        summary="Draw a synthetic face dataset of no real persons, deterministic for a seed.",
        function=functions.draw,
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
        summary="Convert images of identities to a dataset of tar shards, as a Ray job.",
        function=functions.convert_source,
        arguments=("src", "out"),
        flags={"src": "convert.source", "from": "convert.kind", "to": "convert.to"}
        | _flags("convert", "out", "shard_size", "layout", "seed", "jpeg_quality", "min_images", "limit")
        | _flags("convert", "max_corrupt_fraction"),
        decisive=("convert", "data.join"),
        required=("convert.source", "convert.out"),
        output="convert.out",
        output_kind="data",
        fingerprint=fingerprints.of_dataset,
        resumable=True,
        title="converted into {}",
    ),
    "align": StageType(
        summary="Find and align the faces of photographs, and write them as a dataset, as a Ray job.",
        function=functions.align_source,
        arguments=("src", "out"),
        flags={"src": "align.source", "from": "align.kind"}
        | _flags("align", "out", "detector", "min_score", "image_size", "quality", "shard_size", "layout", "seed")
        | _flags("align", "min_images", "limit"),
        decisive=("align", "data.join"),
        required=("align.source", "align.out", "align.detector"),
        output="align.out",
        output_kind="data",
        fingerprint=fingerprints.of_dataset,
        resumable=True,
        title="aligned into {}",
    ),
    "embed": StageType(
        summary="Embed a dataset with a model as a Ray Data job: a parquet file of keys and embeddings per shard.",
        function=functions.embed_dataset,
        flags=_flags("embed", "model", "data", "out", "backbone", "flip", "precision", "dtype", "workers"),
        decisive=("embed", "data.join"),
        required=("embed.model", "embed.data", "embed.out"),
        output="embed.out",
        output_kind="embeddings",
        fingerprint=fingerprints.of_embeddings,
        resumable=True,
        uses_ray=True,
        title="embedded into {}",
        shown=functions.shown_embeddings,
    ),
    "prune": StageType(
        summary="Select a core set of embedded images, as a Ray job.",
        function=functions.select_core_set,
        flags=_flags("prune", *_PRUNE_FLAGS, baseline="prune.baselines")
        | _flags("clean", "outliers", "duplicates", "conflicts", "bytes", "exclude", "above", "drop", "merge"),
        decisive=("prune", "clean", "data.join"),
        required=("prune.out",),
        output="prune.out",
        output_kind="data",
        fingerprint=fingerprints.of_core_set,
        resumable=True,
        uses_ray=True,
        title="core set in {}",
        shown=functions.shown_core_set,
    ),
    "cluster": StageType(
        summary="Cluster embedded images into identities, as a Ray job.",
        function=functions.cluster_images,
        flags=_flags(
            "clustering",
            "out",
            "embeddings",
            "data",
            "method",
            "threshold",
            "calibrate",
            "within",
            "neighbours",
            "search",
            "probes",
            "min_images",
            "block_size",
            "write_shards",
        ),
        decisive=("clustering", "data.join"),
        required=("clustering.embeddings", "clustering.out"),
        output="clustering.out",
        output_kind="data",
        fingerprint=fingerprints.of_clusters,
        resumable=True,
        uses_ray=True,
        title="clusters in {}",
        shown=functions.shown_clusters,
    ),
    "train": StageType(
        summary="Train a model into a run directory, tracked in MLflow.",
        function=functions.train_model,
        decisive=TRAINING,
        output="train.output",
        output_kind="model",
        fingerprint=fingerprints.of_run,
        resumable=True,
        uses_ray=True,
        title="trained",
    ),
    "evaluate": StageType(
        summary="Measure a model: pairs (10 folds), templates (1:1, 1:N), all-vs-all, or protocols of plugins.",
        function=functions.evaluate_model,
        flags=_flags("evaluate", *_EVALUATE_FLAGS, protocol="evaluate.protocols"),
        decisive=("evaluate",),
        required=("evaluate.out",),
        output="evaluate.out",
        output_kind="numbers",
        fingerprint=fingerprints.of_file("evaluation.json"),
        title="evaluated",
        shown=functions.shown_evaluation,
    ),
    "export": StageType(
        summary="Export a model to ONNX, verified against PyTorch, or as a folder of the Hugging Face Hub.",
        function=functions.export_model,
        flags=_flags("export", "model", "onnx", "hub", "backbone", "external_data"),
        decisive=("export",),
        required=("export.model",),
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
    "evaluate.all_vs_all": ("data",),
    "evaluate.leak_check": ("data",),
    "clustering.data": ("data",),
    "prune.embeddings": ("embeddings",),
    "clustering.embeddings": ("embeddings",),
    "clustering.calibrate": ("embeddings",),
    "evaluate.embeddings": ("embeddings",),
    "evaluate.leak_embeddings": ("embeddings",),
    "clean.exclude": ("embeddings",),
    "train.teacher_cache": ("embeddings",),
    "embed.model": ("model", "onnx"),
    "evaluate.model": ("model", "onnx"),
    "export.model": ("model", "onnx"),
    "train.teacher": ("model", "onnx"),
    "backbone.weights": ("model",),
    "prune.head": ("model",),
}
"""Config keys that take the output of a stage, with the kinds they accept; other keys take any path."""

INPUT_PATHS = (
    *(key for key in INPUT_KINDS if key != "train.teacher_cache"),
    "convert.source",
    "align.source",
    "align.detector",
    "evaluate.pairs",
    "evaluate.bin",
    "evaluate.groups",
    "evaluate.templates",
    "evaluate.ijb",
)
"""Config keys whose path must exist, unless it refers to a stage."""
