"""Numbers of identities and images of a run that is planned."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayface.config import Config
from rayface.data.configured import open_configured
from rayface.data.dataset import Dataset
from rayface.data.streaming.weighted_order import draws_of

# Published numbers of identities and images (arXiv 2203.15565 and the datasets' papers) by preset, for planning only: a
# run takes its counts from dataset.json.
PUBLISHED_COUNTS = {
    "webface42m": (2_059_906, 42_474_557),
    "webface12m": (617_970, 12_720_066),
    "webface4m": (205_990, 4_235_242),
    "glint360k": (360_232, 17_091_657),
    "ms1mv3": (93_431, 5_179_510),
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of a dataset, and their source; hours are planned only if the number of images is known."""

    num_classes: int
    num_classes_with_images: int | None = None
    num_images: int | None
    source: str


def counts_of(config: Config, preset: str | None, num_classes: int | None, num_images: int | None) -> Counts:
    """Return the counts of data.train, those given, or the published ones of a preset.

    Raises:
        ValueError: missing or conflicting counts; one line.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images: {num_images}: must be at least 1")
    if config.data.train:
        if num_classes is not None or num_images is not None:
            raise ValueError("num_classes, data.train: both are set: give one of the two")
        found = open_configured("data.train", config.data.train, config.data)
        return _counted(found, config.data.weights, config.data.chunk_images)
    if num_classes is not None:
        return Counts(num_classes=num_classes, num_images=num_images, source="as given")
    if preset in PUBLISHED_COUNTS:
        classes, images = PUBLISHED_COUNTS[preset]
        note = "published counts, for planning only"
        return Counts(num_classes=classes, num_images=num_images or images, source=note)
    known = ", ".join(PUBLISHED_COUNTS)
    raise ValueError(f"num_classes: is not set: give --num-classes N, data.train=DIR, or one of the presets {known}")


def _counted(found: Dataset, weights: Sequence[float], chunk_images: int) -> Counts:
    sizes = found.root_sizes() if weights else []
    return Counts(
        num_classes=found.num_classes,
        num_classes_with_images=found.num_classes_with_images,
        num_images=sum(draws_of(sizes, weights, chunk_images)) if weights else found.num_images,
        source=f"counted in {found.name}" + (f", {found.join_text}" if found.join_text else ""),
    )
