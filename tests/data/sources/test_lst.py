"""Lines of lists of images, and names of labels from a .lst."""

from pathlib import Path

import pytest

from rayface.data.sources.lst import LineError, ListFormat, format_of, is_label, names_in_lst


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        ("path,label", ListFormat(",", 0, 1, True)),
        ("age\tIdentity\tfile_name", ListFormat("\t", 2, 1, True)),
        ("image_id,identity_id", ListFormat(",", 0, 1, True)),
        ("image_id,filepath,label", ListFormat(",", 1, 2, True)),
        ("a/0.jpg 3", ListFormat(None, -1, -1, False)),
        ("1\ta.jpg\t3", ListFormat("\t", -1, -1, False)),
    ],
)
def test_format_of_a_first_line_gives_delimiter_and_columns(first: str, wanted: ListFormat) -> None:
    assert format_of(first) == wanted


def test_format_of_an_unknown_header_before_integer_labels_is_refused() -> None:
    with pytest.raises(LineError, match=r"the second line has an integer label, the first, 'bild,wer', has none"):
        format_of("bild,wer", "a/0.jpg,3")
    for lines in (
        ("a/0.jpg,ann", "a/1.jpg,bob"),
        ("a/0.jpg,3", "a/1.jpg,4"),
        ("a/0.jpg,3", "a/1.jpg,bob"),
        ("a/0.jpg,ann", "x"),
    ):
        assert not format_of(*lines).has_header


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a/0.jpg 3", ("a/0.jpg", "3")),
        ("3 a/0.jpg", ("a/0.jpg", "3")),
        ("7 3", ("7", "3")),
        ("12 3 a/0.jpg", ("a/0.jpg", "3")),
        ("12 3 0.5 a/0.jpg", ("a/0.jpg", "3")),
        ("1 a/0.jpg 3 30 40", ("a/0.jpg", "3")),
    ],
)
def test_parse_of_a_line_without_a_header_finds_path_and_label(line: str, wanted: tuple[str, str]) -> None:
    assert format_of(line).parse(line) == wanted


@pytest.mark.parametrize("line", ["one", "a,b,c", "1,2,3", ""])
def test_format_of_a_line_without_path_and_label_is_refused(line: str) -> None:
    with pytest.raises(LineError, match="column"):
        format_of(line)


@pytest.mark.parametrize(
    ("text", "wanted"), [("3", True), ("3.000000", True), ("-1", True), ("3.5", False), ("x", False)]
)
def test_is_label_of_an_integer_in_any_spelling_is_true(text: str, wanted: bool) -> None:
    assert is_label(text) is wanted


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["1\tall/ann/0.jpg\t0", "1\tall/bob/0.jpg\t2"], ["ann", "bob"]),
        (["5\t0.0\tann/0.jpg", "6\t2.0\tbob/0.jpg"], ["ann", "bob"]),
        (["1\tx/0.jpg\t0", "1\tx/1.jpg\t2"], None),  # one folder of all
        (["1\tann/0.jpg\t0", "1\tbob/0.jpg\t0", "1\tcy/0.jpg\t2"], None),  # two folders of one label
        (["1\tann/0.jpg\t0"], None),  # no name of label 2
    ],
)
def test_names_in_lst_are_the_folders_if_they_tell_the_labels_apart(
    tmp_path: Path, lines: list[str], wanted: list[str] | None
) -> None:
    (tmp_path / "train.lst").write_text("\n".join(lines))
    assert names_in_lst(str(tmp_path / "train.lst"), [0, 2]) == wanted
