"""Ray's token: whoever has it may run code as this user, because a local Ray listens on all interfaces."""

import contextlib
import os
import tempfile
from pathlib import Path

from rayface.ray_internals import tried_versions_named

with tried_versions_named():
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token


def protect_token(*, create: bool) -> None:
    """Make `~/.ray/auth_token` readable for this user only, where Ray would write it with the user's umask.

    A home that cannot be written, and a file of another user, are left to Ray.

    Args:
        create: write a token where Ray would.
    """
    with contextlib.suppress(OSError, RuntimeError):
        path = Path.home() / ".ray" / "auth_token"
        if create and not path.exists() and _is_needed():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _write(path)
        path.chmod(0o600)
        path.parent.chmod(0o700)


def _is_needed() -> bool:
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return not given and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _write(path: Path) -> None:
    """Write a whole file, unless another process was first."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 600
    try:
        with open(handle, "w") as file:
            file.write(generate_new_authentication_token())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
