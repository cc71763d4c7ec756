"""Partial FC in one process: what moves, what is kept, what is refused."""

import pytest
import torch
from torch import Tensor

from rayface.heads import HEADS, MARGINS, ArcFace, CosFace, HeadSettings, PartialFC, build_head, build_margin
from tests.heads import head_oracle

C, D, B = 300, 16, 24


def make(**changes) -> PartialFC:
    """Return a small head."""
    settings = {"embedding_size": D, "num_classes": C, "margin": CosFace(0.4), "sample_rate": 0.2}
    return PartialFC(**(settings | changes))


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    """Return embeddings that need a gradient, and labels."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(B, D, generator=generator).requires_grad_(), torch.randint(C, (B,), generator=generator)


def train(head: PartialFC, steps: int, start: int = 0) -> list[float]:
    """Return the losses of some steps."""
    losses = []
    for number in range(start, start + steps):
        value = head.loss(*batch(number))
        value.backward()
        head.step(0.5)
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_sparse_moves_the_used_rows_only(optimizer: str) -> None:
    """Centers and moments of rows not sampled stay bit for bit; dense moves every row."""
    for mode in ("sparse", "dense"):
        head = make(optimizer=optimizer, center_update=mode)
        train(head, 3)
        before = {k: v.clone() for k, v in head.state().items() if isinstance(v, Tensor)}
        head.loss(*batch(9)).backward()
        used = torch.zeros(C, dtype=torch.bool)
        used[head.last_rows()] = True
        assert used.sum() == int(0.2 * C)
        head.step(0.5)
        for name, old in before.items():
            moved = (head.state()[name] != old).any(1)
            assert moved[used].all()
            assert moved[~used].any() == (mode == "dense")


def test_resume_repeats_the_run() -> None:
    """State of step 3 into a fresh head: the same rows, losses and centers as without a stop."""
    straight = make(margin=ArcFace(), seed=5)
    wanted = train(straight, 6)
    first = make(margin=ArcFace(), seed=5)
    train(first, 3)
    saved = {k: v.clone() if isinstance(v, Tensor) else v for k, v in first.state().items()}
    second = make(margin=ArcFace(), seed=5)
    second.load_state(saved)
    assert train(second, 3, start=3) == wanted[3:]
    assert torch.equal(second.centers, straight.centers)
    assert make(margin=ArcFace(), seed=6).centers.ne(straight.centers).any()


def test_resume_in_float64() -> None:
    """A head that adopted float64 comes back as one."""
    first, second = make(), make()
    first.load_centers(torch.randn(C, D, dtype=torch.float64))
    train(first, 2)
    second.load_state(first.state())
    assert torch.equal(second.centers, first.centers)


def test_host_memory_changes_nothing() -> None:
    """Rows moved to the device and back: the same run."""
    near, far = make(), make(host_memory=True)
    assert train(near, 4) == train(far, 4)
    assert torch.equal(near.centers, far.centers)


@pytest.mark.parametrize("changes", [{"compute_dtype": "bf16"}, {"storage_dtype": "bf16"}])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_bf16_stays_near(changes: dict, rate: float) -> None:
    """bf16 products or storage: the losses of fp32 within a few per cent."""
    exact, near = train(make(sample_rate=rate), 8), train(make(sample_rate=rate, **changes), 8)
    assert near == pytest.approx(exact, rel=0.03)


def test_bf16_storage_halves_the_state() -> None:
    """Centers and momentum."""

    def size(head: PartialFC) -> int:
        return sum(v.numel() * v.element_size() for v in head.state().values() if isinstance(v, Tensor))

    assert 2 * size(make(storage_dtype="bf16")) == size(make())


def test_full_rate_reads_the_matrix_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample rate 1 gathers no more rows than there are targets."""
    head, sizes, gather = make(sample_rate=1.0), [], torch.index_select

    def watched(source: Tensor, dim: int, index: Tensor, **keywords) -> Tensor:
        sizes.append(len(index))
        return gather(source, dim, index, **keywords)

    monkeypatch.setattr(torch, "index_select", watched)
    train(head, 2)
    assert max(sizes) <= B


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_logits_stay_within_their_bound(rate: float) -> None:
    """No buffer of exponentials or logits exceeds logit_memory."""
    head = make(sample_rate=rate, logit_memory=8000)
    head.loss(*batch()).backward()
    kept = head._update.pending[0].kept
    head.step(0.1)
    space = head.softmax.workspace._buffers
    logits = sum(b.numel() * b.element_size() for (name, _), b in space.items() if name == "logits")
    assert logits + kept.numel() * kept.element_size() <= 8000
    assert head.softmax.chunk_rows(B) < C * rate


def test_loss_scale_is_taken_out_again() -> None:
    """A scaled loss and step(grad_scale=...) end where the plain one does."""
    plain, scaled = make(), make()
    plain.loss(*batch()).backward()
    (scaled.loss(*batch()) * 1024).backward()
    plain.step(0.5)
    scaled.step(0.5, grad_scale=1024)
    assert torch.allclose(plain.centers, scaled.centers, rtol=1e-6, atol=1e-9)


def test_discard_skips_a_step() -> None:
    """A discarded gradient leaves no trace; the step is not counted."""
    head, other = make(), make()
    head.loss(*batch(7)).backward()
    head.discard()
    assert train(head, 2) == train(other, 2)


def test_evaluation_changes_nothing() -> None:
    """Without gradients: the loss of the same rows, nothing to step with."""
    head = make()
    with torch.no_grad():
        value = head.loss(*batch())
    assert value.item() == pytest.approx(head.loss(*batch()).item(), rel=1e-6)
    with pytest.raises(RuntimeError, match="call loss"):
        head.step(0.1)


def test_constant_embeddings_train_the_centers() -> None:
    """The head alone can learn: embeddings need no gradient."""
    head = make(sample_rate=1.0)
    x, y = batch()
    losses = []
    for _ in range(30):
        value = head.loss(x.detach(), y)
        value.backward()
        head.step(1.0)
        losses.append(value.item())
    assert losses[-1] < losses[0] / 2


def test_late_backward_is_refused() -> None:
    """The centers a loss was taken with are gone after a step."""
    head = make()
    value = head.loss(*batch())
    train(head, 1)
    with pytest.raises(RuntimeError, match=r"before the last head\.step"):
        value.backward()


def test_autocast_does_not_reach_the_head() -> None:
    """Inside bf16 autocast, with bf16 embeddings: fp32 arithmetic and a bf16 gradient."""
    plain, inside = make(), make()
    x, y = batch()
    x = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = inside.loss(x, y)
    value.backward()
    assert value.item() == plain.loss(x.float(), y).item()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("special", ["zeros", "duplicates", "aligned", "one range"])
@pytest.mark.parametrize("margin", sorted(MARGINS))
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16])
def test_half_types_stay_finite(special: str, margin: str, given: torch.dtype) -> None:
    """Losses, gradients and state, with 16-bit embeddings, products and storage, for every margin; one class too."""
    for classes in (37, 1):
        case = head_oracle.Case(f"{special} {margin}", num_classes=classes, special=special, norm=20.0)
        centers = torch.randn(classes, case.width, generator=torch.Generator().manual_seed(1))
        types = {"compute_dtype": "bf16", "storage_dtype": "bf16"}
        head = PartialFC(case.width, classes, build_margin(margin), sample_rate=0.5 if classes > 1 else 1.0, **types)
        centers[3 % classes] = 0  # a center without a direction as well
        head.load_centers(centers)
        if special == "aligned" and classes == 1:
            continue  # needs another class to be aligned with
        for x, y in case.batches(centers.double()):
            x = x.to(given).requires_grad_()
            value = head.loss(x, y)
            value.backward()
            head.step(0.1)
            assert torch.isfinite(value)
            assert torch.isfinite(x.grad).all()
            assert all(torch.isfinite(v).all() for v in head.state().values() if isinstance(v, Tensor))


def test_load_centers_adopts_float64() -> None:
    """Float64 in, float64 arithmetic, unless a storage type was asked for."""
    head, fixed = make(), make(storage_dtype="fp32")
    for one in (head, fixed):
        one.load_centers(torch.randn(C, D, dtype=torch.float64))
    assert head.centers.dtype == torch.float64
    assert fixed.centers.dtype == torch.float32


def test_registry_known_name_is_built_and_unknown_one_is_refused() -> None:
    settings = HeadSettings(embedding_size=D, num_classes=C, margin=CosFace())
    assert HEADS["partial_fc"] is PartialFC
    assert isinstance(build_head("partial_fc", settings), PartialFC)
    with pytest.raises(ValueError, match=r"head\.name 'fc' must be one of"):
        build_head("fc", settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_rate": 0.0}, r"head.sample_rate 0.0 must be in \(0, 1\]"),
        ({"sample_rate": 1.5}, r"head.sample_rate 1.5"),
        ({"center_update": "lazy"}, "head.center_update 'lazy' must be one of sparse, dense"),
        ({"optimizer": "adam"}, "head.optimizer 'adam' must be one of sgd, adamw"),
        ({"storage_dtype": "fp16"}, "head.storage_dtype 'fp16'"),
        ({"compute_dtype": "fp16"}, "head.compute_dtype 'fp16'"),
        ({"num_classes": 0}, "at least 1"),
        ({"logit_memory": 0}, "head.logit_memory 0"),
    ],
)
def test_bad_settings_get_one_line(changes: dict, words: str) -> None:
    """Field, value, rule."""
    with pytest.raises(ValueError, match=words) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_bad_batches_get_one_line() -> None:
    """NaN, labels out of range, wrong shapes: named, and nothing is left behind."""
    head, (x, y) = make(), batch()
    broken = x.detach().clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="row 3 of the batch of rank 0 holds NaN or infinity"):
        head.loss(broken, y)
    for label in (-1, C):
        wrong = y.clone()
        wrong[5] = label
        with pytest.raises(ValueError, match=rf"labels: {label} in row 5 .* must be in \[0, {C}\)"):
            head.loss(x, wrong)
    with pytest.raises(ValueError, match="embeddings of shape"):
        head.loss(x[:, :4], y)
    with pytest.raises(ValueError, match="labels of shape"):
        head.loss(x, y[:3])
    with pytest.raises(ValueError, match="int64"):
        head.loss(x, y.float())
    with pytest.raises(ValueError, match="centers of shape"):
        head.load_centers(torch.zeros(3, D))
    with pytest.raises(ValueError, match="no 'exp_avg'"):
        make(optimizer="adamw").load_state(head.state())
    assert train(head, 1) == train(make(), 1)


def test_oracle_covers_the_losses_of_a_step() -> None:
    """The oracle of the other tests is itself held against finite differences."""
    case = head_oracle.Case(
        "finite differences", margin="combined", margin_args={"m1": 1.2, "m2": 0.2, "gradient": "exact"}
    )
    centers = case.centers()
    x, y = case.batches(centers)[0]
    everything = torch.ones(case.num_classes, dtype=torch.bool)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head_oracle.loss(case, x, y, centers, everything, {}), (x,), atol=1e-4)
