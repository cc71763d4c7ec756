"""Read one image file of a folder."""

import functools
import os

from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.shards.members import IMAGE_SUFFIXES
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import SourceImage
from rayface.storage import DataError, Source, is_local, join, one_line, printable

_SUFFIXES = IMAGE_SUFFIXES | {"jp2", "pbm", "pgm", "ppm", "pnm"}
_MAX_BYTES = 1 << 30


def read_image_file(root: str, path: str) -> SourceImage | Fault:
    """Return the image at a path relative to `root`, or the fault: unreadable, no image, larger than 1 GiB."""
    where = join(root, path)
    if is_local(root) and not _is_inside(root, where):
        return _fault(root, path, "link", "symbolic link that leads out of the folder, not followed")
    try:
        with Source(where) as source:
            if image_format(source.read(0, SNIFF_BYTES)) is None and not has_image_suffix(path):
                return _fault(root, path, "other file", "not an image")
            if source.size > _MAX_BYTES:
                return _fault(root, path, "unreadable", f"{source.size} bytes, more than {_MAX_BYTES}")
            return SourceImage(source.read(0, source.size), root, printable(path))
    except DataError as error:
        return _fault(root, path, "unreadable", one_line(error).removeprefix(f"{where}: "))


def _is_inside(root: str, path: str) -> bool:
    """Return whether a path is in a folder when all links are followed, those of its folders included."""
    top, folder = _real_folder(root), _real_folder(os.path.dirname(path))
    real = os.path.realpath(path) if os.path.islink(path) else folder
    return os.path.commonpath([real, top]) == top


_real_folder = functools.lru_cache(maxsize=1024)(os.path.realpath)  # looks at each of its parents


def has_image_suffix(path: str) -> bool:
    """Return whether a name ends as that of an image."""
    return path.rpartition(".")[2].lower() in _SUFFIXES


def _fault(root: str, path: str, kind: str, reason: str) -> Fault:
    return Fault(shard=root, member=printable(path), reason=reason, kind=kind)
