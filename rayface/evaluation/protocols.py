"""Registry of evaluation protocols by name; a plugin adds to PROTOCOLS."""

from dataclasses import replace
from typing import Literal

from rayface.config import EvaluateConfig
from rayface.evaluation.all_vs_all_protocol import AllVsAllProtocol, AllVsAllSettings
from rayface.evaluation.pairs import BinProtocol, PairsProtocol
from rayface.evaluation.protocol import EvaluationProtocol, ProtocolResult
from rayface.evaluation.template_protocol import TemplateProtocol
from rayface.plugins import ensure_loaded

__all__ = ["BUILT_IN", "PROTOCOLS", "EvaluationProtocol", "ProtocolResult", "configured_protocols", "open_protocols"]

PROTOCOLS: dict[str, type[EvaluationProtocol]] = {
    "pairs": PairsProtocol,
    "bin": BinProtocol,
    "templates": TemplateProtocol,
    "all_vs_all": AllVsAllProtocol,
}
BUILT_IN = tuple(PROTOCOLS)


def configured_protocols(evaluate: EvaluateConfig) -> dict[str, object]:
    """Return the settings of each protocol to measure by, by name.

    These are evaluate.protocols, or all built-in ones whose inputs are set. The first one's main figure selects the
    best checkpoint.

    Raises:
        ValueError: an unknown name, a named protocol whose inputs are not set, or settings that contradict each other;
            one line.
    """
    ensure_loaded()
    for name in evaluate.protocols:
        if name not in PROTOCOLS:
            known = ", ".join(sorted(PROTOCOLS))
            raise ValueError(f"evaluate.protocols: {name!r}: must be one of {known}, or registered by a plugin")
    found = {name: PROTOCOLS[name].settings_of(evaluate) for name in evaluate.protocols or BUILT_IN}
    for name in evaluate.protocols:
        if found[name] is None:
            raise ValueError(f"evaluate.protocols: {name}: its inputs are not set, for example evaluate.pairs")
    configured = {name: settings for name, settings in found.items() if settings is not None}
    if evaluate.options and all(PROTOCOLS[name].__module__.startswith("rayface.") for name in configured):
        raise ValueError("evaluate.options: have no effect: must be with a protocol of a plugin, or left out")
    return configured


def open_protocols(
    evaluate: EvaluateConfig, *, image_size: int, join: Literal["names", "labels", "separate"] | None = None
) -> dict[str, EvaluationProtocol]:
    """Open the configured protocols, by name.

    Args:
        image_size: side of the images, pixels.
        join: how several directories of evaluate.all_vs_all share labels, see data.join.

    Raises:
        ValueError: see `configured_protocols`, or an input is missing or invalid; one line.
    """
    found: dict[str, EvaluationProtocol] = {}
    for name, settings in configured_protocols(evaluate).items():
        if isinstance(settings, AllVsAllSettings):
            settings = replace(settings, join=join)
        opened = PROTOCOLS[name].open_each(name, settings, image_size=image_size)
        for result in opened.keys() & found.keys():
            raise ValueError(f"evaluate.protocols: {result}: is the name of two results: rename its input")
        found.update(opened)
    return found
