"""A source whose parts are lists of (key, identity, image bytes) in memory."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog

Images = Sequence[tuple[str, str | int, bytes]]


class InMemory(DatasetSource):
    """Parts are named p0, p1, ...; a fault stands for an image without bytes."""

    kind = "memory"

    def __init__(
        self, parts: Sequence[Images], settings: SourceSettings | None = None, faults: FaultLog | None = None
    ) -> None:
        super().__init__("memory", settings)
        self._parts, self._faults = parts, faults
        self.read_rows: list[tuple[int, list[str]]] = []

    def parts(self) -> list[str]:
        return [f"p{number}" for number in range(len(self._parts))]

    def list_images(self, part: int) -> PartListing:
        keys, identities = ([image[column] for image in self._parts[part]] for column in (0, 1))
        kind = pa.int64() if all(isinstance(name, int) for name in identities) else pa.string()
        table = pa.table({"key": pa.array(keys, pa.string()), "identity": pa.array(identities, kind)})
        return PartListing(images=table, faults=self._faults if part == 0 else None, image_size=(8, 8))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        keys = images["key"].to_pylist()
        self.read_rows.append((part, keys))
        data = {key: image for key, _, image in self._parts[part]}
        for key in keys:
            if data[key]:
                yield SourceImage(data[key], f"p{part}", key, 7)
            else:
                yield Fault(shard=f"p{part}", member=key, reason="no bytes", kind="unreadable")
