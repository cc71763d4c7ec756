"""Tracking of a job: its journal, and the delivery of the journal to MLflow."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rayface.config import TrackingConfig
from rayface.credentials import mask
from rayface.progress import recorded_in
from rayface.tracking.delivery import Beside, Delivery, require_packages, start, start_readers
from rayface.tracking.journal import Journal, Status, read_records
from rayface.tracking.origin import job_name, server_command
from rayface.tracking.server import RUN_NAME
from rayface.tracking.spool import JOURNAL
from rayface.tracking.uris import sync_command

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Where a job was tracked, whether everything was delivered, and its page in MLflow; None: tracking was off."""

    uri: str | None
    delivered: bool | None
    link: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the values as the results of jobs have them."""
        return {"tracking": self.uri, "tracking_delivered": self.delivered, "tracking_link": self.link}


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

    @property
    def link(self) -> str | None:
        """Address of the run in MLflow's pages; None if tracking is off, or MLflow has not answered."""
        return self.delivery.link if self.delivery else None

    def result(self) -> Tracked:
        """Return what the result of the ended job says of its tracking."""
        return Tracked(uri=self.uri, delivered=self.delivered, link=self.link)


@contextmanager
def tracked_job(
    folder: Path,
    config: TrackingConfig,
    params: Mapping[str, object],
    *,
    tags: Mapping[str, str] = MappingProxyType({}),
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    deliver_after: float = 0.0,
    output: str | None = None,
    name: str | None = None,
) -> Iterator[TrackedJob]:
    """Log a job into `folder`/journal and deliver it to MLflow, with its final status whichever way it ends.

    Args:
        folder: folder of the spool. See `tracking_uri` for where it is tracked.
        params: params of the MLflow run.
        tags: tags of the MLflow run.
        interrupts: errors that end the job with status KILLED instead of FAILED.
        output: path or URI of the job's folder, where the spool is in another; for messages and `is_own`.
        name: of the run; None: `job_name` of the folder.
        deliver_after: seconds until delivery starts; MLflow's import and database take 3 s of CPU time.
    """
    require_packages(config)
    named = {RUN_NAME: name or job_name(folder)}
    with ExitStack() as ending:  # what has been started is ended, also where the disk is full
        journal = ending.enter_context(closing(Journal(folder / JOURNAL / "driver.jsonl")))
        delivery = start(config, folder, {**named, **tags}, deliver_after, output) if config.enabled else None
        job = TrackedJob(journal=journal, delivery=delivery)
        ending.callback(_end_delivery, job, config.timeout, mask(output or str(folder)))
        for reader in start_readers(config, folder, named[RUN_NAME], deliver_after):
            ending.callback(_end_reader, reader, config.timeout)
        status: Status = "FAILED"
        try:
            journal.params(params)
            with recorded_in(journal):
                yield job
            status = "FINISHED"
        except interrupts:
            status = "KILLED"
            raise
        finally:
            # The job's own error is the one to report.
            with nullcontext() if status == "FINISHED" else suppress(OSError):
                journal.finish(status)


def was_tracked(folder: Path) -> bool:
    """Return whether a job logged everything into `folder`/journal: False after a kill between its result and that."""
    journal, last = folder / JOURNAL / "driver.jsonl", None
    for record, _ in read_records(journal, 0) if journal.exists() else ():
        last = record
    return last is not None and last["kind"] == "finish" and last["status"] == "FINISHED"


def _end_delivery(job: TrackedJob, timeout: float, folder: str) -> None:
    """Deliver the rest; say in lines that are not wrapped how to look at the job in MLflow, or how to deliver more."""
    if job.delivery is None:
        return
    job.delivered = job.delivery.close(timeout)
    if not job.delivered:
        rest = sync_command(str(job.uri), folder)
        logger.warning("MLflow at %s has not received everything; send the rest: %s", job.uri, rest)
    if job.link is not None:
        logger.info("MLflow: %s", job.link)
        if command := server_command(str(job.uri)):
            logger.info("served by:\n%s", command)


def _end_reader(reader: Beside, timeout: float) -> None:
    reader.close(timeout)
    logger.info("%s", reader.hint)
