"""Lets the tests of this folder import what they share with `make faults`, and makes the rig once."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tracking")]

if TYPE_CHECKING:
    from fault_stage import Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Rig"]:
    """A cluster of this folder's own; a module's, so that it is gone before others start a Ray."""
    from fault_stage import Rig

    rig = Rig(tmp_path_factory.mktemp("faults"))
    yield rig
    rig.close()
