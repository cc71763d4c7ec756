"""Lines of lists of images: .lst of InsightFace and of MXNet's im2rec, csv with or without a header, path and label."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from rayface.storage import open_binary
from rayface.values import counted

_PATHS = ("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img", "image_id")
_LABELS = ("label", "identity", "id", "person", "person_id", "subject", "class", "identity_id", "name")


class LineError(ValueError):
    """A line without a path and a label."""


class ListFormat(NamedTuple):
    """Format of the lines: their delimiter (None: white space), and the columns of path and label.

    Columns of -1 differ from line to line.
    """

    delimiter: str | None
    path: int
    label: int
    has_header: bool

    def parse(self, line: str) -> tuple[str, str]:
        """Return path and label of a line.

        Raises:
            LineError: it has none.
        """
        fields = _fields(line, self.delimiter)
        path, label = (self.path, self.label) if self.path >= 0 else _path_and_label(fields)
        if max(path, label) >= len(fields):
            raise LineError(counted(len(fields), "column"))
        if not fields[path] or not fields[label]:
            raise LineError("no path" if not fields[path] else "no label")
        return fields[path], fields[label]


def format_of(first_line: str, second_line: str = "") -> ListFormat:
    """Return the format of a list by its first lines that are not blank.

    Raises:
        LineError: the first line has no path and label, or is probably a header with other names.
    """
    delimiter = "\t" if "\t" in first_line else "," if "," in first_line else None
    fields = [field.lower() for field in _fields(first_line, delimiter)]
    path = next((fields.index(name) for name in _PATHS if name in fields), None)
    label = next((fields.index(name) for name in _LABELS if name in fields), None)
    if path is not None and label is not None:
        return ListFormat(delimiter, path, label, True)
    _path_and_label(fields)
    found = ListFormat(delimiter, -1, -1, False)
    if _has_integer(found, second_line) and not _has_integer(found, first_line):
        raise LineError(f"the second line has an integer label, the first, {first_line.strip()[:40]!r}, has none")
    return found


def names_in_lst(path: str, labels: Sequence[int]) -> list[str] | None:
    """Return the names of labels, which are the folders of their images; None unless they differ and all are known.

    Memory: one name a label.
    """
    names: dict[int, str] = {}
    lines = ListFormat("\t", -1, -1, False)
    with io.TextIOWrapper(open_binary(path), encoding="utf-8", errors="backslashreplace") as text:
        for line in text:
            try:
                image, label = lines.parse(line.rstrip("\r\n"))
            except LineError:
                continue
            folder = image.rpartition("/")[0].rpartition("/")[2]
            if not is_label(label) or not folder or names.setdefault(int(float(label)), folder) != folder:
                return None
    if len(set(names.values())) < len(names) or not all(label in names for label in labels):
        return None
    return [names[label] for label in labels]


def is_label(text: str) -> bool:
    """Return whether a text is an integer, which some lists write as 3.000000."""
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def _has_integer(lines: ListFormat, line: str) -> bool:
    try:
        return is_label(lines.parse(line)[1])
    except LineError:
        return False


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    if '"' in line:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    return [field.strip() for field in line.split(delimiter)]


def _path_and_label(fields: list[str]) -> tuple[int, int]:
    """Return the columns of a line: path label; label path; number, labels, path; or 1, path, label and landmarks."""
    if len(fields) >= 3 and _is_number(fields[0]):
        if not _is_number(fields[1]):
            return 1, 2
        if not _is_number(fields[-1]):
            return len(fields) - 1, 1
    if len(fields) == 2:
        return (1, 0) if _is_number(fields[0]) and not _is_number(fields[1]) else (0, 1)
    raise LineError(f"{counted(len(fields), 'column')}, neither path and label nor number, label, path")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
