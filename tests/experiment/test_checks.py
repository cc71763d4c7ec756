"""What is found wrong with the stages of an experiment before the first one starts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experiment.prepared import prepared_of
from tests.experiment.refusals import TRAIN, assert_refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [{export: {}}]", "stage export: export.model: is not set"),
        ("stages: [{convert: {src: DATA, to: folder}}]", "stage convert: convert.to: a stage writes a dataset: leave"),
        ("stages: [{export: {model: /nowhere}}]", "stage export: export.model: /nowhere: does not exist"),
        ("stages: [{train: {preset: debug}}]", "stage train: data.train: is not set"),
        ("stages: [{train: {preset: debug, data.train: DATA, head.margin: cosfac}}]", "head.margin 'cosfac'"),
        ("stages: [{train: {preset: debug, data.train: DATA, train.teacher: /nowhere}}]", "train.teacher: /nowhere"),
        ("stages: [{train: {preset: debug, data.train: DATA, backbone.weights: /nowhere}}]", "weights: /nowhere"),
        (
            "stages:\n- synth: {}\n- train: {preset: debug, data.train: ['${synth}', /nowhere]}",
            "stage train: data.train: /nowhere: does not exist",
        ),
        (
            "stages:\n- synth: {}\n- train: {preset: debug, data.train: DATA, evaluate.pairs: '${synth}/pairs.csv'}",
            "stage train: evaluate.pairs: requires evaluate.data",
        ),
        (
            "stages:\n- synth: {}\n- train: {preset: debug, data.train: DATA, "
            "evaluate: {pairs: '${synth}/pairs.csv', data: /nowhere}}",
            "stage train: evaluate.data: /nowhere: does not exist",
        ),
        (
            f"stages:\n{TRAIN}- embed: {{model: '${{a}}', data: [DATA, 2024]}}",
            "stage embed: embed.data: HERE/2024: does not exist",
        ),
        (
            "stages: [{prune: {data: DATA, proxy_fraction: 0.1, keep: 0.6, above: 0.5}}]",
            "stage prune: clean.exclude, clean.above: must be given together",
        ),
        (
            "stages: [{prune: {data: DATA, proxy_fraction: 0.1, keep: 0.6, proxy_preset: mimi}}]",
            "stage prune: preset",
        ),
        (
            f"stages:\n{TRAIN}- name: b\n  train: {{preset: debug, data.train: DATA, train.teacher: '${{a}}', "
            "backbone.embedding_size: 32}",
            "stage b: backbone.embedding_size: 32: the teacher's is 64: use the same",
        ),
        (
            f"stages:\n{TRAIN}- name: b\n  train: {{preset: debug, data.train: DATA, backbone.weights: '${{a}}', "
            "backbone.width: 1}",
            "stage b: backbone.weights: of stage a: do not fit mini: shape",
        ),
        (
            f"stages:\n{TRAIN}- name: e\n  embed: {{model: '${{a}}', data: DATA}}\n"
            "- name: p\n  prune: {embeddings: '${e}', data: DATA}",
            "stage p: prune.threshold, prune.keep: neither is given",
        ),
    ],
)
def test_stage_that_its_verb_would_refuse_is_refused_before_anything_starts(
    text: str, message: str, data: Path, fakes: dict[str, Any], calls: list[str], tmp_path: Path
) -> None:
    assert_refused(text, message, data, calls, tmp_path)


def test_check_of_a_teacher_exported_from_a_path_waits_for_its_file(
    fakes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    text = (
        f"stages:\n- name: o\n  export: {{model: {data}}}\n"
        f"- train: {{preset: debug, data.train: {data}, train.teacher: '${{o}}'}}\n"
    )
    assert len(prepared_of(text, fakes, tmp_path)) == 2
    with pytest.raises(ValueError, match=r"distillation: center: takes means"):
        prepared_of(text.replace("'${o}'", "'${o}', train.distillation: center"), fakes, tmp_path)


def test_check_of_first_weights_that_do_not_fit_the_net_is_refused(
    fakes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    torch.save({"conv": torch.zeros(1)}, tmp_path / "w.pt")
    text = f"stages: [{{train: {{preset: debug, data.train: {data}, backbone.weights: {tmp_path / 'w.pt'}}}}}]"
    with pytest.raises(ValueError, match=r"stage train: weights .*w.pt do not fit mini: missing"):
        prepared_of(text, fakes, tmp_path)


def test_check_of_validation_on_a_dataset_of_an_earlier_stage_waits_for_it(
    fakes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    evaluate = "{all_vs_all: '${synth}', group_by: race, protocols: [all_vs_all]}"
    text = f"stages:\n- synth: {{}}\n- train: {{preset: debug, data.train: {data}, evaluate: {evaluate}}}"
    assert len(prepared_of(text, fakes, tmp_path)) == 2
    with pytest.raises(ValueError, match=r"stage train: evaluate.protocols: pairs: its inputs are not set"):
        prepared_of(text.replace("[all_vs_all]", "[pairs]"), fakes, tmp_path)
