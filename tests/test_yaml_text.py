"""YAML is read with scalars as text."""

import pytest

from rayface.yaml_text import parse_mapping, read_yaml


def test_parse_mapping_reads_values_as_text():
    assert parse_mapping("{m1: 1, gradient: no, m2: null}") == {"m1": "1", "gradient": "no", "m2": None}
    for text in ("[a]", "a", "{a", "{a: 1, a: 2}"):
        with pytest.raises(ValueError, match=r"must be keys and values|is given twice"):
            parse_mapping(text)


def test_read_yaml_reads_scalars_as_text(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "\ufeffa: no\nb: [0100, 1:30, 2024-01-01]\non: ~\nd: &d {1: 2}\ne: {<<: *d, 1: 3}\n", encoding="utf-8"
    )
    read = {"a": "no", "b": ["0100", "1:30", "2024-01-01"], "on": None, "d": {"1": "2"}, "e": {"1": "3"}}
    assert read_yaml(file) == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", r"a\.yaml: line 5: c: is given twice, first in line 3: keep one"),
        ("a: 1\n'a': 2\n", r"a\.yaml: line 2: a: is given twice, first in line 1"),
        ("x: &x {a: 1}\ny: {<<: *x, a: 2, a: 3}\n", r"a\.yaml: line 2: a: is given twice"),
        ("- {a: 1, a: 2}\n", r"a\.yaml: line 1: a: is given twice"),
    ],
)
def test_read_yaml_of_a_key_given_twice_names_file_and_line(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


BOMB = "z0: &z0 [x, x]\n" + "".join(f"z{n}: &z{n} [{', '.join([f'*z{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGED = BOMB.replace("[x, x]", "{a: x}").replace("[", "{<<: [").replace("]", "]}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 6: has more than 100,000 values, with aliases"),
        (MERGED, "line 6: has more than 100,000 values, with aliases"),
        ("a: &a\n  b: *a\n", "line 2: is an alias of what it is in"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "is nested too deeply"),
    ],
)
def test_read_yaml_of_few_lines_for_many_values_is_one_line(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.yaml: {message}[^\n]*$"):
        read_yaml(file)


def test_read_yaml_of_aliases_is_what_they_stand_for(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("x: &x {a: 1}\ny: {<<: *x, b: [*x, *x]}\n")
    assert read_yaml(file) == {"x": {"a": "1"}, "y": {"a": "1", "b": [{"a": "1"}] * 2}}


def test_read_yaml_of_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match=r"a\.yaml: is not YAML"):
        read_yaml(file)
