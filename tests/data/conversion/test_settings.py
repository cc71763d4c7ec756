"""Settings of a conversion out of range."""

import pytest

from rayface.data.conversion.settings import ConvertSettings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layout": "sorted"}, r"layout 'sorted': must be shuffled or by_identity"),
        ({"jpeg_quality": 101}, r"jpeg_quality 101: must be from 1 to 100"),
        ({"jpeg_quality": 0}, r"jpeg_quality 0: must be from 1 to 100"),
        ({"shard_size": 0}, r"shard_size 0: must be at least 1"),
        ({"min_images": 0}, r"min_images 0: must be at least 1"),
        ({"limit": 0}, r"limit 0: must be at least 1"),
        ({"max_corrupt_fraction": 1.5}, r"max_corrupt_fraction 1.5: must be from 0 to 1"),
        ({"max_corrupt_fraction": -0.1}, r"max_corrupt_fraction -0.1: must be from 0 to 1"),
    ],
)
def test_convert_settings_out_of_range_are_one_line(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConvertSettings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"layout": "by_identity", "jpeg_quality": 1, "max_corrupt_fraction": 0.0},
        {"jpeg_quality": 100, "shard_size": 1, "min_images": 1, "limit": 1, "max_corrupt_fraction": 1.0},
    ],
)
def test_convert_settings_at_their_limits_are_accepted(given: dict[str, object]) -> None:
    settings = ConvertSettings(**given)  # type: ignore[arg-type]
    assert {name: getattr(settings, name) for name in given} == given
