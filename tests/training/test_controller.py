"""What Ray Train's controller runs of a training: light imports, the process group, no requests for nodes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray.train.torch.config
import torch
from ray.train import ScalingConfig

from rayface.training import controller
from rayface.training.controller import LocalScalingPolicy, ProcessGroup, ProcessGroupConfig


class Workers:
    """A worker group that records calls instead of making them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.calls: list[tuple[int, tuple[object, ...]]] = []

    def __len__(self) -> int:
        return self._size

    def execute_single(self, rank: int, function: object) -> tuple[str, int]:
        return "2001:db8::1", 1234

    def execute_single_async(self, rank: int, function: object, *args: object) -> int:
        self.calls.append((rank, args))
        return rank


@pytest.mark.parametrize("module", ["rayface.training.controller", "rayface.training.recovery.supervisor"])
def test_import_of_what_the_controller_runs_leaves_out_slow_modules(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'numba', 'mlflow', 'matplotlib'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_process_group_of_two_workers_joins_each_at_rank_0s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(controller.ray, "get", lambda calls, **options: waited.extend(calls))
    workers, config = Workers(2), ProcessGroupConfig(timeout_s=7, backend="gloo")
    ProcessGroup().on_start(workers, config)
    joined = [(rank, (rank, 2, "tcp://[2001:db8::1]:1234", config)) for rank in range(2)]
    assert workers.calls == [(0, (config,)), (1, (config,)), *joined]
    assert waited == [0, 1, 0, 1]


@pytest.mark.parametrize(("timeout", "joined", "raised"), [(7, 7, []), (90_000, 300, [90_000])])
def test_join_gives_up_early_and_later_collectives_do_not(
    monkeypatch: pytest.MonkeyPatch, timeout: int, joined: int, raised: list[int]
) -> None:
    joins, timeouts = [], []
    monkeypatch.setattr(ray.train.torch.config, "_setup_torch_process_group", lambda *args: joins.append(args))
    monkeypatch.setattr(ray.train.torch.config, "_set_torch_distributed_env_vars", lambda: None)
    monkeypatch.setattr(
        torch.distributed.distributed_c10d, "_set_pg_timeout", lambda value: timeouts.append(value.total_seconds())
    )
    controller._join(1, 2, "tcp://10.0.0.1:1234", ProcessGroupConfig(timeout_s=timeout, backend="nccl"))
    assert joins == [("nccl", 1, 2, "tcp://10.0.0.1:1234", joined)]
    assert timeouts == raised


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "the client socket has timed out\nafter 300000ms",
            r"^rank 1 of 2 cannot join .* tcp://h:1 within 300 s: .*: open the ports",
        ),
        ("Distributed package doesn't have NCCL built in", r"^Distributed package doesn't have NCCL"),
    ],
)
def test_join_that_times_out_names_address_and_remedy_and_another_error_is_raised_as_it_is(
    monkeypatch: pytest.MonkeyPatch, error: str, words: str
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(ray.train.torch.config, "_setup_torch_process_group", fail)
    monkeypatch.setattr(ray.train.torch.config, "_set_torch_distributed_env_vars", lambda: None)
    with pytest.raises(RuntimeError, match=words):
        controller._join(1, 2, "tcp://h:1", ProcessGroupConfig(timeout_s=90_000, backend="nccl"))


def test_process_group_config_is_of_pytorch() -> None:
    config = ProcessGroupConfig(timeout_s=7, backend="nccl")
    assert config.backend_cls is ProcessGroup
    assert config.to_dict() == {"timeout_s": 7, "backend": "nccl"}
    assert config.framework.value == "torch"
    with config.train_func_context():
        pass


def test_local_scaling_policy_asks_nobody_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Ray, a request would fail."""
    policy = LocalScalingPolicy(ScalingConfig(num_workers=3))
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision.num_workers == 3
    policy._send_resource_request()
    policy._cancel_resource_request()


@pytest.mark.parametrize(("backend", "called"), [("nccl", ["pin_exact_sizes"]), ("gloo", ["keep_freed_memory"])])
def test_prepare_sets_up_memory_and_threads_of_gpu_and_of_cpu_workers(
    monkeypatch: pytest.MonkeyPatch, backend: str, called: list[str]
) -> None:
    calls: list[str] = []
    for name in ("pin_exact_sizes", "keep_freed_memory"):
        monkeypatch.setattr(controller, name, lambda name=name: calls.append(name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(controller, "num_cpus", lambda: 12)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_local_world_size=lambda: 2))
    controller._prepare(ProcessGroupConfig(timeout_s=7, backend=backend))
    assert calls == called
    assert os.environ["OMP_NUM_THREADS"] == "6"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0,1" if backend == "nccl" else "")  # a CPU run takes no GPU
