"""Checks of a run: each compares one value with its expectation, and names the config key to change."""

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rayface.heads import head_class, margin_parameters
from rayface.heads.from_config import build_config_margin, margin_options
from rayface.presets import reference_rate
from rayface.training.doctor.expected_loss import ExpectedLoss, expected_loss
from rayface.training.doctor.history import RunHistory

_LEARNT = 0.03  # share by which the loss falls; real faces reach 0.08, shuffled labels -0.03 to 0.014
_LEARNT_WELL = 0.25
_WAITING = 0.25  # share of a step
_READINGS = 10  # of the share, the last ones
_LOWERED = {"combined": "m2 and m3", "magface": "margin_low and margin_high"}  # options that set the margin

Verdict = Literal["ok", "wrong", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A value of a run, what is expected, and what to do if it is wrong."""

    name: str
    value: str
    expected: str
    key: str
    """Config key to change."""
    verdict: Verdict = "ok"
    remedy: str = ""

    @property
    def advice(self) -> str:
        """One line: key, value, expectation, remedy."""
        return f"{self.key}: {self.name} {self.value}, expected {self.expected}: {self.remedy}"


class Examination:
    """Derived figures of a run that several checks use."""

    def __init__(self, run: RunHistory) -> None:
        self.run, self.config = run, run.config
        self.head = head_class(run.config.head.name)
        self.margin = build_config_margin(run.config.head)

    @property
    def keeps_centers(self) -> bool:
        """Whether the loss is a softmax over the class centers of all identities."""
        return self.head.stream == "images"

    @property
    def classes_used(self) -> float:
        """Classes in the softmax of a step, of all workers."""
        workers = self.config.train.min_workers
        logged = self.run.values("classes_used")
        if logged:
            return statistics.median(logged) * statistics.median(self.run.values("workers") or [workers])
        sampled = self.config.head.sample_rate * self.run.num_classes
        return min(self.run.num_classes, max(sampled, self.classes_in_batch))

    @property
    def classes_in_batch(self) -> float:
        """Expected number of identities in a batch."""
        count = self.run.num_classes
        return count * -math.expm1(self.config.train.batch_size * math.log1p(-1 / count)) if count > 1 else 1.0

    @cached_property
    def losses(self) -> ExpectedLoss:
        """Losses of a net that has learnt nothing."""
        size = self.config.backbone.embedding_size
        norm = self.run.first("embedding_norm") or math.sqrt(size)
        return expected_loss(self.margin, classes=self.classes_used, embedding_size=size, norm=norm)

    @cached_property
    def learnt_loss(self) -> float | None:
        """Mean loss of the steps before the one at which the run is judged; None before it, and of other heads."""
        last = self.run.judged_step
        if not self.keeps_centers or self.run.step < last:
            return None
        late = [value for step, value in self.run.metrics.get("train/loss", ()) if 0.8 * last <= step <= last]
        return statistics.fmean(late) if late else None

    @property
    def learnt(self) -> float | None:
        """By which share the loss is below that of a net without information; None: it is too early to say."""
        return None if self.learnt_loss is None else 1 - self.learnt_loss / max(self.losses.uninformed, 1e-9)

    @property
    def learns(self) -> bool | None:
        """Whether the loss is below that of a net without information, and of one that learns labels by heart."""
        return None if self.learnt is None else self.learnt > _LEARNT


def check_classes(of: Examination) -> Check:
    """Two or more identities with images, and no label space that is mostly empty."""
    space, used = of.run.num_classes, of.run.classes_with_images or of.run.num_classes
    in_batch = of.run.values("labels_in_batch")
    value = f"{used:,} of {space:,} labels have images"
    constant = len(in_batch) > 1 and of.config.train.batch_size > 2 * of.config.train.max_workers and max(in_batch) <= 1
    verdict: Verdict = "wrong" if used < 2 or constant or used < 0.5 * space else "ok"
    if constant and used > 1:
        value = "1 label in a batch"
    remedy = "give every identity a label of its own, numbered without gaps: rayface convert does so"
    expected = "two or more, without gaps"
    return Check(name="labels", value=value, expected=expected, key="data.train", verdict=verdict, remedy=remedy)


def check_pixels(of: Examination) -> Check:
    """Images in [-1, 1] that are not black."""
    mean, deviation = of.run.first("pixel_mean"), of.run.first("pixel_std")
    key, expected = "data.train", "mean -0.7 to 0.7, deviation 0.1 to 1"
    if mean is None or deviation is None:
        return Check(name="pixels", value="-", expected=expected, key=key, verdict="unknown")
    good = abs(mean) <= 0.7 and 0.1 <= deviation <= 1
    return Check(
        name="pixels",
        value=f"mean {mean:.2f}, deviation {deviation:.2f}",
        expected=expected,
        key=key,
        verdict="ok" if good else "wrong",
        remedy="look at the images: they must be stored as 0 to 255, and are scaled to [-1, 1] when they are read",
    )


def check_scale(of: Examination) -> Check:
    """A scale at which a perfect embedding outweighs all other classes."""
    classes = max(2.0, of.classes_used if of.keeps_centers else of.run.num_classes)
    least = math.log(classes - 1) / (1 + 1 / (classes - 1))
    return Check(
        name="scale of the logits",
        value=f"{of.margin.scale:g}",
        expected=f"above {least:.1f} for {classes:,.0f} classes",
        key="head.scale",
        verdict="ok" if of.margin.scale > least else "wrong",
        remedy=f"a perfect embedding cannot get a low loss: set head.scale={of.head.usual_scale:g}",
    )


def check_margin(of: Examination) -> Check:
    """A margin that a target's cosine can still overcome."""
    drop, margin = of.losses.drop, of.config.head.margin
    has_value = "margin" in margin_parameters(margin)
    options = _LOWERED.get(margin) or ", ".join(margin_options(margin))
    lower = f"lower the margin of {margin} by {options}" if options else "choose another margin"
    return Check(
        name="margin",
        value=f"lowers a cosine of 0 by {drop:.2f}",
        expected="at most 0.75",
        key="head.margin_value" if has_value else "head.margin_options" if options else "head.margin",
        verdict="ok" if drop <= 0.75 else "wrong",
        remedy="set head.margin_value=0.4 for cosface, 0.5 for arcface" if has_value else lower,
    )


def check_rate(of: Examination) -> Check:
    """A peak rate near that of the published recipes, by the linear rule."""
    optim, batch = of.config.optim, of.config.train.batch_size
    usual = reference_rate(optim.name, batch)
    ratio = optim.lr / usual
    wrong = ratio >= 5 or (of.learns is False and not 1 / 50 < ratio < 3)
    return Check(
        name="learning rate",
        value=f"{optim.lr:g}",
        expected=f"about {usual:g} for {optim.name} and a batch of {batch:,}",
        key="optim.lr",
        verdict="wrong" if wrong else "ok",
        remedy=f"set optim.lr={usual:g}",
    )


def check_warmup(of: Examination) -> Check:
    """A warm-up that is shorter than the run, and one where the loss rises without it."""
    epochs, total = of.config.schedule.warmup_epochs, of.config.train.epochs
    late = of.run.values("loss")[-max(1, len(of.run.values("loss")) // 3) :]
    highest = 1.3 * of.losses.initial
    rises = of.keeps_centers and len(late) > 2 and statistics.fmean(late) > highest
    remedy = f"set schedule.warmup_epochs={0.1 * total:g}" if epochs >= total else "the loss rises: set it to 1 or more"
    return Check(
        name="warm-up",
        value=f"{epochs:g} of {total:g} epochs" + (f", loss {statistics.fmean(late):.1f}" if rises else ""),
        expected="shorter than the run" + (f", loss below {highest:.1f}" if of.keeps_centers else ""),
        key="schedule.warmup_epochs",
        verdict="wrong" if epochs >= total or rises else "ok",
        remedy=remedy,
    )


def check_sampling(of: Examination) -> Check:
    """Sampled classes beyond those of the batch."""
    rate, space = of.config.head.sample_rate, of.run.num_classes
    positives, used = of.classes_in_batch, of.classes_used
    scarce = used < 2 * positives and used < 0.25 * space
    few = rate < 0.1 and used < 1000 and used < 0.25 * space
    enough = min(1.0, max(0.1, math.ceil(40 * positives / space) / 10))
    return Check(
        name="classes in the softmax",
        value=f"{used:,.0f} of {space:,}, {positives:,.0f} of them of the batch",
        expected="all" if rate == 1 else "many that are not of the batch",
        key="head.sample_rate",
        verdict="wrong" if of.keeps_centers and rate < 1 and (scarce or few) else "ok",
        remedy=f"set head.sample_rate={enough:g} or more",
    )


def check_embeddings(of: Examination) -> Check:
    """Embeddings that the last batch norm gives the norm sqrt(D)."""
    norm, usual = of.run.first("embedding_norm"), math.sqrt(of.config.backbone.embedding_size)
    expected = f"about {usual:.1f}, the root of backbone.embedding_size"
    if norm is None:
        return Check(
            name="norm of the embeddings", value="-", expected=expected, key="backbone.name", verdict="unknown"
        )
    unusual = not 0.4 * usual < norm < 2.5 * usual
    return Check(
        name="norm of the embeddings",
        value=f"{norm:.3g}",
        expected=expected,
        key="backbone.name",
        verdict="wrong" if unusual and of.learnt is not None and of.learnt < _LEARNT_WELL else "ok",
        remedy="its batch norms do not use the statistics of the batch: unfreeze them, or choose another backbone",
    )


def check_learning(of: Examination) -> Check:
    """A loss below that of a net which knows nothing of the identities."""
    losses, loss = of.losses, of.learnt_loss
    first = of.run.first("loss")
    if not of.keeps_centers:
        return Check(name="loss", value="-", expected="-", key="data.train", verdict="unknown")
    start = "-" if first is None else f"{first:.2f}"
    now = (
        f"{loss:.2f} at step {of.run.judged_step:,}"
        if loss is not None
        else f"too early before step {of.run.judged_step:,}"
    )
    return Check(
        name="loss",
        value=f"{start} at first, {now}",
        expected=f"about {losses.initial:.2f}, then 3 % below {losses.uninformed:.2f} (ln C and margin)",
        key="data.train",
        verdict="unknown" if of.learns is None else "ok" if of.learns else "wrong",
        remedy="the labels seem not to belong to the images: check the data's labels, for example with clean.outliers",
    )


def check_data(of: Examination) -> Check:
    """GPUs that seldom wait for images; CPUs may, which decode them too."""
    shares = of.run.values("waiting_for_data", last_step=of.run.step)[1:][-_READINGS:]  # the first has the start
    data, expected = of.config.data, f"at most {_WAITING:.0%} on GPUs"
    stored = any("://" in path for path in data.train) and data.cache_size is None
    key = "data.cache_size" if stored else "data.readers"
    if not shares:
        return Check(name="time waiting for data", value="-", expected=expected, key=key, verdict="unknown")
    waiting = statistics.median(shares)
    on_gpus = of.config.train.device != "cpu" and any(name.startswith("system/gpu_") for name in of.run.metrics)
    copied = "set it, so that nodes keep copies of the shards; a new run may read larger parts: data.chunk_images=64"
    return Check(
        name="time waiting for data",
        value=f"{waiting:.0%}",
        expected=expected,
        key=key,
        verdict="wrong" if on_gpus and len(shares) >= _READINGS // 2 and waiting > _WAITING else "ok",
        remedy=copied if stored else "raise it, on nodes with more CPUs: a core decodes some 7,000 images/s",
    )


CHECKS: tuple[Callable[[Examination], Check], ...] = (
    check_classes,
    check_pixels,
    check_scale,
    check_margin,
    check_rate,
    check_sampling,
    check_embeddings,
    check_warmup,
    check_learning,
    check_data,
)
"""In order of certainty: the first that is wrong is the advice."""


def examine(run: RunHistory) -> Iterator[Check]:
    """Yield the checks of a run."""
    examination = Examination(run)
    for check in CHECKS:
        yield check(examination)
