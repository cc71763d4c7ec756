"""Gauges of Ray's exporter: the newest values of the journals, and a dashboard of what is exported."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rayface.tracking import Journal
from rayface.tracking.prometheus import GAUGES, STEP, Prometheus

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"


class Gauge:
    """Remembers the last value of every gauge; Ray's own needs a cluster."""

    values: ClassVar[dict[tuple[str, str], float]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[self.name, tags["run"]] = value


def test_gauges_of_a_resumed_run_have_the_newest_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    journal = Journal(tmp_path / "rank0.jsonl")
    for session in (1, 2):
        journal.metrics({"train/loss": 9.0 / session, "not/exported": 1.0}, 10 * session)
        Gauge.values.clear()  # of the process that ended
        reader = Prometheus(tmp_path, name="a")
        reader.start()
        assert reader.close(30), reader.last_error
        assert Gauge.values == {("rayface_train_loss", "a"): 9.0 / session, (STEP, "a"): 10.0 * session}


def test_dashboard_shows_all_gauges_and_no_other() -> None:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    shown = set(re.findall(r"\bray_(\w+)", json.dumps([board["panels"], board["templating"]])))
    assert shown == {*GAUGES.values(), STEP}
