"""Fresh processes to measure in, and devices that are missing."""

import os
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from rayface.bench.processes import check_device, in_processes, now
from rayface.cli import main


@pytest.mark.parametrize("arguments", [["head", "-B", "8", "-C", "100"], ["rates"]])
@pytest.mark.parametrize(
    ("device", "words"), [("cuda", "GPUs that torch can use"), ("tpu", "device: 'tpu': must be cpu or cuda")]
)
def test_bench_verb_on_a_missing_device_exits_2_with_one_line(
    arguments: list[str], device: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["rayface", "bench", *arguments, "--device", device])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "workers", "words"), [("tpu", 1, "must be cpu or cuda"), ("cuda", 3, "2 GPUs .* 3 workers")]
)
def test_check_device_without_enough_of_them_raises_one_line(
    device: str, workers: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match=rf"^device: .*{words}") as caught:
        check_device(device, workers)
    assert "\n" not in str(caught.value)
    check_device("cpu", 100)
    check_device("cuda", 2)


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    factor: int = 2


def measure(settings: Settings) -> tuple[int, int, int, float]:
    """Rank, processes and threads of the group, and the sum of (rank + 1) over it times a setting."""
    total = torch.tensor(float(settings.factor))
    size, rank = 1, 0
    if dist.is_initialized():
        size, rank = dist.get_world_size(), dist.get_rank()
        total *= rank + 1
        dist.all_reduce(total)
    return rank, size, torch.get_num_threads(), total.item()


def test_in_processes_with_two_of_them_returns_the_result_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads are split among the processes."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert in_processes(measure, 2, Settings()) == (0, 2, 2, 6.0)


def fail(settings: Settings) -> None:
    raise ValueError(f"bad in process {os.getpid()}")


def test_in_processes_whose_work_fails_raises_its_error() -> None:
    with pytest.raises(Exception, match="bad in process"):
        in_processes(fail, 1, Settings())


def test_now_on_a_cpu_grows() -> None:
    first = now("cpu")
    assert now("cpu") >= first
