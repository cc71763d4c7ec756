"""Groups of what a job connects to: Ray and MLflow."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from rayface.config_fields import STRICT, DatabaseUri


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterConfig:
    """Ray session of a job."""

    address: str | None = None
    """Address of the Ray cluster. Unset: RAY_ADDRESS, else a local Ray that ends with the job."""
    debug: bool = False
    """Show Ray's logs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    """Tracking in MLflow."""

    enabled: bool = True
    """Send the run to MLflow."""
    uri: DatabaseUri | None = None
    """MLflow server, or sqlite:///FILE. Unset: MLFLOW_TRACKING_URI, else mlflow.db of the project."""
    experiment: str = "rayface"
    """Name of the MLflow experiment."""
    tensorboard: bool = False
    """Also write an event file for TensorBoard, to tensorboard/ in the output."""
    prometheus: bool = False
    """Also export the latest metrics to Prometheus through Ray; deploy/grafana-dashboard.json displays them."""
    wandb: bool = False
    """Also write an offline run for Weights & Biases, to wandb/ in the output; `wandb sync` uploads it."""
    timeout: Annotated[float, Field(ge=0)] = 60.0
    """Seconds to wait for MLflow at the end of a run; undelivered records stay in the journal."""
