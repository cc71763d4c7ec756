"""Seconds, products and network bytes of a step, against hand counts."""

from dataclasses import replace

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.plan.backbone_cost import last_bucket
from rayface.plan.timing import Rates, head_macs, head_traffic, network_bytes, step_seconds, step_total


def test_step_seconds_of_a_known_job_equal_hand_count(job):
    rates = Rates(gemm_tflops=2, fp32_tflops=1, memory_bandwidth=100, link_bandwidth=10, backbone_efficiency=0.5)
    seconds = step_seconds(job, rates)
    assert seconds["backbone"] == pytest.approx(6 * job.net.macs * 16 / 1e12)
    assert head_macs(job) == 3 * 64 * 64 * 25_000
    assert seconds["head_products"] == pytest.approx(2 * 3 * 64 * 64 * 25_000 / 1e12)
    per_row = 64 * (4 + 3 * 4) + 64 * (2 * 4 + 2 * 4 * 2) + 6 * 64 * 4
    assert head_traffic(job) == 25_000 * per_row
    sent = network_bytes(job)
    assert sent["all_gather"] == 0.75 * (64 * 64 * 4 + 64 * 8)
    assert sent["all_reduce"] == 1.5 * 64 * 8
    assert sent["reduce_scatter"] == 0.75 * 64 * 64 * 4
    assert sent["all_reduce_gradients"] == 1.5 * 4 * job.net.trainable
    last = 1.5 * job.net.last_bucket
    assert 0 < last <= sent["all_reduce_gradients"]
    assert seconds["all_reduce_last_bucket"] == pytest.approx(last / 1e10)
    assert seconds["all_reduce_gradients"] == pytest.approx((sent["all_reduce_gradients"] - last) / 1e10)
    hidden = min(seconds["all_reduce_gradients"], seconds["backbone"] * 2 / 3)
    assert step_total(seconds) == pytest.approx(sum(seconds.values()) - hidden)


def test_head_products_are_at_the_rate_of_the_type_that_they_are_computed_in(job):
    rates = Rates(gemm_tflops=2, fp32_tflops=1)
    plain, stored, computed = (
        step_seconds(replace(job, storage_bytes=storage, compute_bytes=compute), rates)["head_products"]
        for storage, compute in ((4, 4), (2, 4), (4, 2))
    )
    assert plain == stored == 2 * computed


@pytest.mark.parametrize("width", [1.0, 2.0, 5.0])
def test_last_bucket_is_that_of_distributed_data_parallel(width):
    net = build_backbone("mini", embedding_size=256, image_size=56, width=width, dropout=0.0)
    parameters = list(net.parameters())
    buckets, _ = torch.distributed._compute_bucket_assignment_by_size(parameters[::-1], [2**20, 25 * 2**20])
    sizes = [4 * parameter.numel() for parameter in parameters]
    assert last_bucket(sizes) == sum(sizes[::-1][n] for n in buckets[-1])
    assert last_bucket([]) == 0


def test_head_macs_at_low_sample_rate_include_all_positives(job):
    assert replace(job, num_classes=2000).sampled_rows == 64
    assert replace(job, num_classes=100).sampled_rows == 25


def test_network_bytes_of_one_worker_are_zero(job):
    assert not any(network_bytes(replace(job, num_workers=1)).values())


def test_head_macs_with_logits_computed_twice_add_one_product(job):
    tight = replace(job, logit_memory=1)
    assert tight.kept_rows == 0
    assert head_macs(tight) == 4 * 64 * 64 * 25_000
