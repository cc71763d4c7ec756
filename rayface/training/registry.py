"""MLflow's model registry: the model of a finished run as a version of a registered model."""

from dataclasses import dataclass

from rayface.models.model_info import DESCRIPTION, ModelInfo
from rayface.tracking import deliver
from rayface.tracking.delivery import Delivery
from rayface.training.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model; `created` is False if the run's model had one before."""

    model: str
    version: int
    created: bool
    tracking: str

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return dict(vars(self))


def register(run: RunDirectory, name: str | None = None, *, timeout: float = 60.0) -> Registered:
    """Register the model of a finished run in the MLflow store that the run was tracked in.

    The facts of model.json become tags of the version. A model that has a version keeps it.

    Args:
        run: its directory, on a disk or in an object store.
        name: registered model; None: the `name` of the run's config.
        timeout: maximum seconds to wait for MLflow.

    Raises:
        ValueError: the run is not finished, or was not tracked; one line.
        RuntimeError: MLflow does not answer; one line.
    """
    config = run.read_config()
    if not run.is_finished():
        raise ValueError(f"RUN {run}: is not finished: resume it to its end with --resume before it is registered")
    name = name or config.name
    if not name or set(name) & set("/:'"):
        raise ValueError(f"--name: {name}: must not be empty or contain / : or ', which MLflow does not allow")
    with run.synced() as folder:
        delivery = Delivery.of(run.journals)
        if not deliver(run.journals, timeout):
            raise RuntimeError(f"MLflow at {delivery.uri} does not accept the run: start it, then register again")
        info = ModelInfo.read(folder / DESCRIPTION)
        version, created = delivery.connected().register(folder, name, facts_of(info))
    return Registered(model=name, version=version, created=created, tracking=delivery.uri)


def facts_of(info: ModelInfo) -> dict[str, str]:
    """Return the facts of a model.json that have a value, as texts; figures as NAME of `metrics`."""
    facts = {key: value for key, value in info.as_dict().items() if not isinstance(value, dict | list)}
    figures = {key: value for key, value in info.metrics.items() if isinstance(value, int | float)}
    return {key: str(value) for key, value in {**facts, **figures}.items() if value not in ("", None)}
