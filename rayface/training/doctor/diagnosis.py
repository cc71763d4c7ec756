"""Diagnosis of a run: its checks, and at most one line of advice."""

from dataclasses import asdict, dataclass

from rayface.training.doctor.checks import Check, examine
from rayface.training.doctor.history import RunHistory, read_history
from rayface.training.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Checks of a run, the most certain first."""

    checks: tuple[Check, ...]

    @property
    def advised(self) -> Check | None:
        """The check whose advice to follow; None if nothing is wrong."""
        return next((check for check in self.checks if check.verdict == "wrong"), None)

    @property
    def advice(self) -> str | None:
        """One line with the key to change; None if nothing is wrong."""
        return None if self.advised is None else self.advised.advice

    def as_dict(self) -> dict[str, object]:
        """Return the values that `rayface doctor --json` prints."""
        key = None if self.advised is None else self.advised.key
        return {"advice": self.advice, "key": key, "checks": [asdict(check) for check in self.checks]}

    def table(self) -> list[dict[str, str]]:
        """Return the checks as rows of a table."""
        return [
            {
                "check": check.name,
                "value": check.value,
                "expected": check.expected,
                "verdict": check.verdict,
                "key": check.key,
            }
            for check in self.checks
        ]


def diagnose(run: RunHistory) -> Diagnosis:
    """Diagnose a run, finished or not; a pure function of its history."""
    return Diagnosis(checks=tuple(examine(run)))


def diagnose_directory(run: RunDirectory) -> Diagnosis:
    """Diagnose the run in a directory.

    Raises:
        ValueError: this is not a run directory; one line.
    """
    return diagnose(read_history(run))
