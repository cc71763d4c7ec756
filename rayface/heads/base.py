"""Interface of heads, for training and `rayface plan`, and the settings that a head is built from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from rayface.data.streaming.sample_order import StreamKind
from rayface.heads.margins import Margin
from rayface.heads.options import NO_OPTIONS, HeadOptions
from rayface.heads.shape import HeadMemory, HeadShape

Value: TypeAlias = int | float | str | dict[str, float] | None
"""A JSON value of a head's state."""
HeadState: TypeAlias = Mapping[str, Tensor | Value]
"""State of a head by name: tensors, and values that a checkpoint keeps as JSON."""


class Embed(Protocol):
    """Runs a network as training runs the backbone: in its precision, and data-parallel if it is the backbone."""

    def __call__(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        """Return raw embeddings (n, D) of images (n, ...), of the trained backbone or of another network."""


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Settings of a head: sizes, the config groups `head` and `optim`, the backbone, and this rank's device.

    A head uses the fields that it needs and ignores the others. Names and values are those of the config.
    """

    embedding_size: int
    num_classes: int
    margin: Margin
    sample_rate: float = 1.0
    center_update: str = "sparse"
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    storage_dtype: str | None = None
    compute_dtype: str = "fp32"
    kernel: str = "chunked"
    logit_memory: int = 512_000_000
    host_memory: bool = False
    seed: int = 0
    device: torch.device | str = "cpu"
    options: HeadOptions = NO_OPTIONS
    """Instance of the head's `options_class`."""
    batch_size: int | None = None
    """Rows of the global batch."""
    backbone: nn.Module | None = None
    """The trained backbone, on the device."""


class Head(ABC):
    """Compute a loss from embeddings and labels, and update the head's own class centers.

    A step is `loss(...)`, `backward()`, `step(lr)`; the gradients of several losses before a step accumulate. Every
    rank makes the same calls, so a head may run collectives in them. Data-parallel training averages the backbone's
    gradients over the W ranks, so the gradient of this rank's embeddings must be W times that of the mean over the
    global batch.

    Attributes:
        options_class: the head's own settings.
        usual_scale, usual_margin: head.scale and head.margin_value where they are not set; None: the margin's own.
        exported: which network is evaluated and exported: "backbone", or a name in `networks`.
        margin: modifies the logits; its running statistics are part of the head's state.
        num_classes: C, over all ranks.
        replicated: names of tensors in `state` that are the same on every rank, of any shape; None: all are. All others
            hold one row for each class of `row_range`, so that a checkpoint can be loaded on another number of ranks.
        stream: what a step of training consists of; with pairs, a batch has two images for each of its rows.
        backbone_passes, network_passes: images of a row that the backbone embeds with gradient, and its networks embed.
    """

    options_class: ClassVar[type[HeadOptions]] = HeadOptions
    usual_scale: ClassVar[float] = 64.0
    usual_margin: ClassVar[float | None] = None
    exported: ClassVar[str] = "backbone"
    margin: Margin
    num_classes: int
    replicated: ClassVar[frozenset[str] | None] = frozenset()
    stream: ClassVar[StreamKind] = "images"
    backbone_passes: ClassVar[int] = 1
    network_passes: ClassVar[int] = 0

    @property
    def images_per_row(self) -> int:
        """Images of a row of a batch."""
        return 1 if self.stream == "images" else 2

    @classmethod
    @abstractmethod
    def build(cls, settings: HeadSettings) -> Self:
        """Return this rank's part of the head.

        Raises:
            ValueError: a setting that the head cannot work with; one line that names its key.
        """

    @classmethod  # noqa: B027
    def check(cls, settings: HeadSettings) -> None:
        """Refuse settings before a worker starts; `backbone` is None.

        Raises:
            ValueError: as `build`.
        """

    @classmethod
    def memory(cls, shape: HeadShape) -> HeadMemory:
        """Return the bytes that a rank needs at the peak of a step.

        The default is that of whole matrices: centers, moments and gradient of all rows of the rank, and three
        matrices of logits in fp32.
        """
        centers = shape.rows * shape.embedding_size * 4
        state = centers * (1 + shape.moments)
        device = {
            "class_centers": centers,
            "center_moments": centers * shape.moments,
            "sampled_rows": 2 * centers,
            "logits": 3 * 4 * shape.rows * shape.batch_size,
        }
        return HeadMemory(device=device, host=0, state=state)

    @classmethod
    def macs(cls, shape: HeadShape) -> int:
        """Return the multiply-adds of a rank in a step, the backbone's not counted."""
        return shape.sampled_macs

    @classmethod
    def traffic(cls, shape: HeadShape) -> int:
        """Return the bytes that a rank reads and writes in a step outside of products and of the backbone."""
        return shape.sampled_traffic

    @classmethod
    def sent(cls, shape: HeadShape) -> dict[str, float]:
        """Return the bytes that a rank sends in a step with ring algorithms, by collective."""
        return shape.sampled_sent

    @property
    def row_range(self) -> tuple[int, int, int]:
        """First class, last class + 1 of this rank, and the total number of classes."""
        return 0, self.num_classes, self.num_classes

    def networks(self) -> Mapping[str, nn.Module]:
        """Return the head's networks beside the backbone; their tensors are in `state` as "NAME.TENSOR"."""
        return {}

    def start(self) -> None:  # noqa: B027
        """Take over the backbone's weights; called before the first step of a run, not on a resume."""

    def train_loss(self, embed: Embed, images: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the loss of this rank's part of a batch of `stream`; see `loss`.

        Args:
            embed: runs the backbone, with gradient.
            images: (n * images_per_row, 3, S, S), the images of a row one after another.
            labels: (n * images_per_row,) int64.
            counts: rows n of every rank; None: the same on all.
        """
        self.prefetch(labels, counts)
        return self.loss(embed(images), labels, counts)

    def prefetch(self, labels: Tensor, counts: Sequence[int] | None = None) -> None:  # noqa: B027
        """Start fetching the rows of the next loss while the backbone's forward pass runs; every rank calls it.

        Args:
            labels, counts: those of the next loss.

        Raises:
            ValueError: labels of another shape or type.
        """

    @abstractmethod
    def loss(self, embeddings: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the mean loss over the global batch, a scalar that is the same on every rank.

        Args:
            embeddings: (B_local, D), raw.
            labels: (B_local,) global class numbers, int64.
            counts: B_local of every rank; None: the same on all.

        Raises:
            ValueError: wrong shapes or labels; raised on every rank.
            NonFiniteEmbeddingsError: NaN or infinite embeddings; raised on every rank.
        """

    @abstractmethod
    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        """Update the centers with the gradients of all losses since the last step, and clear the gradients.

        Args:
            lr: learning rate of this step.
            grad_scale: factor of the losses before backward.
        """

    def last_rows(self) -> Tensor | None:
        """Return the local rows that the last loss used, sorted int64 (n,), or None for all.

        With head.center_update "sparse", the next step may update only these rows: a checkpoint is copied concurrently.
        """
        return None

    @abstractmethod
    def state(self) -> HeadState:
        """Return live tensors and JSON values by name; see `replicated`. Key "margin": the margin's statistics."""

    @torch.no_grad()
    def load_state(self, state: HeadState) -> None:
        """Load the result of `state` of the same class range; a head with values other than "margin" extends it.

        Raises:
            ValueError: a tensor is missing or of another shape.
        """
        for name, mine in self._tensors().items():
            saved = state.get(name)
            if not isinstance(saved, Tensor):
                raise ValueError(f"head state has no {name!r}: it was saved with another head or optim.name")
            if saved.shape != mine.shape:
                raise ValueError(f"head state {name!r} of shape {tuple(saved.shape)} must be {tuple(mine.shape)}")
            if saved.data_ptr() != mine.data_ptr():
                mine.copy_(saved)
        margin = state.get("margin")
        if isinstance(margin, dict):
            self.margin.load_state(margin)

    def row_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `state` whose rows are the classes of `row_range`, (last - first, ...)."""
        return {name: tensor for name, tensor in self._tensors().items() if not self._is_replicated(name)}

    def replicated_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `state` that are the same on every rank."""
        return {name: tensor for name, tensor in self._tensors().items() if self._is_replicated(name)}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state().items() if isinstance(value, Tensor)}

    def _is_replicated(self, name: str) -> bool:
        return self.replicated is None or name in self.replicated

    def values(self) -> dict[str, Value]:
        """Return the values in `state` that are not tensors: JSON values."""
        return {name: value for name, value in self.state().items() if not isinstance(value, Tensor)}
