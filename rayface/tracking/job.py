"""Tracking of a job: its journal, and the delivery of the journal to MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rayface.config import TrackingConfig
from rayface.progress import recorded_in
from rayface.tracking.delivery import Delivery, start
from rayface.tracking.journal import Journal, Status
from rayface.tracking.spool import JOURNAL


@dataclass(kw_only=True)
class TrackedJob:
    """The journal of a job and its delivery, None if tracking is off; `delivered` is set at the end."""

    journal: Journal
    delivery: Delivery | None = None
    delivered: bool | None = None

    @property
    def uri(self) -> str | None:
        """The tracking URI without credentials; None if tracking is off."""
        return self.delivery.uri if self.delivery else None


@contextmanager
def tracked_job(
    folder: Path,
    config: TrackingConfig,
    params: Mapping[str, object],
    *,
    tags: Mapping[str, str] = MappingProxyType({}),
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    deliver_after: float = 0.0,
) -> Iterator[TrackedJob]:
    """Log a job into `folder`/journal and deliver it to MLflow, with its final status whichever way it ends.

    Args:
        folder: folder of the spool; the MLflow run has its name. Without tracking.uri and MLFLOW_TRACKING_URI, the
            job is tracked in mlflow.db beside it.
        params: params of the MLflow run.
        tags: tags of the MLflow run.
        interrupts: errors that end the job with status KILLED instead of FAILED.
        deliver_after: seconds until delivery starts; MLflow's import and database take 3 s of CPU time.
    """
    delivery = start(config, folder, tags, deliver_after) if config.enabled else None
    job = TrackedJob(journal=Journal(folder / JOURNAL / "driver.jsonl"), delivery=delivery)
    job.journal.params(params)
    status: Status = "FAILED"
    try:
        with recorded_in(job.journal):
            yield job
        status = "FINISHED"
    except interrupts:
        status = "KILLED"
        raise
    finally:
        job.journal.finish(status)
        job.journal.close()
        if delivery is not None:
            job.delivered = delivery.close(config.timeout)
