"""Metadata of checkpoints: read as PyTorch does, and nothing else that a pickle may hold is executed."""

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.serialization import _get_layout
from typer.testing import CliRunner

from rayface import config as configs
from rayface.cli.command_line import app
from rayface.models.digests import digests_of, write_digests
from rayface.models.row_shard import RowShard
from rayface.models.saved_centers import saved_centers
from rayface.models.store_files import reader_of
from rayface.storage import RemotePath
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.progress import DatasetFacts, Progress

STATE = {"head.centers": RowShard.of(torch.arange(27.0).view(9, 3), 0, 9), "w": torch.ones(2, dtype=torch.bfloat16)}
PROGRESS = Progress(step=1, dataset=DatasetFacts(name="drawn", digest="d" * 64, licence="none"))


class Hostile:
    """Its pickle runs a command."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    configs.dump(configs.load("debug", None, ["data.train=unused"]), run / "config.yaml")
    return Path(checkpoint.save(run, STATE, PROGRESS, keep=1))


def replace_metadata(folder: Path, content: bytes) -> None:
    """Replace the metadata, and its digest, as whoever sends a checkpoint can."""
    (folder / ".metadata").write_bytes(content)
    write_digests(folder, digests_of(folder, (path.name for path in folder.iterdir() if path.name != "digests.json")))


def changed(folder: Path, change: Callable[[Metadata], None]) -> bytes:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    return pickle.dumps(metadata)


def test_metadata_of_a_checkpoint_is_what_pickle_reads(folder: Path) -> None:
    found, plain = reader_of(folder).read_metadata(), pickle.loads((folder / ".metadata").read_bytes())
    for name in ("state_dict_metadata", "storage_data", "planner_data", "version"):
        assert getattr(found, name) == getattr(plain, name)


def test_metadata_of_a_checkpoint_in_a_store_is_read_once(folder: Path, object_store: Any, monkeypatch: Any) -> None:
    for path in folder.iterdir():
        object_store.put(f"run/checkpoints/step_00000001/{path.name}", path.read_bytes())
    reader = reader_of(RemotePath(object_store.uri("run")) / "checkpoints" / "step_00000001")
    first = reader.read_metadata()
    monkeypatch.setattr(reader, "fs", None)
    assert reader.read_metadata() is first


@pytest.mark.parametrize("call", [os.system, subprocess.call, eval])
def test_metadata_that_calls_something_is_refused_and_calls_nothing(folder: Path, call: Any) -> None:
    mark = folder.parent / "called"
    command = f"open({str(mark)!r}, 'w')" if call is eval else f"touch {mark}"
    replace_metadata(folder, pickle.dumps(Hostile(call, [command] if call is subprocess.call else command)))
    state = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    for read in (lambda: checkpoint.load(folder, state), lambda: saved_centers(folder.parents[1])):
        with pytest.raises(ValueError, match=r"\.metadata: cannot be read: .* does not describe a tensor: use another"):
            read()
    assert not mark.exists()


def test_metadata_that_says_a_tensor_is_a_pickle_is_refused(folder: Path) -> None:
    def as_bytes(metadata: Metadata) -> None:
        metadata.state_dict_metadata["w"] = BytesStorageMetadata()

    replace_metadata(folder, changed(folder, as_bytes))
    with pytest.raises(ValueError, match=r"cannot be read: .*BytesStorageMetadata does not describe a tensor"):
        checkpoint.load(folder, {"w": torch.zeros(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize("place", ["../other.distcp", "/etc/passwd", ".."])
def test_metadata_of_tensors_outside_the_checkpoint_is_refused(folder: Path, place: str) -> None:
    def moved(metadata: Metadata) -> None:
        for each in metadata.storage_data.values():
            each.relative_path = place

    replace_metadata(folder, changed(folder, moved))
    with pytest.raises(ValueError, match="not in a file of the checkpoint"):
        reader_of(folder).read_metadata()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps(Metadata({"w": None}))])
def test_unreadable_metadata_is_one_line(folder: Path, content: bytes) -> None:
    replace_metadata(folder, content)
    with pytest.raises(ValueError, match=r"\.metadata: cannot be read: [^\n]*: use another checkpoint$"):
        reader_of(folder).read_metadata()


@pytest.mark.parametrize("verb", ["show", "export"])
def test_verbs_of_a_checkpoint_with_hostile_metadata_end_with_one_line(folder: Path, verb: str) -> None:
    mark = folder.parent / "called"
    replace_metadata(folder, pickle.dumps(Hostile(os.system, f"touch {mark}")))
    out = ["--out", str(folder.parents[1] / "centers.safetensors")] if verb == "export" else []
    done = CliRunner().invoke(app, ["checkpoint", verb, str(folder), *out])
    assert isinstance(done.exception, ValueError)  # which the command line prints as one line
    assert "does not describe a tensor" in str(done.exception)
    assert done.output == ""
    assert not mark.exists()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


NAMES = {
    "path": (b"cpathlib\nPosixPath\n", "PurePosixPath._str", lambda: PurePosixPath("a")),
    "class": (b"ctorch.distributed.checkpoint.metadata\nMetadata\n", "Metadata.version", lambda: Metadata({})),
    "size": (b"ctorch\nSize\n", "Size.x", lambda: torch.Size([1])),
    "function": (b"ctorch.serialization\n_get_layout\n", "function.x", lambda: _get_layout),
}


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "dict"])
@pytest.mark.parametrize("name", NAMES)
def test_metadata_that_sets_attributes_of_classes_is_refused_and_sets_none(
    folder: Path, name: str, slots: bool
) -> None:
    code, attribute, instance = NAMES[name]
    key = attribute.partition(".")[2]
    before = getattr(instance(), key, None)
    state = b"}" + text(key) + text("elsewhere") + b"s"
    replace_metadata(folder, b"\x80\x02" + code + (b"N" + state + b"\x86" if slots else state) + b"b0" + b"N.")
    with pytest.raises(ValueError, match=r"cannot be read: .* as its state: use another checkpoint$"):
        reader_of(folder).read_metadata()
    assert getattr(instance(), key, None) == before


def test_metadata_with_methods_as_fields_is_refused(folder: Path) -> None:
    def method(metadata: Metadata) -> None:
        metadata.__dict__["__setstate__"] = torch.Size

    replace_metadata(folder, changed(folder, method))
    with pytest.raises(ValueError, match="Metadata with other names than of fields"):
        reader_of(folder).read_metadata()
