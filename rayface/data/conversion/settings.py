"""Settings of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayface.data.label_join import Join
from rayface.data.writer import DEFAULT_SHARD_SIZE


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Settings of a conversion.

    Attributes:
        layout: order of the images: "shuffled" as a whole, or "by_identity".
        shard_size: maximum bytes of a shard.
        seed: seed of the order; the same seed gives the same bytes.
        name: name of the dataset; None: that of its folder.
        jpeg_quality: encode every image as JPEG of this quality, 1 to 100; None keeps the bytes.
        min_images: identities with fewer readable images are left out.
        limit: convert only the first images of the listing; None: all.
        max_corrupt_fraction: largest share of the images that may be unreadable.
        join: how labels of several sources are joined, see `join_labels`.

    Raises:
        ValueError: a setting out of range.
    """

    layout: Literal["shuffled", "by_identity"] = "shuffled"
    shard_size: int = DEFAULT_SHARD_SIZE
    seed: int = 0
    name: str | None = None
    jpeg_quality: int | None = None
    min_images: int = 1
    limit: int | None = None
    max_corrupt_fraction: float = 1.0
    join: Join | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("shuffled", "by_identity"):
            raise ValueError(f"layout {self.layout!r}: must be shuffled or by_identity")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality {self.jpeg_quality}: must be from 1 to 100")
        for name, value in (("shard_size", self.shard_size), ("min_images", self.min_images), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: must be at least 1")
        if not 0 <= self.max_corrupt_fraction <= 1:
            raise ValueError(f"max_corrupt_fraction {self.max_corrupt_fraction}: must be from 0 to 1")
