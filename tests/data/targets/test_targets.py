"""What goes in comes out, in every format; `rayface convert --to`."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.cli.command_line import _outcome
from rayface.data import targets
from rayface.data.convert import convert
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.output_folder import exclusive_output
from rayface.data.shards.samples import Fault, Sample
from rayface.data.sources import open_source
from rayface.data.targets import TARGETS, target_of
from rayface.data.targets.samples import read_rows
from rayface.storage import DataError
from tests.data.targets.small_set import by_name, dataset_of


@pytest.mark.parametrize(("kind", "options"), [("folder", {"image_size": None}), ("hub", {}), ("parquet", {})])
def test_target_that_is_converted_back_gives_the_same_images_of_the_same_names(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    dataset = dataset_of(tmp_path / "set")
    written = target_of(kind)(dataset, str(tmp_path / "written"))
    assert (written.num_images, written.faults) == (5, ())
    again = convert(open_source(kind, tmp_path / "written", options), tmp_path / "again")
    assert by_name(again) == by_name(dataset)
    assert len(by_name(dataset)) == 5
    with pytest.raises(DataError, match="is not empty"):
        target_of(kind)(dataset, str(tmp_path / "written"))


@pytest.mark.parametrize(("kind", "options"), [("folder", {"image_size": None}), ("hub", {}), ("parquet", {})])
def test_target_that_is_interrupted_is_refused_as_a_source_and_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, object]
) -> None:
    dataset, out = dataset_of(tmp_path / "set"), tmp_path / "half" / "same"

    def written(folder: Path) -> dict[str, bytes]:
        target_of(kind)(dataset, str(folder))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def interrupted(source: Dataset, rows: NDArray[np.int64]) -> Iterator[Sample | Fault]:
        yield from itertools.islice(read_rows(source, rows), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for module in (targets.folder, targets.parquet):
            patched.setattr(module, "read_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            target_of(kind)(dataset, str(out))
    with pytest.raises(DataError, match="is unfinished; run the command that writes it again"):
        convert(open_source(kind, out, options), tmp_path / "again")
    with (
        exclusive_output(str(out), lambda name: False),
        pytest.raises(DataError, match="another process owns it"),
    ):
        written(out)
    assert written(out) == written(tmp_path / "whole" / "same")
    (tmp_path / "mine").mkdir()
    for name in (".unfinished", "notes"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(DataError, match=r"mine: is not empty \(notes\)"):
        written(tmp_path / "mine")


def test_convert_to_takes_a_dataset_or_a_source_of_any_format(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "set")
    assert _outcome(["convert", str(tmp_path / "set"), str(tmp_path / "a"), "--to", "folder"]) == (0, "")
    steps = ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--from", "folder", "--to", "parquet"]
    assert _outcome([*steps, "convert.options.image_size=null"]) == (0, "")
    assert by_name(convert(open_source("parquet", tmp_path / "b"), tmp_path / "c")) == by_name(dataset)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "set"]
    assert open_dataset(tmp_path / "c").num_images == 5
    code, text = _outcome(["convert", str(tmp_path / "a"), str(tmp_path / "x.bin"), "--from", "folder", "--to", "bin"])
    assert (code, "pairs.csv: no such file" in text) == (2, True)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "set"]


def test_convert_to_an_unknown_format_or_from_none_is_one_line(tmp_path: Path) -> None:
    code, text = _outcome(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "tape"])
    assert (code, text) == (
        2,
        "convert.to: 'tape': must be one of bin, folder, hub, parquet, or registered by a plugin",
    )
    code, text = _outcome(["convert", str(tmp_path), str(tmp_path / "out")])
    assert code == 2
    assert text.startswith("convert.kind (--from): is not set: Format of the source")
    assert sorted(TARGETS) == ["bin", "folder", "hub", "parquet"]
