"""Whatever decoder is installed is measured, and none is said."""

import importlib.util

import pytest

from rayface.bench.gpu.case import Kit
from rayface.bench.gpu.decoding import CODECS, cases, decoding_rate, installed

KIT = Kit(device="cpu", mini=True)


@pytest.mark.parametrize("name", [name for name in CODECS if importlib.util.find_spec(name)])
def test_decoding_rate_of_an_installed_library_reads_its_own_images(name: str) -> None:
    found = decoding_rate(name, 8, 2)
    assert found.passed
    assert found.images_per_s > 0
    assert 1 < found.kilobytes < 40


def test_cases_of_decoding_without_a_decoder_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installed() == []
    first, *others = cases(KIT)
    assert first.run().note == "no decoder installed: none of simplejpeg, cv2, PIL, torchvision"
    assert [case.name for case in others] == ["augment, mirrored", "augment, all"]
    assert all(case.run().images_per_s > 0 for case in others)


def test_cases_of_decoding_name_each_installed_library() -> None:
    names = [case.name for case in cases(KIT)]
    assert names[: len(installed())] == [f"decode, {name}" for name in installed()]
