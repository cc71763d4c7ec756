"""Partial FC with `head.kernel=fused`, in Triton's interpreter: the float64 oracle, determinism, memory, refusals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rayface.config import Config, with_overrides
from rayface.heads import CurricularFace, MagFace, PartialFC, fused_kernels, fused_rows, fused_softmax
from rayface.heads.from_config import check_config_head
from rayface.heads.fused_softmax import check_fused_device, check_fused_storage
from tests.heads import head_oracle
from tests.heads.head_oracle import Case
from tests.heads.head_ranks import assert_solved, relative, solve, solve_on_ranks
from tests.heads.small_head import batch, small_head, train

CASES = {case.name: case for case in head_oracle.fused_cases()}


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, of 19 and 18 classes."""
    return solve_on_ranks(tmp_path_factory.mktemp("fused"), 2, "fused")


@pytest.mark.parametrize("name", CASES)
def test_fused_head_on_two_ranks_equals_the_oracle(solved: list[dict[str, Any]], name: str) -> None:
    """Uneven classes and batches, sampled rows, targets on the other rank, several losses before a step."""
    assert_solved(CASES[name], [part[name] for part in solved])


def test_fused_head_with_bf16_products_is_within_a_hundredth_of_float64() -> None:
    """At the usual width, where the rounding of 512 products averages out."""
    args = {"kernel": "fused", "compute_dtype": "bf16", "sample_rate": 0.7}
    case = Case("wide", num_classes=150, width=512, batch=20, steps=1, head_args=args, dtype=torch.float32)
    ours = solve(case, 0, 1)
    wanted = head_oracle.run(case, list(ours["used"]))
    assert relative(ours["losses"], wanted["losses"]) < 1e-3
    assert relative(ours["gradients"], wanted["gradients"]) < 1e-2
    assert relative(ours["state momentum"], wanted["m"]) < 1e-2


def test_fused_head_run_twice_is_equal_to_the_bit() -> None:
    """With bf16 products and storage."""
    types = {"kernel": "fused", "compute_dtype": "bf16", "storage_dtype": "bf16"}
    first, second = small_head(**types), small_head(**types)
    assert train(first, 2) == train(second, 2)
    assert torch.equal(first.centers, second.centers)


def test_fused_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, and a head may be on another GPU."""
    current: list[torch.device] = []
    launched: list[tuple[str, list[torch.device]]] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.device)
        yield
        current.pop()

    class Launched:
        def __init__(self, name: str, kernel: Any) -> None:
            self._name, self._kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            launched.append((self._name, [*current]))
            return self._kernel[grid]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for module, names in {
        fused_kernels: ("softmax_sums", "center_gradient"),
        fused_rows: ("_unit_rows", "_sgd_rows"),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, Launched(name, getattr(module, name)))
    train(small_head(kernel="fused"), 1)
    assert {name for name, _ in launched} == {"softmax_sums", "center_gradient", "_unit_rows", "_sgd_rows"}
    assert all(devices == [torch.device("cpu")] for _, devices in launched)


def test_fused_head_given_columns_that_lie_together_equals_the_chunked_one() -> None:
    """The kernels address memory by rows: as a network's embeddings may not lie."""
    together = batch()[0].detach().T.contiguous().T
    losses, gradients = [], []
    for kernel in ("chunked", "fused"):
        embeddings = together.detach().requires_grad_()
        losses.append(small_head(kernel=kernel).loss(embeddings, batch()[1]))
        losses[-1].backward()
        gradients.append(embeddings.grad)
    assert together.stride() == (1, len(together))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_fused_head_in_bf16_storage_learns_as_the_chunked_one() -> None:
    types = {"compute_dtype": "bf16", "storage_dtype": "bf16"}
    assert train(small_head(kernel="fused", **types), 3) == pytest.approx(train(small_head(**types), 3), rel=5e-3)


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return out


def test_fused_step_never_holds_a_matrix_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of all classes nor, as the chunked head does, of those that fit head.logit_memory."""
    monkeypatch.setattr(fused_softmax, "GPU_CHUNK_ROWS", 128)
    monkeypatch.setattr(fused_softmax, "PROGRAMS", 2)
    batch, classes, width = 128, 320, 4
    found = {}
    for kernel in ("fused", "chunked"):
        types = {"kernel": kernel, "compute_dtype": "bf16"}
        head = small_head(embedding_size=width, num_classes=classes, sample_rate=1.0, **types)
        x = torch.randn(batch, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with LargestTensor() as largest:
            head.loss(x, torch.arange(batch)).backward()
            head.step(0.1)
        found[kernel] = largest.elements
    assert found["chunked"] == batch * classes
    assert found["fused"] <= 4 * classes * width < batch * classes  # the interpreter copies bytes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"margin": CurricularFace()}, "head.margin CurricularFace changes the logits of other classes"),
        ({"embedding_size": 513}, "embedding_size 513 must be at most 512"),
        ({"storage_dtype": "fp64"}, "storage_dtype fp64 must be fp32 or bf16"),
        ({"kernel": "flash"}, "head.kernel 'flash' must be one of chunked, fused"),
    ],
)
def test_fused_head_with_what_it_cannot_compute_raises_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        small_head(**({"kernel": "fused"} | changes))
    assert "\n" not in str(raised.value)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter is off."""
    monkeypatch.delenv("TRITON_INTERPRET")


@pytest.mark.usefixtures("compiled")
def test_fused_head_on_a_cpu_raises_one_line_unless_interpreted() -> None:
    with pytest.raises(ValueError, match=r"runs on CUDA GPUs, not on cpu: set head\.kernel=chunked"):
        small_head(kernel="fused")
    check_fused_device("cuda")


@pytest.mark.usefixtures("compiled")
def test_fused_head_on_a_gpu_without_a_compiler_raises_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-compiler")
    properties = SimpleNamespace(shared_memory_per_block=49152, shared_memory_per_block_optin=232448, major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with pytest.raises(ValueError, match=r"^head\.kernel 'fused': Triton needs a C compiler"):
        check_fused_storage(torch.device("cuda"), torch.float32)


def configured(*overrides: str) -> Config:
    """A config with the fused kernel."""
    return with_overrides(Config(), ["head.kernel=fused", *overrides])


@pytest.mark.usefixtures("compiled")
def test_config_of_a_fused_head_is_checked_before_a_worker_starts() -> None:
    check_config_head(configured("head.margin=magface"))
    for overrides, words in (
        (["head.margin=curricularface"], "head.margin CurricularFace"),
        (["backbone.embedding_size=1024"], "embedding_size 1024"),
        (["train.device=cpu"], "not on cpu"),
    ):
        with pytest.raises(ValueError, match=words):
            check_config_head(configured(*overrides))


def test_float64_centers_given_to_a_fused_head_are_kept_in_fp32() -> None:
    head = PartialFC(4, 9, MagFace(), kernel="fused")
    head.load_centers(torch.randn(9, 4, dtype=torch.float64))
    assert head.centers.dtype == torch.float32
