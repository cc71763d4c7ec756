"""Drawn faces, in pure numpy and OpenCV: parameters of a person and of an image give pixels.

`portrait` has the parameters of a person, `view` those of an image, `draws` the random draws. `canvas` turns shapes
with the head, `features`, `hair` and `extras` draw them, `picture` adds light, backdrop and noise.
"""

from rayface.data.drawing.picture import draw_face, landmarks, sample_identity, sample_view
from rayface.data.drawing.portrait import Identity
from rayface.data.drawing.view import View

__all__ = ["Identity", "View", "draw_face", "landmarks", "sample_identity", "sample_view"]
