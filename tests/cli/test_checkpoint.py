"""Verbs of checkpoints: what is shown of them, faults one by one, and where parts of them go."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.conftest import Call

TOOLS = "rayface.training.checkpointing.tools"


def test_checkpoint_show_as_json_holds_all_and_as_a_table_a_part(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = SimpleNamespace(as_dict=lambda: {"step": 7, "files": ["a"]}, table=lambda: {"step": 7})
    monkeypatch.setattr(f"{TOOLS}.show", lambda directory: shown)
    code, out, _ = call("checkpoint", "show", "run", "--json")
    assert (code, json.loads(out)) == (0, {"step": 7, "files": ["a"]})
    assert "files" not in call("checkpoint", "show", "run")[1]


@pytest.mark.parametrize(
    ("found", "code", "states"),
    [
        ({"step-1": [], "step-2": []}, 0, {"step-1": "valid", "step-2": "valid"}),
        ({"step-1": [], "step-2": ["x: is missing"]}, 1, {"step-1": "valid", "step-2": "corrupt"}),
    ],
)
def test_checkpoint_verify_names_every_fault_and_ends_with_1_for_any(
    call: Call, monkeypatch: pytest.MonkeyPatch, found: dict[str, list[str]], code: int, states: dict[str, str]
) -> None:
    monkeypatch.setattr(f"{TOOLS}.verify", lambda directory: found)
    ended, out, err = call("checkpoint", "verify", "run", "--json")
    faults = [fault for own in found.values() for fault in own]
    assert (ended, json.loads(out)) == (code, {"whole": not faults, "checkpoints": states, "faults": faults})
    assert err.splitlines() == faults


def test_checkpoint_export_and_reshard_hand_over_folders_and_ranks(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Any, ...]] = []

    def made(*given: Any, **options: Any) -> dict[str, str]:
        asked.append((*given, options))
        return {"out": str(given[1])}

    for name in ("export", "reshard"):
        monkeypatch.setattr(f"{TOOLS}.{name}", made)
    out = tmp_path / "out"
    assert call("checkpoint", "export", tmp_path, f"--out={out}", "--json")[:2] == (0, f'{{"out": "{out}"}}\n')
    assert call("checkpoint", "reshard", tmp_path, f"--out={out}", "-W", 4, "--from-arcface", "--json")[0] == 0
    assert asked == [(tmp_path, str(out), {}), (tmp_path, out, {"ranks": 4, "from_arcface": True})]


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_checkpoint_verb_of_a_missing_folder_is_one_line_and_exit_code_2(call: Call, tmp_path: Path, verb: str) -> None:
    code, out, err = call("checkpoint", verb, tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert str(tmp_path / "nowhere") in err
    assert "\n" not in err.strip()


def test_checkpoint_reshard_for_no_rank_is_a_usage_error(call: Call, tmp_path: Path) -> None:
    code, _, err = call("checkpoint", "reshard", tmp_path, "--out=x", "--ranks=0")
    assert code == 2
    assert "--ranks" in err
