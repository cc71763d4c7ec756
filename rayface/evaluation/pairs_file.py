"""Pairs files: a CSV of member names, or the format of LFW's pairs.txt."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("path_a", "path_b", "is_same", "fold")
_DIGITS = 18  # of a fold: int64 holds it
_LFW_HEADER = re.compile(r"(\d+)(?:\s+(\d+))?\s*")


class Pair(NamedTuple):
    """Names of two images, whether they show the same person, and the pair's fold."""

    a: str
    b: str
    is_same: bool
    fold: int


class PairsFile(NamedTuple):
    """Pairs in the order of the file; in LFW's format, names are Ann_Lee_0001.jpg."""

    pairs: list[Pair]
    is_lfw: bool


def read_pairs(path: Path) -> PairsFile:
    """Read a CSV with the columns path_a, path_b, is_same, fold, or a file in the format of LFW's pairs.txt.

    Raises:
        ValueError: the file is missing, a value is out of range, there are fewer than two folds, or only genuine or
            only impostor pairs; one line that begins with the file's name.
    """
    if not path.is_file():
        raise ValueError(f"pairs {path} must be a csv file with the columns {','.join(COLUMNS)}; there is no such file")
    try:
        text = path.read_text("utf-8-sig")  # with a byte order mark, as written by Excel, or without
    except UnicodeDecodeError as error:
        raise ValueError(f"pairs {path} must be UTF-8 text ({error.reason} at byte {error.start})") from None
    header = _LFW_HEADER.fullmatch(text.partition("\n")[0])
    try:
        pairs = _lfw_pairs(text, header) if header else _csv_pairs(text)
        _check(pairs)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"pairs {path} {error}") from None
    return PairsFile(pairs, header is not None)


def lfw_names(name: str) -> list[str]:
    """Return the names that Ann_Lee_0001.jpg may have in a dataset: plain, in the person's folder, or by `convert`."""
    person = name.rpartition("_")[0]
    return [name, f"{person}/{name}", f"{person}_{name}"]


def _csv_pairs(text: str) -> list[Pair]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"must have the columns {','.join(COLUMNS)}; it lacks {', '.join(missing)}")
    if repeated := [column for column in COLUMNS if (reader.fieldnames or []).count(column) > 1]:
        raise ValueError(f"must have each column once; it has {repeated[0]} twice")
    pairs = []
    for row in reader:
        where = f"line {reader.line_num}:"
        if not row["path_a"] or not row["path_b"]:
            raise ValueError(f"{where} path_a and path_b must name two images")
        if row["is_same"] not in ("0", "1"):
            raise ValueError(f"{where} is_same {row['is_same']!r} must be 0 or 1")
        if not (row["fold"] or "").isdecimal() or len(row["fold"]) > _DIGITS:
            raise ValueError(f"{where} fold {row['fold'] and row['fold'][:40]!r} must be a number from 0")
        pairs.append(Pair(row["path_a"], row["path_b"], row["is_same"] == "1", int(row["fold"])))
    return pairs


def _lfw_pairs(text: str, header: re.Match[str]) -> list[Pair]:
    """Parse folds of N pairs of one person (name, number, number), then N of two (name, number, name, number)."""
    folds, per_fold = (int(header[1]), int(header[2])) if header[2] else (1, int(header[1]))
    lines = text.rstrip().split("\n")[1:]
    if len(lines) != 2 * folds * per_fold:
        raise ValueError(
            f"must have {2 * folds * per_fold} lines after the first, which says {folds} folds of {per_fold} pairs of "
            f"one person and as many of two; it has {len(lines)}"
        )
    pairs = []
    for number, line in enumerate(lines):
        fold, place = divmod(number, 2 * per_fold)
        fields = line.split("\t") if "\t" in line else line.split()
        fields = [field.strip() for field in fields]
        is_same = place < per_fold
        numbers = fields[1:3] if is_same else fields[1::2]
        if len(fields) != (3 if is_same else 4) or not all(value.isdecimal() for value in numbers):
            kind = "name, number, number" if is_same else "name, number, name, number"
            raise ValueError(f"line {number + 2}: {line.strip()[:60]!r} must be {kind}, between tabs")
        names = (fields[0], fields[0] if is_same else fields[2])
        a, b = (f"{name}_{int(value):04d}.jpg" for name, value in zip(names, numbers, strict=True))
        pairs.append(Pair(a, b, is_same, fold))
    return pairs


def _check(pairs: list[Pair]) -> None:
    """Refuse pairs that cannot be scored, before the images are embedded."""
    if not pairs:
        raise ValueError("must list at least one pair; it has none")
    if len({pair.fold for pair in pairs}) < 2:
        raise ValueError("must name at least 2 folds: the threshold comes from the pairs outside the fold")
    if len({pair.is_same for pair in pairs}) < 2:
        raise ValueError("must hold pairs of one person and of two: a ROC compares the two")
