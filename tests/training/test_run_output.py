"""A run is finished when its result and its model are there."""

from pathlib import Path

import pytest

from rayface import config as configs
from rayface.training.run_directory import RunDirectory
from rayface.training.run_output import check_output, exclusive_run_directory


@pytest.mark.parametrize("lost", ["model.safetensors", "model.json"])
def test_exclusive_run_directory_of_a_run_without_its_model_deletes_its_results(tmp_path: Path, lost: str) -> None:
    """It is finished anew from its last checkpoint; before, --resume called it finished for ever."""
    run = tmp_path / "run"
    run.mkdir()
    config = configs.with_overrides(configs.load("debug"), {"train.output": str(run)})
    configs.dump(config, run / "config.yaml")
    for name in ("result.json", "outcome.json", "model.safetensors", "model.json"):
        (run / name).write_text("{}")
    assert RunDirectory(run).is_finished()
    with pytest.raises(ValueError, match="holds a finished run"):
        check_output(config, resume=True)
    (run / lost).unlink()
    assert not RunDirectory(run).is_finished()
    with exclusive_run_directory(config, resume=True):
        assert not (run / "result.json").exists()
        assert not (run / "outcome.json").exists()
