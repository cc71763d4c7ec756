"""Errors of data and of storage, and retries of transient storage errors."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

from rayface.credentials import is_masked, mask

logger = logging.getLogger(__name__)

_BACK_OFF = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds before each retry, at most
_JITTER = 0.5  # processes that failed together must not retry together: each wait is shorter by up to this part
# Permanent, like a missing file or permission; others (EMFILE, ESTALE, EIO, ETIMEDOUT, ...) are retried.
_PERMANENT = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
# Permanent errors of object stores, reported as an OSError without a number.
_REFUSED = re.compile(
    r"ACCESS_DENIED|PERMISSION_DENIED|UNAUTHENTICATED|NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|INVALID_ACCESS_KEY|"
    r"INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|ExpiredToken|HTTP status 301|"
    r"PermanentRedirect|QuotaExceeded|InsufficientStorage|StorageFull|Bucket '[^']*' not found"
)
_REMEDIES = (
    (r"NO_SUCH_BUCKET|Bucket '[^']*' not found", "create the bucket, or correct its name"),
    (r"EXPIRED_TOKEN|ExpiredToken", "renew the credentials"),
    (r"ACCESS_DENIED|PERMISSION_DENIED", "the credentials need the right to read, write, list and delete there"),
    (r"HTTP status 301|PermanentRedirect", "name the region of the bucket: ?region=REGION"),
    (r"QuotaExceeded|InsufficientStorage|StorageFull", "free space in the store"),
)
_NOT_KEPT = ": its credentials are not stored: give the URI again with them, or set them in the environment"
_T = TypeVar("_T")


class DataError(ValueError):
    """Data that cannot be used. The message is one line with file, rule and remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(printable(message)))


class StorageError(RuntimeError):
    """A storage error that outlasted all retries; the data may be valid. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


@contextmanager
def naming_full_disk(folder: str, again: str) -> Iterator[None]:
    """Name the folder of an output and the remedy where its disk is full.

    Args:
        again: what a repeated call does, for the message.

    Raises:
        StorageError: the disk is full; one line.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"cannot be written: {os.strerror(error.errno)}"
        raise StorageError(f"{folder}: {reason}: free space there, then run again: {again}") from error


def retried(path: str, operation: Callable[[], _T], what: str = "cannot be read") -> _T:
    """Return operation(), retried with back-off while the storage of `path` reports a transient error.

    Raises:
        DataError: the file or folder is missing, forbidden or cannot be opened.
        StorageError: a transient error persisted for 22 to 44 s.
    """
    for delay in (*_BACK_OFF, None):
        try:
            return operation()
        except (pa.ArrowException, OSError) as error:
            reason = one_line(error)
            if not _may_pass(error):
                raise DataError(f"{path}: {what} ({reason}){_remedy(path, reason)}") from None
            if delay is None:
                raise StorageError(
                    f"{path}: {what} after {len(_BACK_OFF) + 1} tries ({reason}): the storage failed, the data may be "
                    "valid: run again when it is back"
                ) from None
            logger.warning("%s: %s (%s): next try in %g s", mask(path), what, mask(reason), delay)
            time.sleep(delay * random.uniform(1 - _JITTER, 1.0))
    raise AssertionError("unreachable")


def _remedy(path: str, reason: str) -> str:
    if is_masked(path):
        return _NOT_KEPT
    return next((f": {remedy}" for pattern, remedy in _REMEDIES if re.search(pattern, reason)), "")


def _may_pass(error: Exception) -> bool:
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError | PermissionError):
        return False
    return error.errno not in _PERMANENT and not _REFUSED.search(str(error))


def printable(text: str) -> str:
    """Replace the surrogates of names that are not valid UTF-8, which JSON, parquet and tar files cannot store."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
