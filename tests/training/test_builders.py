"""Parts of a config: first weights, torch.compile, compressed gradients."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import powerSGD_hook

from rayface import config as configs
from rayface.config import Config
from rayface.models.model_files import save_model
from rayface.training.builders import build_config_backbone, compiled, data_parallel, load_start
from rayface.training.distributed import World
from rayface.training.gradient_compression import compress, forget_errors
from tests.ranks import run_ranks


def settings(*overrides: str) -> Config:
    return configs.load("debug", None, ["backbone.width=0.25", "backbone.embedding_size=16", *overrides])


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))


def test_load_start_of_the_weights_of_a_run_loads_them_or_raises(tmp_path: Path) -> None:
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


def test_data_parallel_of_a_compiled_net_gives_the_gradients_of_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_compile_without_a_compiler_or_with_checkpointing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("backbone.compile=true")
    net = build_config_backbone(config)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on a CPU, no .* was found"):
        data_parallel(net, world(), config)
    on_gpu = replace(world(), device=torch.device("cuda"))
    with pytest.raises(ValueError, match=r"^backbone\.compile: true: Triton needs a C compiler"):
        compiled(net, on_gpu)
    with pytest.raises(ValueError, match=r"cannot be combined with backbone\.checkpointing"):
        build_config_backbone(settings("backbone.compile=true", "backbone.checkpointing=true"))


def gradients_of_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    kinds = {"none": (), "fp16": ("train.gradient_compression=fp16",), "static": ("train.static_graph=true",)}
    for kind, overrides in kinds.items():
        config = settings(*overrides)
        torch.manual_seed(0)
        net = build_config_backbone(config)
        parallel = data_parallel(net, world(rank, 2), config)
        torch.manual_seed(rank)
        for _ in range(2):  # DDP sorts its buckets anew after the first
            net.zero_grad(set_to_none=True)
            parallel(torch.randn(4, 3, 32, 32)).square().sum().backward()
        found[kind] = net.conv1.weight.grad
    with pytest.raises(ValueError, match="bf16: requires nccl"):
        data_parallel(net, world(rank, 2), settings("train.gradient_compression=bf16"))
    assert torch.equal(found["static"], found["none"])
    size = found["none"].abs().max()
    assert 0 < (found["fp16"] - found["none"]).abs().max() < 1e-2 * size
    both = [torch.empty_like(found["fp16"]) for _ in range(2)]
    dist.all_gather(both, found["fp16"])
    assert torch.equal(*both)
    Path(folder, f"rank{rank}").touch()


def repeated_gradients_of_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    for overrides in ((), ("backbone.name=vit_t",)):  # whose mask token is used in training only
        _check_repeated_gradients(rank, settings(*overrides))
    Path(folder, f"rank{rank}").touch()


def _check_repeated_gradients(rank: int, config: Config) -> None:
    torch.manual_seed(0)
    net = build_config_backbone(config)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parallel = data_parallel(net, world(rank, 3), config)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    found = []
    for _ in range(3):
        torch.manual_seed(rank)  # dropout
        net.zero_grad(set_to_none=True)
        parallel(images).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def powersgd_of_a_rank(rank: int, folder: str) -> None:
    """The plain mean of the gradients, less what was left out before, is sent or left out; nothing is lost."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    nets = {}
    for kind in ("none", "powersgd"):
        # wide enough for several buckets, whose collectives must not be mixed up
        config = settings(f"train.gradient_compression={kind}", "train.powersgd_start=2", "backbone.width=1.0")
        torch.manual_seed(0)
        net = build_config_backbone(config).to(memory_format=torch.channels_last)
        nets[kind] = net, data_parallel(net, world(rank, 2), config)
    state = nets["powersgd"][1]._rayface_powersgd

    def gradients(step: int, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(10 * step + rank)
        images = torch.randn(4, 3, 32, 32)
        found = []
        for net, parallel in nets.values():
            net.zero_grad(set_to_none=True)
            parallel(images).mul(factor).square().sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        return found[0], found[1]

    def left_out() -> float:
        """Sum of what all ranks keep back, over all numbers."""
        total = sum(error.double().sum() for error in state.error_dict.values())
        both = torch.tensor([float(total)], dtype=torch.float64)
        dist.all_reduce(both)
        return float(both) / 2

    for step in range(2):
        torch.testing.assert_close(*gradients(step))
    plain = sent = 0.0
    for step in range(2, 6):
        whole, made = gradients(step)
        assert (whole - made).norm() > 0.1 * whole.norm()
        plain, sent = plain + whole.double().sum(), sent + made.double().sum()
        both = [torch.empty_like(made) for _ in range(2)]
        dist.all_gather(both, made)
        assert torch.equal(*both)
        scale = float(whole.double().abs().sum())
        assert float(sent) + left_out() == pytest.approx(float(plain), abs=1e-5 * scale)
    gradients(6, factor=float("nan"))
    assert not gradients(7)[1].isfinite().all()  # it lives on in what was left out
    forget_errors(nets["powersgd"][1])
    for step in range(8, 10):
        torch.testing.assert_close(*gradients(step))
    assert gradients(10)[1].isfinite().all()
    Path(folder, f"rank{rank}").touch()


@pytest.mark.parametrize("work", [gradients_of_a_rank, powersgd_of_a_rank])
def test_compressed_gradients_of_two_ranks_are_close_and_equal_on_both(
    work: Callable[[int, str], None], tmp_path: Path
) -> None:
    run_ranks(work, (str(tmp_path),), 2)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}  # both came to the end


class Hooked:
    """A net in whose place a hook and its state are kept."""

    def register_comm_hook(self, state: object, hook: object) -> None:
        self.state, self.hook = state, hook


@pytest.mark.parametrize(
    ("kind", "hook"), [("bf16", bf16_compress_hook), ("fp16", fp16_compress_hook), ("powersgd", powerSGD_hook)]
)
def test_compression_on_a_gpu_is_torchs_with_the_settings_of_the_config(kind: str, hook: object) -> None:
    parallel, on_gpu = Hooked(), replace(world(), device=torch.device("cuda"))
    overrides = (f"train.gradient_compression={kind}", "train.powersgd_rank=3", "train.powersgd_start=7")
    compress(parallel, settings(*overrides).train, on_gpu)
    assert parallel.hook is hook
    if kind == "powersgd":
        assert (parallel.state.matrix_approximation_rank, parallel.state.start_powerSGD_iter) == (3, 7)
    else:
        assert parallel.state is None


def test_gradients_of_three_ranks_are_the_same_in_the_first_pass_and_in_later_ones(tmp_path: Path) -> None:
    """A resumed run begins with what is the middle of one that goes on."""
    run_ranks(repeated_gradients_of_a_rank, (str(tmp_path),), 3)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1", "rank2"}
