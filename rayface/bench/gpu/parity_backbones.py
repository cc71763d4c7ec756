"""Parity of backbones: embeddings and gradients of all weights, in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from rayface.backbones import build_backbone
from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.errors import as_good, relative_error
from rayface.precision import autocast

# of errors; rounding that turns an activation's sign makes some 1e-3 of a gradient
_FLOORS = {"fp32": 1e-2, "tf32": 5e-2, "bf16": 5e-2}
_NO_CHANCE = {"vit": {"drop_path": 0.0, "mask_ratio": 0.0}}  # each kind of device draws numbers of its own
_PRECISIONS = ("fp32", "bf16", "tf32")
_NETS = ("mbf", "r50", "vit_s", "mixfacenet_s", "vargfacenet", "r100")


@dataclass(frozen=True, kw_only=True)
class NetSetting:
    """A backbone, its input, and the type that its products are computed in."""

    net: str
    precision: str
    images: int = 8
    image_size: int = 56
    embedding_size: int = 512


@dataclass(frozen=True, kw_only=True)
class NetErrors(Measured):
    """Relative errors against float64, of the device and of the CPU in the same types."""

    embeddings: float
    gradient: float
    """Of all weights as one vector."""
    cpu_embeddings: float
    cpu_gradient: float


def cases(kit: Kit) -> Iterator[Case]:
    """Yield the families of nets, in fp32, in TF32 (PyTorch's default for convolutions) and in bf16."""
    nets = {"mini": _PRECISIONS, "vit_t": ("bf16",)} if kit.mini else dict.fromkeys(_NETS, _PRECISIONS)
    small = {"image_size": 32, "embedding_size": 32} if kit.mini else {}
    for net, precisions in nets.items():
        for precision in precisions:
            setting = NetSetting(net=net, precision=precision, **small)
            name = f"backbone {net}, {precision}"
            yield Case(name=name, run=partial(compare, setting, kit.device), seconds=10)


def compare(setting: NetSetting, device: str) -> NetErrors:
    """Compare a net on the device and on the CPU with one in float64; TF32 with the CPU's bf16."""
    wanted = _on_cpu(replace(setting, precision="fp32"), True)
    with tf32(setting.precision == "tf32"):
        found = gradients(setting, device)
    other = _on_cpu(replace(setting, precision="bf16") if setting.precision == "tf32" else setting, False)
    on_device, on_cpu = ([relative_error(a, b) for a, b in zip(each, wanted, strict=True)] for each in (found, other))
    return NetErrors(
        passed=as_good(on_device, on_cpu, _FLOORS[setting.precision]),
        embeddings=on_device[0],
        gradient=on_device[1],
        cpu_embeddings=on_cpu[0],
        cpu_gradient=on_cpu[1],
    )


@lru_cache(maxsize=3)
def _on_cpu(setting: NetSetting, exact: bool) -> tuple[Tensor, Tensor]:
    """What the precisions of one net share."""
    return gradients(setting, "cpu", exact=exact)


def gradients(setting: NetSetting, device: str, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Return the embeddings of drawn images and the gradient of all weights of a drawn sum of them, on the CPU."""
    dtype = torch.float64 if exact else torch.float32
    torch.manual_seed(0)
    options = _NO_CHANCE.get(setting.net.partition("_")[0], {})
    net = build_backbone(setting.net, embedding_size=setting.embedding_size, image_size=setting.image_size, **options)
    net = net.train().to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(1)
    size = setting.image_size
    images = torch.rand(setting.images, 3, size, size, generator=generator).mul_(2).sub_(1).to(device, dtype)
    weights = torch.randn(setting.images, setting.embedding_size, generator=generator).to(device, dtype)
    with autocast(torch.device(device), setting.precision == "bf16" and not exact):
        embeddings = net(images.contiguous(memory_format=torch.channels_last))
    (embeddings.to(dtype) * weights).sum().backward()
    moved = [p.grad.double().cpu().ravel() for p in net.parameters() if p.grad is not None]
    return embeddings.detach().double().cpu(), torch.cat(moved)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products inside the context."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
