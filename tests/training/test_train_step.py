"""One training step: micro batches, augmentation by step, losses and gradients that are not finite."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from rayface.data.degradations import Degradations, degrade
from rayface.data.images import augment
from rayface.training import train_step
from rayface.training.loop import Training
from rayface.training.recovery.rollback import NotFiniteError
from tests.training.plain_training import batches_for, losses, same, state_of, training


def test_micro_batches_of_a_step_equal_the_whole_batch(tmp_path):
    whole, pieces = training(tmp_path / "a"), training(tmp_path / "b", "train.max_batch_per_worker=5")
    whole.fit(batches_for(whole))
    pieces.fit(batches_for(pieces))
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert [a[s] for s in a] == pytest.approx([b[s] for s in a], rel=1e-4)
    assert torch.allclose(whole.head.centers, pieces.head.centers, atol=1e-5)


def test_rescale_lr_steps_per_piece_at_its_share_of_the_rate(tmp_path):
    """With weights that hardly move, so many small steps are one large one."""
    options = ["optim.lr=1e-6", "optim.momentum=0", "optim.clip_norm=null", "optim.weight_decay=0"]
    pieces = [*options, "train.max_batch_per_worker=4", "train.resize=rescale_lr"]
    whole, parts = training(tmp_path / "a", *options), training(tmp_path / "b", *pieces)
    before = whole.backbone[2].weight.clone()
    for net in (whole, parts):
        with pytest.raises(RuntimeError, match="the data stream ended at step 1"):
            net.fit(batches_for(net, stop=1))
    moved, also = (net.backbone[2].weight.double() - before for net in (whole, parts))
    assert moved.norm() > 0
    assert (moved - also).norm() < 0.05 * moved.norm()


def one_step(net: Training, step: int = 0) -> float:
    return net.train_step.run(next(batches_for(net)(step)), 1.0)


def copied(net: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state_of(net).items()}


def test_build_trained_of_one_seed_is_equal_and_of_another_is_not(tmp_path):
    first, same_seed, other = (training(tmp_path, f"train.seed={seed}") for seed in (0, 0, 1))
    assert same(first, same_seed)
    assert not same(first, other)


def test_run_of_a_step_returns_the_loss_before_the_update_and_moves_all(tmp_path):
    net = training(tmp_path)
    before = copied(net)
    images, labels = net.train_step.prepare(next(batches_for(net)(0)))
    with torch.no_grad():
        wanted = net.head.loss(net.backbone(images), labels).item()
    assert one_step(net) == pytest.approx(wanted, rel=1e-5)
    assert all(not torch.equal(value, before[name]) for name, value in state_of(net).items())
    assert all(parameter.grad is None for parameter in net.backbone.parameters())


def test_run_with_a_rate_factor_of_0_moves_nothing(tmp_path):
    net = training(tmp_path)
    before = copied(net)
    net.train_step.run(next(batches_for(net)(0)), 0.0)
    assert all(torch.equal(value, before[name]) for name, value in state_of(net).items())
    assert net.optimizer.param_groups[0]["lr"] > 0


def test_run_with_a_clip_norm_moves_the_backbone_by_that_norm(tmp_path):
    """At a rate so large that the weights' own rounding is small beside the change."""
    moved = {}
    for clip in (1e-3, 1e-2, None):
        options = ["optim.lr=1000", "optim.momentum=0", "optim.weight_decay=0"]
        net = training(tmp_path, *options, f"optim.clip_norm={clip or 'null'}")
        before = [parameter.detach().double() for parameter in net.backbone.parameters()]
        for parameter in net.backbone.parameters():
            parameter.register_hook(lambda gradient: 1000 * gradient)
        one_step(net)
        change = [new.double() - old for new, old in zip(net.backbone.parameters(), before, strict=True)]
        moved[clip] = torch.cat([each.ravel() for each in change]).norm().item() / 1000
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1e-2] == pytest.approx(1e-2, rel=1e-3)
    assert moved[None] > 100


def test_prepare_of_a_step_depends_on_seed_and_step_alone(tmp_path):
    net, again, other = training(tmp_path), training(tmp_path), training(tmp_path, "train.seed=1")
    batch = next(batches_for(net)(3))
    torch.rand(7)  # other code that draws
    images = net.train_step.prepare(batch)[0]
    assert torch.equal(again.train_step.prepare(batch)[0], images)
    assert not torch.equal(other.train_step.prepare(batch)[0], images)
    assert not torch.equal(net.train_step.prepare(replace(batch, step=4))[0], images)


def test_prepare_with_a_degradation_applies_it(tmp_path):
    net = training(tmp_path, "data.grey=1")
    images = net.train_step.prepare(next(batches_for(net)(0)))[0]
    assert torch.equal(images[:, :1].expand_as(images), images)


JITTER = ("brightness", "contrast", "saturation")
AUGMENTATIONS = ("flip", "shift", *JITTER, "jpeg", "crop", "low_resolution", "blur", "grey", "erase")


@pytest.mark.parametrize("key", AUGMENTATIONS)
def test_prepare_with_one_augmentation_applies_that_one(tmp_path, key):
    value = {"flip": True, "shift": 3}.get(key, 0.7)
    net = training(tmp_path, *(f"data.{name}=0" for name in AUGMENTATIONS if name != key), f"data.{key}={value}")
    batch = next(batches_for(net)(3))
    _, for_augment, for_degrade = np.random.SeedSequence([net.config.train.seed, 3]).generate_state(3, np.uint64)
    size, generator = net.train_step.batch_size, torch.Generator()
    shares = Degradations() if key in ("flip", "shift", *JITTER) else Degradations(**{key: value})
    wanted = degrade(batch.images, batch.rows, size, generator.manual_seed(int(for_degrade >> 1)), shares)
    options = {name: value if name == key else 0 for name in ("flip", "shift", *JITTER)}
    wanted = augment(wanted, batch.rows, size, generator.manual_seed(int(for_augment >> 1)), **options)
    assert torch.equal(net.train_step.prepare(batch)[0], wanted)
    assert (wanted - (batch.images.permute(0, 3, 1, 2) / 127.5 - 1)).abs().max() > 0.1


class Reads(TorchFunctionMode):
    """Records calls of PyTorch that wait for a GPU or copy to one, made by the step itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        waits = name in {"item", "tolist", "new_tensor", "__float__", "__bool__", "__int__", "nonzero"}
        if waits and sys._getframe(1).f_code.co_filename == train_step.__file__:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [[], ["train.max_batch_per_worker=5"]])
def test_run_reads_losses_norm_and_measures_of_a_step_from_the_device_at_once(tmp_path, options):
    net = training(tmp_path, *options)
    with Reads() as reads:
        net.train_step.run(next(batches_for(net)(0)), 1.0, measured=True)
    assert reads.found == ["tolist"]
    assert net.train_step.measures["embedding_norm"] > 0


def test_run_with_embeddings_that_are_not_finite_raises_before_any_weight_moves(tmp_path):
    net = training(tmp_path)
    before = copied(net)
    with pytest.raises(NotFiniteError, match=r"^step 2: .*NaN") as caught:
        net.train_step.run(next(batches_for(net, poisoned=(2,))(2)), 1.0)
    assert (caught.value.step, caught.value.bad_from) == (2, 2)
    assert all(torch.equal(value, before[name]) for name, value in state_of(net).items())


def test_run_with_a_gradient_that_is_not_finite_raises_before_any_weight_moves(tmp_path):
    """The loss was finite, so a checkpoint of this step is good."""
    net = training(tmp_path)
    before = copied(net)
    net.backbone[2].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NotFiniteError, match="the gradient of step 2 is not finite") as caught:
        one_step(net, 2)
    assert (caught.value.step, caught.value.bad_from) == (2, 3)
    assert all(torch.equal(value, before[name]) for name, value in state_of(net).items())


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["head.sample_rate=0.5"], "some"),
        (["head.sample_rate=0.5", "head.center_update=dense"], "all"),
        (["head.sample_rate=0.5", "train.max_batch_per_worker=5"], "all"),
        (["head.sample_rate=0.5", "train.max_batch_per_worker=5", "train.resize=rescale_lr"], "some"),
        ([], "all"),
    ],
)
def test_rows_about_to_change_are_named_to_the_checkpoint_before_they_do(tmp_path, options, rows):
    net = training(tmp_path, "head.sample_rate=1", *options)
    before, told = net.head.centers.clone(), []

    def told_first(which: torch.Tensor | None) -> None:
        assert told or torch.equal(net.head.centers, before)
        told.append("all" if which is None else "some")

    net.train_step.before_update = [told_first]
    one_step(net)
    assert set(told) == {rows}
    assert not torch.equal(net.head.centers, before)


def test_run_in_micro_batches_tells_the_watchdog_each_phase_of_each(tmp_path):
    net, places = training(tmp_path, "train.max_batch_per_worker=6"), []
    net.train_step.watchdog = SimpleNamespace(at=lambda phase, step, piece=0: places.append((phase, step, piece)))
    one_step(net, 4)
    pieces = [(phase, 4, piece) for piece in (0, 1) for phase in ("forward", "loss", "backward")]
    assert places == [*pieces, ("update", 4, 1)]
