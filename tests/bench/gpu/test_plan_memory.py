"""The plan that is measured is the plan of the same config."""

from dataclasses import replace

from rayface.bench.gpu.plan_memory import MINI, SETTING, compare, job_of_setting
from rayface.bench.gpu.training_step import LOGIT_MEMORY
from rayface.config import Config, with_overrides
from rayface.plan.memory import job_of


def test_job_of_a_setting_is_that_of_the_config_with_its_values() -> None:
    setting = replace(SETTING, net="mbf", num_classes=1000, storage_dtype="bf16", optimizer="adamw", host_memory=True)
    config = with_overrides(
        Config(),
        {
            "backbone.name": "mbf",
            "backbone.embedding_size": setting.embedding_size,
            "data.image_size": setting.image_size,
            "train.num_workers": 1,
            "train.batch_size": setting.batch_size,
            "train.precision": "bf16",
            "train.mirror_every": 0,
            "head.sample_rate": setting.sample_rate,
            "head.storage_dtype": "bf16",
            "head.compute_dtype": "bf16",
            "head.host_memory": True,
            "optim.name": "adamw",
        },
    )
    assert Config().head.logit_memory == LOGIT_MEMORY
    assert job_of_setting(setting, gpu=True) == job_of(config, 1000, gpu=True)


def test_compare_on_a_cpu_plans_and_trains_but_compares_nothing() -> None:
    found = compare(replace(MINI, image_size=16, embedding_size=8, batch_size=4), "cpu")
    assert found.passed
    assert found.planned_gb > found.planned_tensors_gb > 0
    assert (found.measured_gb, found.error, found.peak_tensors_gb) == (None, None, None)
    assert "overhead" in found.note
