"""The templates protocol: 1:1 and 1:N on IJB-B, IJB-C or a benchmark of your own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.config import EvaluateConfig
from rayface.config_fields import refuse_ineffective
from rayface.data.dataset import open_dataset
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.intervals import REPLICATES
from rayface.evaluation.loose_images import LooseImages
from rayface.evaluation.pair_set import rows_of_members
from rayface.evaluation.pairs import FARS
from rayface.evaluation.protocol import EvaluationProtocol
from rayface.evaluation.template_result import TemplateResult, score_templates
from rayface.evaluation.template_set import IJB_IMAGES, TemplateSet, ijb_root, read_benchmark, read_ijb, refuse_foreign
from rayface.evaluation.templates import has_direction, template_sums
from rayface.models.embedded import Embedded
from rayface.storage import DataError, join, normalise
from rayface.values import counted

TEST = "test"  # the dataset in a benchmark's folder


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """Folder of the lists, and how images are weighted in a template.

    Attributes:
        target: "IJBB" or "IJBC"; None for a benchmark of `rayface benchmark make`.
        keep_norm: weight images by the length of their embeddings.
        face_scores: weight images by the detector's scores, where the lists have them.
        replicates: replicates of the intervals.
    """

    folder: str
    target: str | None = None
    keep_norm: bool = True
    face_scores: bool = True
    replicates: int = REPLICATES


class TemplateProtocol(EvaluationProtocol):
    """Verification and identification of templates.

    Images that are not readable are left out, and templates without any or whose images cancel out.
    """

    def __init__(
        self,
        lists: TemplateSet,
        settings: TemplateSettings,
        images: ImageRows | LooseImages,
        face_scores: NDArray[np.float64] | None,
        image_size: int,
    ) -> None:
        self._lists, self._settings, self._images = lists, settings, images
        self._face_scores, self._image_size = face_scores, image_size

    @classmethod
    def settings_of(cls, evaluate: EvaluateConfig) -> Any | None:
        if evaluate.templates is not None and evaluate.ijb is not None:
            raise ValueError("evaluate.templates, evaluate.ijb: both are set: set one of the two")
        folder = evaluate.templates or evaluate.ijb
        for name in ("target", "face_scores"):
            refuse_ineffective(
                evaluate, name, evaluate.ijb is not None, "must be with evaluate.ijb", prefix="evaluate."
            )
        rule = "must be with evaluate.templates or evaluate.ijb"
        refuse_ineffective(evaluate, "keep_norm", folder is not None, rule, prefix="evaluate.")
        if folder is None:
            return None
        return TemplateSettings(
            folder=folder,
            target=evaluate.target if evaluate.ijb else None,
            keep_norm=evaluate.keep_norm,
            face_scores=evaluate.face_scores,
            replicates=evaluate.bootstrap,
        )

    @classmethod
    def open(cls, settings: TemplateSettings, *, image_size: int) -> TemplateProtocol:
        if settings.target is not None:
            root = ijb_root(settings.folder, settings.target)
            lists, landmarks = read_ijb(root, settings.target)
            refuse_foreign(f"evaluate.ijb: {root}", lists)
            if settings.face_scores and (bad := np.flatnonzero(~np.isfinite(landmarks.scores))).size:
                remedy = "correct it, or set evaluate.face_scores=false"
                raise DataError(
                    f"evaluate.ijb: {root}: {lists.names[bad[0]]}: has the score {landmarks.scores[bad[0]]}: {remedy}"
                )
            loose = LooseImages(folder=root / IJB_IMAGES, names=lists.names, landmarks=landmarks.points)
            if not any((loose.folder / name).is_file() for name in lists.names):
                listed = f"{counted(len(lists.names), 'listed image')}, such as {lists.names[0]}"
                raise DataError(f"evaluate.ijb: {loose.folder}: has none of {listed}: must hold them")
            return cls(lists, settings, loose, landmarks.scores if settings.face_scores else None, image_size)
        lists = read_benchmark(settings.folder)
        dataset = open_dataset(join(normalise(settings.folder), TEST))
        where = f"evaluate.templates: {settings.folder}: templates.csv"
        source = ImageRows(dataset=dataset, rows=rows_of_members(lists.names, dataset, where))
        refuse_foreign(f"evaluate.templates: {settings.folder}", lists)
        return cls(lists, settings, source, None, image_size)

    @property
    def inputs(self) -> dict[str, str]:
        return {"templates" if self._settings.target is None else "ijb": self._settings.folder}

    @property
    def source(self) -> ImageRows | None:
        return self._images if isinstance(self._images, ImageRows) else None

    @property
    def digest(self) -> str:
        if isinstance(self._images, ImageRows):
            return super().digest
        facts = [str(self._images.folder.absolute()), *self._lists.names]
        text = "\n".join([*facts, *self._images.states()]).encode() + self._images.landmarks.tobytes()
        return hashlib.sha256(text).hexdigest()

    @property
    def num_images(self) -> int:
        return len(self._lists.names)

    def read_images(self, first: int, last: int) -> NDArray[np.uint8]:
        return self.read_readable(first, last)[0]

    def read_readable(self, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        if isinstance(self._images, LooseImages):
            return self._images.read(first, last, self._image_size)
        images, faults = self._images.read(first, last, self._image_size)
        return images, np.array([place not in faults for place in range(last - first)])

    def score(self, embedded: Embedded, done: Callable[[], None] = lambda: None) -> TemplateResult:
        lengths = np.linalg.norm(embedded.embeddings, axis=1)
        if num_bad := int(np.count_nonzero(~np.isfinite(lengths))):
            reason = f"{num_bad} of {len(lengths)} embeddings are NaN or infinite: the model diverged"
            return _not_measured(reason)
        kept = lengths > 0
        if not kept.any():
            return _not_measured(f"no image of {len(kept)} has an embedding", num_left_out=len(kept))
        sums, ids = self._sums(embedded, kept)
        usable = has_direction(sums)
        result = score_templates(
            sums[usable] / np.linalg.norm(sums[usable], axis=1, keepdims=True),
            ids[usable],
            self._lists,
            name=self._settings.target or Path(self._settings.folder).name,
            num_left_out=int(np.count_nonzero(~kept)),
            replicates=self._settings.replicates,
            done=done,
        )
        if usable.all():
            return result
        return replace(result, not_measured={**result.not_measured, "templates": _cancelled(ids[~usable], len(ids))})

    def score_without(self, left_out: NDArray[np.bool_], embedded: Embedded) -> TemplateResult:
        return self.score(embedded._replace(embeddings=np.where(left_out[:, None], 0, embedded.embeddings)))

    def _sums(self, embedded: Embedded, kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        embeddings = embedded.embeddings[kept].astype(np.float64)
        if self._settings.keep_norm:
            norms = embedded.norms[kept]
            if not (norms > 0).all():
                raise ValueError(
                    "evaluate.keep_norm: the embeddings have no norms: must have a column norm, as of `rayface embed`; "
                    "or set evaluate.keep_norm=false"
                )
            embeddings *= norms[:, None]
        weights = None if self._face_scores is None else self._face_scores[kept]
        templates, medias = self._lists.template[kept], self._lists.media[kept]
        return template_sums(embeddings, templates, medias, face_scores=weights, keep_norm=self._settings.keep_norm)


def _cancelled(ids: NDArray[np.int64], num_templates: int) -> str:
    return (
        f"template {ids[0]}: its weighted images sum to 0, and it is left out with its pairs, as {len(ids)} of "
        f"{num_templates} templates are: check the model and the weights of the images"
    )


def _not_measured(reason: str, num_left_out: int = 0) -> TemplateResult:
    none = {f"{far:.0e}": None for far in FARS}
    return TemplateResult(
        tar_at_far=none,
        threshold_at_far=none,
        num_pairs=0,
        num_templates=0,
        num_left_out=num_left_out,
        not_measured={"tar_at_far": reason, "threshold_at_far": reason, "identification": reason},
    )
