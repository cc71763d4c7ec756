"""Groups of datasets: training data, and the jobs that write datasets of images."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rayface.config_fields import (
    STRICT,
    Bytes,
    Fixed,
    Fraction,
    Names,
    NotNegative,
    Numbers,
    Operational,
    Options,
    Paths,
    PathText,
    Positive,
    Seed,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Training data, and augmentation of its images."""

    train: Paths = ()
    """Dataset directory, or several that are trained on as one."""
    join: Fixed[Literal["names", "labels", "separate"] | None] = None
    """How labels of several directories are joined: by identity name (names), by label number (labels), or not at all
    (separate). Unset: names if all directories have names and at most one has only numbers; labels if no label occurs
    in two directories; otherwise refused. Also applies to the data of other verbs."""
    weights: Fixed[Numbers] = ()
    """Sampling weight of each training directory per epoch: 1 uses every image once, 2 twice, 0.3 a random 30% that
    changes each epoch. Empty: 1 for every directory."""
    image_size: Fixed[Annotated[int, Field(ge=16, le=1024)]] = 112
    """Side length of an image, in pixels; images of other sizes are resized."""
    max_corrupt_fraction: Fraction = 1e-3
    """Maximum fraction of corrupt samples; above it, a job stops."""
    chunk_images: Fixed[Positive] = 8
    """Neighbouring images of a shard that one request reads. Object stores may need 64."""
    window_images: Fixed[Positive] = 4096
    """Images shuffled together (a window); each read task decodes one window."""
    readers: Operational[NotNegative] = 0
    """Number of windows decoded concurrently. 0: chosen from the free CPUs of the cluster."""
    cache_size: Operational[Bytes | None] = None
    """Maximum bytes of copies of an object store's shards on each node, in its cache (`RAYFACE_CACHE`): shards are
    copied while they are read, and read there from then on. Unset: the store is read in every epoch."""
    flip: bool = True
    """Mirror each image with probability 0.5."""
    shift: NotNegative = 0
    """Maximum random shift of the image, in pixels."""
    brightness: Fraction = 0.0
    """Maximum random change of brightness, as a fraction."""
    contrast: Fraction = 0.0
    """Maximum random change of contrast, as a fraction."""
    saturation: Fraction = 0.0
    """Maximum random change of saturation, as a fraction."""
    jpeg: Fraction = 0.0
    """Probability of encoding an image as JPEG of a random quality, 20 to 90."""
    crop: Fraction = 0.0
    """Probability of keeping only a random crop, 20 to 100% of the area; the rest is black."""
    low_resolution: Fraction = 0.0
    """Probability of scaling an image down, to 20 to 100% of its side length, and up again."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur, with a standard deviation of 0.3 to 2 pixels."""
    grey: Fraction = 0.0
    """Probability of converting an image to grey."""
    erase: Fraction = 0.0
    """Probability of erasing a random rectangle, 2 to 33% of the area."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SynthConfig:
    """Draw a synthetic dataset; it shows no real person."""

    out: Operational[PathText | None] = None
    """Dataset directory to write."""
    identities: Annotated[int, Field(gt=0, le=10**6)] = 200
    """Number of identities."""
    images_per_identity: Annotated[int, Field(gt=0, le=10**4)] = 20
    """Images per identity."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed; the same seed gives the same dataset."""
    pairs: Annotated[int, Field(ge=0, le=10**7, multiple_of=20)] = 0
    """Number of verification pairs to write to pairs.csv."""
    image_size: Annotated[int, Field(ge=16, le=256, multiple_of=2)] = 112
    """Side length of an image, in pixels."""
    shard_size: Bytes = 256 * 2**20
    """Maximum size of a shard."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConvertConfig:
    """Convert images of another format to a dataset of tar shards."""

    source: Paths = ()
    """Path of the images to convert, or several paths as one dataset, whose labels are joined as data.join says."""
    kind: Names = ()
    """Format of the source: folder (one per identity), rec (MXNet's RecordIO), webface-zip, parquet, hub, lmdb,
    webdataset, list, bin or cfp; see docs/data.md. For several sources: one for each, or one for all."""
    to: str | None = None
    """Write this format instead of a dataset: bin (the pairs of DIR/pairs.csv), folder, hub or parquet. The source is a
    dataset, or has the format of convert.kind."""
    options: Options = Field(default_factory=dict)
    """Settings of the format, for example {image_size: 224, quality: 90} for folder."""
    out: Operational[PathText | None] = None
    """Dataset directory to write: on a disk that all nodes share, or a URI. Run again to resume."""
    shard_size: Bytes = 256 * 2**20
    """Maximum size of a shard."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the images: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Encode every image as JPEG of this quality. Unset: keep the bytes of images that are not resized."""
    min_images: Positive = 1
    """Leave out identities with fewer readable images."""
    limit: Positive | None = None
    """Convert only this many images from the start of the source, as a trial. Unset: all."""
    max_corrupt_fraction: Operational[Fraction] = 1.0
    """Maximum fraction of unreadable images; above it, the job stops. Every one is named or counted."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AlignConfig:
    """Find and align the faces of photographs, and write them as a dataset of tar shards."""

    source: Paths = ()
    """Path of the photographs, or several paths as one dataset, whose labels are joined as data.join says."""
    kind: Names = ("folder",)
    """Format of the photographs, see convert.kind."""
    out: Operational[PathText | None] = None
    """Dataset directory to write: on a disk that all nodes share, or a URI. Run again to resume."""
    detector: PathText | None = None
    """Model file of the face detector YuNet: face_detection_yunet_*.onnx of the OpenCV Zoo."""
    min_score: Fraction = 0.6
    """Minimum detection score of a face."""
    image_size: Annotated[int, Field(ge=16)] = 112
    """Side length of an aligned face, in pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the aligned faces."""
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    """Order of the faces: shuffled, or by_identity."""
    seed: Seed = 0
    """Seed of the shuffled order."""
    shard_size: Bytes = 256 * 2**20
    """Maximum size of a shard."""
    min_images: Positive = 1
    """Leave out identities with fewer faces."""
    limit: Positive | None = None
    """Align only this many photographs from the start of the source, as a trial. Unset: all."""
