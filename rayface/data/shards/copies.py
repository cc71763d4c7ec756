"""Copies of an object store's shards in a node's cache, made in the background while samples are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayface.credentials import mask
from rayface.storage import (
    AtomicFile,
    DataError,
    Source,
    StorageError,
    is_local,
    join,
    list_files,
    node_cache,
    one_line,
    split,
)

if TYPE_CHECKING:
    from rayface.data.dataset import Shard

_BLOCK = 8 << 20  # bytes of a request
_REQUESTS = 4  # of a process, in flight for copies
_TOUCH_SECONDS = 600.0  # a copy in use is marked so as often
_IN_USE_SECONDS = 3600.0  # a copy marked so late is not deleted
_UNUSED_SECONDS = 30 * 24 * 3600.0  # a copy not used for so long is
_SHA256 = re.compile("[0-9a-f]{64}")
_PAUSE_SECONDS = 60.0  # after the disk or the store failed, or the cache was full

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CopyRules:
    """What a node may copy: the name of each shard's copy ("" for a shard on a disk), and the bytes of all copies.

    The name changes with the content of a shard: it is the sha256, where that is known.
    """

    names: tuple[str, ...]
    max_bytes: int


def copy_rules(shards: Sequence[Shard], max_bytes: int) -> CopyRules:
    """Return the rules for shards; one without a sha256 is known by its path, size and time.

    Raises:
        DataError, StorageError: a folder cannot be listed.
    """
    unknown = [shard.path for shard in shards if not (_digest_of(shard) or is_local(shard.path))]
    folders = dict.fromkeys(split(path)[0] for path in unknown)
    files = {join(folder, file.name): file for folder in folders for file in list_files(folder)}

    def name(shard: Shard) -> str:
        if is_local(shard.path):
            return ""
        if digest := _digest_of(shard):
            return digest
        if shard.path not in files:
            return ""
        state = json.dumps([mask(shard.path), files[shard.path].size, files[shard.path].mtime_ns])
        return f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.tar"

    return CopyRules(tuple(map(name, shards)), max_bytes)


def _digest_of(shard: Shard) -> str | None:
    """Return the sha256 of a shard as a file name; None for any other text, which a foreign manifest may hold."""
    return shard.sha256 if shard.sha256 and _SHA256.fullmatch(shard.sha256) else None


class _CacheFullError(Exception):
    pass


class ShardCopies:
    """The copies of a dataset's shards on this node; those that are missing are made by a thread, one at a time.

    All processes of the user share them. A copy is complete and, where its sha256 is known, checked, or absent. Beyond
    the allowed bytes, copies that nobody used for an hour make room, and without such nothing more is copied.

    Raises:
        DataError: no folder of the cache can be written.
    """

    def __init__(self, shards: Sequence[str], rules: CopyRules) -> None:
        self._shards, self._rules = shards, rules
        self._folder = node_cache("shards")
        self._marked: dict[int, float] = {}  # when a copy was last marked as used
        self._wanted: dict[int, None] = {}
        self._refused: set[int] = set()
        self._told: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def paths(self, numbers: Iterable[int]) -> dict[int, str]:
        """Return the copies of those of the shards that have one; copies of the others are made."""
        now, found, missing = time.monotonic(), {}, []
        for number in numbers:
            name = self._rules.names[number]
            if not name or number in self._refused:
                continue
            path = str(self._folder / name)
            if now - self._marked.get(number, -_TOUCH_SECONDS) >= _TOUCH_SECONDS:
                try:
                    os.utime(path)
                except OSError:
                    missing.append(number)
                    continue
                self._marked[number] = now
            found[number] = path
        if missing:
            self._request(missing)
        return found

    def forget(self, number: int, *, damaged: bool) -> None:
        """Look for a copy again that could not be read; delete one that is damaged."""
        self._marked.pop(number, None)
        if damaged:
            path = self._folder / self._rules.names[number]
            logger.warning(
                "%s: the copy of %s is damaged: it is deleted and made again", path, mask(self._shards[number])
            )
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop copying; an unfinished copy is deleted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def _request(self, numbers: Sequence[int]) -> None:
        with self._changed:
            self._wanted = dict.fromkeys(numbers)  # those of the last request: the order of earlier ones has passed
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shard copies", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                number = next(iter(self._wanted))
                del self._wanted[number]
            shard = self._shards[number]
            try:
                self._copy(number)
            except _CacheFullError as error:
                self._pause(str(error))
            except (OSError, DataError, StorageError) as error:
                self._pause(f"{shard}: cannot be copied to {self._folder} ({one_line(error)})")

    def _pause(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("%s: what has no copy is read from the store", mask(reason))
        with self._changed:
            self._changed.wait_for(lambda: self._closed, _PAUSE_SECONDS)

    def _copy(self, number: int) -> None:
        """Copy a shard, unless it is there or another process copies it."""
        from filelock import Timeout  # the machine of the GPU kit lacks it

        from rayface.files import hold_lock

        path = self._folder / self._rules.names[number]
        try:
            lock = hold_lock(path.with_name(f"{path.name}.lock"))
        except Timeout:
            return
        try:
            if not path.exists():
                with Source(self._shards[number]) as source:
                    self._make_room(source.size)
                    self._write(source, path, number)
        finally:
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
            lock.release()

    def _write(self, source: Source, path: Path, number: int) -> None:
        file, digest = AtomicFile(str(path)), hashlib.sha256()
        try:
            file.stream.truncate(source.size)  # other processes see how large it will be
            for block in _blocks(source):
                if self._closed:
                    return
                digest.update(block)
                file.stream.write(block)
            if file.stream.tell() != source.size:
                raise StorageError(f"it has {file.stream.tell()} of {source.size} bytes")
            if _SHA256.fullmatch(path.name) and digest.hexdigest() != path.name:
                self._refused.add(number)
                logger.warning("%s: not copied: its sha256 is not that of the dataset's manifest", mask(source.path))
                return
            file.commit()
        finally:
            file.abandon()

    def _make_room(self, size: int) -> None:
        """Delete copies that nobody used for long; for a file of so many bytes, others that nobody used for an hour.

        Raises:
            _CacheFullError: it would exceed the allowed bytes.
        """
        files = []
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                files.append((file.stat().st_mtime, file.stat().st_size, file))
        size += sum(num_bytes for _, num_bytes, _ in files)
        for changed, num_bytes, file in sorted(files):
            age = time.time() - changed
            if age > _UNUSED_SECONDS or (age > _IN_USE_SECONDS and size > self._rules.max_bytes):
                file.unlink(missing_ok=True)
                size -= num_bytes
        if size > self._rules.max_bytes:
            raise _CacheFullError(f"{self._folder}: data.cache_size={self._rules.max_bytes} bytes are in use")


def _blocks(source: Source) -> Iterator[bytes]:
    """Yield the content of a file, of which the next parts are read ahead."""
    ahead: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for start in range(0, source.size, _BLOCK):
            ahead.append(pool.submit(source.read, start, _BLOCK))
            if len(ahead) == _REQUESTS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
