"""Open files of object stores, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from rayface.storage import Source, is_local

_KEPT_OPEN = 256  # open files of object stores; many systems limit a process to 1,024


class OpenFiles:
    """Thread-safe cache of open files of object stores; the least recently used are closed first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, path: str) -> Iterator[Source]:
        if is_local(path):  # opening is cheap, and a removed shard is noticed
            with Source(path) as source:
                yield source
            return
        with self._lock:
            entry = self._entries.setdefault(path, _Entry())
            self._entries.move_to_end(path)
            entry.users += 1
        try:
            with entry.lock:  # the first thread opens it for all that wait
                entry.source = entry.source or Source(path)
            yield entry.source
        finally:
            with self._lock:
                entry.users -= 1
                excess = self._excess()
            for each in excess:
                each.close()

    def _excess(self) -> list[_Entry]:
        """Remove and return unused files, the longest unused first, down to the number that may stay open."""
        excess = len(self._entries) - _KEPT_OPEN
        if excess <= 0:
            return []
        idle = [path for path, entry in self._entries.items() if not entry.users]
        return [self._entries.pop(path) for path in idle[:excess]]

    def close(self) -> None:
        while self._entries:
            self._entries.popitem()[1].close()


class _Entry:
    def __init__(self) -> None:
        self.source: Source | None = None
        self.users = 0
        self.lock = threading.Lock()

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
