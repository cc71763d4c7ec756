"""Credentials in URIs and the environment: masked in all output, stored in no file, restored when a URI is opened.

`mask` is applied to all output: files, MLflow, the terminal, error messages. A masked URI, such as the dataset in the
config.yaml of a resumed run, is opened with the credentials that this process has seen for the same location, else with
those of the environment.
"""

import functools
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

_MASK = "***"
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*\Z")
_LONGEST_SCHEME = 32  # characters
_WORD = re.compile(r"\S*")
_WITH_PORT = {"http", "https", "hdfs", "viewfs"}  # paths after host and port may contain an @
_WITH_CONTAINER = {"abfs", "abfss"}  # the user part is the container
_WITH_TOKEN = re.compile(r"https?|s3\w?|gs|gcs")  # a user without a password may be a token
_PLAIN = r"(?:image|label|object|row|sort|group|join|partition|primary|foreign)[_.-]key"  # names of keys of data
_SECRET = (
    rf"(?!{_PLAIN}\Z)(?:"
    r"[\w.%-]*(?:passw|passphrase|pwd|secret|token|signature|credential|access[_-]?key|api[_-]?key|account[_-]?key"
    r"|private[_-]?key|storage[_-]?key)[\w.%-]*|(?:[\w.%-]*[_.-])?(?:pass|pw|psw|key|auth|jwt|pat|sas|sig|bearer)"
    r"|authorization|code)"
)
_PARAMETER = re.compile(r"[?&;#]([\w.%-]++)=")
_VALUE = re.compile(r"[^&\s]*")
# A variable in the text of an error or a command. Its end is found once, and a quoted value has an end, so that no long
# word or line is searched from each letter.
_LONGEST = 4096
_VARIABLE = "[A-Z][A-Z0-9_]*+"
_KIND = (
    "PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|(?:API|ACCESS|ACCOUNT|PRIVATE|STORAGE)_KEY"
    "|_(?:PASS|PW|PSW|KEY|AUTH|JWT|PAT|SAS|SIG|BEARER)(?![A-Z0-9_])"
)
_SET = rf"{_VARIABLE}['\"]?[ \t]*+[:=][ \t]*+"
_ASSIGNED = re.compile(
    rf"""\b(?:(?!{_PLAIN.upper()}(?![A-Z0-9_]))(?=[A-Z0-9_]*?(?:{_KIND}))(?:"""
    # NAME='a value', {'NAME': 'a value'}, and 'NAME=a value' as shlex.join writes it, which writes a quote as '"'"'
    rf"""((?<='){_VARIABLE}=|{_SET}')(?:[^'\\\n]|\\.|'"'"'){{1,{_LONGEST}}}+(?=')"""
    rf"""|((?<="){_VARIABLE}=|{_SET}")(?:[^"\\\n]|\\.){{1,{_LONGEST}}}+(?=")"""
    rf"""|({_VARIABLE}(?:=| = )(?:\\*['"])?)[^\s'"]+)"""
    r"""|(Authorization['"]?: *['"]?(?:Bearer|Basic) +)[^\s'"]+)"""  # a header of a request
)
_PLACE = re.compile(r".*_(FILE|PATH|DIR|FOLDER|HOME|URI|URL|MODE)|SSH_.*|(OLD)?PWD", re.IGNORECASE)  # no secrets
_LEAST = 8  # characters of a secret of the environment; shorter ones occur in other words
_seen: dict[tuple[str, str, str], tuple[str, str]] = {}  # (scheme, host, masked query) -> (userinfo, query)


def mask(text: str) -> str:
    """Return `text` with the user and password of every URI, and the values of secret parameters, replaced by `***`.

    Values of environment variables whose names say that they are secrets are replaced wherever they are. A user name
    without a password is kept, unless it may be a token or a key. If the end of a password is ambiguous because it
    contains / or @, more is masked rather than less.
    """
    return _mask(text, _secrets())


def _mask(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, _MASK)
    return _ASSIGNED.sub(_masked_value, _mask_parameters(_mask_uris(text)))


def _mask_uris(text: str) -> str:
    """Mask every scheme://rest; a rest ends at white space or at the next scheme."""
    # From each :// to its left: in an image in base64, one long word, a search would start at every letter.
    found, last, at = [], 0, text.find("://")
    while at >= 0:
        if scheme := _SCHEME.search(text, max(last, at - _LONGEST_SCHEME), at):
            found.append((scheme.start(), at))
        last = at + 3
        at = text.find("://", last)
    parts, done = [], 0
    for (start, at), (end, _) in itertools.pairwise([*found, (len(text), 0)]):
        word = _WORD.match(text, at + 3, end)
        assert word is not None
        parts += [text[done:start], _masked_uri(text[start:at], word[0])]
        done = word.end()
    return "".join([*parts, text[done:]])


def _mask_parameters(text: str) -> str:
    parts, done = [], 0
    for found in _PARAMETER.finditer(text):
        if found.start() >= done and is_secret_name(found[1]):
            value = _VALUE.match(text, found.end())
            assert value is not None
            parts += [text[done : found.end()], _MASK]
            done = value.end()
    return "".join([*parts, text[done:]])


def _secrets() -> tuple[str, ...]:
    """Return the secrets of the environment, plain and percent-encoded, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if len(value) < _LEAST or not is_secret_name(name) or _PLACE.fullmatch(name):
            continue
        if not value.isalpha() and not os.path.exists(value):  # a word or a folder would be masked in other texts too
            found |= {value, quote(value, safe="")}
    return tuple(sorted(found, key=len, reverse=True))


@functools.lru_cache(4096)
def is_secret_name(name: str) -> bool:
    """Return whether a parameter or environment variable of this name may hold a secret."""
    return re.fullmatch(_SECRET, name, re.IGNORECASE) is not None


def masked(value: object) -> Any:
    """Return a tree of dicts, lists and strings with every string masked."""
    return _masked(value, _secrets())


def _masked(value: object, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str | Path):
        return _mask(str(value), secrets)
    if isinstance(value, Mapping):
        return {_masked(key, secrets): _masked(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each, secrets) for each in value]
    return value


def is_masked(uri: str) -> bool:
    """Return whether a URI has masked credentials."""
    return bool(re.search(rf"://(?:[^@/:]*:)?{re.escape(_MASK)}@|={re.escape(_MASK)}(?:&|$)", uri))


def unmasked(uri: str, setting: str, given: str | None, variable: str) -> str:
    """Return `uri`, with masked credentials taken from `given`, the value of an environment variable.

    Raises:
        ValueError: they are masked, and the variable is unset, masked too, or names another location.
    """
    if not is_masked(uri):
        return uri
    if given and not is_masked(given) and mask(given) == uri:
        return given
    raise ValueError(f"{setting}: {uri}: its password is not stored: give it again, or the whole URI in {variable}")


def openable(uri: str) -> str:
    """Return a URI that a filesystem can open: credentials are percent-encoded, masked ones restored or removed."""
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
    """Return a masked URI with the credentials that this process has seen for its location; others unchanged."""
    if "://" not in uri or not is_masked(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    _, rest = _split(rest, _end_of_login(scheme, rest))
    place, _, query = rest.partition("?")
    if (scheme, place.partition("/")[0], mask(f"?{query}")) not in _seen:
        return uri
    return openable(uri)


def _masked_value(found: re.Match[str]) -> str:
    return f"{found[found.lastindex or 0]}{_MASK}"


def _masked_uri(scheme: str, rest: str) -> str:
    end = _end_of_login(scheme, rest, widest=True)
    if end < 0:
        return f"{scheme}://{rest}"
    user, colon, _ = rest[:end].partition(":")
    if not colon and not _WITH_TOKEN.fullmatch(scheme):
        return f"{scheme}://{rest}"
    if scheme in _WITH_CONTAINER:
        return f"{scheme}://{user}:{_MASK}{rest[end:]}"
    return f"{scheme}://{_MASK}{rest[end:]}"


def _end_of_login(scheme: str, rest: str, *, widest: bool = False) -> int:
    """Return the index of the @ that ends the credentials in the text after ://; -1 without credentials.

    It is the last @ before the first /, or, with `widest`, the last one that can be meant. Without such an @, a colon
    before the first / that is not followed by a port belongs to the credentials.
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
