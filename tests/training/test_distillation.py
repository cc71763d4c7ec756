"""Distillation: the losses against loops, settings that cannot work; and the road of a student beside one alone."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rayface import config as configs
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.micro_batches import MicroBatch
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.synth import synthesize
from rayface.evaluation.pairs import evaluate_pairs, load_pairs
from rayface.models.forward import embed_images
from rayface.models.model_files import load_model
from rayface.models.model_info import ModelInfo
from rayface.training import distillation
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distillation import (
    Distillation,
    angular_loss,
    build_distillation,
    check_distillation,
    class_targets,
    every_view,
    feature_loss,
    sample_targets,
)
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.run_directory import RunDirectory
from rayface.training.teacher_cache import BY_CLASS, BY_SAMPLE

SIZE, BATCH = 32, 48
CPU = torch.device("cpu")


def test_distillation_losses_of_random_embeddings_equal_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    angular = feature = 0.0
    for s, t in zip(student, teacher, strict=True):
        cosine = float(s @ t) / math.sqrt(float(s @ s) * float(t @ t))
        angular += (2 - 2 * cosine) / 5
        feature += sum(float(a - b) ** 2 for a, b in zip(s, t, strict=True)) / 35
    assert angular_loss(student, teacher).item() == pytest.approx(angular, rel=1e-12)
    assert feature_loss(student, teacher).item() == pytest.approx(feature, rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: angular_loss(s, teacher), student)


def test_distillation_loss_of_an_unknown_target_counts_nothing_and_gives_no_gradient() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    teacher[1] = torch.nan
    loss = angular_loss(student, teacher)
    loss.backward()
    known = angular_loss(student[[0, 2]], teacher[[0, 2]])
    assert loss.item() == pytest.approx(known.item() * 2 / 3)
    assert torch.equal(student.grad[1], torch.zeros(4, dtype=torch.float64))
    assert student.grad[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.teacher_cache=x"], "is set without train.teacher"),
        (["train.teacher=t", "train.distillation=center"], "set train.teacher_cache=DIR"),
        (["train.teacher=t", "train.distillation=feature", "train.teacher_cache=x"], "leave the cache out"),
        (["train.teacher=/nowhere"], "/nowhere"),
    ],
)
def test_check_distillation_of_settings_that_exclude_each_other_raises(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_distillation(configs.load("debug", None, settings))


@pytest.mark.parametrize(
    ("settings", "size", "image_size", "message"),
    [
        ([], 64, SIZE, r"^backbone\.embedding_size: 32: the teacher's is 64: use the same$"),
        ([], 32, 48, r"^data\.image_size: 32: the teacher takes 48 pixels"),
        ([], 32, SIZE, None),
        (["train.teacher_cache=x"], 32, 48, None),  # its images are decoded at the teacher's size
    ],
)
def test_check_distillation_of_another_size_names_the_key(
    settings: list[str], size: int, image_size: int, message: str | None
) -> None:
    own = ["train.teacher=t", "backbone.embedding_size=32", f"data.image_size={SIZE}"]
    config = configs.load("debug", None, [*own, *settings])
    teacher = ModelInfo(backbone="iresnet", embedding_size=size, image_size=image_size)
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_distillation(config, teacher)


def one_batch(step: int, rows: slice, labels: list[int]) -> Batch:
    images = torch.zeros(len(labels), 3, 8, 8)
    return Batch(step=step, rows=rows, images=images, labels=torch.tensor(labels), faults=())


def test_shares_of_the_ranks_have_the_mean_over_all_images_as_their_mean() -> None:
    """Two ranks with 1 and 3 rows; a rank without rows has no share."""
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    shares = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 4)):
        given = Distillation(lambda images, batch, own, rows=rows: teacher[rows][own], angular_loss, 0.5)
        count = rows.stop - rows.start
        piece = MicroBatch(number=0, rows=slice(0, count), counts=[1, 3, 0], share=1.0)
        batch = one_batch(0, rows, [0] * count)
        shares.append(given(student[rows], batch.images, batch, piece).item())
        assert math.isnan(given.last) == (count == 0)
        if count:
            assert given.last.item() == pytest.approx(angular_loss(student[rows], teacher[rows]).item())
    assert sum(shares) / 3 == pytest.approx(0.5 * angular_loss(student, teacher).item(), rel=1e-6)
    assert shares[2] == 0


def test_cached_targets_are_of_the_samples_and_labels_of_the_rows() -> None:
    order = SampleOrder(num_samples=20, batch_size=8, seed=3)
    batch, rows = one_batch(1, slice(4, 8), [5, 0, 2, 1]), slice(1, 3)
    targets = np.arange(40, dtype=np.float16).reshape(20, 2)
    found = sample_targets(targets, order)(batch.images[rows], batch, rows)
    assert found.dtype == torch.float32
    assert found[:, 0].tolist() == (2 * order.batch(1)[5:7]).tolist()
    found = class_targets(targets)(batch.images[rows], batch, rows)
    assert found.dtype == torch.float32
    assert found[:, 0].tolist() == [0, 4]


EVERY_VIEW, CACHE = "targets of every view", "train.teacher_cache=cache"


@pytest.mark.parametrize(
    ("settings", "loss", "targets"),
    [
        (["train.distillation=angular"], angular_loss, None),
        (["train.distillation=feature"], feature_loss, None),
        ([CACHE], angular_loss, [0, 1]),  # of the two samples
        ([CACHE, "train.distillation=center"], angular_loss, [13, 11]),  # of their labels
    ],
)
def test_build_distillation_takes_loss_weight_and_targets_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], loss: object, targets: list[int] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    np.save(tmp_path / "cache" / BY_SAMPLE, np.arange(2, dtype=np.float16)[:, None])
    np.save(tmp_path / "cache" / BY_CLASS, np.arange(10, 14, dtype=np.float16)[:, None])
    monkeypatch.setattr(distillation, "every_view", lambda config, world: EVERY_VIEW)
    order, world = SampleOrder(num_samples=2, batch_size=2), World(rank=0, size=1, local_size=1, device=CPU)
    config = configs.load("debug", None, ["train.teacher=t", "train.distillation_weight=0.25", *settings])
    built = build_distillation(config, order, 4, world)
    assert (built.loss, built.weight) == (loss, 0.25)
    if targets is None:
        assert built.teacher == EVERY_VIEW
    else:
        labels = [3, 1]
        batch = one_batch(0, slice(0, 2), [labels[sample] for sample in order.batch(0)])
        found = built.teacher(batch.images, batch, slice(0, 2))[:, 0].tolist()
        assert found == [targets[sample] for sample in order.batch(0)]


def test_build_distillation_without_a_teacher_is_none() -> None:
    order, world = SampleOrder(num_samples=2, batch_size=2), World(rank=0, size=1, local_size=1, device=CPU)
    assert build_distillation(configs.load("debug"), order, 4, world) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_teacher_of_every_view_computes_in_train_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it took bf16, whatever the student's was."""
    module, found = torch.nn.Conv2d(3, 4, 3), []
    module.register_forward_hook(lambda module, given, out: found.append(out.dtype))
    monkeypatch.setattr(distillation, "load_model", lambda *_, **__: SimpleNamespace(module=module))
    config = configs.load("debug", None, ["train.teacher=t", f"train.precision={precision}"])
    teacher = every_view(config, World(rank=0, size=1, local_size=1, device=CPU))
    images = torch.zeros(2, 3, 8, 8)
    batch = Batch(step=0, rows=slice(0, 2), images=images, labels=torch.zeros(2, dtype=torch.int64), faults=())
    assert teacher(images, batch, batch.rows).dtype == torch.float32
    assert found == [torch.float32 if precision == "fp32" else torch.bfloat16]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn sets: people to train on, others to verify."""
    out = tmp_path_factory.mktemp("people")
    synthesize(out / "train", identities=40, images_per_identity=12, seed=1, processes=1, image_size=SIZE)
    synthesize(out / "test", identities=40, images_per_identity=8, seed=2, pairs=1000, processes=1, image_size=SIZE)
    return out


def trained(people: Path, run: Path, epochs: int, *overrides: str) -> Path:
    """A run of one worker, in this process, without Ray."""
    dataset = open_dataset(people / "train")
    images, _ = decode_images([s.jpeg for s in read_samples(dataset.shard_paths(), dataset.index)], SIZE)
    sample_order = SampleOrder(num_samples=len(images), batch_size=BATCH)
    base = ["backbone.embedding_size=32", "schedule.warmup_epochs=1", "train.checkpoint_every=1000000"]
    config = configs.load("debug", None, [*base, "train.precision=fp32", f"train.epochs={epochs}", *overrides])
    world = World(rank=0, size=1, local_size=1_000_000, device=CPU)  # which share the cores: one thread
    facts = DatasetFacts(name="drawn", digest="d", licence="none")
    training = Training(config, RunDirectory(run), world, sample_order, num_classes=dataset.num_classes, dataset=facts)

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, training.total_steps):
            ids = sample_order.batch(step)
            labels = torch.from_numpy(dataset.index.label[ids].astype(np.int64))
            yield Batch(step=step, rows=slice(0, BATCH), images=torch.from_numpy(images[ids]), labels=labels, faults=())

    training.fit(batches)
    return run


@pytest.mark.long
def test_student_with_a_teacher_is_closer_to_it_and_better_than_alone(people: Path, tmp_path: Path) -> None:
    """And the next generation, which starts from the student, is closer still."""
    teacher = trained(people, tmp_path / "teacher", 10, "backbone.width=0.5")
    student = ("backbone.width=0.25",)
    alone = trained(people, tmp_path / "alone", 3, *student)
    taught = trained(people, tmp_path / "taught", 3, *student, f"train.teacher={teacher}")
    start = f"backbone.weights={taught}"
    again = trained(people, tmp_path / "again", 3, *student, f"train.teacher={teacher}", start)
    pairs = load_pairs(people / "test" / "pairs.csv", people / "test", image_size=SIZE)
    runs = (teacher, alone, taught, again)
    embeddings = {run: embed_images(load_model(run).module, pairs.images) for run in runs}
    accuracy = {run: evaluate_pairs(found, pairs).accuracy_mean for run, found in embeddings.items()}
    cosine = {run: float((embeddings[run] * embeddings[teacher]).sum(1).mean()) for run in runs}
    assert cosine[taught] > cosine[alone] + 0.25
    assert cosine[again] > cosine[taught] + 0.05
    assert accuracy[taught] > accuracy[alone] + 0.02
