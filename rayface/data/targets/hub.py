"""Write a dataset as a folder of the Hugging Face Hub: parquet files and a dataset card."""

from __future__ import annotations

from rayface.data.dataset import Dataset
from rayface.data.output_folder import new_folder
from rayface.data.targets.parquet import write_parquet
from rayface.data.targets.samples import Written
from rayface.hub_card import CARD, hub_card
from rayface.markdown import plain
from rayface.storage import join, write_bytes
from rayface.values import counted


def write_hub(dataset: Dataset, out: str) -> Written:
    """Write OUT/data/train-*.parquet, see `write_parquet`, and OUT/README.md, which names the split.

    Raises:
        DataError: `out` is not empty or cannot be written.
    """
    with new_folder(out, ("data", CARD), key="convert.out") as root:
        written = write_parquet(dataset, join(root, "data"))
        about = dataset.about
        values = {
            "pretty_name": dataset.name,
            "task_categories": ["image-feature-extraction"],
            "tags": ["face-recognition"],
            "size_categories": [_size_category(written.num_images)],
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        }
        counts = f"{counted(written.num_images, 'image')} of {counted(dataset.num_classes_with_images, 'identity')}"
        side = " x ".join(map(str, about.image_size)) + " pixels" if about.image_size else "of several sizes"
        text = (
            f"# {plain(dataset.name)}\n\n{counts}, {side}.\n\n"
            "| | |\n|---|---|\n"
            f"| source | {plain(about.source) or 'not stated'} |\n"
            f"| licence | {plain(about.licence) or 'not stated'} |\n"
            f"| digest | `{plain(dataset.digest)}` |\n"
            f"| created by | {plain(about.created_by) or 'not stated'} |\n\n"
            "The images show persons: whoever publishes or uses them needs their consent or another legal ground.\n"
        )
        write_bytes(join(root, CARD), hub_card(values, about.licence, text))
        return written


def _size_category(num_images: int) -> str:
    """Return the Hub's name of a range of sizes."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    bounds += [(10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M")]
    return next((name for bound, name in bounds if num_images < bound), "100M<n<1B")
