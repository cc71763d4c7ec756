"""Head: one defined outside of the package trains, is checkpointed, resumed and planned by the interface alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayface import config as configs
from rayface.config import Config
from rayface.data.streaming.batches import Batch
from rayface.heads import HEADS, CosFace, Head, HeadSettings
from rayface.plan.memory import host_memory, job_of, memory
from rayface.training.checkpointing import checkpoint
from rayface.training.loop import Training
from rayface.training.recovery.resume_check import check_resumable
from rayface.training.run_directory import RunDirectory
from tests.training.small_run import SAMPLE_ORDER, training

NUM_CLASSES = 6


class FullSoftmax(Head):
    """Plain softmax over all classes of one process, with a scale that is learned beside the centers."""

    replicated = frozenset({"log_scale"})

    def __init__(self, settings: HeadSettings) -> None:
        self.num_classes, self.margin, self.steps = settings.num_classes, settings.margin, 0
        generator = torch.Generator().manual_seed(settings.seed)
        centers = torch.randn(settings.num_classes, settings.embedding_size, generator=generator)
        self.centers = centers.to(settings.device).requires_grad_()
        self.log_scale = torch.tensor(2.0, device=settings.device, requires_grad=True)

    @classmethod
    def build(cls, settings: HeadSettings) -> "FullSoftmax":
        return cls(settings)

    def loss(self, embeddings: Tensor, labels: Tensor, counts: Any = None) -> Tensor:
        cosine = F.normalize(embeddings) @ F.normalize(self.centers).T
        return F.cross_entropy(cosine * self.log_scale.exp(), labels)

    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        with torch.no_grad():
            for parameter in (self.centers, self.log_scale):
                parameter -= lr / grad_scale * parameter.grad
                parameter.grad = None
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"centers": self.centers.detach(), "log_scale": self.log_scale.detach(), "step": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.steps = state["step"]


@pytest.fixture(autouse=True)
def _full_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "full_softmax", FullSoftmax)


def config_of(*overrides: str) -> Config:
    data = ["data.image_size=32", "data.train=unused"]
    return configs.load("debug", None, [*data, "head.name=full_softmax", "train.epochs=2", *overrides])


def batch(step: int) -> Batch:
    random = np.random.default_rng(step)
    images = torch.from_numpy(random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    labels = torch.from_numpy(random.integers(0, NUM_CLASSES, 4))
    return Batch(step=step, rows=slice(0, 4), images=images, labels=labels, faults=())


def advance(made: Training, stop: int) -> None:
    for step in range(made.step, stop):
        made.schedule.step(made.train_step.run(batch(step), 1.0))
        made.step = step + 1


def test_new_head_resumed_from_a_checkpoint_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    config = config_of()
    whole, parts = training(tmp_path / "whole", config), training(tmp_path / "parts", config)
    advance(whole, 5)
    advance(parts, 3)
    parts.save_checkpoint()
    parts.checkpoints.wait()
    check_resumable(RunDirectory(tmp_path / "parts"), config, SAMPLE_ORDER)
    resumed = training(tmp_path / "parts", config)
    assert resumed.step == 3
    advance(resumed, 5)
    assert torch.equal(whole.head.centers, resumed.head.centers)
    assert torch.equal(whole.head.log_scale, resumed.head.log_scale)
    assert resumed.head.steps == 5
    weights = zip(whole.backbone.parameters(), resumed.backbone.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in weights)
    sizes = checkpoint.saved_sizes(checkpoint.all_in(tmp_path / "parts")[-1])
    assert sizes["head.centers"][0] == NUM_CLASSES
    assert sizes["head.log_scale"] == ()


def test_new_head_resumed_with_a_head_of_other_state_is_refused(tmp_path: Path) -> None:
    made = training(tmp_path, config_of())
    made.save_checkpoint()
    made.checkpoints.wait()
    with pytest.raises(ValueError, match=r"head\.name: 'partial_fc': the run was started with 'full_softmax'"):
        check_resumable(RunDirectory(tmp_path), config_of("head.name=partial_fc", "optim.momentum=0.9"), SAMPLE_ORDER)


def test_memory_of_a_new_head_is_what_its_plan_shows() -> None:
    job = job_of(config_of("optim.momentum=0"), 1000, gpu=False)
    centers = 1000 * job.embedding_size * 4
    assert memory(job)["class_centers"] == centers
    assert memory(job)["logits"] == 3 * 4 * 1000 * job.batch_size
    assert host_memory(job) == 0
    larger = type("Larger", (FullSoftmax,), {"memory": classmethod(lambda cls, shape: _doubled(shape))})
    HEADS["full_softmax"] = larger
    assert memory(job)["class_centers"] == 2 * centers


def _doubled(shape: Any) -> Any:
    found = FullSoftmax.memory(shape)
    return type(found)(device={k: 2 * v for k, v in found.device.items()}, host=found.host, state=found.state)


def test_load_state_with_a_missing_or_misshapen_tensor_is_refused() -> None:
    head = training_head()
    with pytest.raises(ValueError, match="no 'log_scale'"):
        head.load_state({"centers": head.centers.detach(), "step": 0})
    with pytest.raises(ValueError, match=r"'centers' of shape \(1, 4\) must be \(6, 4\)"):
        head.load_state({**head.state(), "centers": torch.zeros(1, 4)})


def training_head() -> FullSoftmax:
    return FullSoftmax.build(HeadSettings(embedding_size=4, num_classes=NUM_CLASSES, margin=CosFace()))
