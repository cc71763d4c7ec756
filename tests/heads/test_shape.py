"""Sizes that the memory of a head depends on, against those that the head itself works with."""

from dataclasses import replace

import pytest
import torch

from rayface.heads import DCQ, F2C, CosFace, PartialFC
from rayface.heads.dcq import DCQOptions
from rayface.heads.f2c import F2COptions
from rayface.heads.shape import HeadShape

SHAPE = HeadShape(
    num_classes=1001,
    num_workers=4,
    batch_size=24,
    embedding_size=16,
    sample_rate=0.2,
    storage_bytes=4,
    compute_bytes=4,
    moments=1,
    logit_memory=512_000_000,
    masks_conflicts=False,
    updates_all_rows=False,
    host_memory=False,
    fetches_rows=False,
    gpu=False,
)


def test_rows_of_uneven_ranks_are_those_of_the_largest() -> None:
    assert SHAPE.rows == 251
    assert replace(SHAPE, num_workers=7).rows == 143


@pytest.mark.parametrize(
    ("rate", "batch", "rows"), [(1.0, 24, 251), (0.2, 24, 50), (0.01, 24, 24), (0.2, 500, 251), (0.2, 60, 60)]
)
def test_sampled_rows_with_more_positives_than_the_sample_are_the_positives(rate: float, batch: int, rows: int) -> None:
    assert replace(SHAPE, sample_rate=rate, batch_size=batch).sampled_rows == rows


@pytest.mark.parametrize("logit_memory", [8_000, 40_000, 512_000_000])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_chunk_and_kept_rows_are_those_of_the_softmax(logit_memory: int, compute: str) -> None:
    shape = replace(SHAPE, num_workers=1, logit_memory=logit_memory, compute_bytes=2 if compute == "bf16" else 4)
    head = PartialFC(16, 1001, CosFace(), sample_rate=0.2, logit_memory=logit_memory, compute_dtype=compute)
    softmax = head.softmax
    assert softmax.product_dtype == (torch.bfloat16 if compute == "bf16" else torch.float32)
    assert shape.chunk_rows == softmax.chunk_rows(24)
    assert shape.kept_rows == len(softmax.keep_buffer(shape.sampled_rows, 24))


def test_chunk_rows_on_a_gpu_are_larger() -> None:
    assert replace(SHAPE, gpu=True).chunk_rows == 16384
    assert replace(SHAPE, gpu=True, logit_memory=24 * 8 * 100).chunk_rows == 100


def test_fused_head_of_two_million_classes_needs_less_than_a_gigabyte_above_its_state() -> None:
    """WebFace42M on one GPU with all classes in every step, B 1024, D 512; the chunked head keeps logits as well."""
    sizes = {"num_classes": 2_059_906, "num_workers": 1, "batch_size": 1024, "embedding_size": 512}
    shape = replace(SHAPE, **sizes, sample_rate=1.0, compute_bytes=2, gpu=True, fused=True)
    fused, chunked = PartialFC.memory(shape), PartialFC.memory(replace(shape, fused=False))
    assert fused.state == chunked.state
    assert sum(fused.device.values()) - fused.state < 200e6
    assert sum(chunked.device.values()) - sum(fused.device.values()) > 500e6


def test_chunk_and_kept_rows_of_a_fused_head_are_those_of_its_softmax() -> None:
    shape = replace(SHAPE, num_workers=1, fused=True)
    softmax = PartialFC(16, 1001, CosFace(), sample_rate=0.2, kernel="fused").softmax
    assert shape.chunk_rows == softmax.chunk_rows(24)
    assert shape.kept_rows == len(softmax.keep_buffer(shape.sampled_rows, 24)) == 0


def test_costs_of_dcq_equal_a_hand_count() -> None:
    """6 rows of the batch on each rank, 48 keys of 16 numbers and a label, a backbone of 1000 bytes."""
    shape = replace(SHAPE, options=DCQOptions(queue_size=48), backbone_bytes=1000)
    assert DCQ.macs(shape) == 2 * 6 * 48 * 16  # logits, and the mean center
    queue_twice, logits, averaged = 2 * 48 * 16 * 4, 6 * 6 * 48 * 4, 3 * 1000
    assert DCQ.traffic(shape) == queue_twice + logits + averaged
    memory = DCQ.memory(shape)
    assert memory.state == 48 * (16 * 4 + 8) + 1000
    assert sum(memory.device.values()) == memory.state + 3 * 6 * 48 * 4 + 3 * 24 * (16 + 2) * 4
    assert memory.host == 0


def test_costs_of_f2c_equal_a_hand_count() -> None:
    """6 rows of the batch on each rank, 40 columns of two rows of 16 numbers, a backbone of 1000 bytes."""
    shape = replace(SHAPE, options=F2COptions(pool_size=40), backbone_bytes=1000)
    assert F2C.macs(shape) == 2 * 2 * 6 * 40 * 16  # of each pass: cosines and their gradient
    pool_in_each_product, logits, averaged = 4 * 40 * 16 * 4, 2 * 11 * 6 * 40 * 4, 3 * 1000
    assert F2C.traffic(shape) == pool_in_each_product + logits + averaged
    on_cpu, on_gpu = F2C.memory(shape), F2C.memory(replace(shape, gpu=True))
    pool, links = 2 * 40 * 16 * 4, 40 * 150
    assert on_cpu.state == on_gpu.state == pool + 40 * 24 + 1000
    assert sum(on_gpu.device.values()) == pool + 1000 + 11 * 6 * 40 * 4 + 6 * 24 * 16 * 4
    assert sum(on_cpu.device.values()) == sum(on_gpu.device.values()) + links
    assert (on_cpu.host, on_gpu.host) == (0, links)
