"""The journal of a job, delivered to MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rayface.config import TrackingConfig
from rayface.progress import recorded_in
from rayface.tracking.delivery import start
from rayface.tracking.journal import Journal, Status
from rayface.tracking.spool import JOURNAL


@dataclass(kw_only=True)
class TrackedJob:
    """A job's journal; `uri` is None where nothing is sent, `delivered` is known at the end."""

    journal: Journal
    uri: str | None = None
    delivered: bool | None = None


@contextmanager
def tracked_job(
    folder: Path,
    config: TrackingConfig,
    params: Mapping[str, object],
    *,
    tags: Mapping[str, str] = MappingProxyType({}),
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Iterator[TrackedJob]:
    """Log a job into `folder`/journal and deliver it to MLflow; however the job ends, its end is delivered too.

    Args:
        folder: of `spool`; its name is the run's, and mlflow.db is made beside it where neither tracking.uri nor
            MLFLOW_TRACKING_URI says where to send.
        tags: of the MLflow run.
        interrupts: errors after which the job was interrupted and has not failed.
    """
    delivery = start(config, folder, tags) if config.enabled else None
    job = TrackedJob(journal=Journal(folder / JOURNAL / "driver.jsonl"), uri=delivery.uri if delivery else None)
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
