"""Prometheus: the newest metrics of a job as gauges of Ray's exporter, fed from its journals."""

from collections.abc import Sequence
from pathlib import Path

from rayface.tracking.delivered import Delivered
from rayface.tracking.journal import Record
from rayface.tracking.reader import Destination, JournalReader

GAUGES = {
    "train/loss": "rayface_train_loss",
    "train/lr": "rayface_train_lr",
    "train/epoch": "rayface_train_epoch",
    "train/images_per_second": "rayface_train_images_per_second",
    "train/waiting_for_data": "rayface_train_waiting_for_data",
    "train/workers": "rayface_train_workers",
    "train/restarts": "rayface_train_restarts",
    "train/rollbacks": "rayface_train_rollbacks",
    "data/faults": "rayface_data_faults",
    "eval/accuracy": "rayface_eval_accuracy",
}
"""Names of metrics of the journals, and of the gauges; Ray exports them as ray_NAME, with the label `run`."""
STEP = "rayface_train_step"


class Prometheus(JournalReader):
    """Reader that sets gauges in this process, which must be connected to Ray.

    Gauges have no past, so every session reads the journals from their start and ends at the newest values.
    """

    suffix = "-prometheus"

    def __init__(self, folder: Path, *, name: str) -> None:
        self._name = name
        super().__init__(folder, place="Ray's metrics", target="")

    @property
    def hint(self) -> str:
        """Where the gauges are."""
        return f"Prometheus: ray_rayface_* with run={self._name!r}, on the metrics port of the driver's node"

    def _prepare(self) -> Delivered:
        return Delivered(target="")

    def _connect(self) -> Destination:
        return _Gauges(self._name)


class _Gauges(Destination):
    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        named = {**GAUGES, STEP: STEP}
        self._gauges = {key: Gauge(name, description=key, tag_keys=("run",)) for key, name in named.items()}
        self._run = {"run": run}

    def log(self, records: Sequence[Record]) -> None:
        """Set the gauges to the newest values of a batch."""
        values: dict[str, float] = {}
        for record in records:
            if record["kind"] == "metrics":
                values |= {key: float(value) for key, value in record["values"].items() if key in self._gauges}
                if "train/loss" in record["values"]:
                    values[STEP] = float(record["step"])
        for key, value in values.items():
            self._gauges[key].set(value, tags=self._run)
