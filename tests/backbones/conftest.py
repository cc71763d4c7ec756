"""Settings of the backbones' tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.backbones.narrow_nets import NARROW


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run narrow nets on one thread: sharing them out costs more than it saves, six times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=NARROW, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param
