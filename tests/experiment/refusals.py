"""Experiment files that are refused before anything starts."""

from pathlib import Path

import pytest

from rayface.experiment.runner import run

TRAIN = "- name: a\n  train: {preset: debug, data.train: DATA}\n"


def assert_refused(text: str, message: str, data: Path, calls: list[str], tmp_path: Path) -> None:
    """Run a file; it is refused in one line that holds `message`, no stage is called and no folder is made."""
    file = tmp_path / "wrong.yaml"
    file.write_text(text.replace("DATA", str(data)))
    with pytest.raises(ValueError, match=r".") as caught:
        run(file, [], out=str(tmp_path / "out"))
    assert message.replace("HERE", str(Path.cwd())) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert calls == []
    assert not (tmp_path / "out").exists()
