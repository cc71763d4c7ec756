"""The interface of evaluation protocols: results as JSON has them, and what a protocol must say."""

from dataclasses import dataclass

import numpy as np
import pytest

from rayface.evaluation.protocol import (
    EvaluationProtocol,
    Figure,
    ProtocolResult,
    Roc,
    evaluation_content,
    fault_of,
)


@dataclass(frozen=True, kw_only=True)
class Ranked(ProtocolResult):
    rank_1: float

    def figures(self) -> dict[str, Figure]:
        return {"rank_1": self.rank_1}

    @property
    def main_figure(self) -> float:
        return self.rank_1


def test_evaluation_content_without_a_curve_is_the_figures_of_all_protocols() -> None:
    results = {"near": Ranked(rank_1=0.5), "far": Ranked(rank_1=0.4, not_measured={"rank_5": "no probes"})}
    wanted = {"near": {"rank_1": 0.5}, "far": {"rank_1": 0.4, "not_measured": {"rank_5": "no probes"}}}
    assert evaluation_content(results) == {"rank_1": 0.5, "protocols": wanted}


def test_evaluation_content_with_a_curve_adds_points_of_it_in_jsons_types() -> None:
    far = np.linspace(0, 1, 10_001)
    content = evaluation_content({"near": Ranked(rank_1=0.5, roc=Roc(far, far**0.5))})
    assert content["rank_1"] == 0.5
    assert content["curves"] == {"near": {"roc": content["roc"]}}
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


def test_fault_of_embeddings_that_cannot_be_scored_says_why() -> None:
    good = np.eye(3, dtype=np.float32)
    assert fault_of(good) is None
    assert fault_of(np.where(good == 1, np.nan, good)) == "3 of 3 embeddings are NaN or infinite: the model diverged"
    assert fault_of(good * [[0], [1], [1]]) == "1 of 3 images have no embedding"
