"""The convert stage: sources of a config, and where its tasks run."""

from pathlib import Path

import pytest

from rayface.config import load
from rayface.stages import conversion
from rayface.stages.conversion import convert_sources
from tests.data.scanned_tars import picture


def people(folder: Path, names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "x.jpg").write_bytes(picture(ord(name), "jpg"))
    return folder


def test_convert_sources_of_several_folders_without_ray_joins_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ray_session", None)  # a few parts do not start Ray
    one, two = people(tmp_path / "one", "ab"), people(tmp_path / "two", "bc")
    keys = {"source": f"[{one},{two}]", "kind": "folder", "out": tmp_path / "out", "layout": "by_identity"}
    dataset = convert_sources(load(overrides={f"convert.{key}": str(value) for key, value in keys.items()}))
    assert dataset.identities == ("a", "b", "c")
    assert dataset.keys() == ["one/a_x", "one/b_x", "two/b_x", "two/c_x"]


def test_convert_sources_with_another_number_of_formats_is_one_line(tmp_path: Path) -> None:
    keys = {"source": "[a,b,c]", "kind": "[folder,webdataset]", "out": tmp_path / "out"}
    config = load(overrides={f"convert.{key}": str(value) for key, value in keys.items()})
    with pytest.raises(ValueError, match=r"^convert.kind: 2 formats for 3 sources: give one, or one for each source$"):
        convert_sources(config)
