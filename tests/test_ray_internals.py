"""Ray's private classes: imported in one package, with one clear line where a release has moved them."""

import ast
import importlib
import pickle
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
from ray.data._internal.execution import metadata_fetcher, streaming_executor_state

from rayface import ray_internals
from rayface.ray_internals import train
from rayface.ray_internals.autoscaling import NodeRequest
from rayface.ray_internals.data import schedule_promptly
from rayface.ray_internals.tokens import protect_token

PACKAGE = Path(ray_internals.__file__).parent
ROOT = PACKAGE.parent


def private_imports(path: Path) -> list[str]:
    text = path.read_text()
    nodes = list(ast.walk(ast.parse(text))) if "._" in text else []
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [name for name in modules if name.split(".")[0] == "ray" and "._" in name]


def test_private_imports_of_ray_stand_in_one_package_only() -> None:
    found = {path.relative_to(ROOT).as_posix(): private_imports(path) for path in ROOT.rglob("*.py")}
    modules = {f"ray_internals/{name}.py" for name in ("autoscaling", "nodes", "data", "first_use", "tokens", "train")}
    assert {path for path, names in found.items() if names} == modules


def test_import_of_an_untried_ray_names_the_versions_that_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.callback", None)
    with pytest.raises(ImportError, match=r"ray 2\.\d+\.\d+: must be 2\.60, which rayface was tried with: .*install"):
        importlib.reload(train)


def test_tried_versions_are_those_that_pyproject_allows() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    requirement = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert all(requirement.specifier.contains(f"{version}.0") for version in ray_internals.TRIED_VERSIONS)
    major, minor = map(int, ray_internals.TRIED_VERSIONS[-1].split("."))
    assert not requirement.specifier.contains(f"{major}.{minor + 1}.0")


def test_schedule_promptly_shortens_the_waits_that_ray_data_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", 0.1)  # must exist
    monkeypatch.setattr(metadata_fetcher, "_PREFETCH_ON_THREAD", True)
    schedule_promptly()
    assert streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S == 0.02
    assert type(metadata_fetcher.make_metadata_fetcher()) is metadata_fetcher.InlineMetadataFetcher


def test_node_requests_of_two_jobs_are_added_up_and_each_withdraws_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    coordinator = default_autoscaling_coordinator._AutoscalingCoordinatorActor(
        send_resources_request=lambda bundles: sent.append(bundles), get_cluster_nodes=list
    )

    def remote(name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(coordinator, name))

    actor = SimpleNamespace(**{name: remote(name) for name in ("request_resources", "cancel_request")})
    monkeypatch.setattr(default_autoscaling_coordinator, "get_or_create_autoscaling_coordinator", lambda: actor)
    one, other = NodeRequest([{"CPU": 1.0}] * 2), NodeRequest([{"CPU": 2.0, "GPU": 1.0}])
    one.send()
    other.send()
    other.send()
    one.cancel()
    other.cancel()
    both = [{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert sent == [both[:2], both, both[2:], []]


def test_modules_of_first_use_are_where_the_tried_ray_has_them() -> None:
    importlib.import_module("rayface.ray_internals.first_use")  # with_ray goes on without it
    assert {"ray.tune", "ray.data._internal.planner.planner"} <= sys.modules.keys()


def test_controllers_do_without_an_actor_in_which_workers_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (train.worker_group, "SynchronizationActor"),
        (train.worker_group_state, "_shutdown_sync_actor"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # undone after the test
    monkeypatch.setattr(train.ray, "put", lambda value: value)
    train.without_synchronization()
    handle = train.worker_group.SynchronizationActor.options(label_selector={}).remote(timeout_s=1, warn_interval_s=1)
    handle = pickle.loads(pickle.dumps(handle))  # workers get it
    with pytest.raises(RuntimeError, match=r"^ray\.train\.report and ray\.train\.collective: do not work in rayface's"):
        handle.broadcast_from_rank_zero.remote(world_rank=0, data=None)
    assert handle.set_required_ranks.remote([0]) is handle.reset.remote() is True
    train.worker_group_state._shutdown_sync_actor(handle)


def test_token_is_readable_for_its_user_only_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".ray" / "auth_token"
    for mode, create in (("disabled", True), ("token", False)):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        protect_token(create=create)
        assert not file.exists()
    protect_token(create=True)
    token = file.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    for path, given in ((file, 0o644), (file.parent, 0o755)):
        path.chmod(given)
    protect_token(create=False)
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent)] == [0o600, 0o700]
    assert (file.read_text(), len(list(file.parent.iterdir()))) == (token, 1)
