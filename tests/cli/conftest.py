"""The command line in this process."""

from collections.abc import Callable

import pytest

from rayface.cli import _outcome

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A function of arguments -> exit code, stdout, and stderr with the line of an error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code, message = _outcome([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err + message

    return call
