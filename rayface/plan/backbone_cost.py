"""Cost of a backbone: parameters, multiply-adds, and bytes saved in the forward pass for the backward pass."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from rayface.backbones import build_backbone
from rayface.backbones.counting import count_macs, count_parameters
from rayface.backbones.registry import is_built_in
from rayface.backbones.shapes import shapes_only
from rayface.fork_server.launch import call
from rayface.storage import DataError, cache_folders, node_cache, write_bytes

if TYPE_CHECKING:
    from rayface.config import Config

_CACHE = "backbones"
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20


@dataclass(frozen=True, kw_only=True)
class NetSize:
    """Size and cost of a backbone; bytes are those of one rank in training."""

    parameters: int
    trainable: int
    buffer_bytes: int
    macs: int
    """Multiply-adds of one image's forward pass."""
    bytes_per_image: int
    """Bytes saved in the forward pass per image of the rank's batch."""
    bytes_fixed: int
    """Bytes saved independent of the batch: weights cast to bf16, statistics of normalisation layers."""
    recomputed_bytes_per_image: int = 0
    """Bytes per image of the largest block while it is recomputed; 0 without recomputation."""
    last_bucket: int = 0
    """Bytes of the gradients that DistributedDataParallel all-reduces last: those of the first layers."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of its parameters and buffers."""
        return 4 * self.parameters + self.buffer_bytes

    def activation_bytes(self, images: int) -> int:
        """Return the bytes saved for the backward pass of a batch."""
        return self.bytes_fixed + (self.bytes_per_image + self.recomputed_bytes_per_image) * images


def net_size(config: Config, *, bf16: bool, recompute: bool = False) -> NetSize:
    """Return the cost of the backbone of a config, without allocating its memory.

    Args:
        bf16: run it under bf16 autocast.
        recompute: build it with its option `checkpointing`.

    Raises:
        ValueError: an unknown name, a value out of range, or a backbone without `checkpointing`.
    """
    net = config.backbone
    return _size_of_net(
        net.name,
        config.data.image_size,
        bf16=bf16,
        recompute=recompute,
        embedding_size=net.embedding_size,
        width=net.width,
        dropout=net.dropout,
    )


@lru_cache(maxsize=64)
def _size_of_net(name: str, *arguments: Any, **options: Any) -> NetSize:
    """Call `size_of_net` where TorchDynamo is imported, which fake tensors need: 1 s of CPU time.

    A backbone of a plugin, or of this process, is not known there. The sizes of the others are kept in the user's
    cache, by the code that they are of.
    """
    if not is_built_in(name):
        return size_of_net(name, *arguments, **options)
    text = json.dumps([name, arguments, options, _code()])
    file = f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    for folder in cache_folders(_CACHE):
        with contextlib.suppress(OSError, ValueError, TypeError):
            return NetSize(**json.loads((folder / file).read_bytes()))
    found = call(size_of_net, name, *arguments, **options)
    with contextlib.suppress(OSError, DataError):
        write_bytes(str(node_cache(_CACHE) / file), json.dumps(asdict(found)).encode())
    return found


def _code() -> str:
    """Return a digest of what a size depends on: the backbones' code, this file, PyTorch's version."""
    here = Path(__file__)
    files = [here, *sorted((here.parents[1] / "backbones").rglob("*.py"))]
    digest = hashlib.sha256(torch.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def size_of_net(
    name: str,
    image_size: int = 112,
    *,
    bf16: bool,
    recompute: bool = False,
    embedding_size: int = 512,
    width: float | None = None,
    dropout: float = 0.0,
) -> NetSize:
    """Measure a backbone by its name; arguments as of `net_size` and `build_backbone`."""

    def build(**options: bool) -> nn.Module:
        with shapes_only():
            return build_backbone(
                name, embedding_size=embedding_size, image_size=image_size, width=width, dropout=dropout, **options
            )

    options = {"checkpointing": True} if recompute else {}
    # Two batch sizes separate the bytes per image from the fixed ones; batch norm needs at least two images.
    two, four = (saved_bytes(build(**options), n, image_size, bf16=bf16)[0] for n in (2, 4))
    blocks = [saved_bytes(build(), n, image_size, bf16=bf16)[1] for n in (2, 4)] if recompute else [0, 0]
    plain = build()
    return NetSize(
        parameters=count_parameters(plain),
        trainable=sum(p.numel() for p in plain.parameters() if p.requires_grad),
        buffer_bytes=sum(b.numel() * b.element_size() for b in plain.buffers()),
        macs=count_macs(plain, image_size),
        bytes_per_image=(four - two) // 2,
        bytes_fixed=two - (four - two),
        recomputed_bytes_per_image=(blocks[1] - blocks[0]) // 2,
        last_bucket=last_bucket([4 * p.numel() for p in plain.parameters() if p.requires_grad]),
    )


def last_bucket(gradients: Sequence[int]) -> int:
    """Return the bytes in DistributedDataParallel's last bucket.

    A bucket takes whole gradients, of the last layers first, until it has 1 MiB, and the next ones until they have 25.

    Args:
        gradients: bytes of each parameter's gradient, in the order of the network's parameters.
    """
    limit, size, last = _FIRST_BUCKET, 0, 0
    for each in reversed(gradients):
        size += each
        last = size
        if size >= limit:
            limit, size = _BUCKET, 0
    return last


def saved_bytes(net: nn.Module, images: int, image_size: int, *, bf16: bool) -> tuple[int, int]:
    """Return the bytes that autograd saves in a training forward pass, without the network's parameters and buffers.

    Args:
        net: a new network on the meta device; unusable afterwards.

    Returns:
        Total bytes saved, and bytes saved inside the largest block.
    """
    # Fake tensors need no memory either, and support autocast, which the meta device does not.
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device="cpu")
        net.train()
        counter, largest, before = SavedBytes(net), [0], [0]
        # `checkpointing` recomputes the members of the network's direct module lists.
        lists = [child for child in net.children() if isinstance(child, nn.Sequential | nn.ModuleList)]
        for block in (member for members in lists for member in members):
            block.register_forward_pre_hook(lambda *_: before.append(counter.total))
            block.register_forward_hook(lambda *_: largest.append(counter.total - before[-1]))
        with counter, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            net(torch.zeros(images, 3, image_size, image_size))
    return counter.total, max(largest)


class SavedBytes(saved_tensors_hooks):
    """Count the bytes of the storages that autograd saves inside the context, each once, except the network's own."""

    def __init__(self, net: nn.Module) -> None:
        own = {t.untyped_storage()._cdata for t in [*net.parameters(), *net.buffers()]}
        self.total = 0
        self._seen: dict[int, torch.Tensor] = {}  # keep the tensors alive: the id of a freed storage is reused

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own and storage._cdata not in self._seen:
                self._seen[storage._cdata] = tensor
                self.total += storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)
