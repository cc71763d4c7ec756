"""Parts of a config: first weights, torch.compile, compressed gradients."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rayface import config as configs
from rayface.config import Config
from rayface.evaluation.export import save_model
from rayface.training.distributed import World
from rayface.training.parts import build_config_backbone, data_parallel, load_start


def settings(*overrides: str) -> Config:
    return configs.load("debug", None, ["backbone.width=0.25", "backbone.embedding_size=16", *overrides])


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


def test_a_backbone_starts_from_the_weights_of_a_run(tmp_path: Path) -> None:
    taught, fresh = build_config_backbone(settings()), build_config_backbone(settings())
    save_model(
        tmp_path,
        taught,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=32,
        embedding_size=16,
        licence="",
        training_digest="",
        metrics={},
    )
    load_start(fresh, settings(f"backbone.weights={tmp_path}"))
    for name, tensor in taught.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name
    other = settings("backbone.width=0.5", f"backbone.weights={tmp_path}")
    with pytest.raises(ValueError, match="do not fit mini: shape"):
        load_start(build_config_backbone(other), other)


def test_compiled_training_is_plain_training(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_net = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compile_net(net, backend="eager"))  # traced; no C++ is built
    config = settings("backbone.compile=true")
    net = build_config_backbone(config)
    through = data_parallel(net, world(), config)
    images = torch.randn(4, 3, 32, 32)
    gradients = []
    for each in (through, net):
        net.zero_grad(set_to_none=True)
        each(images).square().sum().backward()
        gradients.append(net.conv1.weight.grad)
    assert through is not net
    torch.testing.assert_close(*gradients)


def test_compile_without_a_compiler_or_with_checkpointing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("backbone.compile=true")
    net = build_config_backbone(config)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on a CPU, no .* was found"):
        data_parallel(net, world(), config)
    with pytest.raises(ValueError, match=r"does not go with backbone\.checkpointing"):
        build_config_backbone(settings("backbone.compile=true", "backbone.checkpointing=true"))


def gradients_of_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for kind in ("none", "fp16"):
        config = settings(f"train.gradient_compression={kind}")
        torch.manual_seed(0)
        net = build_config_backbone(config)
        parallel = data_parallel(net, world(rank, 2), config)
        torch.manual_seed(rank)
        parallel(torch.randn(4, 3, 32, 32)).square().sum().backward()
        found[kind] = net.conv1.weight.grad
    with pytest.raises(ValueError, match="bf16: needs nccl"):
        data_parallel(net, world(rank, 2), settings("train.gradient_compression=bf16"))
    size = found["none"].abs().max()
    assert 0 < (found["fp16"] - found["none"]).abs().max() < 1e-2 * size
    both = [torch.empty_like(found["fp16"]) for _ in range(2)]
    dist.all_gather(both, found["fp16"])
    assert torch.equal(*both)
    Path(folder, f"rank{rank}").touch()
    dist.destroy_process_group()


def test_compressed_gradients_are_nearly_the_same_and_alike_on_all_ranks(tmp_path: Path) -> None:
    mp.spawn(gradients_of_a_rank, (str(tmp_path),), 2)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}  # both came to the end
