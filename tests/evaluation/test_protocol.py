"""The interface of evaluation protocols: results as JSON has them, and what a protocol must say."""

from dataclasses import dataclass

import numpy as np
import pytest

from rayface.evaluation.protocol import EvaluationProtocol, Figure, ProtocolResult, Roc


@dataclass(frozen=True, kw_only=True)
class Ranked(ProtocolResult):
    rank_1: float

    def figures(self) -> dict[str, Figure]:
        return {"rank_1": self.rank_1}

    @property
    def main_figure(self) -> float:
        return self.rank_1


def test_result_without_a_curve_is_its_figures_alone() -> None:
    assert Ranked(rank_1=0.5).as_dict() == {"rank_1": 0.5}


def test_result_with_a_curve_adds_points_of_it_in_jsons_types() -> None:
    far = np.linspace(0, 1, 10_001)
    content = Ranked(rank_1=0.5, roc=Roc(far, far**0.5)).as_dict()
    assert content["rank_1"] == 0.5
    roc = content["roc"]
    assert isinstance(roc, dict)
    assert len(roc["far"]) == len(roc["tar"]) <= 500
    assert all(type(value) is float or type(value) is int for value in roc["far"])
    assert (roc["far"][0], roc["tar"][-1]) == (0, 1)


def test_protocol_that_leaves_out_a_method_cannot_be_made() -> None:
    class Half(EvaluationProtocol):
        @property
        def num_images(self) -> int:
            return 3

    with pytest.raises(TypeError, match=r"abstract methods? .*read_images.*score"):
        Half()  # type: ignore[abstract]
    assert Half.inputs.fget(None) == {}  # type: ignore[attr-defined]
