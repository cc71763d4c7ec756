"""URIs of SQLite files, as SQLAlchemy reads them: a ? ends the path, and %20 is a space."""

import os
from pathlib import Path
from urllib.parse import quote, unquote

SCHEME = "sqlite:///"
_SPECIAL = set("%?&;#")  # the last three begin a parameter, which may be masked as a secret


def sqlite_uri(path: Path | str) -> str:
    """Return the URI of a file.

    The slashes of an encoded path are encoded too: MLflow creates the parent folder of the path as it stands in the
    URI, and creates none for a path without slashes.
    """
    text = str(path)
    return SCHEME + (quote(text, safe="") if _SPECIAL & set(text) else text)


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a sqlite:/// URI, None for another one, of memory (:memory:) or of SQLite (file:)."""
    if not uri.startswith(SCHEME) or uri.startswith((f"{SCHEME}:", f"{SCHEME}file:")):
        return None
    return Path(unquote(uri.removeprefix(SCHEME).partition("?")[0]))


def absolute_sqlite_uri(uri: str) -> str:
    """Return the URI of a file with an absolute path and without ~; other URIs are unchanged."""
    path = sqlite_path(uri)
    if path is None:
        return uri
    _, mark, options = uri.partition("?")
    return f"{sqlite_uri(os.path.abspath(path.expanduser()))}{mark}{options}"
