"""Memory of the nodes that a run's workers may have; stand-ins for Ray's nodes, no Ray started."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rayface import config as configs
from rayface.config import Config
from rayface.ray_internals import nodes
from rayface.training import resources


def node_id(number: int) -> str:
    return f"{number + 1:056x}"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Puts nodes of the given resources in the place of Ray's; returns the options of the tasks that ask them."""
    tasks: list[dict[str, Any]] = []

    def cluster(*nodes: dict[str, float], here: str = "") -> list[dict[str, Any]]:
        alive = [{"Alive": True, "NodeID": node_id(i), "Resources": node} for i, node in enumerate(nodes)]
        fake = SimpleNamespace(
            nodes=lambda: [*alive, {"Alive": False, "NodeID": "dead", "Resources": {"CPU": 64.0}}],
            cluster_resources=lambda: {"GPU": sum(node.get("GPU", 0) for node in nodes)},
            get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: here or node_id(0)),
            remote=lambda **options: lambda call: (tasks.append(options), SimpleNamespace(remote=call))[1],
            get=lambda found, timeout: found,
            exceptions=resources.ray.exceptions,
        )
        monkeypatch.setattr(resources, "ray", fake)
        monkeypatch.setattr("rayface.session.ray", fake)
        monkeypatch.setattr(resources, "memory_per_worker", lambda *, gpu, workers_per_machine: 12 * 2**30)
        return tasks

    return cluster


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Collects what is checked: the memory of what, for how many workers, and bytes of each."""
    found: list[tuple[str, int, int]] = []

    def check(name: str) -> Callable[..., None]:
        return lambda config, classes, size, **_: found.append((name, config.train.min_workers, size // 2**30))

    monkeypatch.setattr(resources, "check_fits", check("device"))
    monkeypatch.setattr(resources, "check_host_fits", check("host"))
    return found


def config_of(num_workers: str, cpus: int = 1) -> Config:
    return configs.load("debug", overrides=[f"train.num_workers={num_workers}", f"train.cpus_per_worker={cpus}"])


@pytest.mark.parametrize(
    ("num_workers", "room", "expected"),
    [
        ("4", [{"CPU": 4.0}], [("device", 4, 3)]),
        ("[1,64]", [{"CPU": 4.0}], [("device", 1, 12), ("device", 4, 3)]),  # not a 64th of the node
        ("[1,64]", [{"CPU": 2.0}, {"CPU": 4.0}], [("device", 1, 12), ("device", 6, 3)]),
        ("[1,2]", [{"CPU": 4.0}, {"CPU": 4.0}], [("device", 1, 12), ("device", 2, 6)]),  # packed on one
        (
            "[2,16]",
            [{"CPU": 9.0, "GPU": 4.0}, {"CPU": 64.0}],
            [("device", 2, 12), ("host", 2, 6), ("device", 4, 12), ("host", 4, 3)],
        ),
        ("1", [{"CPU": 0.0}], []),
    ],
)
def test_check_memory_needs_and_shares_for_workers_that_the_nodes_can_hold(
    cluster: Callable[..., Any], checked: list[Any], num_workers: str, room: Any, expected: Any
) -> None:
    cluster(*room)
    resources.check_memory(config_of(num_workers), 1000)
    assert checked == expected


def test_check_memory_asks_a_node_without_the_cpus_and_gpus_that_other_jobs_may_hold(
    cluster: Callable[..., Any], checked: list[Any]
) -> None:
    tasks = cluster({"CPU": 0.0}, {"CPU": 8.0, "GPU": 2.0})
    resources.check_memory(config_of("2"), 1000)
    (options,) = tasks
    assert (options["num_cpus"], options.get("num_gpus"), options["scheduling_strategy"].node_id) == (
        0,
        None,
        node_id(1),
    )
    assert checked == [("device", 2, 12), ("host", 2, 6)]


@pytest.mark.parametrize(("bf16", "planned"), [(True, "auto"), (False, "fp32")])
def test_check_memory_of_a_gpu_without_bf16_counts_fp32(
    cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, bf16: bool, planned: str
) -> None:
    cluster({"CPU": 8.0, "GPU": 2.0})
    found: list[str] = []
    monkeypatch.setattr(resources, "fast_bf16", lambda device: bf16)
    monkeypatch.setattr(resources, "check_fits", lambda config, *_, **__: found.append(config.train.precision))
    resources.check_memory(config_of("2"), 1000)
    assert found == [planned]


def test_check_memory_of_a_node_that_does_not_answer_checks_nothing(
    cluster: Callable[..., Any],
    checked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[[], list[str]],
) -> None:
    cluster({"CPU": 8.0}, here="elsewhere")

    def late(found: Any, timeout: float) -> None:
        raise resources.ray.exceptions.GetTimeoutError("no answer")

    monkeypatch.setattr(resources.ray, "get", late)
    resources.check_memory(config_of("2"), 1000)
    assert checked == []
    assert messages() == [f"node {node_id(0)} does not tell its memory, which is not checked: no answer"]


@pytest.mark.parametrize(("free", "told"), [(1.0, True), (2.0, False)])
def test_require_resources_on_a_busy_cluster_tells_what_it_waits_for(
    cluster: Callable[..., Any],
    checked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    messages: Callable[[], list[str]],
    free: float,
    told: bool,
) -> None:
    cluster({"CPU": 8.0})
    per_node = {"a": {"CPU": free}, "b": {"CPU": 0.5}}  # what is free on several nodes is no room for one worker
    monkeypatch.setattr(nodes, "available_resources_per_node", lambda: per_node)
    resources.require_resources(configs.with_overrides(config_of("2"), {"train.device": "cpu"}), 1000, "auto")
    line = "waiting up to 600 s for CPUs and GPUs that other jobs hold (train.wait_for_nodes)"
    assert messages() == [line] * told


def test_check_memory_of_a_run_that_is_too_large_refuses_it(cluster: Callable[..., Any]) -> None:
    cluster({"CPU": 4.0})
    resources.check_memory(config_of("4"), 1000)
    with pytest.raises(ValueError, match="memory: 50,000,000 classes need"):
        resources.check_memory(config_of("4"), 50_000_000)


def test_check_memory_of_an_elastic_run_names_the_number_of_workers_that_fit(
    cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 64.0})

    def check(config: Config, classes: int, size: int, **_: Any) -> None:
        if size < 2**29:
            raise ValueError("memory: too little")

    monkeypatch.setattr(resources, "check_fits", check)
    resources.check_memory(config_of("[1,16]"), 1000)
    with pytest.raises(ValueError, match=r"has room for 64, which .* train.num_workers=\[1,16\]; with 64: memory: too"):
        resources.check_memory(config_of("[1,99]"), 1000)
