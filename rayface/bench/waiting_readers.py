"""Readers of a simulated machine with one CPU for each: they wait instead of decoding."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Sample, SampleIndex
from rayface.data.streaming.label_groups import LabelGroups
from rayface.data.streaming.shared_samples import SharedSamples

IMAGE_SIZE = 8
TURN_IMAGES = 512
TURN_SECONDS = 0.3  # as 4,096 images of 112 x 112 at 14,000 images/s


@dataclass(frozen=True)
class WaitingSamples(SharedSamples):
    """Samples of a dataset whose reader waits TURN_SECONDS for TURN_IMAGES images and gives tiny ones."""

    def reader(self) -> tuple[SampleReader, SampleIndex, LabelGroups | None]:
        shards, index = self.get()
        return _WaitingReader(shards), index, None


class _WaitingReader(SampleReader):
    def read(self, index: SampleIndex) -> Iterator[tuple[int, Sample]]:
        time.sleep(len(index) * TURN_SECONDS / TURN_IMAGES)
        jpeg = simplejpeg.encode_jpeg(np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
        for position in range(len(index)):
            yield position, Sample("", 0, jpeg, 0, len(jpeg))
