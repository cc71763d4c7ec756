"""The verb of sweeps: what is handed over, and how bad input ends."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Call, Result


def test_tune_of_a_file_hands_over_keys_preset_and_resume(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def tune(file: object, overrides: list[str], **options: Any) -> Result:
        asked.append((str(file), overrides, options))
        return Result(trials=3)

    monkeypatch.setattr("rayface.tuning.sweep.tune", tune)
    code, out, _ = call("tune", "sweep.yaml", "optim.lr=0.1", "--preset=mini", "--resume", "--json")
    assert (code, json.loads(out)) == (0, {"trials": 3})
    options = {"preset": "mini", "resume": True, "address": None, "debug": False}
    assert asked == [("sweep.yaml", ["optim.lr=0.1"], options)]


def test_tune_with_resume_auto_hands_it_over(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "rayface.tuning.sweep.tune",
        lambda file, overrides, **options: asked.append((overrides, options["resume"])) or Result(trials=1),
    )
    assert call("tune", "sweep.yaml", "--resume", "auto", "sweep.output=/s")[0] == 0
    assert asked == [(["sweep.output=/s"], "auto")]


def test_tune_of_a_missing_file_is_one_line_and_exit_code_2(call: Call) -> None:
    code, out, err = call("tune", "/nowhere.yaml")
    assert (code, out) == (2, "")
    assert "/nowhere.yaml" in err
    assert "\n" not in err.strip()


def test_tune_shows_failed_trials_in_words_and_its_key_in_json(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayface.tuning.sweep.tune", lambda *_, **__: Result(complete=3, fail=0))
    assert call("tune", "sweep.yaml")[1].splitlines()[1:] == ["complete  3", "failed    0"]
    assert json.loads(call("tune", "sweep.yaml", "--json")[1]) == {"complete": 3, "fail": 0}
