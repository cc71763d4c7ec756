"""The type of stages: what a verb needs of a Config, what it makes, and how its result is recognised."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rayface.config import OPERATIONAL, TRAINING, Config, flat, require_keys
from rayface.stages.fingerprints import Fingerprint

Kind = Literal["data", "embeddings", "model", "onnx", "numbers"]
Result = Mapping[str, Any]
"""What a stage has done, as --json prints it."""


def _all(result: Result) -> Result:
    return result


@dataclass(frozen=True, kw_only=True)
class StageType:
    """A verb: a function of a Config, what of the Config decides its result, and how that is recognised.

    Attributes:
        summary: what it does, one line.
        function: does it; called with the config and whether to resume an interrupted result.
        flags: options of the command line, and names in experiment files, to config keys.
        arguments: flags that the command line takes by position.
        decisive: config keys, or groups of them, that decide the result; operational keys are not looked at.
        required: config keys that must be set, beside that of the output.
        output: config key of the place of the result.
        output_kind: what the result is to later stages.
        fingerprint: of a folder with the result.
        file: the file of a stage's folder that is the result; "": the folder.
        resumable: run again, it resumes where it was interrupted; else it starts in an empty folder.
        uses_ray: it runs on Ray.
        title: of the result; the output is put in for {}.
        shown: what of a result a table shows.
    """

    summary: str
    function: Callable[[Config, bool], Result]
    flags: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    decisive: tuple[str, ...]
    required: tuple[str, ...] = ()
    output: str
    output_kind: Kind
    fingerprint: Fingerprint
    file: str = ""
    resumable: bool = False
    uses_ray: bool = False
    title: str
    shown: Callable[[Result], Result] = _all

    def run(self, config: Config, *, resume: bool = False) -> Result:
        """Do it.

        Args:
            resume: an interrupted result; embed and prune resume without being asked.

        Raises:
            ValueError: bad input, one line.
        """
        require_keys(config, *self.required)
        return self.function(config, resume)

    def settings(self, config: Config) -> dict[str, Any]:
        """What of a config decides the result, by key."""
        groups = self.decisive
        if self.output == "prune.out" and config.prune.proxy_fraction is not None:
            groups = (*groups, *TRAINING)
        found = {
            key: value
            for key, value in flat(config).items()
            if key not in OPERATIONAL and (key in groups or key.partition(".")[0] in groups)
        }
        if "train" in groups:
            found["distils from a cache"] = config.train.teacher_cache is not None
        return found
