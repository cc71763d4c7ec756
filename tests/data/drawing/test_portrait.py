"""Parameters of drawn people: plausible, different between people, and those of the palettes."""

import numpy as np
import pytest

from rayface.data.drawing.portrait import BEARDS, HAIR_STYLES, Identity


@pytest.fixture(scope="module")
def people() -> list[Identity]:
    return [Identity.sample(np.random.default_rng(seed)) for seed in range(400)]


def test_identity_of_a_seed_repeats_and_of_another_differs(people: list[Identity]) -> None:
    again = Identity.sample(np.random.default_rng(7))
    assert again.mouth.width == people[7].mouth.width
    assert np.array_equal(again.hair.colour, people[7].hair.colour)
    assert len({person.shape.skin.tobytes() for person in people}) == len(people)


def test_identities_of_many_seeds_have_every_hair_style_and_beard(people: list[Identity]) -> None:
    assert {person.hair.style for person in people} == set(HAIR_STYLES)
    assert {person.hair.beard for person in people} == set(BEARDS)
    assert all(person.hair.beard == "none" for person in people if person.hair.style in ("bob", "long"))
    worn = np.mean([person.frame.worn for person in people])
    assert 0.08 < worn < 0.22


def test_identities_of_many_seeds_have_plausible_proportions(people: list[Identity]) -> None:
    """Every normal draw is truncated at two deviations."""
    for person in people:
        assert 15.2 <= person.eyes.spacing <= 21.2
        assert person.eyes.width < person.eyes.spacing
        assert person.nose.length < person.mouth.height < person.shape.chin
        assert person.shape.skin.shape == (3,)
        assert (person.shape.skin >= 8).all()
        assert (person.shape.skin <= 255).all()
        assert 0 <= person.marks.age <= 1
        assert person.hair.recession >= 0


def test_identities_with_dark_skin_have_dark_eyes(people: list[Identity]) -> None:
    brightness = [person.shape.skin.mean() for person in people]
    dark = [person.eyes.iris.mean() for person, skin in zip(people, brightness, strict=True) if skin < 110]
    pale = [person.eyes.iris.mean() for person, skin in zip(people, brightness, strict=True) if skin > 200]
    assert len(dark) > 20
    assert len(pale) > 20
    assert np.mean(dark) < np.mean(pale) - 10


def test_freckles_and_moles_lie_on_the_cheeks_and_around_the_nose(people: list[Identity]) -> None:
    freckles = np.concatenate([person.marks.freckles for person in people])
    moles = np.concatenate([person.marks.moles for person in people])
    assert np.abs(freckles[:, 0]).max() <= 22
    assert np.abs(freckles[:, 1] - 16).max() <= 12
    assert np.abs(moles[:, 1] - 16).max() <= 28
    assert {len(person.marks.freckles) for person in people if len(person.marks.freckles)} <= set(range(14, 30))
