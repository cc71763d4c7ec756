"""Memory of the head, the activations and the host, against hand counts and real tensors."""

from dataclasses import replace

import pytest
import torch

from rayface.config import load, with_overrides
from rayface.heads import CosFace, PartialFC, head_class
from rayface.plan.memory import (
    DENSE_LOGIT_COPIES,
    GPU_OVERHEAD,
    SINGLE_GPU_OVERHEAD,
    checkpoint_bytes,
    host_memory,
    job_of,
    memory,
)
from rayface.plan.timing import Rates, network_bytes, step_seconds
from rayface.training.distributed import World
from rayface.training.trained import build_trained


def test_head_memory_of_a_known_job_equals_hand_count(job):
    parts = memory(job)
    rows, sampled, batch, width = 250_001, 25_000, 64, 64
    assert parts["class_centers"] == parts["center_moments"] == rows * width * 4
    assert parts["logits"] == sampled * batch * 4  # 6.4 MB: all are kept
    chunk = 16384 * width * 4
    assert parts["sampled_rows"] == 5 * chunk + 5 * 8 * sampled  # centers, momentum, units, gradient, radial parts
    assert parts["gathered_embeddings"] == 8 * batch * (width + 2) * 4
    assert parts["ddp_buckets"] == 0


def test_logit_memory_with_many_classes_stays_within_its_bound(job):
    tight = replace(job, logit_memory=4 * 2**20)
    assert tight.chunk_rows == 8192
    assert tight.kept_rows == 8192  # 16,384 rows of 256 bytes fit, one chunk of them is worked in
    assert memory(tight)["logits"] == 4 * 2**20
    assert memory(replace(tight, num_classes=10**9))["logits"] == 4 * 2**20
    assert memory(tight, "dense")["logits"] == DENSE_LOGIT_COPIES * 25_000 * 64 * 4


def test_dense_variants_of_a_known_job_equal_hand_count(job):
    everything, sample = 250_001 * 64 * 4, 25_000 * 64 * 4
    assert memory(job, "dense")["sampled_rows"] == 8 * sample
    assert memory(replace(job, sample_rate=1.0), "dense")["sampled_rows"] == 6 * everything
    parallel = memory(replace(job, sample_rate=1.0), "data_parallel")
    assert parallel["class_centers"] == 1_000_001 * 64 * 4
    assert parallel["ddp_buckets"] == 4 * job.net.trainable + 1_000_001 * 64 * 4
    assert parallel["logits"] == DENSE_LOGIT_COPIES * 1_000_001 * 16 * 4


@pytest.mark.parametrize("variant", ["chunked", "dense", "data_parallel"])
def test_memory_with_more_classes_or_images_grows(job, variant):
    for name in ("num_classes", "batch_size"):
        sizes = [sum(memory(replace(job, **{name: 64 * 4**i}), variant).values()) for i in range(8)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("storage", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_head_state_of_a_built_head_equals_planned_bytes(small, storage, optimizer, rate):
    changes = {"head.storage_dtype": storage, "optim.name": optimizer, "head.sample_rate": rate}
    asked = with_overrides(small, changes | {"train.batch_size": 16, "head.logit_memory": 2**18})
    planned = job_of(asked, 20_003, gpu=False)
    parts = memory(planned)
    head = PartialFC(
        64,
        20_003,
        CosFace(),
        sample_rate=rate,
        optimizer=optimizer,
        storage_dtype=storage,
        logit_memory=2**18,
    )
    head.loss(torch.randn(16, 64, requires_grad=True), torch.randint(20_003, (16,))).backward()
    kept = head._update.pending[0].kept
    head.step(0.1)
    moments = [v for k, v in head.state().items() if isinstance(v, torch.Tensor) and k != "centers"]
    assert parts["class_centers"] == head.centers.nbytes
    assert parts["center_moments"] == sum(v.nbytes for v in moments)
    assert kept is not None
    assert kept.shape == (planned.kept_rows, 16)
    buffers = [*head.softmax.workspace._buffers.items(), *head.store._workspace._buffers.items()]
    chunk_logits = sum(b.nbytes for (name, _), b in buffers if name == "logits")
    assert parts["logits"] == kept.nbytes + chunk_logits
    workspace = sum(b.nbytes for (name, _), b in buffers if name != "logits")
    if head.store._rounding is not None:
        workspace += head.store._rounding.noise.nbytes
    row_numbers = 5 * 8 * planned.sampled_rows if rate < 1 else 0
    assert parts["sampled_rows"] - row_numbers == pytest.approx(workspace, rel=0.1)


def test_recomputation_when_on_saves_memory_and_costs_a_forward(small):
    plain, twice = (job_of(small, 100, gpu=False, recompute=flag) for flag in (False, True))
    assert 0 < memory(twice)["activations"] < memory(plain)["activations"]
    seconds = [step_seconds(j, Rates())["backbone"] for j in (plain, twice)]
    assert seconds[1] == pytest.approx(4 / 3 * seconds[0])


def test_host_memory_with_checkpoints_counts_their_copy(job):
    on_cpu = replace(job, gpu=False)
    parts = memory(on_cpu)
    state = ("backbone_weights", "backbone_optimizer", "class_centers", "center_moments")
    assert parts["checkpoint_copy"] == sum(parts[name] for name in state)
    assert "checkpoint_copy" not in memory(job) | memory(on_cpu, "dense")
    assert host_memory(on_cpu) == 0
    assert host_memory(replace(job, mirrors=0)) == parts["checkpoint_copy"]
    away = replace(job, host_memory=True, fetches_rows=True)
    head = parts["class_centers"] + parts["center_moments"]
    fetched = 25_000 * 64 * 4
    assert host_memory(away) == host_memory(job) + head + fetched
    assert memory(away)["sampled_rows"] == memory(job)["sampled_rows"] + fetched


@pytest.mark.parametrize(("workers", "overhead"), [(1, SINGLE_GPU_OVERHEAD), (2, GPU_OVERHEAD)])
def test_memory_of_several_workers_counts_more_beside_tensors_than_of_one(small, workers, overhead):
    config = with_overrides(small, {"train.num_workers": workers})
    assert memory(job_of(config, 100, gpu=True))["overhead"] == overhead


def test_memory_with_mirrored_states_counts_two_copies_of_a_rank_on_each_node(small):
    for workers, every, gpu, copies in ((2, 100, True, 4), (1, 100, True, 2), (2, 100, False, 2), (2, 0, True, 0)):
        config = with_overrides(small, {"train.num_workers": workers, "train.mirror_every": every})
        job = job_of(config, 1000, gpu=gpu)
        found = memory(job)["mirror"] if not gpu else host_memory(job) - checkpoint_bytes(job)
        assert found == copies * checkpoint_bytes(job)


def test_activations_with_accumulation_are_those_of_one_part():
    config = load("webface12m", overrides={"train.batch_size": 1024})
    whole = memory(job_of(config, 10_000, gpu=True))
    pieces = memory(job_of(with_overrides(config, {"train.max_batch_per_worker": 32}), 10_000, gpu=True))
    assert pieces["activations"] == pytest.approx(whole["activations"] / 4, rel=0.1)
    assert {k: v for k, v in pieces.items() if k != "activations"} == {
        k: v for k, v in whole.items() if k != "activations"
    }


@pytest.mark.parametrize(
    ("head", "sizes"),
    [
        ("dcq", {"head.options": {"queue_size": 128}}),
        ("f2c", {"head.options": {"pool_size": 128}, "train.ema": 0.9}),
    ],
)
def test_memory_of_a_head_without_class_centers_is_that_of_its_tensors_for_any_number_of_identities(small, head, sizes):
    config = with_overrides(small, {"head.name": head, "train.batch_size": 16, **sizes})
    planned = job_of(config, 10_000, gpu=False)
    assert memory(planned) == memory(replace(planned, num_classes=10**9))
    assert step_seconds(planned, Rates()) == step_seconds(replace(planned, num_classes=10**9), Rates())
    trained = build_trained(config, 10_000, World(rank=0, size=1, local_size=1, device=torch.device("cpu")))
    state = [v for v in trained.head.state().values() if isinstance(v, torch.Tensor)]
    assert head_class(head).memory(planned).state == pytest.approx(sum(v.nbytes for v in state), rel=1e-3)
    larger = replace(planned, options=type(planned.options)(**{next(iter(sizes["head.options"])): 256}))
    rows = 128 * (64 * 4 + 8) if head == "dcq" else 128 * (2 * 64 * 4 + 24)
    assert checkpoint_bytes(larger) - checkpoint_bytes(planned) == rows


def test_passes_of_pairs_count_images_activations_and_both_networks(small):
    one, dcq, f2c = (
        job_of(with_overrides(small, {"head.name": name, "train.batch_size": 16}), 100, gpu=False)
        for name in ("partial_fc", "dcq", "f2c")
    )
    assert [job.images for job in (one, dcq, f2c)] == [16, 32, 32]
    assert memory(dcq)["activations"] == memory(one)["activations"]
    assert memory(f2c)["activations"] == one.net.activation_bytes(32)
    seconds = [step_seconds(job, Rates())["backbone"] for job in (one, dcq, f2c)]
    assert seconds[1] == pytest.approx(4 / 3 * seconds[0])
    assert seconds[2] == pytest.approx(8 / 3 * seconds[0])
    two = [network_bytes(replace(job, num_workers=2)) for job in (dcq, f2c)]
    assert two[0]["all_to_all"] == 0.5 * 8 * dcq.image_bytes == 0.5 * 8 * 4 * 3 * dcq.image_size**2
    assert two[0]["all_gather"] == 0.5 * 16 * (4 * dcq.embedding_size + 8)
    assert two[1]["all_gather"] == 2 * two[0]["all_gather"]
    averaged = replace(one, averaged=True)
    assert memory(averaged)["weight_average"] == memory(one)["backbone_weights"]
    assert checkpoint_bytes(averaged) == checkpoint_bytes(one) + memory(one)["backbone_weights"]
