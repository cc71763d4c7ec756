"""Credentials in URIs: masked in whatever is written or shown, kept in no file, and found again where they are known.

`mask` is applied at every edge: files, MLflow, the terminal, error messages. What was masked, as the dataset in the
config.yaml of a run that is resumed, is opened with the credentials that this process has seen for the same place, else
with those of the environment.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

_MASK = "***"
_URI = re.compile(r"([A-Za-z][\w+.-]*)://((?:(?![A-Za-z][\w+.-]*://)\S)*)")
_WITH_PORT = {"http", "https", "hdfs", "viewfs"}  # whose paths may hold an @ behind the host and its port
_WITH_CONTAINER = {"abfs", "abfss"}  # in the place of the user
_WITH_TOKEN = re.compile(r"https?|s3\w?|gs|gcs")  # for a user without a password
_SECRET = (
    r"[\w.%-]*(?:passw|pwd|secret|token|signature|credential|access[_-]?key|api[_-]?key|account[_-]?key|private[_-]?key)"
    r"[\w.%-]*|sig|key|auth|authorization"
)
_PARAMETER = re.compile(rf"([?&;#](?:{_SECRET})=)([^&\s]*)", re.IGNORECASE)
_seen: dict[tuple[str, str, str], tuple[str, str]] = {}  # (scheme, host, masked query) -> (userinfo, query)


def mask(text: str) -> str:
    """Return `text` with the user and password of every URI, and the values of secret parameters, replaced by `***`.

    The name of a user without a password stays, unless it may be a token or a key.
    Where a password with / or @ in it leaves open where it ends, more is masked rather than less.
    """
    return _PARAMETER.sub(rf"\1{_MASK}", _URI.sub(_masked_uri, text))


def masked(value: Any) -> Any:
    """Return a tree of dicts, lists and texts with every text in it masked."""
    if isinstance(value, str | Path):
        return mask(str(value))
    if isinstance(value, Mapping):
        return {masked(key): masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked(each) for each in value]
    return value


def is_masked(uri: str) -> bool:
    """Whether credentials were taken out of a URI."""
    return bool(re.search(rf"://(?:[^@/:]*:)?{re.escape(_MASK)}@|={re.escape(_MASK)}(?:&|$)", uri))


def unmasked(uri: str, setting: str, given: str | None, variable: str) -> str:
    """Return `uri`, its credentials from what is `given` by an environment variable where they are masked.

    Raises:
        ValueError: they are masked, and the variable names another place or none.
    """
    if not is_masked(uri):
        return uri
    if given and mask(given) == uri:
        return given
    raise ValueError(f"{setting}: {uri}: its password is not kept: give it again, or the whole URI in {variable}")


def openable(uri: str) -> str:
    """Return a URI as a filesystem takes it: credentials percent-encoded, masked ones found again or left out."""
    scheme, _, rest = uri.partition("://")
    userinfo, rest = _split(rest, _end_of_login(scheme, rest))
    place, _, query = rest.partition("?")
    where = (scheme, place.partition("/")[0], mask(f"?{query}"))
    if is_masked(uri):
        userinfo, query = _seen.get(where, (userinfo, query))
        userinfo = re.sub(rf"(^|:){re.escape(_MASK)}$", "", userinfo)
        query = "&".join(part for part in query.split("&") if not part.endswith(f"={_MASK}"))
    elif mask(uri) != uri:
        _seen[where] = (userinfo, query)
    user, colon, password = userinfo.partition(":")
    login = f"{_encoded(user)}{colon}{_encoded(password)}@" if userinfo else ""
    return f"{scheme}://{login}{place}" + (f"?{query}" if query else "")


def recall(uri: str) -> str:
    """Return a masked URI with the credentials that this process has seen for its place; any other as it is."""
    if "://" not in uri or not is_masked(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    _, rest = _split(rest, _end_of_login(scheme, rest))
    place, _, query = rest.partition("?")
    if (scheme, place.partition("/")[0], mask(f"?{query}")) not in _seen:
        return uri
    return openable(uri)


def _masked_uri(found: re.Match[str]) -> str:
    scheme, rest = found[1], found[2]
    end = _end_of_login(scheme, rest, widest=True)
    if end < 0:
        return found[0]
    user, colon, _ = rest[:end].partition(":")
    if not colon and not _WITH_TOKEN.fullmatch(scheme):
        return found[0]
    if scheme in _WITH_CONTAINER:
        return f"{scheme}://{user}:{_MASK}{rest[end:]}"
    return f"{scheme}://{_MASK}{rest[end:]}"


def _end_of_login(scheme: str, rest: str, *, widest: bool = False) -> int:
    """Return the place of the @ behind the credentials of what follows ://, -1 where there are none.

    An @ in front of the first / ends them, unless they are to be the widest that can be meant. Where there is none,
    a colon there is part of them, if it is not the one of a port.
    """
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in head:
        return rest.rfind("@") if widest and ":" in head else head.rfind("@")
    _, colon, port = head.partition(":")
    if not colon or (scheme in _WITH_PORT and port.isdecimal()):
        return -1
    return rest.rfind("@")


def _split(rest: str, end: int) -> tuple[str, str]:
    return (rest[:end], rest[end + 1 :]) if end >= 0 else ("", rest)


def _encoded(text: str) -> str:
    return quote(text, safe="%!$&'()*+,;=-._~")
