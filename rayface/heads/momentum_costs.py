"""Memory, products and traffic of DCQ and F2C, computed from their sizes."""

from rayface.heads.recent_columns import COLUMN_BYTES
from rayface.heads.shape import HeadMemory, HeadShape

LOGIT_COPIES = 11  # matrices of (B_local, Q) at the peak of a pass of F2C; 10.1 as measured


def dcq_memory(shape: HeadShape, rows: int, chunk_rows: int) -> HeadMemory:
    """Return the bytes that a rank needs for a queue of `rows`, at the peak of a step."""
    queue = rows * (4 * shape.embedding_size + 8)
    device = {
        "queue": queue,
        "key_encoder": shape.backbone_bytes,
        "logits": 3 * 4 * min(rows, chunk_rows) * shape.rank_batch,
        "gathered_embeddings": 3 * 4 * shape.batch_size * (shape.embedding_size + 2),
    }
    return HeadMemory(device=device, host=0, state=queue + shape.backbone_bytes)


def dcq_traffic(shape: HeadShape, rows: int) -> int:
    """Return the bytes of the queue, which is read twice, of logits, and of the average of the weights."""
    return 4 * rows * (2 * shape.embedding_size + 6 * shape.rank_batch) + 3 * shape.backbone_bytes


def dcq_sent(shape: HeadShape) -> dict[str, float]:
    """Return the bytes that a rank sends: key images, keys with labels, the loss."""
    keys = shape.batch_size * (4 * shape.embedding_size + 8)
    return {
        "all_to_all": shape.ring * shape.rank_batch * shape.image_bytes,
        "all_gather": shape.ring * keys,
        "all_reduce": 2 * shape.ring * 4,
    }


def f2c_memory(shape: HeadShape, columns: int) -> HeadMemory:
    """Return the bytes that a rank needs for a pool of `columns`, at the peak of a step."""
    pool = 2 * columns * shape.embedding_size * 4
    device = {
        "pool": pool,
        "gallery_net": shape.backbone_bytes,
        "logits": LOGIT_COPIES * 4 * columns * shape.rank_batch,
        "gathered_embeddings": 6 * 4 * shape.batch_size * shape.embedding_size,
    }
    links = COLUMN_BYTES * columns
    if not shape.gpu:
        device["columns"] = links
    return HeadMemory(device=device, host=links if shape.gpu else 0, state=pool + 24 * columns + shape.backbone_bytes)


def f2c_traffic(shape: HeadShape, columns: int) -> int:
    """Return the bytes of the pool, read in every product, of logits, and of the average of the weights."""
    logits = 2 * LOGIT_COPIES * shape.rank_batch
    return 4 * columns * (4 * shape.embedding_size + logits) + 3 * shape.backbone_bytes


def f2c_sent(shape: HeadShape) -> dict[str, float]:
    """Return the bytes that a rank sends: the gallery's embeddings of both passes, two labels, the loss."""
    rows = shape.batch_size * (2 * 4 * shape.embedding_size + 16)
    return {"all_gather": shape.ring * rows, "all_reduce": 2 * shape.ring * 4}
