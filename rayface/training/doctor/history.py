"""What is known of a run: its config, the counts of its data, and the metrics in its journal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rayface.config import Config
from rayface.training.run_directory import RunDirectory

FIRST_STEPS = 100
_IMAGES_PER_CLASS = 30  # seen by a net that must have learnt something

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """A run up to now.

    Attributes:
        config: the resolved config.
        num_classes: size of the label space, C.
        steps_per_epoch: by the order of the samples, which weights and pairs of images change.
        classes_with_images: identities that have images; None if unknown.
        metrics: points (step, value) by name, ascending.
    """

    config: Config
    num_classes: int
    steps_per_epoch: float
    classes_with_images: int | None = None
    metrics: Mapping[str, Points] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The newest logged step; 0 without any."""
        return max((points[-1][0] for points in self.metrics.values() if points), default=0)

    @property
    def warmup_steps(self) -> float:
        """Steps in which the rate rises to its peak."""
        return self.config.schedule.warmup_epochs * self.steps_per_epoch

    @property
    def judged_step(self) -> int:
        """The step at which a healthy run has learnt: each identity was seen often enough, after the warm-up.

        It is later for a large scale: the logits of random class centers, of variance scale**2 / D, settle first.
        """
        from rayface.heads.from_config import scale_of  # PyTorch takes a second to import

        config = self.config
        seen = _IMAGES_PER_CLASS * self.num_classes / config.train.batch_size
        noise = scale_of(config.head) ** 2 / (2 * config.backbone.embedding_size)
        return round(max(FIRST_STEPS, seen) * max(1.0, noise / 2) + self.warmup_steps)

    def values(self, name: str, last_step: int = FIRST_STEPS) -> list[float]:
        """Return the values of a metric up to a step."""
        return [value for step, value in self.metrics.get(f"train/{name}", ()) if step <= last_step]

    def first(self, name: str) -> float | None:
        """Return the first value of a metric in the first steps; None if it was not logged."""
        return next(iter(self.values(name)), None)


def read_history(run: RunDirectory) -> RunHistory:
    """Return the history of a run, finished or not.

    Raises:
        ValueError: this is not a run directory, or its workers have not started yet.
    """
    config, facts = run.read_config(), run.read_data_facts()
    if facts is None:
        raise ValueError(f"{run}: has no data.json yet: wait until the run has started")
    metrics: dict[str, list[tuple[int, float]]] = {}
    params: dict[str, str] = {}
    for record in run.journal_tail().read():
        if record["kind"] == "metrics":
            for name, value in record["values"].items():
                metrics.setdefault(name, []).append((record["step"], float(value)))
        elif record["kind"] == "params":
            params |= record["values"]
    metrics = {name: sorted(points) for name, points in metrics.items()}
    classes = params.get("dataset.num_classes_with_images")
    return RunHistory(
        config=config,
        num_classes=facts["num_classes"],
        steps_per_epoch=_steps_per_epoch(metrics.get("train/epoch"), facts["num_images"] / config.train.batch_size),
        classes_with_images=None if classes is None else int(classes),
        metrics=metrics,
    )


def _steps_per_epoch(epochs: Points | None, estimate: float) -> float:
    """Return the steps of an epoch by what the run has logged, before the first such point an estimate."""
    step, epoch = epochs[-1] if epochs else (0, 0.0)
    return max(1.0, step / epoch if epoch else estimate)
