"""Sweep files that come with rayface are found from any folder."""

import tomllib
from pathlib import Path

import pytest

from rayface.tuning.shipped import shipped_names, sweep_file
from tests.tuning.searched_studies import CONFIGS


def test_sweep_file_of_a_name_is_the_shipped_one_unless_there_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("partial_fc", "partial_fc.yaml", "tune_configs/partial_fc.yaml"):
        assert sweep_file(Path(given)).samefile(CONFIGS / "partial_fc.yaml")
    own = tmp_path / "partial_fc.yaml"
    own.write_text("search: {}")
    assert sweep_file(Path("partial_fc.yaml")).samefile(own)
    for given in ("partial_fd", "other/partial_fc.yaml"):
        with pytest.raises(ValueError, match=rf"^FILE: {given}: no such file: give a sweep file, or one of backbone, "):
            sweep_file(Path(given))


def test_wheel_carries_the_shipped_files() -> None:
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"tune_configs": "rayface/tune_configs"}
    assert shipped_names() == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
