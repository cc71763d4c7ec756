"""What DCQ and F2C share; both are trained on 1 to 3 ranks beside plain transcriptions of their papers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rayface.heads import DCQ, F2C, dcq
from rayface.heads.momentum_encoder import momentum_encoder, update_momentum_, with_gradients
from tests.heads.momentum_oracle import FEATURES, WIDTH, small_net
from tests.heads.momentum_ranks import train_on_ranks, train_oracle


@pytest.mark.parametrize(("ranks", "rows"), [(1, 7), (2, 6), (3, 7)])
def test_fifty_steps_of_dcq_and_f2c_equal_plain_transcriptions_on_any_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, rows: int
) -> None:
    monkeypatch.setattr(dcq, "CHUNK_ROWS", 8)
    for kind, parts in train_on_ranks(tmp_path, rows, ranks).items():
        wanted = train_oracle(kind, rows, ranks)
        if kind == "f2c":
            assert wanted.seen == {"all in", "none in", "some in", "replaced"}
        for ours in parts:
            assert torch.equal(ours.losses, parts[0].losses)
            torch.testing.assert_close(ours.losses, wanted.losses, rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.gradients, wanted.gradients, rtol=0, atol=1e-6)
            for name, value in wanted.state.items():
                torch.testing.assert_close(ours.state[name], value, rtol=0, atol=1e-6)
            same = (name for name in ours.state if "running" not in name)  # batch statistics are of each rank
            assert all(torch.equal(ours.state[name], parts[0].state[name]) for name in same)


@pytest.mark.parametrize("kind", ["dcq", "f2c"])
def test_loss_under_autocast_compares_in_fp32(kind: str) -> None:
    """In a loop whose autocast is around the loss, too; the nets are left out of it here."""
    labels, values = torch.arange(4), []
    for inside in (False, True):
        net = small_net().float()
        head = (
            DCQ(net, embedding_size=WIDTH, queue_size=12)
            if kind == "dcq"
            else F2C(net, embedding_size=WIDTH, pool_size=8)
        )
        x, y = torch.randn(2, 4, FEATURES, generator=torch.Generator().manual_seed(1))

        def embed(images: Tensor, other: nn.Module | None = None, net: nn.Module = net) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return (other or net)(images)

        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            args = (x, y, labels) if kind == "dcq" else (x, y, labels, labels)
            values.append(head.loss(*args, embed=embed).item())
    assert values[0] == values[1]


def test_momentum_encoder_after_an_update_has_averaged_parameters_and_its_own_buffers() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    encoder = momentum_encoder(net)
    before = [p.clone() for p in encoder.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p += torch.randn_like(p)
    net(torch.randn(5, 3, dtype=torch.float64))
    net.eval()
    update_momentum_(encoder, net, 0.9)
    for old, now, new in zip(before, encoder.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
        assert not now.requires_grad
    assert torch.equal(encoder[1].running_mean, torch.zeros(3, dtype=torch.float64))
    assert not encoder.training


def test_with_gradients_scales_them_and_gives_each_input_its_own_type() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    value = with_gradients(torch.tensor(7.0), [a, b], [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])])
    (2 * value).backward()
    assert value == 7
    assert a.grad.tolist() == [2, 4]
    assert (b.grad.dtype, b.grad.tolist()) == (torch.bfloat16, [6, 8, 10])
