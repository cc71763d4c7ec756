"""Front matter of cards of the Hub: written, read, and what is no front matter."""

import pytest
import yaml

from rayface.hub_card import front_matter, hub_card


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("MIT", {"license": "mit"}),
        ("research only", {"license": "other", "license_name": "research only"}),
        ("", {"license": "other", "license_name": "not stated"}),
    ],
)
def test_hub_card_begins_with_its_licence_and_values(licence: str, terms: dict[str, str]) -> None:
    card = hub_card({"tags": ["a: b"], "pretty_name": "Jürgen"}, licence, "# Title\n")
    assert front_matter(card) == {**terms, "tags": ["a: b"], "pretty_name": "Jürgen"}
    text = card.decode()
    assert text.endswith("---\n\n# Title\n")
    assert yaml.safe_load(text.split("---\n")[1]) == front_matter(card)


def test_hub_card_masks_credentials() -> None:
    secret = "s3://AKIAXX:secret@bucket/x"
    assert b"secret@" not in hub_card({"pretty_name": secret}, "MIT", f"from {secret}\n")


@pytest.mark.parametrize("card", [b"", b"# Title", b"---\nno end", b"---\n---\n", b"\xff\xfe"])
def test_front_matter_of_a_card_without_any_is_empty(card: bytes) -> None:
    assert front_matter(card) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("- a", "not a mapping"),
        ("!!python/object:os.x {}", "YAML"),
        ("a: " + "[" * 10**5, "100 levels"),
        ("a: &a [1]\nb: *a", "aliases"),
    ],
)
def test_front_matter_that_is_no_mapping_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        front_matter(f"---\n{text}\n---\n".encode())
    assert "\n" not in str(caught.value)
