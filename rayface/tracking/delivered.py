"""What a destination has received of a spool; stored beside the journals after every accepted batch."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from rayface.files import read_json, write_json
from rayface.storage import AnyPath, StorageError
from rayface.tracking.journal import Record

_DELIVERED = "delivered.json"  # of MLflow


@dataclass(kw_only=True)
class Delivered:
    """Delivery state of a spool at one destination, such as a tracking server and experiment (`target`)."""

    target: str
    run_id: str | None = None
    experiment_id: str | None = None
    cursors: dict[str, int] = field(default_factory=dict)
    artifacts: list[tuple[str, str]] = field(default_factory=list)  # read from the journals, not sent yet
    models: list[str] = field(default_factory=list)  # likewise
    size: int = 0  # bytes of the file that holds what was sent, of a destination that is a file
    finish: Record | None = None  # the last finish record read
    ended: bool = False  # the final status was sent

    @classmethod
    def load(cls, path: Path, target: str) -> "Delivered":
        """Return the stored state, or a new one for another target, which gets all records."""
        state = cls(**read_json(path)) if path.exists() else cls(target=target)
        return state if state.target == target else cls(target=target)

    def save(self, path: Path) -> None:
        """Store the state."""
        write_json(path, asdict(self))


def delivered_run_id(folder: AnyPath) -> str | None:
    """Return the id of the MLflow run that a spool is delivered to; None until MLflow has answered."""
    try:
        run_id: str | None = read_json(folder / _DELIVERED)["run_id"]
    except (OSError, ValueError, KeyError, StorageError):
        return None
    return run_id
