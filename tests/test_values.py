"""Values as text: lists, numbers and truth values, in which nothing is guessed."""

import pytest

from rayface.values import guess, parse_list, to_text, visible


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        ("[a]", ["a"]),
        ("[ a , b c #2,0100]", ["a", "b c #2", "0100"]),
        ("[no,null,2024-01-01,1:30]", ["no", "null", "2024-01-01", "1:30"]),
        ("""["a,b", 'c''d', "e\\"f", "]", g"h"]""", ["a,b", "c'd", 'e"f', "]", 'g"h"']),
        ("[s3://b/x?a=1&b={c: d}]", ["s3://b/x?a=1&b={c: d}"]),
    ],
)
def test_parse_list_reads_items_as_they_stand(text, items):
    assert parse_list(text) == items
    assert parse_list(to_text(items)) == items


@pytest.mark.parametrize("text", ["", "[", "[a", "a]", "[a,,b]", "[a,]", "[,a]"])
def test_parse_list_without_end_or_item_is_refused(text):
    with pytest.raises(ValueError, match=r"must be a list as '\[a,b\]'"):
        parse_list(text)


def test_guess_takes_decimal_numbers_and_truth_values_only():
    texts = ["0100", "-2", "1e-7", ".5", "true", "1:30", "0x10", "no", "2024-01-01", "1_0", ""]
    assert [guess(text) for text in texts] == [100, -2, 1e-7, 0.5, True, "1:30", "0x10", "no", "2024-01-01", "1_0", ""]


def test_visible_of_control_characters_and_direction_marks_escapes_them():
    assert visible("a\x1b]0;title\x07b\u202egnp.\x9b1m") == "a\\x1b]0;title\\x07b\\u202egnp.\\x9b1m"
    assert visible("Zoë\t[/red]\n日本") == "Zoë\t[/red]\n日本"
