"""Which config keys decide the result of a stage."""

import pytest

from rayface import config as configs
from rayface.stages import STAGES


def test_settings_of_a_stage_leave_out_operational_keys_and_other_groups() -> None:
    settings = STAGES["embed"].settings(
        configs.load(overrides=["embed.dtype=fp32", "embed.workers=3", "prune.proxy_fraction=0.1"])
    )
    assert settings["embed.dtype"] == "fp32"
    assert not {"embed.workers", "embed.out", "optim.lr", "cluster.address", "distils from a cache"} & settings.keys()


def test_settings_of_each_verb_that_reads_several_datasets_hold_how_they_are_joined() -> None:
    settings = {verb: stage.settings(configs.load()) for verb, stage in STAGES.items()}
    assert {verb for verb, keys in settings.items() if "data.join" not in keys} == {"synth", "export"}


def test_settings_of_training_say_whether_there_is_a_cache_and_not_where() -> None:
    here, there = (STAGES["train"].settings(configs.load(overrides=[f"train.teacher_cache={x}"])) for x in "ab")
    assert here == there != STAGES["train"].settings(configs.load())


def test_settings_of_a_prune_by_proxy_hold_the_training_of_the_proxy() -> None:
    plain = STAGES["prune"].settings(configs.load(overrides=["prune.keep=0.6"]))
    proxy = STAGES["prune"].settings(configs.load(overrides=["prune.keep=0.6", "prune.proxy_fraction=0.1"]))
    assert "optim.lr" not in plain
    assert proxy["optim.lr"] == 0.1


def test_run_of_a_stage_without_a_required_key_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^embed.model: is not set: ") as refused:
        STAGES["embed"].run(configs.load())
    assert "\n" not in str(refused.value)
