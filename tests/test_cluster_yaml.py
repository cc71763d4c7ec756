"""cluster.yaml is what `ray up` accepts, and agrees with the versions we pin."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def pinned(package: str) -> str:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    return pins[package]


def test_cluster_yaml_as_shipped_is_accepted_by_rays_schema(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_cluster_yaml_with_a_misspelt_key_is_refused_by_rays_schema(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="head_node_typ"):
        validate_config(prepare_config({**config, "head_node_typ": "head"}))


def test_cluster_yaml_names_the_pinned_ray_version_everywhere(config: dict[str, Any]) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    versions = re.findall(r"\bray(?:\[[\w,]+\])?==([\d.]+)", text) + re.findall(r"/ray:([\d.]+)-", text)
    assert len(versions) == 3
    assert set(versions) == {pinned("ray")}
    assert "py311" in config["docker"]["head_image"]
    assert "py311" in config["docker"]["worker_image"]


def test_cluster_yaml_gives_work_to_nodes_with_gpus_and_none_to_the_head(config: dict[str, Any]) -> None:
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert types
    for worker in types.values():
        cpus, gpus = worker["resources"]["CPU"], worker["resources"]["GPU"]
        assert gpus >= 1
        assert cpus >= 4 * gpus  # decoding for a GPU takes some
        assert 0 <= worker["min_workers"] <= worker["max_workers"] <= config["max_workers"]
    assert "-gpu" in config["docker"]["worker_image"]


def test_cluster_yaml_starts_a_head_that_lets_jobs_save_and_opens_no_port_but_ssh(config: dict[str, Any]) -> None:
    (start,) = [c for c in config["head_start_ray_commands"] if "--head" in c]
    assert "--dashboard-host=127.0.0.1" in start
    assert start.startswith("RAY_JOB_STOP_WAIT_TIME_S=60 ")  # as in deploy/: a stopped job saves a checkpoint
    assert not any("0.0.0.0" in command for command in config["head_start_ray_commands"])
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]  # or Ray opens port 22 to the internet
    assert "IpPermissions" not in str(config["provider"])


def test_cluster_yaml_installs_this_checkout_with_its_pins(config: dict[str, Any]) -> None:
    ((remote, local),) = config["file_mounts"].items()
    assert (ROOT / local / "pyproject.toml").is_file()
    (install,) = config["setup_commands"]
    assert f"-c {remote}/constraints.txt" in install
    assert f'-e "{remote}[' in install


def test_cluster_yaml_marks_every_placeholder() -> None:
    for line in (ROOT / "cluster.yaml").read_text().splitlines():
        if re.search(r"\b(ami|sg|fs)-0000", line) or "us-west-2" in line:
            assert "# CHANGE" in line, line


def test_range_of_ray_in_pyproject_ends_at_the_minor_version_that_was_tried(config: dict[str, Any]) -> None:
    """Later minor versions remove arguments that cluster.yaml uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [need for text in project["dependencies"] if (need := Requirement(text)).name == "ray"]
    major, minor, _ = map(int, pinned("ray").split("."))
    assert pinned("ray") in ray.specifier
    assert f"{major}.{minor}.9" in ray.specifier
    assert f"{major}.{minor + 1}.0" not in ray.specifier
