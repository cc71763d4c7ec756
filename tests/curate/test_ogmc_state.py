"""Settings of online clustering at and beyond their bounds, and room for components and identities."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate import ogmc as module
from rayface.curate.ogmc import OnlineGaussianMixture


def test_ogmc_whose_components_leave_in_a_body_keeps_within_its_arrays() -> None:
    vectors = leaving_in_a_body()
    own = OnlineGaussianMixture(radius=0.25, link=0.35, base=0, min_images=1)
    most = []
    for start in range(0, len(vectors), module._BLOCK):
        state = own.partial_fit(vectors[start : start + module._BLOCK])._state
        assert state is not None
        components, identities, free, _ = state.counters.tolist()
        assert free <= identities <= min(map(len, (state.sizes, state.identity_sums, state.free)))
        assert identities <= components <= min(map(len, (state.counts, state.near, state.sums)))
        most.append(identities)
    assert max(np.diff(most)) > module._BLOCK  # more identities than images in a block


def leaving_in_a_body(loose: int = 600, tight: int = 700) -> NDArray[np.float64]:
    """Unit vectors of a person whose images are equally far from each other, and then of one like them, all alike.

    The more of the second arrive, the more cohesive is the identity of both, until all components of the first leave.
    """
    noise = np.random.default_rng(0).standard_normal((tight, loose + 2))
    center = np.eye(1, loose + 2)
    first = 0.58 * center + (1 - 0.58**2) ** 0.5 * np.eye(loose, loose + 2, 2)
    second = 0.63 * center + (1 - 0.63**2) ** 0.5 * np.eye(1, loose + 2, 1)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return np.concatenate([center, first, 0.95**0.5 * second + 0.05**0.5 * noise])


@pytest.mark.parametrize(
    "options",
    [
        {"radius": 0},
        {"radius": 2.1},
        {"link": 1.1},
        {"base": 0.3},
        {"base": -1.1},
        {"slack": 1},
        {"slack": -0.1},
        {"prior": 0},
        {"revisits": -1},
        {"min_images": 0},
    ],
)
def test_ogmc_refuses_thresholds_out_of_range(options: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        OnlineGaussianMixture(**{"radius": 0.7, "link": 0.3, **options})


def test_ogmc_takes_thresholds_at_their_bounds() -> None:
    options: Any = {
        "radius": 2.0,
        "link": 1.0,
        "base": -1.0,
        "slack": 0.0,
        "prior": np.inf,
        "revisits": 0,
        "min_images": 1,
    }
    assert vars(OnlineGaussianMixture(**options).settings) == options
