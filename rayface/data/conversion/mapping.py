"""Map a function over the parts of a conversion: the interface, and threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rayface.machine import num_cpus
from rayface.pools import thread_pool
from rayface.progress import phase
from rayface.storage import naming_full_disk

AGAIN = "it resumes"  # for messages
Part = TypeVar("Part")
Result = TypeVar("Result")


class MapParts(Protocol):
    """Calls work(part) for every part, in any order; `rayface.ray_tasks.map_unordered` is one.

    `work` and the parts are pickled if other processes do the work.
    """

    def __call__(
        self, work: Callable[[Part], Result], parts: Sequence[Part], name: str, *, rows: int | None = None
    ) -> Iterator[Result]:
        """Yield the results; `name` and `rows` as in `progress.phase`."""
        ...


def map_in_threads(
    work: Callable[[Part], Result], parts: Sequence[Part], name: str, *, rows: int | None = None
) -> Iterator[Result]:
    """Call work(part) in a thread for each CPU."""
    if not parts:
        return
    with phase(name, parts=len(parts), rows=rows) as current, thread_pool(num_cpus()) as pool:
        for future in as_completed([pool.submit(work, part) for part in parts]):
            value = future.result()
            current.advance()
            yield value


@dataclass(frozen=True)
class NamedWork(Generic[Part, Result]):
    """Work of a task, in which a full disk is named: only the text of its error leaves the task."""

    work: Callable[[Part], Result]
    folder: str

    def __call__(self, part: Part) -> Result:
        with naming_full_disk(self.folder, AGAIN):
            return self.work(part)


def named_parts(map_parts: MapParts, folder: str) -> MapParts:
    """Return `map_parts` with a full disk named as that of `folder`."""

    def mapped(
        work: Callable[[Part], Result], parts: Sequence[Part], name: str, *, rows: int | None = None
    ) -> Iterator[Result]:
        return map_parts(NamedWork(work, folder), parts, name, rows=rows)

    return mapped
