"""Jobs on a cluster: how a job is sent, and how its log and exit code come back."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from rayface import submit as jobs
from rayface.interrupts import terminable
from rayface.job_package import Package
from rayface.version import commit


class Cluster:
    """A job server that logs two lines and ends as told; stopping it ends the job."""

    def __init__(self, status: JobStatus, exit_code: int | None, interrupt: signal.Signals | None = None) -> None:
        self.status, self.exit_code, self.interrupt = status, exit_code, interrupt
        self.stopped = False
        self.asked: dict[str, Any] = {}

    def submit_job(self, **asked: Any) -> str:
        folder = Path(asked["runtime_env"]["working_dir"])
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        self.asked = {**asked, "files": files}
        return str(asked["submission_id"])

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "one\n"
        if self.interrupt and not self.stopped:
            threading.Timer(0.05, os.kill, (os.getpid(), self.interrupt)).start()  # while the loop waits
            await asyncio.sleep(60)
        yield "two\n"

    def stop_job(self, job: str) -> bool:
        self.stopped, self.status = True, JobStatus.STOPPED
        return True

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=job,
            status=self.status,
            driver_exit_code=self.exit_code,
            message="no such image",
            entrypoint="python -m rayface.cli check set",
            start_time=1_796_000_000_123,
            end_time=None,
        )


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [(JobStatus.SUCCEEDED, 0, 0), (JobStatus.FAILED, 2, 2), (JobStatus.FAILED, None, 1), (JobStatus.STOPPED, -15, 130)],
)
def test_follow_writes_the_log_and_returns_the_exit_code_of_the_job(status, exit_code, expected):
    written: list[str] = []
    assert jobs.follow(Cluster(status, exit_code), "job", written.append) == expected
    assert "".join(written) == "one\ntwo\n"


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_follow_that_is_interrupted_stops_the_job_and_shows_the_rest_of_its_log_once(number, code):
    written: list[str] = []
    cluster = Cluster(JobStatus.RUNNING, None, interrupt=number)
    with terminable():
        assert jobs.follow(cluster, "job", written.append) == code
    assert cluster.stopped
    assert "".join(written) == "one\ntwo\n"


def test_follow_of_a_job_that_ends_while_ray_still_waits_for_its_log_writes_the_rest_at_once():
    """Also where the cluster does not answer once."""
    written: list[str] = []
    cluster = Cluster(JobStatus.SUCCEEDED, 0)
    answers = iter([RuntimeError("502 Bad Gateway")])

    async def tail(job: str) -> AsyncIterator[str]:
        yield "one\n"
        await asyncio.Event().wait()

    def info(job: str) -> SimpleNamespace:
        if error := next(answers, None):
            raise error
        return Cluster.get_job_info(cluster, job)

    cluster.tail_job_logs, cluster.get_job_info = tail, info
    cluster.get_job_logs = lambda job: "one\ntwo\n"
    assert jobs.follow(cluster, "job", written.append) == 0
    assert "".join(written) == "one\ntwo\n"


def test_follow_of_a_job_whose_log_cannot_be_had_at_once_waits_for_the_rest():
    written: list[str] = []
    cluster = Cluster(JobStatus.SUCCEEDED, 0)
    asked = threading.Event()

    async def tail(job: str) -> AsyncIterator[str]:
        yield "one\n"
        await asyncio.to_thread(asked.wait, 60)
        yield "two\n"

    def logs(job: str) -> str:
        asked.set()
        raise RuntimeError("502 Bad Gateway")

    cluster.tail_job_logs, cluster.get_job_logs = tail, logs
    assert jobs.follow(cluster, "job", written.append) == 0
    assert "".join(written) == "one\ntwo\n"


def test_status_of_a_job_has_times_that_people_read():
    assert jobs.status(Cluster(JobStatus.RUNNING, None), "job") == {
        "job": "job",
        "status": "running",
        "command": "python -m rayface.cli check set",
        "started": "2026-11-30T00:53:20+00:00",
        "ended": None,
        "exit_code": None,
    }


def test_submit_sends_files_package_and_environment(tmp_path):
    cluster = Cluster(JobStatus.SUCCEEDED, 0)
    file = tmp_path / "lr.yaml"
    file.write_text("search: {}")
    files, environment = {"tune_configs/lr.yaml": file}, {"RAYFACE_FACES": "/faces"}
    wanted = Package(entrypoint="rayface tune", files=files, environment=environment, kept_back=())
    job = jobs.submit(cluster, wanted, "tune")
    assert job.startswith("rayface-tune-")
    assert cluster.asked["files"] == [".rayface", "tune_configs/lr.yaml"]
    environment = cluster.asked["runtime_env"]
    assert environment["env_vars"] == {"RAYFACE_FACES": "/faces", "RAYFACE_COMMIT": commit()}
    assert [Path(module).name for module in environment["py_modules"]] == ["rayface"]


def test_connect_to_nobody_is_one_line_that_names_the_address():
    with pytest.raises(ValueError, match=r"^--address: http://127\.0\.0\.1:9: no job server answers: ") as caught:
        jobs.connect("http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_connect_to_an_address_of_ray_client_is_refused_before_it_is_tried():
    with pytest.raises(ValueError, match=r"^--address: ray://h:10001: .* must be the job server, http://HOST:8265$"):
        jobs.connect("ray://h:10001")


@pytest.mark.parametrize(("debug", "shown"), [(False, False), (True, True)])
def test_client_messages_are_shown_with_debug_only(debug, shown):
    with pytest.raises(ValueError, match="no job server answers"):
        jobs.connect("http://127.0.0.1:9", debug=debug)
    names = ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging")
    assert [logging.getLogger(f"ray.{name}").isEnabledFor(logging.INFO) for name in names] == [shown] * 3
