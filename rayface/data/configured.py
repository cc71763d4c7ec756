"""A dataset that a config key names."""

from collections.abc import Sequence

from rayface.config import DataConfig
from rayface.data.dataset import Dataset, open_dataset
from rayface.storage import DataError


def open_configured(field: str, paths: str | Sequence[str], data: DataConfig) -> Dataset:
    """Open the directories that the config key `field` names, with the limit and the join of labels of `data`.

    Raises:
        DataError: as open_dataset; one line that starts with a config key.
    """
    try:
        return open_dataset(paths, max_corrupt_fraction=data.max_corrupt_fraction, join=data.join)
    except DataError as error:
        named = "" if str(error).startswith("data.") else f"{field}: "
        raise DataError(f"{named}{error}") from error
