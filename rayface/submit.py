"""Run a verb as a job of a Ray cluster, follow its log, and ask for its state."""

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus, JobSubmissionClient

import rayface
from rayface.credentials import mask
from rayface.job_package import Package
from rayface.storage import one_line
from rayface.training.recovery.interrupt import exit_code_of
from rayface.version import COMMIT_VARIABLE, commit

logger = logging.getLogger(__name__)

_INTERRUPTED = 130
_STOP_SECONDS = 120.0
_POLL_SECONDS = 0.5
# Each sets its own level; INFO is a line for every package, and one for the end of a log.
_CLIENT_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)


def connect(address: str | None, *, debug: bool = False) -> JobSubmissionClient:
    """Return a client of the cluster's job server.

    Args:
        address: of the job server, http://HOST:8265; None: RAY_ADDRESS, else http://127.0.0.1:8265.
        debug: show the client's log messages below warnings, too.

    Raises:
        ValueError: it does not answer, or does not accept this user; one line.
    """
    for name in _CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.WARNING)
    url = address or os.environ.get("RAY_ADDRESS") or "http://127.0.0.1:8265"
    if url.startswith("ray://"):
        raise ValueError(
            f"--address: {mask(url)}: is the address of Ray Client: must be the job server, http://HOST:8265"
        )
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # the client would prefer them
        try:
            return JobSubmissionClient(url)
        except Exception as error:
            text = one_line(error)
            remedy = "check the address, and that the cluster runs with its dashboard"
            if "401" in text or "403" in text or "token" in text.lower():
                remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to those of the cluster"
            raise ValueError(f"--address: {mask(url)}: no job server answers: {text}: {remedy}") from error


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def submit(client: JobSubmissionClient, wanted: Package, verb: str) -> str:
    """Send a package, start its job, and return the job's id.

    Raises:
        RuntimeError: the cluster refuses it; one line.
    """
    with tempfile.TemporaryDirectory(prefix="rayface-submit-") as folder:
        (Path(folder) / ".rayface").touch()  # Ray refuses an empty folder
        for name, source in wanted.files.items():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        environment = {
            "working_dir": folder,
            "py_modules": [str(Path(rayface.__file__).parent)],
            "env_vars": {COMMIT_VARIABLE: commit(), **wanted.environment},  # the package goes without its clone
        }
        try:
            return str(
                client.submit_job(
                    entrypoint=wanted.entrypoint,
                    runtime_env=environment,
                    submission_id=f"rayface-{verb}-{uuid.uuid4().hex[:8]}",
                    metadata={"rayface": rayface.__version__},
                )
            )
        except Exception as error:
            raise RuntimeError(f"the cluster refuses the job: {one_line(error)}") from error


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> int:
    """Write a job's log as it grows, until the job ends; return its exit code.

    Ctrl-C or SIGTERM stops the job and goes on with its log until it has ended; a second one leaves it.
    """
    written, stopped = 0, _INTERRUPTED

    def write_new(text: str, start: int) -> int:
        nonlocal written
        end = start + len(text)
        if end > written:
            write(text[max(0, written - start) :])
            written = end
        return end

    async def tail() -> None:
        seen = 0
        async for text in client.tail_job_logs(job):  # from its beginning, each time
            seen = write_new(text, seen)

    async def tail_to_the_end() -> None:
        tailing, ending = asyncio.create_task(tail()), asyncio.create_task(_end(client, job))
        await asyncio.wait([tailing, ending], return_when=asyncio.FIRST_COMPLETED)
        whole = None
        if not tailing.done():  # it notices the end some 3 s late
            with contextlib.suppress(RuntimeError, OSError):
                whole = await asyncio.to_thread(client.get_job_logs, job)
        if whole is None or len(whole) < written:  # the log cannot be had at once
            await tailing
        else:
            tailing.cancel()
            write_new(whole, 0)

    try:
        asyncio.run(tail_to_the_end())
    except KeyboardInterrupt as error:
        stopped = exit_code_of(error)
        logger.info("stopping %s", job)
        client.stop_job(job)
        _wait(client, job, _STOP_SECONDS)
        asyncio.run(tail())
    return exit_code(_wait(client, job, _STOP_SECONDS), stopped)


async def _end(client: JobSubmissionClient, job: str) -> None:
    """Return when a job has ended."""
    ended = False
    while not ended:
        await asyncio.sleep(_POLL_SECONDS)
        with contextlib.suppress(RuntimeError, OSError):  # an answer that fails; the log tells whether the server does
            ended = (await asyncio.to_thread(client.get_job_info, job)).status.is_terminal()


def _wait(client: JobSubmissionClient, job: str, seconds: float) -> JobDetails:
    """Return the details of a job that has ended; the log can end a moment before."""
    deadline = time.monotonic() + seconds
    while True:
        details = client.get_job_info(job)
        if details.status.is_terminal():
            return details
        if time.monotonic() > deadline:
            raise RuntimeError(f"{job}: has not ended {seconds:g} s after its log: see rayface submit status {job}")
        time.sleep(_POLL_SECONDS)


def exit_code(details: JobDetails, stopped: int = _INTERRUPTED) -> int:
    """Return the exit code of a job that has ended, `stopped` if it was stopped; say why one did not start."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return stopped
    if details.driver_exit_code is None:
        logger.error("%s: did not start: %s", details.submission_id, one_line(Exception(details.message or "")))
        return 1
    return int(details.driver_exit_code)


def status(client: JobSubmissionClient, job: str) -> dict[str, object]:
    """Return what the cluster knows of a job, as JSON types; times by ISO 8601, in UTC.

    Raises:
        ValueError: there is no such job.
    """
    details = _known(client, job)
    return {
        "job": job,
        "status": details.status.value.lower(),
        "command": mask(details.entrypoint),
        "started": _time(details.start_time),
        "ended": _time(details.end_time),
        "exit_code": exit_code(details) if details.status.is_terminal() else None,
    }


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def stop(client: JobSubmissionClient, job: str) -> bool:
    """Stop a job; return whether it was running.

    Raises:
        ValueError: there is no such job.
    """
    _known(client, job)
    return bool(client.stop_job(job))


def _known(client: JobSubmissionClient, job: str) -> JobDetails:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        text = one_line(error)
        if "does not exist" not in text:
            raise
        jobs = [each.submission_id for each in client.list_jobs() if each.submission_id]
        known = f"it has {', '.join(sorted(jobs)[-5:])}" if jobs else "it has none"
        raise ValueError(f"submit: {job}: no such job on this cluster: {known}") from error
