"""Drawn faces: a person is a vector of parameters, a picture of them is another. Pure numpy and OpenCV.

`portrait` says what varies, `canvas` turns shapes with the head, `features`, `hair` and `extras` draw them, `picture`
adds light, backdrop and film.
"""

from rayface.data.drawing.picture import draw_face, landmarks, sample_identity, sample_view
from rayface.data.drawing.portrait import Identity, View

__all__ = ["Identity", "View", "draw_face", "landmarks", "sample_identity", "sample_view"]
