"""Registry of evaluation protocols by name; a plugin adds to PROTOCOLS."""

from rayface.config import EvaluateConfig
from rayface.evaluation.pairs import PairsProtocol
from rayface.evaluation.protocol import EvaluationProtocol, ProtocolResult
from rayface.plugins import ensure_loaded

__all__ = ["PROTOCOLS", "EvaluationProtocol", "ProtocolResult", "protocol_class"]

PROTOCOLS: dict[str, type[EvaluationProtocol]] = {"pairs": PairsProtocol}


def protocol_class(settings: EvaluateConfig) -> type[EvaluationProtocol] | None:
    """Return the class of evaluate.protocol; None if its inputs are not set.

    Raises:
        ValueError: an unknown name, or settings that contradict each other; one line.
    """
    ensure_loaded()
    if settings.protocol not in PROTOCOLS:
        known = ", ".join(sorted(PROTOCOLS))
        raise ValueError(f"evaluate.protocol: {settings.protocol!r}: must be one of {known}, or registered by a plugin")
    found = PROTOCOLS[settings.protocol]
    return found if found.is_configured(settings) else None
