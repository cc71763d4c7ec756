"""Checkpoints on the command line: what is in them, whether they are whole, and parts of them as safetensors."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from rayface import config as configs
from rayface.backbones import build_backbone
from rayface.cli.command_line import app
from rayface.heads.class_centers import class_range
from rayface.models.model_files import load_model
from rayface.models.row_shard import RowShard
from rayface.storage import RemotePath
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing import tools as checkpoint_tools
from rayface.training.checkpointing.progress import DatasetFacts, Progress
from rayface.training.run_directory import RunDirectory
from tests.ranks import run_ranks

NUM_CLASSES = 7
FULL = torch.arange(NUM_CLASSES * 3.0).view(NUM_CLASSES, 3)
FACTS = DatasetFacts(name="drawn", digest="d" * 64, licence="none")


def progress(step: int) -> Progress:
    return Progress(step=step, total_steps=9, accuracy=0.75, dataset=FACTS)


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints: a backbone, class centers, and more tensors than a table names."""
    run = tmp_path / "run"
    run.mkdir()
    config = configs.load("debug", None, ["data.image_size=32", "data.train=unused"])
    configs.dump(config, run / "config.yaml")
    torch.manual_seed(1)
    net = config.backbone
    backbone = build_backbone(net.name, embedding_size=net.embedding_size, image_size=32, width=net.width)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    state["head.centers"] = RowShard.of(FULL.clone(), 0, NUM_CLASSES)
    for step in (3, 6):
        checkpoint.save(run, state, progress(step), keep=2)
    journal = RunDirectory(run).worker_journal()
    for step, accuracy in ((4, 0.75), (6, 0.875)):
        journal.metrics({"eval/accuracy": accuracy}, step)
    return run


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def damage(folder: Path) -> None:
    (folder / "__0_0.distcp").write_bytes(b"short")


def test_show_of_a_valid_checkpoint_names_step_config_and_tensors(run):
    shown = json.loads(invoke("show", run, "--json"))
    assert shown["checkpoint"].endswith("step_00000006")
    assert (shown["step"], shown["total_steps"], shown["accuracy"], shown["whole"]) == (6, 9, 0.875, True)
    assert shown["config"]["backbone.name"] == "mini"
    assert shown["tensors"]["head.centers"] == {"shape": [7, 3], "dtype": "float32", "bytes": 84}
    assert sum(name.startswith("backbone.") for name in shown["tensors"]) > 8
    text = invoke("show", run / "checkpoints" / "step_00000003")
    assert "(7, 3) float32, 84 bytes" in text
    assert "tensors," in text


def test_show_of_a_checkpoint_between_validations_has_no_accuracy(run, tmp_path):
    folder = run / "checkpoints" / "step_00000003"
    assert json.loads(invoke("show", folder, "--json"))["accuracy"] is None
    invoke("export", folder, "--out", tmp_path / "model")
    assert load_model(tmp_path / "model").info.metrics == {}


def test_show_of_a_corrupt_checkpoint_says_so(run):
    damage(checkpoint.folder_of(run, 6))
    shown = checkpoint_tools.show(run)
    assert not shown.as_dict()["whole"]
    assert "has 5 bytes" in shown.table()["fault 1"]


def test_tools_of_a_run_in_a_store_give_what_they_give_on_a_disk(run, object_store, tmp_path):
    for path in filter(Path.is_file, run.rglob("*")):
        object_store.put(f"run/{path.relative_to(run)}", path.read_bytes())
    uri = object_store.uri("run")
    local, remote = (json.loads(invoke("show", where, "--json")) for where in (run, uri))
    assert remote.pop("checkpoint").startswith("s3://***@")
    assert remote == {key: value for key, value in local.items() if key != "checkpoint"}
    assert json.loads(invoke("verify", uri, "--json"))["whole"] is True
    invoke("export", run, f"--out={tmp_path / 'model'}")
    invoke("export", uri, f"--out={object_store.uri('model')}")
    assert object_store.files()["model/model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()
    invoke("reshard", uri, f"--out={tmp_path / 'centers'}")
    assert torch.equal(load_file(tmp_path / "centers" / "centers.safetensors")["centers"], FULL)


def test_verify_with_corrupt_checkpoints_names_their_faults_and_exits_with_1(run):
    assert json.loads(invoke("verify", run, "--json"))["whole"]
    damage(checkpoint.folder_of(run, 3))
    said = invoke("verify", run, code=1)
    assert "step_00000003/__0_0.distcp: has 5 bytes" in said.replace("\n", "")
    assert checkpoint_tools.verify(run)["step_00000006"] == []
    invoke("verify", run / "checkpoints" / "step_00000006")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint_tools.verify(run / "nothing")


def test_export_of_a_checkpoint_gives_the_backbone_as_a_model(run, tmp_path):
    invoke("export", run, "--out", tmp_path / "model")
    model = load_model(tmp_path / "model")
    torch.manual_seed(1)
    net = configs.load(file=run / "config.yaml").backbone
    wanted = build_backbone(net.name, embedding_size=net.embedding_size, image_size=32, width=net.width)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(tensor, model.module.state_dict()[name])
    assert model.info.training_digest == FACTS.digest
    assert model.info.metrics == {"accuracy_mean": 0.875}
    damage(checkpoint.folder_of(run, 6))
    with pytest.raises(ValueError, match="is corrupt"):
        checkpoint_tools.export(run, tmp_path / "other")


def save_shard(rank: int, world_size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    first, last = class_range(NUM_CLASSES, world_size, rank)
    state = {"head.centers": RowShard.of(FULL[first:last].to(torch.bfloat16), first, NUM_CLASSES)}
    checkpoint.save(Path(folder), state, progress(1), keep=1, group=dist.group.WORLD)


def check_parts(out: Path, ranks: int, wanted: torch.Tensor) -> None:
    for rank in range(ranks):
        path = out / f"centers_rank_{rank}.safetensors"
        first, last = class_range(NUM_CLASSES, ranks, rank)
        assert torch.equal(load_file(path)["centers"], wanted[first:last])
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "num_classes": "7", "first": str(first), "last": str(last)}
    assert len(list(out.iterdir())) == ranks


def test_reshard_of_what_three_ranks_saved_merges_and_splits_it(tmp_path):
    run_ranks(save_shard, (3, str(tmp_path)), 3)
    invoke("reshard", tmp_path, "--out", tmp_path / "one")
    merged = load_file(tmp_path / "one" / "centers.safetensors")["centers"]
    assert torch.equal(merged, FULL.to(torch.bfloat16))
    invoke("reshard", tmp_path, "--out", tmp_path / "two", "--ranks", 2)
    check_parts(tmp_path / "two", 2, FULL.to(torch.bfloat16))
    with pytest.raises(ValueError, match="is not empty"):
        checkpoint_tools.reshard(tmp_path, tmp_path / "two")
    with pytest.raises(ValueError, match="must be from 1 to 7"):
        checkpoint_tools.reshard(tmp_path, tmp_path / "eight", ranks=8)
    assert not (tmp_path / "eight").exists()


def arcface_files(folder: Path, world_size: int, kind: str) -> None:
    folder.mkdir()
    for rank in range(world_size):
        first, last = class_range(NUM_CLASSES, world_size, rank)
        rows = FULL[first:last].clone()
        if kind == "tensor":
            torch.save(rows, folder / f"rank_{rank}_softmax_weight.pt")
            torch.save(rows * 0, folder / f"rank_{rank}_softmax_weight_mom.pt")
        else:
            fc = {"weight": rows, "weight_mom": rows * 0} if kind == "weight" else {"other": rows, "bias": rows[0]}
            state = {"epoch": 3, "state_dict_backbone": {"w": torch.ones(2, 2)}, "state_dict_softmax_fc": fc}
            torch.save(state, folder / f"checkpoint_gpu_{rank}.pt")


@pytest.mark.parametrize("kind", ["tensor", "weight", "only"])
def test_reshard_from_arcface_torch_reads_its_files(tmp_path, kind):
    arcface_files(tmp_path / "arcface", 3, kind)
    invoke("reshard", tmp_path / "arcface", "--from-arcface", "--ranks", 2, "--out", tmp_path / "out")
    check_parts(tmp_path / "out", 2, FULL)


def test_arcface_centers_of_files_that_do_not_fit_together_raise(tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, ("true",)

    def refused(folder: str, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            checkpoint_tools.arcface_centers(tmp_path / folder)

    arcface_files(tmp_path / "gap", 3, "weight")
    (tmp_path / "gap" / "checkpoint_gpu_1.pt").unlink()
    refused("gap", r"has those of ranks \[0, 2\]")
    refused("nowhere", r"has those of ranks \[\]")
    arcface_files(tmp_path / "sizes", 2, "weight")
    torch.save({"weight": torch.ones(1, 3)}, tmp_path / "sizes" / "checkpoint_gpu_1.pt")
    refused("sizes", r"parts of \[4, 1\] classes")
    torch.save({"a": torch.ones(1, 3), "b": torch.ones(1, 3)}, tmp_path / "sizes" / "checkpoint_gpu_1.pt")
    refused("sizes", r"it has \['a', 'b'\]")
    torch.save(Code(), tmp_path / "sizes" / "checkpoint_gpu_1.pt")
    refused("sizes", "holds Python objects")


def test_tools_read_a_checkpoint_in_a_store(object_store, tmp_path):
    stored = RemotePath(object_store.uri("run"))
    RunDirectory(stored).write_config(configs.load("debug"))
    checkpoint.save(stored, {"head.centers": RowShard.of(FULL, 0, NUM_CLASSES)}, progress(3), keep=1)
    assert checkpoint_tools.verify(stored) == {"step_00000003": []}
    shown = checkpoint_tools.show(stored)
    assert shown.tensors["head.centers"].shape == [NUM_CLASSES, 3]
    assert shown.config["backbone.name"] == "mini"
    invoke("reshard", object_store.uri("run"), "--ranks", 2, "--out", tmp_path / "out")
    check_parts(tmp_path / "out", 2, FULL)
