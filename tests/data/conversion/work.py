"""A conversion's work folder with listed units, for tests of its passes."""

from pathlib import Path

from rayface.data.conversion.listing import Listed, list_sources
from rayface.data.conversion.mapping import map_in_threads
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.spill import Spill
from rayface.data.conversion.work_folder import WorkFolder
from rayface.data.sources.base import DatasetSource
from tests.data.scanned_tars import picture
from tests.data.sources.in_memory import Images, InMemory


def images(count: int, identities: int = 3, first: int = 0) -> Images:
    return [(f"k{n}", f"id{n % identities}", picture(n, "jpg")) for n in range(first, first + count)]


def work_folder(path: Path) -> WorkFolder:
    work = WorkFolder(out=str(path))
    work.create()
    return work


def listed(work: WorkFolder, *sources: DatasetSource, settings: ConvertSettings | None = None) -> Listed:
    return list_sources(sources, work, settings or ConvertSettings(), map_in_threads)


def spilled(
    work: WorkFolder, source: InMemory, settings: ConvertSettings | None = None, piece_bytes: int = 1 << 20
) -> Listed:
    """List and read all units of a source."""
    settings = settings or ConvertSettings()
    found = listed(work, source, settings=settings)
    spill = Spill(sources=[source], work=work, settings=settings, piece_bytes=piece_bytes)
    for unit in found.units:
        spill([unit])
    return found
