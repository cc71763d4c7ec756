"""What the tables of results show; --json prints the results as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from rayface.values import percent, percent_interval

Result = Mapping[str, Any]

_BY_RATE = {
    "tar_at_far": "TAR at FAR",
    "threshold_at_far": "threshold at FAR",
    "rank": "rank",
    "tpir_at_fpir": "TPIR at FPIR",
}
_SHARES = ("accuracy_mean", "accuracy_std", "accuracy_before", "tar_at_far", "rank", "tpir_at_fpir")
_LABELS = {
    "accuracy_mean": "accuracy",
    "faces_in": "images in",
    "faces_cleaned": "images cleaned",
    "faces_out": "images out",
}


def shown_embeddings(result: Result) -> Result:
    names = ("model", "data", "num_rows", "num_classes", "embedding_size", "flip", "parts_skipped", "seconds")
    return {**{name: result[name] for name in names}, "faults": len(result["faults"])}


def shown_core_set(result: Result) -> Result:
    """Return the values with a row for each baseline."""
    shown: dict[str, object] = {}
    for name, value in result.items():
        if name == "baselines":
            shown |= {f"baseline {method}": _selection(figures) for method, figures in value.items()}
        elif name == "dataset":
            shown[name] = {part.replace("_", " "): count for part, count in value.items()}
        elif name not in ("out", "config", "created_by"):
            shown[_LABELS.get(name, name)] = value
    return shown


def _selection(figures: Mapping[str, Any]) -> str:
    shared = f"{percent(figures['shared'])} shared"
    return f"{figures['faces']:,} images, mean cosine {figures['mean_cosine']:.4g}, {shared}"


def shown_clusters(result: Result) -> Result:
    names = ("method", "threshold", "threshold_from")
    scores = result["scores"] or {}
    known = {name: scores[name] for name in ("pairwise_f", "bcubed_f", "nmi") if name in scores}
    return {**{name: result[name] for name in names}, **result["counts"], **known, "seconds": result["job"]["seconds"]}


def shown_run(result: Result) -> Result:
    """Return the values of a run with intervals beside their figures."""
    own = {name: value for name, value in result.items() if value is not None or name == "loss"}
    return {**_worded(own), "loss": result.get("loss")}


def shown_evaluation(result: Result) -> Result:
    """Return the figures of every protocol, with words for those that are not measured."""
    shown: dict[str, object] = {name: value for name, value in result.items() if isinstance(value, str)}
    several = len(result["protocols"]) > 1
    for protocol, figures in result["protocols"].items():
        reasons = figures.get("not_measured", {})
        own = _worded({name: value for name, value in figures.items() if name != "not_measured"})
        if reasons:
            own["why not measured"] = "; ".join(dict.fromkeys(reasons.values()))
        shown |= {f"{protocol}: {name}" if several else name: value for name, value in own.items()}
    for protocol, certificate in result.get("leaks", {}).items():
        prefix = f"{protocol}: " if several else ""
        found = {way: "not examined" if n is None else n["images"] for way, n in certificate["counts"].items()}
        shown[f"{prefix}leaked images"] = found
        if without := certificate["without"]:
            names = ("accuracy_mean", "accuracy_interval", "tar_at_far", "tar_at_far_interval")
            worded = _worded({name: without[name] for name in names if name in without})
            shown |= {f"{prefix}without them: {name}": value for name, value in worded.items()}
    return shown


def _worded(figures: Mapping[str, Any]) -> dict[str, object]:
    """Return a row for each figure: shares in percent, with its interval, and words for what is not measured."""
    found: dict[str, object] = {}
    for name, value in figures.items():
        interval = figures.get(f"{name.removesuffix('_mean')}_interval")
        if name.endswith("_interval") or (name == "accuracy_std" and figures.get("accuracy_mean") is not None):
            continue
        if name in _BY_RATE and isinstance(value, Mapping):
            intervals = interval or {}
            rows = {rate: _text(name, each, intervals.get(rate)) for rate, each in value.items()}
            found |= {f"{_BY_RATE[name]} {rate}": text for rate, text in rows.items()}
        elif isinstance(value, Mapping):
            found |= {f"{name} {part}": text for part, text in _worded(value).items()}
        else:
            deviation = figures.get("accuracy_std") if name == "accuracy_mean" else None
            found[_LABELS.get(name, _BY_RATE.get(name, name))] = _text(name, value, interval, deviation)
    return found


def _text(name: str, value: Any, interval: Sequence[float | None] | None, deviation: float | None = None) -> Any:
    if value is None:
        return "not measured"
    share = name in _SHARES
    if interval is None or None in interval:
        text: Any = percent(value) if share else value
        return text if deviation is None else f"{text} ± {percent(deviation)}"
    about = "" if deviation is None else f" ± {percent(deviation)}"
    low, high = interval
    if share:
        return f"{percent(value)}{about}, {percent_interval(interval)}"
    return f"{value:.4f}, 95% interval {low:.4f} to {high:.4f}"
