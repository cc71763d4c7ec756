"""Memory of Partial FC, computed from the sizes of its buffers."""

from rayface.heads.class_centers import NOISE_SIZE
from rayface.heads.fused_softmax import partial_bytes
from rayface.heads.shape import HeadMemory, HeadShape


def partial_fc_memory(shape: HeadShape) -> HeadMemory:
    """Return the bytes of one rank's part of a PartialFC."""
    centers = shape.rows * shape.embedding_size * shape.storage_bytes
    counts = 4 * shape.rows if shape.moments == 2 else 0  # AdamW's updates of each row
    state = centers * (1 + shape.moments) + counts
    fetched = shape.sampled_rows * shape.embedding_size * shape.storage_bytes if shape.fetches_rows else 0
    device = {
        "class_centers": 0 if shape.host_memory else centers,
        "center_moments": 0 if shape.host_memory else state - centers,
        "sampled_rows": _row_workspace(shape) + fetched,
        "logits": _logits(shape),
        "gathered_embeddings": 8 * shape.batch_size * (shape.embedding_size + 2) * 4,
    }
    return HeadMemory(device=device, host=state + fetched if shape.host_memory else 0, state=state)


def _row_workspace(shape: HeadShape) -> int:
    """Chunks of rows that the head works on, and the numbers of the sampled rows."""
    indexed = shape.sample_rate < 1
    cells = min(shape.chunk_rows, shape.sampled_rows) * shape.embedding_size
    # a chunk of centers and of each moment: gathered or brought from the host as stored, and in fp32 if that differs
    brought = indexed or shape.host_memory
    gathered = (shape.storage_bytes * brought + 4 * (shape.storage_bytes != 4)) * (1 + shape.moments)
    # compiled SGD moves rows where they are
    in_one_pass = shape.moments < 2 and (not shape.gpu or (shape.fused and not shape.host_memory))
    update = 0 if in_one_pass else gathered + 4  # and the gradient's radial part
    # unit rows; the gradient in the products' type
    products = shape.compute_bytes + (2 if shape.compute_bytes == 2 else 0)
    chunk = cells * (update + products + 4)  # and the gradient
    if shape.storage_bytes == 2:  # the noise of the rounding
        chunk += 4 * (NOISE_SIZE + shape.embedding_size)
    # sampling: the result, the draw, its sort and the merged list, int64 each
    return chunk + (5 * 8 * shape.sampled_rows if indexed else 0)


def _logits(shape: HeadShape) -> int:
    """Exponentials kept, and one chunk of them where not all are; of fused kernels the partial sums."""
    if shape.fused:
        return partial_bytes(shape.batch_size, shape.embedding_size)
    chunk = min(shape.chunk_rows, shape.sampled_rows) * shape.batch_size
    computed_twice = chunk * shape.compute_bytes if shape.kept_rows < shape.sampled_rows else 0
    return shape.kept_rows * shape.batch_size * shape.compute_bytes + computed_twice + chunk * shape.masks_conflicts
