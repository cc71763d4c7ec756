"""The table of stages: what it names are config keys."""

import pytest

from rayface import config as configs
from rayface.stages import INPUT_KINDS, INPUT_PATHS, STAGES


@pytest.mark.parametrize("verb", STAGES)
def test_keys_that_a_stage_names_are_config_keys(verb: str) -> None:
    stage, known = STAGES[verb], configs.flat(configs.Config())
    assert {*stage.flags.values(), *stage.required, stage.output} <= known.keys()
    assert stage.output in configs.OPERATIONAL
    assert set(stage.arguments) <= stage.flags.keys()


def test_keys_that_take_results_of_stages_are_config_keys() -> None:
    known = configs.flat(configs.Config())
    assert {*INPUT_KINDS, *INPUT_PATHS} <= known.keys()
