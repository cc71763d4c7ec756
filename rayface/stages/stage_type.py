"""StageType: the function of a verb, its settings, its output and the fingerprint of the output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rayface.config import OPERATIONAL, TRAINING, Config, flat, require_keys
from rayface.stages.fingerprints import Fingerprint

Kind = Literal["data", "embeddings", "model", "onnx", "numbers"]
Result = Mapping[str, Any]
"""Result of a stage, as --json prints it."""


def _all(result: Result) -> Result:
    return result


@dataclass(frozen=True, kw_only=True)
class StageType:
    """A verb: its function, the config keys that decide its output, and the fingerprint of the output.

    Attributes:
        summary: one line of help.
        function: called with the config and whether to resume an interrupted output.
        flags: config keys by option of the command line, which is also a name in experiment files.
        arguments: flags that are positional arguments of the command line.
        decisive: config keys, or groups of them, that decide the output; operational keys are ignored.
        required: config keys that must be set, beside that of the output.
        output: config key of the output path.
        output_kind: kind of input that the output is for later stages.
        fingerprint: returns the fingerprint of a folder with the output.
        file: the file in the stage's folder that is the output; "": the folder itself.
        resumable: an interrupted output is resumed; else the stage starts over in an empty folder.
        uses_ray: the function runs on Ray.
        title: title of the result table; {} is replaced by the output path.
        report: the file in the output that is a report for people; "": there is none, or the result names it.
        shown: selects the values of a result that the table shows.
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
    report: str = ""
    shown: Callable[[Result], Result] = _all

    def run(self, config: Config, *, resume: bool = False) -> Result:
        """Run the stage.

        Args:
            resume: resume an interrupted output; embed and prune always do.

        Raises:
            ValueError: bad input, one line.
        """
        require_keys(config, *self.required)
        return self.function(config, resume)

    def settings(self, config: Config) -> dict[str, object]:
        """Return the settings that decide the output, by config key."""
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
