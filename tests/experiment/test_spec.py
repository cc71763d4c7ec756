"""Experiment files: which stages and keys are known, and what their references stand for."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiment.refusals import TRAIN, assert_refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: []", "stage: is not known here: did you mean stages?"),
        ("stages: {}", "stages: must be a list"),
        ("stages: [{name: a}]", "stage 1: has 0 verbs: must have one of synth, convert"),
        ("stages: [{name: a, trian: {}}]", "stage 1: trian: is not known here: did you mean train?"),
        ("stages: [{name: a/b, train: {}}]", "stage 1: name: 'a/b': must be letters"),
        ("stages: [{embed: 3}]", "stage 1 (embed): embed: 3: must be keys and values"),
        ("stages: [{train: {preset: [a]}}]", "stage 1 (train): train: preset: ['a']: must be the name of one"),
        ("stages: [{train: {config: [a]}}]", "stage 1 (train): train: config: ['a']: must be the name of one"),
        ("stages: [{synth: {}}, {synth: {}}]", "stage 2: name: synth: is taken"),
        ("stages: [{prune: {kep: 0.6}}]", "stage 1 (prune): prune: kep: is not known here: did you mean keep?"),
        ("stages: [{embed: {out: x}}]", "out: is `rayface run`'s own: leave it out"),
        ("stages: [{train: {train: {output: x}}}]", "train.output: is `rayface run`'s own"),
        ("stages: [{train: {optim.l: 1}}]", "optim.l: is not a config key: did you mean optim.lr?"),
        ("config: {head.scal: 1}\nstages: [{train: {}}]", "head.scal: is not a config key"),
        ("stages: [{evaluate: {lr: 1}}]", "evaluate: lr: is not known here"),
        ("stages: [{synth: {identities: many}}]", "stage 1 (synth): synth.identities: 'many'"),
        ("stages: [{export: {model: '${core}'}}]", "stage export: export.model: ${core}: is not the name of"),
        (
            "stages: [{synth: {}}, {export: {model: '${synth}'}}]",
            "produces data, by synth: must be a stage that",
        ),
        (
            f"stages:\n{TRAIN}- name: b\n  train: {{preset: debug, data.train: ['${{a}}', /nowhere]}}",
            "stage b: data.train: ${a}: produces model, by train",
        ),
        (
            f"stages:\n{TRAIN}- name: e\n  embed: {{model: '${{a}}', data: DATA}}\n- name: p\n"
            "  prune: {embeddings: '${e}', keep: 0.6}\n- name: b\n  train: {data.train: '${p}'}",
            "stage b: data.train: ${p}: produces no dataset without `data`",
        ),
    ],
)
def test_file_of_an_impossible_stage_is_refused_before_anything_starts(
    text: str, message: str, data: Path, fakes: dict[str, Any], calls: list[str], tmp_path: Path
) -> None:
    assert_refused(text, message, data, calls, tmp_path)
