"""Inspect and verify checkpoints, and export parts of them as safetensors: `rayface checkpoint`."""

import os
import re
import shutil
import warnings
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rayface import config as configs
from rayface.backbones import build_backbone
from rayface.backbones.weights import read_tensors
from rayface.files import publish
from rayface.heads.class_centers import class_range
from rayface.models.model_files import save_model
from rayface.models.model_info import WEIGHTS
from rayface.models.run_files import checkpoints_in, valid_checkpoint
from rayface.models.saved_centers import SavedCenters, saved_centers
from rayface.models.store_files import reader_of
from rayface.storage import AnyPath, join, on_disk, staged_folder
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.progress import Progress
from rayface.training.run_directory import RunDirectory

# Parts of progress.json that the table shows; values of the head and corrupt samples are omitted.
_SHOWN_STATE = ("epoch", "workers", "schedule", "recovery", "mlflow", "plan", "dataset")
_FEW = 8  # maximum number of tensors of one kind that the table lists individually


def verify(directory: AnyPath) -> dict[str, list[str]]:
    """Return the faults of a checkpoint, or of every checkpoint of a run, by name; reads all bytes."""
    return {folder.name: checkpoint.verify(folder) for folder in checkpoints_in(directory)}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor of a checkpoint, with its full shape if the ranks hold shards of it."""

    shape: list[int]
    dtype: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CheckpointContents:
    """Content of a checkpoint; only the faults if it is corrupt."""

    folder: AnyPath
    faults: list[str]
    progress: Progress | None = None
    accuracy: float | None = None
    """Accuracy of the validation at this very step; None if there was none."""
    num_bytes: int = 0
    config: dict[str, object] = field(default_factory=dict)
    """Values of the shown config keys."""
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, for --json.

        Keys: checkpoint, whole, faults and, of a valid one, step, total_steps, accuracy, epoch, workers, schedule,
        recovery (roll-backs), mlflow (run_id, last_step), plan, dataset, damaged_samples, bytes, config, tensors
        {name: {"shape", "dtype", "bytes"}}.
        """
        if self.progress is None:
            return {"checkpoint": str(self.folder), "whole": False, "faults": self.faults}
        progress = self.progress.as_dict()
        return {
            "checkpoint": str(self.folder),
            "whole": True,
            "faults": [],
            **{key: progress[key] for key in ("step", "total_steps")},
            "accuracy": self.accuracy,
            **{key: progress[key] for key in _SHOWN_STATE},
            "damaged_samples": sum(fault[-1] for fault in self.progress.faults),
            "bytes": self.num_bytes,
            "config": self.config,
            "tensors": {name: vars(tensor) for name, tensor in self.tensors.items()},
        }

    def table(self) -> dict[str, object]:
        """Return the rows of the printed table; many tensors of one kind are one row."""
        rows: dict[str, object] = {}
        for key, value in self.as_dict().items():
            if key not in ("tensors", "faults"):
                several = isinstance(value, dict)
                rows |= {f"{key} {name}": part for name, part in value.items()} if several else {key: value}
        kinds: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
        for name, tensor in self.tensors.items():
            kinds[name.split(".")[0]][name] = tensor
        for kind, tensors in kinds.items():
            if len(tensors) > _FEW:
                rows[f"{kind}.*"] = f"{len(tensors):,} tensors, {sum(t.bytes for t in tensors.values()):,} bytes"
            else:
                rows |= {name: f"{tuple(t.shape)} {t.dtype}, {t.bytes:,} bytes" for name, t in tensors.items()}
        return rows | {f"fault {number}": fault for number, fault in enumerate(self.faults, 1)}


def show(directory: AnyPath) -> CheckpointContents:
    """Return the content of a checkpoint, or of the newest of a run; if it is corrupt, only digests are read."""
    folder = checkpoints_in(directory)[-1]
    faults = checkpoint.verify(folder)
    if faults:
        return CheckpointContents(folder=folder, faults=faults)
    progress = Progress.read(folder)
    tensors = {
        name: TensorInfo(
            shape=list(saved.size),
            dtype=str(saved.properties.dtype).removeprefix("torch."),
            bytes=saved.size.numel() * saved.properties.dtype.itemsize,
        )
        for name, saved in _tensors(folder).items()
    }
    run = RunDirectory(folder.absolute().parent.parent)
    if progress.config is not None:
        flat = configs.flat(configs.from_dict(dict(progress.config)))
    else:
        flat = configs.flat(run.read_config()) if run.has_started() else {}
    if progress.mlflow is not None and progress.mlflow.run_id is None:
        # Delivery to MLflow starts after the first steps: a checkpoint can be older than the run in MLflow.
        progress = replace(progress, mlflow=replace(progress.mlflow, run_id=run.mlflow_run_id()))
    return CheckpointContents(
        folder=folder,
        faults=[],
        progress=progress,
        accuracy=_measured(run, progress),
        num_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        config={key: flat[key] for key in configs.SHOWN if key in flat},
        tensors=tensors,
    )


def _measured(run: RunDirectory, progress: Progress) -> float | None:
    """Return the accuracy of the validation at a checkpoint's step.

    The checkpoint's own accuracy is that of the validation before it, which may be of an earlier step; at the last step
    of a run it is also older than the final validation.
    """
    measured = {step: value for step, value, _ in run.read_metrics().get("eval/accuracy", ())}
    return measured.get(progress.step)


def export(directory: AnyPath, out: str | Path) -> dict[str, str | int]:
    """Write the model of a checkpoint, or of the newest of a run, as model.safetensors and model.json.

    It is the network that the run evaluates. The run's config.yaml names the backbone. A model in `out` is replaced.

    Raises:
        ValueError: the checkpoint is corrupt, or its run has no config.yaml.
    """
    folder = valid_checkpoint(directory)
    run = RunDirectory(folder.absolute().parent.parent)
    config = run.read_config()
    net = config.backbone
    backbone = build_backbone(
        net.name, embedding_size=net.embedding_size, image_size=config.data.image_size, width=net.width
    )
    network = Progress.read(folder).network
    progress = _load(folder, {f"{network}.{name}": tensor for name, tensor in backbone.state_dict().items()})
    accuracy, dataset = _measured(run, progress), progress.dataset
    if dataset is None:
        raise ValueError(f"DIR {folder}: does not name its training data: must be of a run: export another checkpoint")
    with staged_folder(out, "out") as local:
        save_model(
            local,
            backbone,
            network=network,
            name=net.name,
            backbone_args={"width": net.width},
            image_size=config.data.image_size,
            embedding_size=net.embedding_size,
            licence=dataset.licence,
            training_digest=dataset.digest,
            metrics={} if accuracy is None else {"accuracy_mean": accuracy},
        )
    return {"checkpoint": str(folder), "step": progress.step, "model": join(str(out), WEIGHTS)}


def reshard(directory: AnyPath, out: Path, *, ranks: int = 1, from_arcface: bool = False) -> dict[str, str | int]:
    """Write the class centers as centers.safetensors, (C, D), or as centers_rank_K.safetensors for `ranks` ranks.

    Rank K of W gets C // W rows, one more for the first C % W ranks. The tensor's name is "centers"; num_classes, first
    and last (+ 1) class are in the file's metadata. Memory: one part; from arcface_torch, twice the matrix.

    Args:
        directory: a checkpoint, a run (its newest), or a folder of arcface_torch's files of each rank.
        out: a new or empty folder; written atomically.
        from_arcface: read `checkpoint_gpu_K.pt` or `rank_K_softmax_weight.pt`, see `arcface_centers`.

    Raises:
        ValueError: the source is corrupt or holds no class centers, `out` is not empty, or more ranks than classes.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: {out}: is not empty: choose another directory")
    centers = _arcface(on_disk(str(directory), "DIR")) if from_arcface else saved_centers(directory)
    if not 1 <= ranks <= centers.num_classes:
        raise ValueError(f"ranks: {ranks}: must be from 1 to {centers.num_classes}, the number of classes")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for rank in range(ranks):
        first, last = class_range(centers.num_classes, ranks, rank)
        path = temporary / ("centers.safetensors" if ranks == 1 else f"centers_rank_{rank}.safetensors")
        place = {"num_classes": str(centers.num_classes), "first": str(first), "last": str(last)}
        save_file({"centers": centers.read(first, last).contiguous()}, path, metadata={"format": "pt", **place})
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    publish(temporary, out)
    return {"out": str(out), "files": ranks, "classes": centers.num_classes, "embedding_size": centers.width}


def arcface_centers(folder: Path) -> list[torch.Tensor]:
    """Return the class centers of every rank in arcface_torch's files, in order of rank, each (rows, D).

    Not tested on files of a real run. A file holds a matrix, or a dict, or a dict "state_dict_softmax_fc" in it; of a
    dict, the entry "weight" is used, else the only matrix. Rank K must hold C // W rows, one more for the first C % W
    ranks. Files are read without running code from them.

    Raises:
        ValueError: files are missing or of another layout.
    """
    files: dict[int, Path] = {}
    for pattern in ("checkpoint_gpu_*.pt", "rank*softmax_weight.pt"):
        numbered = [(re.search(r"\d+", path.name), path) for path in sorted(folder.glob(pattern))]
        files = files or {int(number[0]): path for number, path in numbered if number}
    if sorted(files) != list(range(len(files))) or not files:
        raise ValueError(
            f"DIR {folder}: must hold checkpoint_gpu_K.pt or rank_K_softmax_weight.pt for every rank K from 0 on; it "
            f"has those of ranks {sorted(files)}"
        )
    parts = [_arcface_weight(files[rank]) for rank in sorted(files)]
    total = sum(len(part) for part in parts)
    ranges = [class_range(total, len(parts), rank) for rank in range(len(parts))]
    sizes = [len(part) for part in parts]
    if sizes != [last - first for first, last in ranges] or len({part.shape[1] for part in parts}) != 1:
        raise ValueError(f"DIR {folder}: parts of {sizes} classes are not those of one head: ranks are missing")
    return parts


def _arcface_weight(path: Path) -> torch.Tensor:
    loaded = read_tensors(path)
    entries = loaded.get("state_dict_softmax_fc", loaded)
    matrices = {k: v for k, v in entries.items() if isinstance(v, torch.Tensor) and v.ndim == 2}
    if "weight" not in matrices and len(matrices) != 1:
        raise ValueError(f"{path}: must hold one matrix of class centers; it has {sorted(matrices) or 'none'}")
    return matrices.get("weight", next(iter(matrices.values())))


def _arcface(folder: Path) -> SavedCenters:
    whole = torch.cat(arcface_centers(folder))
    return SavedCenters(num_classes=len(whole), width=whole.shape[1], read=lambda first, last: whole[first:last])


def _tensors(folder: AnyPath) -> dict[str, TensorStorageMetadata]:
    metadata = reader_of(folder).read_metadata().state_dict_metadata
    return {name: saved for name, saved in metadata.items() if isinstance(saved, TensorStorageMetadata)}


def _load(folder: AnyPath, state: checkpoint.State) -> Progress:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns that it runs in one process
        return checkpoint.load(folder, state)
