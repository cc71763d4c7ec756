"""The command line in this process."""

from collections.abc import Callable
from typing import Any

import pytest

from rayface.cli.command_line import _outcome

Call = Callable[..., tuple[int, str, str]]


class Result(dict[str, Any]):
    """A result of the library: a dataclass that says itself as a dict, or that dict."""

    def as_dict(self) -> dict[str, Any]:
        return dict(self)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A function of arguments -> exit code, stdout, and stderr with the line of an error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code, message = _outcome([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err + message

    return call
