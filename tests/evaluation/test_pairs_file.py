"""Files of pairs: CSV and LFW's own format are read, anything else is refused in one line."""

import codecs

import pytest

from rayface.evaluation.pairs_file import Pair, lfw_names, read_pairs

HEADER = "path_a,path_b,is_same,fold"
GOOD = ("a.jpg,b.jpg,1,0", "a.jpg,c.jpg,0,1")
LFW = ("2\t1", "Ann\t1\t2", "Ann\t1\tBob Lee\t12", "Cy\t3\t4", "Cy\t3\tAnn\t10000")


@pytest.fixture
def file(tmp_path):
    def write(*lines, encoding="utf-8", newline="\n"):
        path = tmp_path / "some_pairs.csv"
        path.write_bytes(newline.join([*lines, ""]).encode(encoding))
        return path

    return write


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_read_pairs_of_a_csv_with_or_without_a_byte_order_mark_is_equal(file, encoding, newline):
    path = file(HEADER, "ä.jpg, b.jpg, 1, 0", '"a,1.jpg",c.jpg,0,7', encoding=encoding, newline=newline)
    assert path.read_bytes().startswith(codecs.BOM_UTF8) == (encoding == "utf-8-sig")
    assert read_pairs(path) == ([Pair("ä.jpg", "b.jpg", True, 0), Pair("a,1.jpg", "c.jpg", False, 7)], False)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_read_pairs_of_lfws_own_file_gives_its_names_and_folds(file, encoding, newline):
    assert read_pairs(file(*LFW, encoding=encoding, newline=newline)) == (
        [
            Pair("Ann_0001.jpg", "Ann_0002.jpg", True, 0),
            Pair("Ann_0001.jpg", "Bob Lee_0012.jpg", False, 0),
            Pair("Cy_0003.jpg", "Cy_0004.jpg", True, 1),
            Pair("Cy_0003.jpg", "Ann_10000.jpg", False, 1),
        ],
        True,
    )
    assert lfw_names("Ann_B_0001.jpg") == ["Ann_B_0001.jpg", "Ann_B/Ann_B_0001.jpg", "Ann_B_Ann_B_0001.jpg"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("path_a,path_b,same,fold", *GOOD), "lacks is_same"),
        (("a,b", "1,2"), "lacks path_a, path_b, is_same, fold"),
        ((HEADER,), "at least one pair"),
        ((HEADER, "a.jpg,b.jpg,yes,0"), "line 2: is_same 'yes' must be 0 or 1"),
        ((HEADER, *GOOD, "a.jpg,b.jpg,2,0"), "line 4: is_same '2' must be 0 or 1"),
        ((HEADER, "a.jpg,b.jpg,1,first"), "line 2: fold 'first' must be a number"),
        ((HEADER, "a.jpg,b.jpg,1"), "line 2: fold None must be a number"),
        ((HEADER, "a.jpg,b.jpg,1,99999999999999999999"), "line 2: fold '9+' must be a number"),
        (("path_a," + HEADER, "a.jpg,c.jpg,b.jpg,1,0"), "must have each column once; it has path_a twice"),
        ((HEADER, "a.jpg,,1,0"), "line 2: path_a and path_b must name"),
        ((HEADER, '"a"x,b.jpg,1,0'), "expected"),
        ((HEADER, "a.jpg,b.jpg,1,0", "a.jpg,b.jpg,0,0"), "at least 2 folds"),
        ((HEADER, "a.jpg,b.jpg,1,0", "a.jpg,b.jpg,1,1"), "of one person and of two"),
        (LFW[:-1], "must have 4 lines after the first, .* it has 3"),
        (("500", "Ann\t1\t2"), "must have 1000 lines"),
        (("1\t1", "Ann\t1\tBob\t2", "Ann\t1\t2"), "line 2: .* must be name, number, number"),
        (("1\t1", "Ann\t1\t2", "Ann\t1\tBob\tx"), "line 3: .* must be name, number, name, number"),
    ],
)
def test_read_pairs_of_a_wrong_file_names_it_in_one_line(file, lines, words):
    path = file(*lines)
    with pytest.raises(ValueError, match=words) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"pairs {path} ")


def test_read_pairs_of_a_file_that_is_no_text_names_it(file, tmp_path):
    with pytest.raises(ValueError, match=r"some_pairs.csv must be UTF-8 text .* at byte 0"):
        read_pairs(file(HEADER, *GOOD, encoding="utf-16"))
    with pytest.raises(ValueError, match=r"nothing.csv .*no such file"):
        read_pairs(tmp_path / "nothing.csv")
