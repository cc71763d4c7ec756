"""Code for a GPU puts its tensors where they belong: seen without one, on a simulated GPU."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rayface.bench.gpu import decoding, head_step, parity_heads, plan_memory, train_speed
from rayface.bench.gpu.case import Case, Kit
from rayface.bench.gpu.curation import pair_rate, same_pairs
from rayface.bench.gpu.head_roads import ROADS
from rayface.bench.gpu.head_step import MINI, _batches, _step
from rayface.data.degradations import Degradations, degrade
from rayface.data.images import augment
from rayface.heads import CosFace, HeadSettings
from rayface.heads.class_centers import CenterOptimizer, ClassCenters
from tests.bench.gpu.simulated_gpu import OnGpu, on_gpu, simulated_gpu

CASES = [case for case in parity_heads.cases(Kit(device="cuda", mini=True)) if "fused" not in case.name]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_parity_of_a_head_on_a_simulated_gpu_passes(case: Case) -> None:
    with simulated_gpu() as gpu:
        found = case.run()
    assert found.passed
    assert gpu.waits.total() > 0


@pytest.mark.parametrize("road", [road for road in ROADS if not road.only_cuda], ids=lambda road: road.name)
def test_step_of_a_road_on_a_simulated_gpu_draws_its_rows_there(road) -> None:
    settings = HeadSettings(
        embedding_size=MINI.embedding_size,
        num_classes=MINI.num_classes,
        margin=CosFace(),
        sample_rate=0.2,
        compute_dtype="bf16",
        device="cuda",
    )
    with simulated_gpu():
        head, batches = road.build(settings), _batches(MINI, "cuda")
        for _ in range(2):
            _step(head, next(batches))
        embeddings, labels = next(batches)
        leaf = embeddings.detach().requires_grad_()
        head.loss(leaf, labels).backward()
        rows, centers = head.last_rows(), head.state()["centers"]
    assert isinstance(centers, OnGpu) != (road.name == "partial_fc, host memory")
    if road.name != "straightforward":
        assert isinstance(rows, OnGpu)
        assert len(rows) == int(0.2 * MINI.num_classes)


class Transfers(TorchFunctionMode):
    """Notes the types of what is copied between the devices."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[tuple[torch.dtype, torch.dtype]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("copy_", "__setitem__"):
            target, source = args[0], args[-1]
            if isinstance(source, Tensor) and on_gpu(source) != on_gpu(target):
                self.types.append((target.dtype, source.dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("block", [slice(2, 8), torch.tensor([1, 3, 8])], ids=["all rows", "sampled"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_bf16_rows_in_host_memory_are_copied_to_a_gpu_and_back_in_their_own_type(
    name: str, block: slice | Tensor
) -> None:
    """Else PyTorch converts them on the CPU, and copies twice the bytes from memory that is not page-locked."""
    sizes = {"optimizer": CenterOptimizer(name=name), "dtype": torch.bfloat16, "seed": 0}
    here = ClassCenters(9, 4, device=torch.device("cpu"), host_memory=False, **sizes)
    gradient = torch.randn(6 if isinstance(block, slice) else 3, 4)
    start = here.values.normal_().clone()
    here._passes = None  # torch's operations, as on a GPU
    here.update(block, gradient.clone(), 0.1)
    with simulated_gpu():
        there = ClassCenters(9, 4, device=torch.device("cuda"), host_memory=True, **sizes)
        there.values.copy_(start)
        with Transfers() as seen:
            rows = block if isinstance(block, slice) else block.to("cuda")
            there.update(rows, gradient.to("cuda"), 0.1)
    assert len(seen.types) == (4 if name == "sgd" else 8)
    assert all(target == source for target, source in seen.types)
    assert torch.equal(there.values, here.values)
    for moment, values in here.moments.items():
        assert torch.equal(there.moments[moment], values)


def test_pairs_and_augmentation_on_a_simulated_gpu_are_those_of_the_cpu() -> None:
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    options = {"flip": True, "shift": 2, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    wanted = augment(images, slice(0, 4), 4, torch.Generator().manual_seed(1), **options)
    with simulated_gpu():
        found = augment(images.to("cuda"), slice(0, 4), 4, torch.Generator().manual_seed(1), **options)
        assert isinstance(found, OnGpu)
        assert torch.equal(found.cpu(), wanted)
        assert same_pairs(200, "cuda").passed


def test_measurements_of_a_gpu_on_a_simulated_one_give_all_figures() -> None:
    """What is None on a CPU: memory, waits, times by events."""
    tiny = replace(train_speed.MINI, image_size=16, embedding_size=8, batch_size=4)
    with simulated_gpu(strict=False):
        head = head_step.measure(ROADS[0], MINI, 0.2, "cuda")
        trained = train_speed.measure(tiny, "cuda", repeats=1)
        taken = plan_memory.compare(tiny, "cuda")
        augmented = decoding.augmentation_rate(4, "cuda", {"shift": 0, "brightness": 0, "contrast": 0, "saturation": 0})
        found = pair_rate(500, "cuda")
    assert head.above_state_gb == pytest.approx(2 - 2 * 3000 * 32 * 4 / 1e9)
    assert (head.syncs, trained.syncs) == (0, 0)
    assert trained.peak_gb == taken.measured_gb == taken.reserved_gb == 2
    assert taken.error == pytest.approx(taken.planned_gb / 2 - 1)
    assert taken.passed == (abs(taken.error) <= plan_memory.TOLERANCE)
    assert augmented.images_per_s > 0
    assert (found.pairs_found, found.products) == (10, "bfloat16")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_degrade_on_a_simulated_gpu_copies_from_page_locked_memory_what_the_cpu_computes(share) -> None:
    images, locked = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8), []
    shares = Degradations(**{each.name: share for each in fields(Degradations)})

    def degraded(device: torch.device) -> torch.Tensor:
        return degrade(images, slice(0, 4), 4, torch.Generator().manual_seed(0), shares, device)

    expected = degraded(torch.device("cpu"))
    with simulated_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor.shape) or tensor)
        found = degraded(torch.device("cuda"))
    assert isinstance(found, OnGpu)
    assert images.shape in locked
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


def test_simulated_gpu_refuses_what_a_gpu_refuses() -> None:
    here = torch.arange(4)
    with simulated_gpu() as gpu:
        there = here.to("cuda")
        assert there.device == torch.device("cuda", 0)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="indices should be on the same device"):
            here[there]
        with pytest.raises(RuntimeError, match="in any order"):
            torch.zeros(3, device="cuda").index_add_(0, there // 2, torch.ones(4, device="cuda"))
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            there.numpy()
        assert (there + 1).cpu().tolist() == [1, 2, 3, 4]
        assert torch.equal(there[here], there)
        assert gpu.waits.total() == 0, "only waits of rayface's heads are counted"
