"""Verbs of training: which config flags make, what is refused, and exit codes."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from rayface.config import Config
from rayface.stages import STAGES
from tests.cli.conftest import Call


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, bool]]:
    """Configs that training was started with, and whether to resume."""
    found: list[tuple[Config, bool]] = []

    def run(config: Config, *, resume: bool = False) -> dict[str, object]:
        found.append((config, resume))
        return {"steps": 7}

    monkeypatch.setitem(STAGES, "train", SimpleNamespace(run=run))
    return found


def test_train_with_preset_and_keys_makes_one_config(call: Call, trained: list[tuple[Config, bool]]) -> None:
    code, out, _ = call("train", "--preset=debug", "data.train=/d", "train.epochs=3", "--address=c:1", "--json")
    assert (code, json.loads(out)) == (0, {"steps": 7})
    ((config, resume),) = trained
    assert (config.train.epochs, config.data.image_size, config.cluster.address, resume) == (3, 32, "c:1", False)


def test_train_with_keys_of_the_cluster_and_no_options_keeps_them(
    call: Call, trained: list[tuple[Config, bool]], tmp_path: Any
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("cluster: {address: f:1}")
    for given in ("cluster.debug=true", "--address=c:1"):
        assert call("train", "--preset=debug", "data.train=/d", f"--config={file}", given, "--json")[0] == 0
    clusters = [config.cluster for config, _ in trained]
    assert [(each.address, each.debug) for each in clusters] == [("f:1", True), ("c:1", False)]


def test_train_to_resume_without_a_run_is_refused(
    call: Call, trained: list[tuple[Config, bool]], tmp_path: Any
) -> None:
    code, _, err = call("train", "--resume", f"train.output={tmp_path}/none")
    assert code == 2
    assert err.startswith(f"train.output: {tmp_path}/none: is not a run directory")
    assert trained == []


def test_train_with_resume_auto_repeats_safely(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[Config] = []

    def train_or_resume(config: Config, *, address: str | None, debug: bool) -> dict[str, int]:
        assert (address, debug) == ("c:1", False)
        asked.append(config)
        return {"steps": 7}

    monkeypatch.setattr("rayface.training.trainer.train_or_resume", train_or_resume)
    keys = [f"train.output={tmp_path / 'run'}", "train.epochs=3", "cluster.address=c:1"]
    for order in (["--resume", "auto", *keys], [*keys, "--resume", "auto"]):
        code, out, _ = call("train", "--preset=debug", *order, "--json")
        assert (code, json.loads(out)) == (0, {"steps": 7})
    assert [config.train.epochs for config in asked] == [3, 3]
    assert call("train", "--preset=debug", "auto")[0] == 2


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of a refusal -> what the plan was asked for, filled by the next call."""

    def planned(refusal: str | None = None) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def plan_run(preset: str | None, file: object, overrides: list[str], **options: Any) -> SimpleNamespace:
            asked.update(options, preset=preset, overrides=overrides)
            content = {"memory": 1.0}
            return SimpleNamespace(as_dict=lambda: content, table=lambda: {"memory": "1 GiB"}, refusal=refusal)

        monkeypatch.setattr("rayface.plan.planning.plan_run", plan_run)
        return asked

    return planned


def test_plan_with_sizes_and_rates_hands_them_over(call: Call, planned: Any) -> None:
    asked = planned()
    arguments = ["head.sample_rate=0.1", "--preset=webface42m", "--gpus=32", "--gpu-memory=80GB", "--gemm-tflops=200"]
    code, out, _ = call("plan", *arguments, "--json")
    assert (code, json.loads(out)) == (0, {"memory": 1.0})
    assert (asked["preset"], asked["overrides"]) == ("webface42m", ["head.sample_rate=0.1"])
    assert (asked["num_workers"], asked["memory_per_device"]) == (32, 80 << 30)
    assert asked["rates"]["gemm_tflops"] == 200
    assert asked["rates"]["link_bandwidth"] is None


def test_plan_that_does_not_fit_is_shown_and_exit_code_2(call: Call, planned: Any) -> None:
    planned("memory of a GPU: 90 GiB: more than 80 GiB: use more")
    code, out, err = call("plan", "--gpus=1")
    assert code == 2
    assert "1 GiB" in out
    assert err == "memory of a GPU: 90 GiB: more than 80 GiB: use more"


def test_plan_of_published_rows_shows_them_and_ends(call: Call, planned: Any) -> None:
    asked = planned()
    code, out, _ = call("plan", "--published", "--json")
    assert code == 0
    assert len(json.loads(out)["results"]) > 3
    assert asked == {}


@pytest.mark.parametrize(("delivered", "code"), [(True, 0), (False, 1)])
def test_sync_of_a_run_ends_with_whether_it_was_delivered(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, delivered: bool, code: int
) -> None:
    asked: list[tuple[str, float, str]] = []

    def deliver(folder: Any, timeout: float, output: str) -> bool:
        asked.append((str(folder), timeout, output))
        return delivered

    monkeypatch.setattr("rayface.tracking.deliver", deliver)
    (tmp_path / "run" / "journal").mkdir(parents=True)
    found, out, _ = call("sync", tmp_path / "run", "--timeout=3", "--json")
    assert (found, json.loads(out)["delivered"]) == (code, delivered)
    assert asked == [(str(tmp_path / "run" / "journal"), 3.0, str(tmp_path / "run"))]
