"""The notebooks of examples/ run as scripts, on one drawn set and one model."""

import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent.parent / "examples" / "notebooks"
LONG = {"prune_and_compare", "sweep_with_pandas", "cluster_unlabelled"}  # several trainings each
NAMES = [
    pytest.param(path.stem, marks=[pytest.mark.long] if path.stem in LONG else [])
    for path in sorted(NOTEBOOKS.glob("*.py"))
]
SAYS = {
    "cluster_unlabelled": "images of",
    "partial_fc_in_pytorch": "are nearest to their own center",
    "prune_and_compare": "'face_nms': '",
    "sweep_with_pandas": "complete",
    "train_and_evaluate": "accuracy_mean",
    "your_data": "faults: none",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", NAMES)
def test_notebook_run_as_a_script_ends_with_its_results(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    runpy.run_path(str(NOTEBOOKS / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", list(SAYS))
def test_notebook_begins_with_a_title_and_explains_its_cells(name: str) -> None:
    lines = (NOTEBOOKS / f"{name}.py").read_text().splitlines()
    assert lines[0] == "# %% [markdown]"
    assert lines[1].startswith("# # ")
    assert lines.count("# %%") >= 3
