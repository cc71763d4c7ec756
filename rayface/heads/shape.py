"""Sizes that the memory of a head depends on, and its memory; for `rayface plan` and the check before a run."""

from dataclasses import dataclass

from rayface.heads.options import NO_OPTIONS, HeadOptions
from rayface.heads.sharded_softmax import CPU_CHUNK_BYTES, GPU_CHUNK_ROWS


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Sizes of a head and of a step. Batch is global, sizes of types are bytes."""

    num_classes: int
    num_workers: int
    batch_size: int
    embedding_size: int
    sample_rate: float
    storage_bytes: int
    compute_bytes: int
    moments: int
    """Further matrices of the size of the centers that the head's optimizer keeps."""
    logit_memory: int
    masks_conflicts: bool
    updates_all_rows: bool
    host_memory: bool
    """On a GPU: centers and moments are kept in host memory."""
    fetches_rows: bool
    """Sampled rows come from host memory before the loss asks for them."""
    gpu: bool
    fused: bool = False
    """Triton kernels work on the rows and keep no logits."""
    options: HeadOptions = NO_OPTIONS
    """The head's own settings."""
    backbone_bytes: int = 0
    """Of a copy of the backbone: weights and buffers."""
    image_bytes: int = 0
    """Of an image as the backbone takes it."""

    @property
    def rank_batch(self) -> int:
        """Rows of the batch of the rank that has most."""
        return -(-self.batch_size // self.num_workers)

    @property
    def rows(self) -> int:
        """Class centers of the rank that has most."""
        return -(-self.num_classes // self.num_workers)

    @property
    def sampled_rows(self) -> int:
        """Rows that a step uses: the sample rate's, or the positives where one rank may have more of them."""
        if self.sample_rate == 1:
            return self.rows
        return min(self.rows, max(int(self.sample_rate * self.rows), self.batch_size))

    @property
    def chunk_rows(self) -> int:
        """Rows worked on at once, as ShardSoftmax.chunk_rows."""
        if self.fused:
            return GPU_CHUNK_ROWS
        fitting = CPU_CHUNK_BYTES // (max(self.batch_size, self.embedding_size) * self.compute_bytes)
        return max(1, min(GPU_CHUNK_ROWS if self.gpu else fitting, self.logit_memory // (8 * self.batch_size)))

    @property
    def kept_rows(self) -> int:
        """Rows whose exponentials are kept for the update, as ShardSoftmax.keep_buffer; the rest is computed twice."""
        if self.fused:
            return 0
        affordable = self.logit_memory // (self.batch_size * self.compute_bytes) - self.chunk_rows
        if self.sampled_rows <= affordable:
            return self.sampled_rows
        return max(0, affordable) // self.chunk_rows * self.chunk_rows

    @property
    def ring(self) -> float:
        """Share of the result that a rank sends in an all-gather or reduce-scatter; an all-reduce sends twice that."""
        return (self.num_workers - 1) / self.num_workers

    @property
    def sampled_sent(self) -> dict[str, float]:
        """Bytes that a rank sends for class centers on all ranks: embeddings with labels, sums, gradients."""
        embedding = 4 * self.batch_size * self.embedding_size
        return {
            "all_gather": self.ring * (embedding + 8 * self.batch_size),
            "all_reduce": 2 * self.ring * 2 * 4 * self.batch_size,  # sums and target cosines
            "reduce_scatter": self.ring * embedding,
        }

    @property
    def sampled_macs(self) -> int:
        """Multiply-adds of three products of the batch with the sampled rows; what is not kept is computed twice."""
        return self.batch_size * self.embedding_size * (4 * self.sampled_rows - self.kept_rows)

    @property
    def sampled_traffic(self) -> int:
        """Bytes of the sampled rows, their moments and their exponentials that are read and written."""
        # The forward pass reads centers and writes normalised rows, which two products read.
        forward = self.sampled_rows * self.embedding_size * (self.storage_bytes + 3 * self.compute_bytes)
        # The update writes and reads the gradient, and reads and writes centers and moments.
        moved = self.rows if self.updates_all_rows else self.sampled_rows
        update = moved * self.embedding_size * (2 * 4 + 2 * self.storage_bytes * (1 + self.moments))
        # Logits are written, exponentiated, summed, and read by two products.
        logits = 6 * self.sampled_rows * self.batch_size * self.compute_bytes
        return forward + update + logits


@dataclass(frozen=True, kw_only=True)
class HeadMemory:
    """Bytes of a head on one rank."""

    device: dict[str, int]
    """By part, on the rank's device, at the peak of a step."""
    host: int
    """In host memory, beside a GPU."""
    state: int
    """Of what a checkpoint holds; it is copied while training goes on."""
