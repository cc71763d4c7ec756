"""Groups of curation: embed a dataset, and clean, prune or cluster what was embedded."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rayface.config_fields import (
    STRICT,
    Bytes,
    Cosine,
    Fraction,
    Names,
    Operational,
    Options,
    PathLike,
    Paths,
    PathText,
    Positive,
    Seed,
    Share,
    refuse_ineffective,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EmbedConfig:
    """Embed a dataset with a model."""

    model: PathLike | None = None
    """Run directory, model.safetensors, .onnx, or a published .pt/.pth with embed.backbone."""
    backbone: str | None = None
    """Backbone of a published checkpoint, for example r50."""
    data: Paths = ()
    """Dataset directory, or several as one; see data.train."""
    out: Operational[PathText | None] = None
    """Directory for the parquet files. Run again to resume."""
    flip: bool = True
    """Add the embedding of the mirrored image."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model's forward pass."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Data type of the stored embeddings."""
    workers: Operational[Positive | None] = None
    """Number of actors. Unset: one per GPU, else one per CPU."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PruneConfig:
    """Select a core set of embedded images."""

    embeddings: PathText | None = None
    """Directory of parquet files with key, label, embedding, as written by `rayface embed`."""
    data: Paths = ()
    """Dataset that was embedded, or several as one. If set, prune writes the core set as a dataset."""
    out: Operational[PathText | None] = None
    """Directory for the core set: on a disk that all nodes share, or a URI. Run again to resume."""
    method: str = "face_nms"
    """Selection method: face_nms, random, herding, diffprob, or one of a plugin."""
    threshold: Cosine | None = None
    """Cosine to a kept image above which face_nms drops an image; a probability for diffprob. Instead of keep."""
    keep: Share | None = None
    """Fraction of images to keep; the matching threshold is found by bisection."""
    min_images: Positive = 1
    """Minimum number of images to keep of every identity that has them. The paper of diffprob keeps at least 5."""
    global_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an image's sparsity among all images in the score of face_nms."""
    seed: Seed = 0
    """Random seed of the method random and of the sample on which a threshold is searched."""
    baselines: Names = ()
    """Methods to compare with at the same ratio, in addition to random, for example herding or diffprob."""
    head: PathText | None = None
    """Run directory of the embedding model; diffprob uses its class centers."""
    options: Options = Field(default_factory=dict)
    """Further settings of the method, for methods of plugins."""
    write_shards: bool = False
    """Copy the kept images into new shards instead of referring to the shards of prune.data."""
    block_size: Bytes = 64 * 2**20
    """Size of the embeddings that a task works on."""
    proxy_fraction: Share | None = None
    """Instead of prune.embeddings: embed prune.data with a proxy model trained on this fraction of the identities."""
    proxy_preset: str = "mini"
    """Preset of the proxy model; training keys override it."""

    @model_validator(mode="after")
    def _check(self) -> "PruneConfig":
        if self.threshold is not None and self.keep is not None:
            raise ValueError("threshold, keep: both are given: must be one of the two, for example prune.keep=0.6")
        if self.embeddings is not None and self.proxy_fraction is not None:
            raise ValueError("embeddings, proxy_fraction: both are given: must be one of the two")
        if self.head is not None and self.proxy_fraction is not None:
            raise ValueError(
                "head, proxy_fraction: both are given: must be one of the two, as the proxy embeds the images"
            )
        refuse_ineffective(self, "proxy_preset", self.proxy_fraction is not None, "must be with proxy_fraction")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CleanConfig:
    """Find mislabelled images and duplicate identities in embeddings before pruning. Unset: no search."""

    outliers: Cosine | None = None
    """Find images whose cosine to the mean of their identity is below this."""
    duplicates: Cosine | None = None
    """Find pairs of identities whose centers have a cosine above this."""
    conflicts: Cosine | None = None
    """Find pairs of images of different identities with a cosine above this."""
    bytes: bool = False
    """Find identical files; reads prune.data."""
    exclude: PathText | None = None
    """Embeddings of a test set, whose identities are dropped."""
    above: Cosine | None = None
    """Cosine above which an identity counts as an identity of the test set."""
    drop: Names = ()
    """Findings to drop: outliers, conflicts, bytes."""
    merge: bool = False
    """Merge duplicate identities under the lowest label."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """Findings that are dropped, including identities of the test set."""
        return (*self.drop, *(("test",) if self.above is not None and "test" not in self.drop else ()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusteringConfig:
    """Cluster embedded images into identities."""

    embeddings: PathText | None = None
    """Directory of parquet files with key, label, embedding, as written by `rayface embed`."""
    data: Paths = ()
    """Dataset that was embedded, or several as one. If set, cluster writes a dataset labelled by cluster."""
    out: Operational[PathText | None] = None
    """Directory for the clusters: on a disk that all nodes share, or a URI. Run again to resume."""
    method: Literal["cohesive", "average", "components", "density", "ogmc"] = "cohesive"
    """Clustering method; ogmc works online, in the order of the embeddings."""
    threshold: Cosine | None = None
    """Cosine at or above which two images are one person. Unset: estimated from the embeddings."""
    calibrate: PathText | None = None
    """Labelled embeddings of the same model, whose best threshold is used; instead of clustering.threshold."""
    assign: PathText | None = None
    """Labelled embeddings of known identities: images are assigned to them, and only the others are clustered."""
    far: Fraction = 1e-3
    """False accept rate: fraction of images of strangers that may be assigned to a known identity."""
    stream: bool = False
    """Cluster only the files added since the last run into clustering.out; requires method ogmc."""
    within: bool = False
    """Only split labelled identities: images of two labels never share a cluster; small parts become noise."""
    merge: bool = False
    """With within: also merge parts of different labels that are one person."""
    neighbours: Positive = 40
    """Number of nearest neighbours of an image that are candidates for its cluster."""
    search: Literal["auto", "exact", "lists"] = "auto"
    """Neighbour search: exact, or in inverted lists (approximate). auto: exact up to 200,000 images."""
    probes: Positive = 32
    """Inverted lists probed per image, of about 4·√N lists."""
    min_images: Positive = 2
    """Clusters with fewer images are noise: cluster -1, left out of the dataset."""
    write_shards: bool = False
    """Copy the clustered images into new shards instead of referring to the shards of clustering.data."""
    block_size: Bytes = 64 * 2**20
    """Size of the embeddings that a task works on."""

    @model_validator(mode="after")
    def _check(self) -> "ClusteringConfig":
        if self.threshold is not None and self.calibrate is not None:
            raise ValueError("threshold, calibrate: both are given: must be one of the two")
        if self.write_shards and not self.data:
            raise ValueError("write_shards: requires clustering.data, the dataset that was embedded")
        if self.within and self.method == "ogmc":
            raise ValueError("within: true with method ogmc: must be another method, which works on neighbours")
        if self.merge and not self.within:
            raise ValueError("merge: true: must be with within, which finds the parts of labels")
        if self.stream and (self.method != "ogmc" or self.data or (self.threshold is None and self.calibrate is None)):
            raise ValueError("stream: true: must be with method ogmc, threshold or calibrate, and without data")
        if self.assign is not None and (self.within or self.method == "ogmc"):
            raise ValueError("assign: with within or method ogmc: must be without them")
        refuse_ineffective(self, "far", self.assign is not None, "must be with assign")
        refuse_ineffective(self, "probes", self.search != "exact", "must be with search auto or lists")
        for name in ("neighbours", "search", "probes"):
            rule = "must be without threshold or calibrate, for method ogmc"
            refuse_ineffective(self, name, self.needs_neighbours, rule)
        refuse_ineffective(self, "block_size", not self.stream, "must be without stream, which reads file by file")
        return self

    @property
    def needs_neighbours(self) -> bool:
        """Whether the method, or the estimate of its threshold, works on neighbours."""
        return self.method != "ogmc" or (self.threshold is None and self.calibrate is None)

    def uses_lists(self, images: int) -> bool:
        """Return whether neighbours among so many images are searched in lists."""
        return self.search == "lists" or (self.search == "auto" and images > 200_000)
