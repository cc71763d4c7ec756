"""Seconds, products and network bytes of a step, against hand counts."""

from dataclasses import replace

import pytest

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
    assert seconds["all_reduce_gradients"] == 0
    assert seconds["all_reduce_last_bucket"] == pytest.approx(sent["all_reduce_gradients"] / 1e10)
    assert step_total(seconds) == pytest.approx(sum(seconds.values()))


@pytest.mark.parametrize(("mib", "last"), [(1, 1), (2, 1), (26, 25), (27, 1), (60, 9)])
def test_all_reduce_of_gradients_overlaps_with_the_backward_pass_but_for_the_last_bucket(job, mib, last):
    """Buckets of 1, 25, 25, ... MiB: the last one is complete when the pass ends."""
    larger = replace(job, net=replace(job.net, trainable=mib * 2**18))
    for bandwidth in (0.01, 1000):
        seconds = step_seconds(larger, Rates(link_bandwidth=bandwidth))
        assert seconds["all_reduce_last_bucket"] == pytest.approx(1.5 * last * 2**20 / (1e9 * bandwidth))
        assert seconds["all_reduce_gradients"] == pytest.approx(1.5 * (mib - last) * 2**20 / (1e9 * bandwidth))
        hidden = min(seconds["all_reduce_gradients"], seconds["backbone"] * 2 / 3)
        assert step_total(seconds) == pytest.approx(sum(seconds.values()) - hidden)


def test_head_macs_at_low_sample_rate_include_all_positives(job):
    assert replace(job, num_classes=2000).sampled_rows == 64
    assert replace(job, num_classes=100).sampled_rows == 25


def test_network_bytes_of_one_worker_are_zero(job):
    assert not any(network_bytes(replace(job, num_workers=1)).values())


def test_head_macs_with_logits_computed_twice_add_one_product(job):
    tight = replace(job, logit_memory=1)
    assert tight.kept_rows == 0
    assert head_macs(tight) == 4 * 64 * 64 * 25_000
