"""Values of LMDB databases: images, pickles and Datums, and what is none of these."""

import pickle
import re

import pytest

from rayface.data.sources.lmdb_values import EntryError, parse_entry
from tests.data.sources.test_lmdb import JPEG, datum


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (JPEG[0], None),
        (pickle.dumps((JPEG[0], 3)), 3),
        (pickle.dumps(["ann", JPEG[0]]), "ann"),
        (pickle.dumps(JPEG[0]), None),
        (datum(JPEG[0], 300), 300),
    ],
)
def test_parse_entry_of_every_form_finds_image_and_label(value: bytes, label: object) -> None:
    for given in (value, memoryview(value)):
        entry = parse_entry(given)
        assert (entry.image(given), entry.label) == (JPEG[0], label)


@pytest.mark.parametrize("label", [0, 46, 128, 5888, 6015, 1 << 20])
def test_parse_entry_of_a_datum_that_ends_as_a_pickle_finds_its_label(label: int) -> None:
    # As Caffe writes it: the label is the last field.
    entry = parse_entry(datum(b"abc", label, (3, 1, 1)))
    assert (entry.label, entry.shape) == (label, (3, 1, 1))
    assert parse_entry(datum(b"abc", label, (3, 1, 1)) + b"\x38\0").shape == (3, 1, 1)  # encoded: false


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_parse_entry_of_a_pickle_of_any_protocol_finds_its_label(protocol: int) -> None:
    value = pickle.dumps((JPEG[0], 46), protocol)
    entry = parse_entry(value)
    assert (entry.image(value), entry.label) == (JPEG[0], 46)


@pytest.mark.parametrize("value", [b"", b"text", pickle.dumps((3, 4)), datum(b"", 3)[:-3], b"\xff" * 40, b"\x22\x7fab"])
def test_parse_entry_of_anything_else_is_refused(value: bytes) -> None:
    with pytest.raises(EntryError, match="neither an image, nor a pickle or Datum"):
        parse_entry(value)


@pytest.mark.parametrize(("size", "shape"), [(3, (3, 2, 2)), (4, (4, 1, 1)), (2, (2, 1, 1))])
def test_entry_of_raw_pixels_of_another_size_or_number_of_channels_is_refused(
    size: int, shape: tuple[int, int, int]
) -> None:
    value = datum(bytes(size), 3, shape)
    with pytest.raises(EntryError, match=re.escape(f"{size} bytes for pixels of shape {shape}")):
        parse_entry(value).image(value)
