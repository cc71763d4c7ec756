"""Model card: input, training data, metrics and usage of a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rayface.credentials import masked
from rayface.files import write_text
from rayface.markdown import plain
from rayface.models.model_info import ModelInfo
from rayface.models.threshold_card import threshold_table

CARD = "model_card.md"


def card(info: ModelInfo, onnx: str | None = None) -> str:
    """Describe a model in Markdown.

    Args:
        info: content of `model.json`.
        onnx: name of the ONNX file beside the card; None: `model.safetensors` and `model.json` are beside it.
    """
    size, length, backbone = plain(info.image_size), plain(info.embedding_size), plain(info.backbone)
    arguments = plain(", ".join(f"{k} {v}" for k, v in info.backbone_args.items() if v is not None))
    metrics = [f"| {plain(name)} | {value} |" for name, value in _flat(info.metrics)]
    return "\n".join(
        [
            f"# Face embeddings by {backbone}",
            "",
            "| | |",
            "|---|---|",
            f"| backbone | {backbone}{f' ({arguments})' if arguments else ''} |",
            f"| input | one aligned face, {size} x {size} pixels, {plain(info.normalisation)}, "
            f"as (N, 3, {size}, {size}) |",
            "| alignment | five landmarks on ArcFace's template by a similarity transform |",
            f"| output | {length} numbers, raw: scale to length 1, then compare by cosine |",
            *([] if info.network == "backbone" else [f"| network of the run | {plain(info.network)} |"]),
            f"| licence of the training data | {plain(info.licence) or 'not stated'} |",
            f"| digest of the training data | `{plain(info.training_digest) or 'unknown'}` |",
            f"| sha256 of the weights | `{plain(info.sha256)}` |",
            "",
            "The weights carry the licence of the data that they were trained on. Error rates differ between groups of "
            "people and types of images: measure them on images of your application before you set a threshold.",
            "",
            "## Measured",
            "",
            *(["| metric | value |", "|---|---|", *metrics] if metrics else ["Nothing is recorded."]),
            "",
            *_thresholds(info),
            "## Use",
            "",
            "```python",
            "from rayface import load_model",
            "",
            f'model = load_model("{onnx or "."}")',
            f"embeddings = model.embed(images)  # uint8 RGB (N, {size}, {size}, 3) -> float32 (N, {length}), length 1",
            "```",
            *([] if onnx is None else _runtime(onnx)),
            "",
        ]
    )


def write_card(folder: Path, info: ModelInfo, onnx: str | None = None) -> None:
    """Write the card into a folder, replacing an existing one."""
    write_text(folder / CARD, masked(card(info, onnx)))


def _thresholds(info: ModelInfo) -> list[str]:
    if not info.thresholds:
        return []
    return [
        "## Thresholds",
        "",
        "A pair of images is accepted if its cosine is above the threshold. Measured on the test data of this model; "
        "95 % intervals, if given, are by a bootstrap over identities.",
        "",
        *threshold_table(info.thresholds),
        "",
    ]


def _runtime(onnx: str) -> list[str]:
    return [
        "",
        "Or with onnxruntime alone, `x = rgb / 127.5 - 1` as float32 in (N, 3, height, width):",
        "",
        "```python",
        "import onnxruntime",
        "",
        f'embeddings = onnxruntime.InferenceSession("{onnx}").run(["embedding"], {{"image": x}})[0]',
        "```",
    ]


def _flat(metrics: Mapping[str, object], intervals: object = None, before: str = "") -> list[tuple[str, str]]:
    """Return names and values; NAME_interval is shown beside NAME, thresholds have a table of their own."""
    rows: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if name.endswith("_interval") or name == "threshold_at_far":
            continue
        interval = metrics.get(f"{name.removesuffix('_mean')}_interval")
        if interval is None and isinstance(intervals, Mapping):
            interval = intervals.get(name)
        if isinstance(value, Mapping):
            rows += _flat(value, interval, f"{before}{name} ")
        elif isinstance(interval, Sequence) and len(interval) == 2:
            rows.append((before + name, f"{_number(value)} [{_number(interval[0])}, {_number(interval[1])}]"))
        else:
            rows.append((before + name, _number(value)))
    return rows


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else plain(value)
