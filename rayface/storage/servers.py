"""Servers of object stores that the user has named: files from outside may name no others, which get credentials."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from rayface.credentials import mask
from rayface.storage.errors import DataError
from rayface.values import parse_list

_known: set[str] = set()  # servers of the URIs that this process was given or has opened
_AZURE = re.compile(r"[\w.-]*\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)", re.ASCII)


def remember_server(uri: str) -> None:
    """Note the servers of a path or URI that the user gave: files may name them, see `require_known_server`."""
    _known.update(_servers(uri))


def record_servers(values: object) -> None:
    """Note the servers of all URIs in the values of a command, also for later commands of this user on this machine."""
    for text in _texts(values):
        remember_server(text)
        for name in _servers(text):
            with contextlib.suppress(OSError):  # without it, a resume asks for the URI again
                _record(name).parent.mkdir(parents=True, exist_ok=True)
                _record(name).touch()


def require_known_server(uri: str, field: str, remedy: str | None = None) -> None:
    """Refuse a URI in a file, which may come from outside, of a server that nobody else has named.

    A server is known if this process was given or has opened a URI of it, if an earlier command of this user was given
    one, see `record_servers`, or if AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names it.

    Args:
        field: where the URI stands, for the message.
        remedy: how to name the server; None: for a selection.

    Raises:
        DataError: one line that starts with `field`.
    """
    variable = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    named = urlsplit(_url(variable, "https"))
    known = {*_known, f"{named.scheme}://{named.netloc}"}
    unknown = [name for name in _servers(uri) if name not in known and not os.path.isfile(_record(name))]
    if unknown:
        own = "store the selection on that server too, and open it from there"
        remedy = remedy or ("set AWS_ENDPOINT_URL_S3 to it" if uri.startswith("s3://") else own)
        raise DataError(
            f"{field}: {mask(uri)}: {mask(unknown[0])!r}: must be a server that you name, since it gets your "
            f"credentials: if you trust it, {remedy}"
        )


def require_known_servers(values: Mapping[str, object], directory: object) -> None:
    """Refuse URIs in the stored config of a resumed job of servers that nobody else has named.

    Args:
        values: by config key.
        directory: of the job, for the message.

    Raises:
        DataError: one line that starts with the key.
    """
    for key, value in values.items():
        remedy = f"give {key.removeprefix('search.')} again: only the config in {directory} names it"
        for text in _texts(value):
            require_known_server(text, key, remedy)


def _record(name: str) -> Path:
    import platformdirs  # the machine of the GPU kit lacks it

    return platformdirs.user_state_path("rayface") / "servers" / quote(mask(name), safe="")


def _texts(value: object) -> list[str]:
    """Return the texts in a tree of values; '[a,b]' is a list, as on the command line."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            return parse_list(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def _servers(uri: str) -> list[str]:
    """Return the servers, other than those of the provider, that requests with credentials of this URI go to."""
    kind, _, rest = uri.partition("://")
    place, _, query = rest.partition("?")
    options = parse_qs(query)
    if kind in ("abfs", "abfss"):
        # As in Arrow: [ACCOUNT@]CONTAINER/PATH, but a decoded host with a dot or a port is a server.
        host = unquote(re.split("[/#]", place, maxsplit=1)[0].rpartition("@")[2])
        authorities = [each for name, values in options.items() if name.endswith("authority") for each in values]
        named = {host, *authorities} if "." in host or ":" in host else set(authorities)
        return sorted(name for name in named if not _AZURE.fullmatch(name))
    schemes = options.get("scheme", ["https"])
    return [_url(endpoint, scheme) for endpoint in options.get("endpoint_override", ()) for scheme in schemes]


def _url(endpoint: str, scheme: str) -> str:
    return (endpoint if "://" in endpoint else f"{scheme}://{endpoint}").rstrip("/")
