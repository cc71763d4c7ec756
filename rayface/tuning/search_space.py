"""Search spaces over config keys: ranges, choices, and parameters that depend on others."""

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from rayface.values import Tree, parse_number

Scalar = bool | int | float | str | None
Number = Annotated[int | float, BeforeValidator(lambda v: parse_number(v) if isinstance(v, str) else v)]


class Trial(Protocol):
    """The methods of an Optuna trial that sampling needs."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Parameter:
    """Values that a key may take: `choices`, or a range `low` to `high` (of integers if both are)."""

    choices: tuple[Scalar, ...] | None = None
    low: Number | None = None
    high: Number | None = None
    step: Number | None = None
    log: bool = False
    when: dict[str, Scalar | tuple[Scalar, ...]] | None = None
    """Condition: parameters listed before this one, each with the value or values that it must have."""

    @model_validator(mode="after")
    def _check(self) -> "Parameter":
        if self.choices is not None:
            if not self.choices or any(v is not None for v in (self.low, self.high, self.step)) or self.log:
                raise ValueError("must have choices, or a range, not both")
        elif self.low is None or self.high is None or not self.low <= self.high:
            raise ValueError("must have choices, or low and high with low <= high")
        elif self.log and (self.step is not None or self.low <= 0):
            raise ValueError("log: requires low above 0 and no step")
        elif self.step is not None and self.step <= 0:
            raise ValueError("step: must be above 0")
        return self

    @property
    def integer(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def edges(self) -> tuple[Scalar, ...]:
        """Return all choices, or both ends of the range."""
        return self.choices if self.choices is not None else (self.low, self.high)

    def given(self) -> Tree:
        """Return the fields that are set, as JSON types."""
        said = {key: value for key, value in vars(self).items() if value is not None and value is not False}
        given: Tree = json.loads(json.dumps(said))
        return given

    def grid(self) -> tuple[Scalar, ...] | None:
        """Return every value; None if the range is continuous."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        step = self.step or (1 if self.integer and not self.log else None)
        if step is None:
            return None
        # Decimals avoid float rounding: 0.1 + 0.2 would exceed a range that ends at 0.3.
        low, high, width = (Decimal(str(value)) for value in (self.low, self.high, step))
        points = [low + k * width for k in range(int((high - low) / width) + 1)]
        return tuple(int(point) if self.integer else float(point) for point in points)

    def suggest(self, key: str, trial: Trial) -> Scalar:
        """Sample a value from the trial."""
        if self.choices is not None:
            value: Scalar = trial.suggest_categorical(key, list(self.choices))
            return value
        assert self.low is not None
        assert self.high is not None
        if self.integer:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def applies(self, values: Mapping[str, Scalar]) -> bool:
        """Return whether the condition `when` holds for these values of earlier parameters."""
        for key, wanted in (self.when or {}).items():
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if key not in values or not any(_equal(values[key], one) for one in allowed):
                return False
        return True


def _equal(value: Scalar, wanted: Scalar) -> bool:
    """Return whether two values are equal; a sampled step of a range may differ in its last bit."""
    if isinstance(value, float) and isinstance(wanted, int | float):
        return math.isclose(value, wanted, rel_tol=1e-9)
    return value == wanted


Space = Mapping[str, Parameter]


def suggest(space: Space, trial: Trial) -> dict[str, Scalar]:
    """Sample a value for every parameter that applies, in the order of the space."""
    values: dict[str, Scalar] = {}
    for key, parameter in space.items():
        if parameter.applies(values):
            values[key] = parameter.suggest(key, trial)
    return values


def grid(space: Space) -> list[dict[str, Scalar]]:
    """Return every point of a space of choices and stepped ranges.

    Raises:
        ValueError: a range has no step.
    """
    return list(_grid(list(space.items()), {}))


def _grid(rest: list[tuple[str, Parameter]], values: dict[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    if not rest:
        yield values
        return
    (key, parameter), *others = rest
    if not parameter.applies(values):
        yield from _grid(others, values)
        return
    places = parameter.grid()
    if places is None:
        raise ValueError(f"search.{key}: is a continuous range: a grid requires choices, or a step")
    for value in places:
        yield from _grid(others, {**values, key: value})
