"""A driver for test_work_on_nodes: prune into a store on nodes without a shared disk, cut off once, a node lost."""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster

from rayface.config import Config, load
from rayface.curate.job_output import JobOutput
from rayface.curate.prune.core_set import prune
from tests.clusters import light_nodes

_NODE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


def config(embeddings: str, out: str) -> Config:
    """The job: with conflicts, whose search writes the largest work files."""
    settings = {"embeddings": embeddings, "out": out, "keep": 0.6, "block_size": 16_384}
    return load(
        overrides={
            **{f"prune.{key}": value for key, value in settings.items()},
            "clean.outliers": 0.0,
            "clean.conflicts": 0.9,
            "clean.drop": ["conflicts"],
            "tracking.enabled": False,
        }
    )


def main(folder: Path, embeddings: str, out: str) -> None:
    with light_nodes():
        _work(folder, embeddings, out)


def _work(folder: Path, embeddings: str, out: str) -> None:
    def of_node(name: str) -> dict[str, str]:
        return {"RAYFACE_CACHE": str(folder / name), "XDG_STATE_HOME": str(folder / name)}

    with patch.dict(os.environ, of_node("head")):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_NODE})
    nodes = []
    for name in ("one", "two"):
        with patch.dict(os.environ, of_node(name)):
            nodes.append(cluster.add_node(num_cpus=1, **_NODE))
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    cut_off = patch.object(JobOutput, "finish", side_effect=KeyboardInterrupt)
    with patch.dict(os.environ, of_node("head")), cut_off, contextlib.suppress(KeyboardInterrupt):
        prune(config(embeddings, out))
    names = ("head", "one", "two", "elsewhere")
    before = {name: written(folder / name) for name in names}
    cluster.remove_node(nodes[1], allow_graceful=False)
    with patch.dict(os.environ, of_node("elsewhere")):
        prune(config(embeddings, out))
    print(json.dumps([before, {name: written(folder / name) for name in names}]))
    ray.shutdown()
    cluster.shutdown()


def written(cache: Path) -> list[str]:
    """The work files that a node has a copy of."""
    paths: Sequence[Path] = sorted((cache / "work").glob("*/**/*"))
    return [path.relative_to(cache / "work").as_posix() for path in paths if path.is_file() and path.suffix != ".lock"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
