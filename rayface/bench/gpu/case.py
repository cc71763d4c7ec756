"""A case of the kit: one comparison or measurement, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

Value: TypeAlias = bool | int | float | str | None
Status = Literal["passed", "failed", "error", "out of memory", "crashed", "cut"]
BAD: tuple[Status, ...] = ("failed", "error", "crashed")


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What every case depends on; sent to the process that runs the cases."""

    device: str
    """cpu or cuda."""
    mini: bool
    """Sizes that a CPU does in seconds, in place of those of the project's figures."""
    contains: str = ""
    """Only cases whose name contains it run."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a case returns. A subclass adds its figures: they become columns of the table and names in the JSON."""

    passed: bool = True
    note: str = ""

    def figures(self) -> dict[str, Value]:
        """Return the figures of the subclass by name."""
        common = {each.name for each in fields(Measured)}
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in common}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison or measurement; an error in it ends it alone."""

    name: str
    run: Callable[[], Measured]
    seconds: float = 2.0
    """It takes about so long on a GPU; where less is left of the part's time, the case is cut."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case."""

    case: str
    status: Status
    seconds: float = 0.0
    figures: dict[str, Value] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A group of cases with a share of the kit's time."""

    key: str
    title: str
    module: str
    """Has a function `cases(kit)` that yields them; imported only in the process that runs them."""
    weight: float
    """Its share of the time is weight / (weights of the parts that are left)."""
