"""Faults of a store in the middle of reads and writes: nothing is lost, nothing is visible in part."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.curate.job_output import job_output
from rayface.storage import StorageError, errors, lease, local_copy, read_bytes, staged_folder, upload, write_bytes

Flaky = Callable[..., Any]
KINDS = ("503", "cut", "slow", "lost")


@pytest.fixture
def flaky(object_store: Any) -> Iterator[Flaky]:
    """A function that returns the store behind a proxy, which fails every n-th request by each kind in turn."""
    started: list[subprocess.Popen[bytes]] = []

    def flaky(every: int, kinds: tuple[str, ...] = KINDS) -> Any:
        program = [sys.executable, str(Path(__file__).with_name("flaky_store.py"))]
        port = object_store.endpoint.rpartition(":")[2]
        process = subprocess.Popen([*program, port, str(every), *kinds], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        return replace(object_store, endpoint=f"127.0.0.1:{int(process.stdout.readline())}")

    yield flaky
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 2.0)
    monkeypatch.setattr(errors, "_BACK_OFF", (0.0, 0.0, 0.0))


def faults_of(store: Any) -> int:
    with urllib.request.urlopen(f"http://{store.endpoint}/faults") as answer:
        return int(answer.read())


@pytest.mark.long
def test_reads_and_writes_of_a_failing_store_lose_nothing(object_store: Any, flaky: Flaky, tmp_path: Path) -> None:
    store = flaky(3)
    content = {f"w{number}": np.random.default_rng(number).bytes(300_000 + number) for number in range(2)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        write_bytes(store.uri(f"small/{name}"), data[:1000])
        upload(tmp_path / name, store.uri(f"large/{name}"))
    with staged_folder(store.uri("staged"), "export.hub") as folder:
        for name, data in content.items():
            (folder / name).write_bytes(data)
    for name, data in content.items():
        assert read_bytes(store.uri(f"small/{name}")) == data[:1000]
        assert local_copy(store.uri(f"large/{name}")).read_bytes() == data
    files = {name: data for name, data in object_store.files().items() if not name.endswith(".tmp")}
    for name, data in content.items():
        assert (files[f"large/{name}"], files[f"staged/{name}"]) == (data, data)
    assert len(files) == 6
    assert faults_of(store) > 4


@pytest.mark.long
def test_job_output_of_a_failing_store_is_complete(
    object_store: Any, flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = flaky(4)
    with job_output(store.uri("core"), {"a": 1}, ".job.json", key="prune.out") as output:
        for number in range(3):
            with (output.work / str(number)).writing() as stream:
                stream.write(b"%d" % number * 10_000)
        monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path))  # another node
        for number in range(3):
            assert (output.work / str(number)).local().read_bytes() == b"%d" % number * 10_000
        for name in ("core_set.parquet", "prune.json"):
            (output.folder / name).write_bytes(name.encode() * 10_000)
        output.finish("prune.json")
    files = object_store.files()
    for name in ("core_set.parquet", "prune.json"):
        assert files[f"core/{name}"] == name.encode() * 10_000
    assert faults_of(store) > 3


@pytest.mark.long
def test_write_to_a_store_that_fails_for_good_is_one_line_and_nothing_is_visible(
    object_store: Any, flaky: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    monkeypatch.setattr(errors, "_BACK_OFF", ())
    store = flaky(1, ("503",))
    with pytest.raises(StorageError) as refused:
        upload(tmp_path / "a", store.uri("x/a"))
    assert "\n" not in str(refused.value)
    assert object_store.secret not in str(refused.value)
    assert object_store.files() == {}
