"""A source whose images are the aligned faces of another source's photographs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from rayface.alignment.detector import Detector, Face
from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.evaluation.alignment import TEMPLATE, align
from rayface.storage import one_line

_EYES = float(np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]))  # distance at a side of 112 pixels
_detectors = threading.local()  # detectors are not thread-safe


@dataclass(frozen=True, kw_only=True)
class AlignedSettings(SourceSettings):
    """Settings of aligned faces.

    Attributes:
        side: height and width of an aligned face, pixels.
        detector: file of the detector's model, a setting that decides the result.
        min_score: least score of a face.
    """

    side: int = 112
    detector: str = ""
    min_score: float = 0.6


class AlignedSource(DatasetSource):
    """Aligns the largest face of every photograph of another source; photographs without a face are faults.

    Measures of a face: the detector's score; the distance of the eyes in the photograph, pixels; the number of faces in
    it; and quality, the score times the share, at most 1, of the aligned face's resolution that the photograph has.

    Args:
        photographs: source of the photographs; its settings of images are ignored.
        make_detector: called once in every thread.
    """

    kind = "aligned"
    settings_class = AlignedSettings
    decodes_listed = True
    measures = ("quality", "score", "eye_distance", "num_faces")

    settings: AlignedSettings

    def __init__(
        self, photographs: DatasetSource, settings: AlignedSettings, make_detector: Callable[[], Detector]
    ) -> None:
        super().__init__(photographs.root, settings)
        self._photographs, self._make = photographs, make_detector
        self.expects = f"photographs: {photographs.kind} needs {photographs.expects}"
        self.reads_forward = photographs.reads_forward
        self.beside = photographs.beside

    @property
    def title(self) -> str:
        return f"faces of {self._photographs.title}"

    def prepare(self, near: str) -> None:
        self._make()  # an unusable detector is refused before the work
        self._photographs.prepare(near)

    def close(self) -> None:
        self._photographs.close()

    def parts(self) -> Sequence[str]:
        return self._photographs.parts()

    def inventory(self) -> Sequence[str]:
        return self._photographs.inventory()

    def input_files(self) -> Sequence[str]:
        return self._photographs.input_files()

    def list_images(self, part: int) -> PartListing:
        listing = self._photographs.list_images(part)
        side = self.settings.side
        return PartListing(images=listing.images, faults=listing.faults, image_size=(side, side))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        for image in self._photographs.read(part, images):
            yield image if isinstance(image, Fault) else self._aligned(image)

    def for_task(self) -> AlignedSource:
        return AlignedSource(self._photographs.for_task(), self.settings, self._make)

    def identity_names(self, labels: Sequence[int]) -> list[str] | None:
        return self._photographs.identity_names(labels)

    def write_beside(self, dataset: Dataset) -> None:
        self._photographs.write_beside(dataset)

    def unique_keys(self, keys: Sequence[pa.ChunkedArray]) -> Iterable[str]:
        return self._photographs.unique_keys(keys)

    def _aligned(self, image: SourceImage) -> SourceImage | Fault:
        def fault(kind: str, reason: str) -> Fault:
            return Fault(shard=image.shard, member=image.member, offset=image.offset, reason=reason, kind=kind)

        try:
            photograph = decode_image(image.data)
        except ValueError as error:
            return fault("unreadable", one_line(error))
        faces = self._detector()(cv2.cvtColor(photograph, cv2.COLOR_RGB2BGR))
        if not faces:
            return fault("no face", "no face was found")
        face = max(faces, key=lambda each: each.size[0] * each.size[1])
        try:
            aligned = align(photograph, face.landmarks, self.settings.side)
        except ValueError as error:
            return fault("no face", one_line(error))
        data = simplejpeg.encode_jpeg(aligned, self.settings.quality, "RGB", "444")
        return image._replace(data=data, measures=self._measures(face, len(faces)))

    def _detector(self) -> Detector:
        """Return the detector of this thread."""
        if getattr(_detectors, "owner", None) is not self:
            _detectors.owner, _detectors.detector = self, self._make()
        found: Detector = _detectors.detector
        return found

    def _measures(self, face: Face, num_faces: int) -> tuple[float, ...]:
        eyes = float(np.linalg.norm(face.landmarks[1] - face.landmarks[0]))
        resolution = min(1.0, eyes / (_EYES * self.settings.side / 112))
        return face.score * resolution, face.score, eyes, float(num_faces)
