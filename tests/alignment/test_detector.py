"""YuNet behind the small interface: scaled photographs, landmarks of the original, a bad file."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from rayface.alignment.detector import YuNet
from rayface.data.drawing import draw_face, sample_identity, sample_view


class Net:
    """Stands in for cv2.FaceDetectorYN: one face at fixed shares of the image."""

    def __init__(self) -> None:
        self.size = (0, 0)

    def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802 (OpenCV's name)
        self.size = size

    def detect(self, image: np.ndarray) -> tuple[int, np.ndarray | None]:
        assert self.size == (image.shape[1], image.shape[0])
        if not image.any():
            return 0, None
        width, height = self.size
        points = [width * share if n % 2 == 0 else height * share for n, share in enumerate(np.linspace(0.1, 0.9, 10))]
        return 1, np.array([[0, 0, width / 2, height / 4, *points, 0.8]], np.float32)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (2560, 1280), (1300, 3000)])
def test_yunet_of_any_size_returns_pixels_of_the_photograph(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    net, asked = Net(), {}

    def create(*given: Any, **options: Any) -> Net:
        asked.update(options, path=given[0])
        return net

    monkeypatch.setattr(cv2, "FaceDetectorYN", SimpleNamespace(create=create))
    yunet = YuNet("yunet.onnx", 0.7)
    (found,) = yunet(np.full((height, width, 3), 9, np.uint8))
    assert max(net.size) <= 1280
    assert asked == {"path": "yunet.onnx", "score_threshold": 0.7}
    assert found.size == pytest.approx((width / 2, height / 4), rel=1e-3)
    assert found.landmarks[:, 0] == pytest.approx(width * np.linspace(0.1, 0.9, 10)[0::2], rel=1e-3)
    assert found.landmarks[:, 1] == pytest.approx(height * np.linspace(0.1, 0.9, 10)[1::2], rel=1e-3)
    assert found.score == pytest.approx(0.8)
    assert yunet(np.zeros((height, width, 3), np.uint8)) == []


def test_yunet_loaded_by_several_threads_keeps_opencv_silent_and_its_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    before, levels = cv2.utils.logging.getLogLevel(), []

    def create(*given: Any, **options: Any) -> Net:
        time.sleep(0.01)  # time for another thread to set the level back
        levels.append(cv2.utils.logging.getLogLevel())
        return Net()

    monkeypatch.setattr(cv2, "FaceDetectorYN", SimpleNamespace(create=create))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: YuNet("yunet.onnx", 0.7), range(8)))
    assert set(levels) == {cv2.utils.logging.LOG_LEVEL_ERROR}
    assert cv2.utils.logging.getLogLevel() == before


def test_yunet_from_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"^align.detector: .*net.onnx: is no YuNet model that OpenCV reads") as caught:
        YuNet(str(tmp_path / "net.onnx"), 0.6)
    assert "\n" not in str(caught.value)


def test_yunet_on_drawn_faces_finds_each_and_prints_nothing(faces: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = cv2.utils.logging.getLogLevel()
    detector = YuNet(str(next((faces / "weights").glob("yunet*.onnx"))), 0.5)
    drawn = [draw_face(sample_identity(0, n), sample_view(0, n, 0), 160) for n in range(4)]
    assert [len(detector(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))) for image in drawn] == [1, 1, 1, 1]
    assert capfd.readouterr() == ("", "")
    assert cv2.utils.logging.getLogLevel() == level
