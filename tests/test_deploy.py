"""Manifests for KubeRay, the image and the Slurm script: valid, of cluster.yaml's settings, and without open doors."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


# Fields and types of the resources ray.io/v1 (KubeRay 1.3); pods are validated by Kubernetes' own schema.
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
GROUP = {"rayStartParams": STRINGS, "template": {"type": "object"}}
CLUSTER = fields(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields(
        [],
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        env={"type": "array"},
        resources={"type": "object"},
    ),
    headGroupSpec=fields([*GROUP], **GROUP, serviceType={"type": "string"}),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            ["groupName", "minReplicas", "maxReplicas", *GROUP],
            **GROUP,
            groupName={"type": "string"},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
        ),
    },
)
JOB = fields(
    [],
    entrypoint={"type": "string"},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    runtimeEnvYAML={"type": "string"},
    rayClusterSpec=CLUSTER,
)
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB}


@pytest.fixture(params=["kuberay-cluster.yaml", "kuberay-job.yaml"])
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / request.param).read_text())


@pytest.fixture
def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec of the manifest's cluster."""
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


@pytest.fixture
def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Specs of the head's pod and of each kind of worker's."""
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.fixture(scope="module")
def ray_up() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_manifest_has_the_fields_of_its_kind(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.validate(manifest["spec"], KINDS[manifest["kind"]])
    with pytest.raises(jsonschema.ValidationError, match="unexpected"):
        jsonschema.validate({**manifest["spec"], "rayVersoin": "2"}, KINDS[manifest["kind"]])


def test_pods_of_a_manifest_are_valid_for_kubernetes(pods: list[dict[str, Any]]) -> None:
    for spec in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": spec}
        kubernetes_validate.validate(pod, "1.31", strict=True)
        names = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} <= names


def test_manifest_has_the_settings_of_cluster_yaml(
    cluster: dict[str, Any], pods: list[dict[str, Any]], ray_up: dict[str, Any]
) -> None:
    assert f"ray:{cluster['rayVersion']}-py311" in ray_up["docker"]["head_image"]
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * ray_up["idle_timeout_minutes"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (worker,) = cluster["workerGroupSpecs"]
    node = ray_up["available_node_types"]["gpu_worker"]
    assert (worker["minReplicas"], worker["maxReplicas"]) == (node["min_workers"], node["max_workers"])
    resources = pods[1]["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    assert (resources["limits"]["cpu"], resources["limits"]["nvidia.com/gpu"]) == (
        str(node["resources"]["CPU"]),
        str(node["resources"]["GPU"]),
    )


def test_every_process_of_a_manifest_needs_the_token_of_the_secret(
    cluster: dict[str, Any], pods: list[dict[str, Any]]
) -> None:
    for env in [cluster["autoscalerOptions"]["env"], *(pod["containers"][0]["env"] for pod in pods)]:
        variables = {each["name"]: each for each in env}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "rayface-token", "key": "token"}
    assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"


def test_job_runs_a_command_that_can_be_repeated() -> None:
    spec = yaml.safe_load((DEPLOY / "kuberay-job.yaml").read_text())["spec"]
    assert spec["backoffLimit"] > 0
    assert "--resume auto" in spec["entrypoint"]
    assert "train.output=/shared/" in spec["entrypoint"]
    assert spec["rayClusterSpec"] == yaml.safe_load((DEPLOY / "kuberay-cluster.yaml").read_text())["spec"]


def test_placeholders_of_the_manifests_are_marked() -> None:
    for path in DEPLOY.glob("*.yaml"):
        for line in path.read_text().splitlines():
            if "example.com" in line or "claimName" in line:
                assert line.endswith("# CHANGE"), line


def test_image_has_the_ray_of_cluster_yaml(ray_up: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text()
    (version,) = re.findall(r"^FROM rayproject/ray:([\d.]+)-py311-", text, re.MULTILINE)
    assert f"ray:{version}-py311" in ray_up["docker"]["worker_image"]
    assert f"ray=={version} " in text


# Each writes its name and arguments to a log; `srun` runs the command here, as its node would.
LOGGED = '#!/bin/bash\necho "$(basename "$0") $*" >> "$LOG"\n'
PROGRAMS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"\n',
    "srun": """node=
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done
[[ $1 == hostname ]] && { echo "10.0.0.${node#node} fe80::1"; exit; }
exec "$@"
""",
    "ray": """[[ $1 == start ]] || exit 0
trap 'echo ended >> "$LOG"; exit' TERM
echo ready >> "$LOG"
while :; do sleep .05; done
""",
    "rayface": """until [[ $(grep -c ready "$LOG") == 3 ]]; do sleep .05; done
echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE" >> "$LOG"
trap 'echo saved >> "$LOG"; exit 143' TERM
[[ $VERB_WAITS ]] && { touch "$LOG.waits"; for i in $(seq 200); do sleep .05; done; }
exit 3
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job on three nodes, whose programs are fakes."""
    for name, rest in PROGRAMS.items():
        (tmp_path / name).write_text(LOGGED + rest)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "2",
        "VERB_WAITS": "",
    }


def test_slurm_script_starts_ray_on_every_node_runs_the_verb_and_stops_ray(slurm: dict[str, str]) -> None:
    script = [DEPLOY / "slurm.sh", "train", "--preset", "debug", "data.train=[/a, /b]"]
    done = subprocess.run(script, env=slurm, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr  # the verb's own
    log = Path(slurm["LOG"]).read_text().splitlines()
    starts = [line for line in log if line.startswith("ray start")]
    assert len(starts) == 3
    (head,) = [line for line in starts if "--head" in line]
    assert "--node-ip-address=10.0.0.1 --port=20077 --num-cpus=8 --num-gpus=2" in head
    assert all("--address=10.0.0.1:20077 --num-cpus=8 --num-gpus=2" in line for line in starts if line != head)
    assert "rayface train --address 10.0.0.1:20077 --preset debug data.train=[/a, /b]" in log
    assert "token 64 token" in log
    assert log.count("ended") == 3
    assert sum("--nodelist=node2" in line for line in log) == 1


def test_slurm_script_that_is_warned_lets_the_verb_save(slurm: dict[str, str]) -> None:
    script = subprocess.Popen([DEPLOY / "slurm.sh", "train"], env={**slurm, "VERB_WAITS": "1"})
    try:
        while not Path(f"{slurm['LOG']}.waits").exists():
            assert script.poll() is None
        script.terminate()
        assert script.wait(timeout=30) == 143
    finally:
        script.kill()
    log = Path(slurm["LOG"]).read_text().splitlines()
    assert log.count("saved") == 1
    assert log.count("ended") == 3


def test_slurm_script_without_a_verb_is_refused() -> None:
    done = subprocess.run([DEPLOY / "slurm.sh"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch deploy/slurm.sh VERB")
