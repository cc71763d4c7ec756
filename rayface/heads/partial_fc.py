"""Partial FC: a head whose classes are sharded over the ranks and sampled in each step (arXiv 2203.15565)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rayface.heads.base import Head, HeadSettings, HeadState
from rayface.heads.center_update import CenterUpdate
from rayface.heads.class_centers import OPTIMIZERS, CenterOptimizer, ClassCenters, class_range, initial_rows
from rayface.heads.collectives import Collectives
from rayface.heads.fused_softmax import FusedSoftmax, check_fused, check_fused_storage
from rayface.heads.margin_loss import MarginLoss
from rayface.heads.margins import Margin
from rayface.heads.partial_fc_checks import (
    check_batch,
    check_centers,
    check_choice,
    check_labels,
    check_numbers,
    check_rates,
)
from rayface.heads.partial_fc_memory import partial_fc_memory
from rayface.heads.prefetch import FetchedRows, Place, RowPrefetch
from rayface.heads.sampling import keyed_generator, sample_rows
from rayface.heads.shape import HeadMemory, HeadShape
from rayface.heads.sharded_softmax import PendingGradient, ShardSoftmax

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
CENTER_UPDATES = ("sparse", "dense")
KERNELS = {"chunked": ShardSoftmax, "fused": FusedSoftmax}


class PartialFC(Head):
    """Margin softmax over the class centers of all ranks; each step uses the positives and a random sample of the rest.

    Not an nn.Module: the centers are no parameters, and no optimizer or DistributedDataParallel takes it. A step is
    `loss(...)`, `backward()`, `step(lr)`, which updates the centers; `state()` and `load_state(...)` save and load.

    Rank k holds a contiguous range of C // W (+1 for k < C % W) rows, starting from the same logical N(0, 0.01) matrix
    for every W. The embeddings' gradient is W times that of the global mean, to cancel the data-parallel mean of the
    backbone's gradients; the centers' is that of the global mean and stays in the head, in factors. Several
    losses before one step add up (gradient accumulation); `discard` drops them.

    Collectives of a step: one all-gather (embeddings and labels), one all-reduce (2 B numbers), one reduce-scatter (B D
    numbers, in backward). With host_memory, `prefetch` adds an all-gather of the B labels before the backbone. The
    loss gathers them again, so that all ranks agree on whether the prefetched rows are valid.
    Memory: rows x D x (1 + moments of the optimizer) in the storage type, `logit_memory` bytes, and chunks of a few MB;
    with `prefetch` the sampled rows once more on the device, and with a GPU in pinned host memory.

    Args:
        sample_rate: fraction of its rows that a rank uses in a step, in (0, 1]; positives are always used.
        center_update: "sparse" updates the used rows only (the paper); "dense" applies momentum and weight decay to all
            rows in each step (arcface_torch's V2).
        optimizer: "sgd" (torch.optim.SGD) or "adamw" (torch.optim.AdamW; its step is counted by row).
        storage_dtype: of centers and moments, "fp32", "bf16" (rounded stochastically) or "fp64"; None: torch's default
            type, and fp64 once fp64 centers are loaded.
        compute_dtype: type of the matrix products, "fp32" or "bf16"; sums are fp32.
        kernel: "chunked" computes logits in chunks by torch; "fused" keeps no logits, in Triton kernels on a CUDA GPU.
        host_memory: keep centers and moments in host memory (pinned with a GPU) and move only the rows in use.
        logit_memory: bytes for exponentials of logits; what does not fit is recomputed for the update.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        margin: Margin,
        *,
        sample_rate: float = 1.0,
        center_update: str = "sparse",
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
        storage_dtype: str | None = None,
        compute_dtype: str = "fp32",
        kernel: str = "chunked",
        logit_memory: int = 512_000_000,
        host_memory: bool = False,
        device: torch.device | str = "cpu",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_choice("center_update", center_update, CENTER_UPDATES)
        check_choice("optimizer", optimizer, OPTIMIZERS)
        check_choice("compute_dtype", compute_dtype, ("fp32", "bf16"))
        check_choice("storage_dtype", storage_dtype or "fp32", tuple(DTYPES))
        check_choice("kernel", kernel, tuple(KERNELS))
        check_numbers(sample_rate, num_classes, embedding_size, logit_memory)
        check_rates(momentum=momentum, weight_decay=weight_decay)
        self.collectives = Collectives(process_group)
        self.embedding_size, self.num_classes = embedding_size, num_classes
        self.sample_rate, self.center_update, self.seed = sample_rate, center_update, seed
        self.step_count = 0
        self.first, self.last = class_range(num_classes, self.collectives.size, self.collectives.rank)
        self._adopts_fp64, self._kernel = storage_dtype is None and kernel != "fused", kernel
        rates = {"momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        self._optimizer = CenterOptimizer(name=optimizer, betas=betas, **rates)
        self._device, self._host_memory = torch.device(device), host_memory
        self._compute_dtype, self._logit_memory = compute_dtype, logit_memory
        self.margin = margin
        self._anchor = torch.zeros((), requires_grad=True)  # makes the loss differentiable even for constant embeddings
        dtype = DTYPES[storage_dtype] if storage_dtype else torch.get_default_dtype()
        if kernel == "fused":
            check_fused(margin, embedding_size)
            check_fused_storage(self._device, dtype)
        self._allocate(dtype)
        initial_rows(self.first, self.last, embedding_size, seed, self.store.values)

    @classmethod
    def build(cls, settings: HeadSettings) -> "PartialFC":
        """Return this rank's part, in the default process group."""
        not_used = ("options", "batch_size", "backbone")
        return cls(**{name: value for name, value in vars(settings).items() if name not in not_used})

    @classmethod
    def memory(cls, shape: HeadShape) -> HeadMemory:
        """Return the bytes that a rank needs at the peak of a step."""
        return partial_fc_memory(shape)

    def _allocate(self, dtype: torch.dtype) -> None:
        self.store = ClassCenters(
            self.last - self.first,
            self.embedding_size,
            optimizer=self._optimizer,
            dtype=dtype,
            device=self._device,
            host_memory=self._host_memory,
            seed=self.seed,
            first=self.first,
            fused=self._kernel == "fused",
        )
        self._prefetch = RowPrefetch(self.store) if self._host_memory and self.sample_rate < 1 else None
        self.softmax = KERNELS[self._kernel](
            self.store,
            self.margin,
            product_dtype=torch.bfloat16 if self._compute_dtype == "bf16" else self.store.math_dtype,
            logit_memory=self._logit_memory,
        )
        self._update = CenterUpdate(self.softmax, sparse=self.center_update == "sparse")

    def _adopt_type(self, centers: Tensor) -> None:
        fp64 = torch.float64
        if self._adopts_fp64 and centers.dtype == fp64 and self.store.values.dtype != fp64:
            self._allocate(fp64)

    @property
    def centers(self) -> Tensor:
        """The centers of this rank's class range, (local rows, D), in the storage type; a live view."""
        return self.store.values

    @property
    def row_range(self) -> tuple[int, int, int]:
        """First class, last class + 1 of this rank, and the number of all classes."""
        return self.first, self.last, self.num_classes

    @torch.no_grad()
    def load_centers(self, centers: Tensor) -> None:
        """Load this rank's range of a global (C, D) matrix; drops pending gradients, keeps the moments.

        Raises:
            ValueError: no tensor, or another shape.
        """
        check_centers(centers, self.num_classes, self.embedding_size)
        self._stop_prefetch()
        self.discard()
        self._adopt_type(centers)
        self.store.values.copy_(centers[self.first : self.last])

    def loss(self, embeddings: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the mean loss over the global batch; see `Head.loss`."""
        check_batch(embeddings, labels, self.embedding_size)
        rows = self.collectives.layout(len(labels), counts)
        value: Tensor = MarginLoss.apply(embeddings, self._anchor, labels, self, rows, torch.is_grad_enabled())
        return value

    @torch.no_grad()
    def prefetch(self, labels: Tensor, counts: Sequence[int] | None = None) -> None:
        """Start to fetch the rows of the next loss from host memory; see `Head.prefetch`.

        The result is the same without it, bit for bit: rows that were fetched for other labels are not used. Does
        nothing, and runs no collective, unless host_memory is set and sample_rate is below 1.
        """
        check_labels(labels)
        if labels.ndim != 1:
            raise ValueError(f"labels of shape {tuple(labels.shape)} must be one per embedding")
        if self._prefetch is None:
            return
        layout = self.collectives.layout(len(labels), counts)
        everyone, place = self.collectives.gather(labels[:, None], layout).squeeze(1), self.place

        def choose() -> Tensor:
            rows = self.choose_rows(self.own_targets(everyone)[1], place)
            assert rows is not None
            return rows

        self._prefetch.start(everyone, place, choose)

    def fetched_rows(self, labels: Tensor) -> FetchedRows | None:
        """Return what `prefetch` fetched for the next loss if it was for these labels of the global batch, (B,)."""
        return None if self._prefetch is None else self._prefetch.take(labels, self.place)

    def own_targets(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples of the global batch whose class is on this rank, and their local rows, ascending."""
        samples = ((labels >= self.first) & (labels < self.last)).nonzero().squeeze(1)
        classes = labels[samples] - self.first
        order = classes.argsort(stable=True)
        return samples[order], classes[order]

    @property
    def place(self) -> Place:
        """The step, and the number of losses differentiated in it so far."""
        return self.step_count, len(self._update.pending)

    def choose_rows(self, targets: Tensor, place: Place) -> Tensor | None:
        """Return the sorted local rows of a loss for the local rows that are targets; None for all.

        Depends only on the targets, (seed, rank), the loss's place and the model of the device.
        """
        if self.sample_rate == 1.0:
            return None
        num_rows = self.last - self.first
        key = (self.seed, "rows", *place, self.collectives.rank)
        size = int(self.sample_rate * num_rows)
        return sample_rows(num_rows, torch.unique(targets), size, keyed_generator(targets.device, *key))

    def last_rows(self) -> Tensor | None:
        """Return the local rows that the last differentiated loss used, sorted (n,), or None for all."""
        return self._update.pending[-1].rows

    def margin_generator(self) -> torch.Generator:
        """Return the generator of random margins of the next loss, the same on every rank."""
        return keyed_generator("cpu", self.seed, "margin", *self.place)

    def keep(self, pending: PendingGradient, factor: Tensor) -> None:
        """Keep the gradient of a loss, times factor (), until the next step."""
        if pending.step != self.step_count:
            raise RuntimeError("backward of a loss from before the last head.step: its centers have moved since")
        self._update.add(pending, factor)

    def discard(self) -> None:
        """Drop the pending gradients (of a step that is skipped: infinite loss scale, NaN)."""
        self._update.discard()

    @torch.no_grad()
    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        """Update the centers by the gradients of all losses since the last step; see `Head.step`.

        Raises:
            RuntimeError: no loss has been differentiated since the last step.
        """
        if not self._update.pending:
            raise RuntimeError("head.step without a gradient: call loss(...).backward() first")
        self._stop_prefetch()
        self._update.apply(self.step_count, lr, grad_scale)
        self.step_count += 1

    def _stop_prefetch(self) -> None:
        """Stop reading rows that are about to be written."""
        if self._prefetch is not None:
            self._prefetch.cancel()

    def state(self) -> HeadState:
        """Return live tensors of this rank's rows and plain numbers; see `row_range` for where the rows belong.

        Keys: "centers" (n, D) and the moments ("momentum" (n, D), or "exp_avg", "exp_avg_sq" (n, D) and "updates" (n,
        1) int32), each a block of rows row_range[0]..row_range[1]-1 of a logical matrix of C rows; "step" int; "margin"
        dict of floats.
        """
        return {
            "centers": self.store.values,
            **self.store.moments,
            "step": self.step_count,
            "margin": self.margin.state(),
        }

    @torch.no_grad()
    def load_state(self, state: HeadState) -> None:
        """Load what `state` returned at the same class range; the tensors may have been resharded since.

        Raises:
            ValueError: a part is missing or of another shape.
        """
        self._stop_prefetch()
        self.discard()
        centers, step = state.get("centers"), state["step"]
        if isinstance(centers, Tensor):
            self._adopt_type(centers)
        super().load_state(state)
        assert isinstance(step, int)
        self.step_count = step
