"""What cannot fit is refused before workers start, with remedies that work."""

import re

import pytest

from rayface.config import with_overrides
from rayface.plan.memory import host_memory, job_of, memory
from rayface.plan.preflight import check_fits, check_host_fits, memory_per_worker


def asked(message: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in re.findall(r"[a-z]+\.[a-z_]+=\w[\w.]*", message))


@pytest.mark.parametrize(
    ("changes", "classes", "gigabytes", "named"),
    [
        ({"train.num_workers": 2, "train.batch_size": 256}, 20_000_000, 6, "class centers"),
        ({"train.batch_size": 65536}, 1000, 8, "activations"),
        ({"head.logit_memory": 2**34, "train.batch_size": 4096}, 2_000_000, 12, "logits"),
    ],
)
def test_check_fits_when_too_large_names_remedies_that_work(small, changes, classes, gigabytes, named):
    config = with_overrides(small, changes)
    with pytest.raises(ValueError, match=named) as refused:
        check_fits(config, classes, gigabytes * 2**30)
    message = str(refused.value)
    assert "\n" not in message
    remedies = asked(message)
    assert remedies
    for key, value in remedies.items():
        check_fits(with_overrides(config, [f"{key}={value}"]), classes, gigabytes * 2**30)


def test_check_fits_when_it_fits_passes_and_when_never_says_so(small):
    check_fits(small, 1000, 4 * 2**30)
    check_fits(small, 1000, sum(memory(job_of(small, 1000, gpu=True)).values()))  # to the last byte
    with pytest.raises(
        ValueError, match=r"1\.0 MB: no setting is enough: use a GPU with more memory, or a smaller backb"
    ):
        check_fits(with_overrides(small, {"train.batch_size": 1}), 1000, 2**20)


@pytest.mark.parametrize(("gpu", "classes", "gigabytes"), [(True, 12_000_000, 2), (False, 4_000_000, 2.5)])
def test_settings_that_fit_only_together_are_named_and_end(small, gpu, classes, gigabytes):
    config = with_overrides(small, {"train.batch_size": 16384, "train.num_workers": 2})
    limit = int(gigabytes * 2**30)
    with pytest.raises(ValueError, match="no single setting is enough: use ") as refused:
        check_fits(config, classes, limit, gpu=gpu)
    remedies = asked(str(refused.value))
    assert ("train.num_workers" in remedies) <= gpu
    check_fits(with_overrides(config, remedies), classes, limit, gpu=gpu)


def test_remedies_keep_the_recipe_where_they_can(small):
    """A smaller batch needs another learning rate; recomputed activations and micro-batches do not."""
    config = with_overrides(small, {"train.batch_size": 8192})
    with pytest.raises(ValueError, match="must be at most") as refused:
        check_fits(config, 1000, 4 * 2**30)
    remedies = asked(str(refused.value))
    assert remedies["backbone.checkpointing"] == "true"
    assert "train.max_batch_per_worker" in remedies
    assert "train.batch_size" not in remedies


def test_remedies_of_a_head_that_takes_its_batch_at_once_do_not_split_it(small):
    config = with_overrides(small, {"head.name": "dcq", "train.batch_size": 65536})
    with pytest.raises(ValueError, match="must be at most") as refused:
        check_fits(config, 1000, 8 * 2**30)
    remedies = asked(str(refused.value))
    assert remedies
    assert not {"train.max_batch_per_worker", "head.storage_dtype", "head.sample_rate"} & remedies.keys()


def test_check_host_fits_with_too_little_host_memory_refuses(small):
    config = with_overrides(small, {"head.host_memory": True, "head.sample_rate": 0.1, "train.num_workers": 2})
    needed = host_memory(job_of(config, 1_000_000, gpu=True))
    check_host_fits(config, 1_000_000, needed)
    with pytest.raises(ValueError, match=r"host memory: 1,000,000 classes need .* head\.storage_dtype=bf16"):
        check_host_fits(config, 1_000_000, needed - 1)


def test_memory_per_worker_on_one_machine_is_shared_out():
    whole = memory_per_worker(gpu=False, workers_per_machine=1)
    half = memory_per_worker(gpu=False, workers_per_machine=2)
    assert whole is None or half == pytest.approx(whole / 2, rel=0.2)


def test_remedies_on_cpus_do_not_add_workers_to_the_same_machine(small):
    """Each took the memory of another one: "use num_workers=2", then 4, and so on."""
    with pytest.raises(ValueError, match="classes need") as caught:
        check_fits(small, 5_000_000, 2**30, gpu=False)
    assert "num_workers" not in str(caught.value)
