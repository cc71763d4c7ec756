"""The interface of selection methods."""

from rayface.curate.prune.methods import (
    FaceNMS,
    Herding,
    Random,
)


def test_fingerprint_of_equal_methods_is_equal_and_of_others_is_not() -> None:
    methods = [FaceNMS(threshold=0.5), FaceNMS(threshold=0.4), Random(keep=0.5), Herding(keep=0.5)]
    assert FaceNMS(threshold=0.5).fingerprint() == methods[0].fingerprint()
    assert len({method.fingerprint() for method in methods}) == 4
