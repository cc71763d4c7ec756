"""Report of an evaluation, one HTML file: figures, curves, and the worst pairs as pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import simplejpeg

from rayface.evaluation.pictures import Pictures, ScoredPair
from rayface.evaluation.protocol import EvaluationProtocol
from rayface.report import PALETTE, Face, Listing, Plot, Row, Sheet, as_svg, load_template
from rayface.values import main_rate, percent, percent_interval
from rayface.version import VERSION


def evaluation_page(
    content: Mapping[str, Any],
    plots: Sequence[Plot],
    protocols: Mapping[str, EvaluationProtocol],
    pictures: Mapping[str, Pictures],
    *,
    title: str,
    config: str,
) -> str:
    """Return the self-contained page.

    Args:
        content: content of evaluation.json.
        plots: see `evaluation_plots`.
        protocols: the protocols, whose images are read.
        pictures: worst pairs by protocol.
        title: name of the model or run.
        config: configuration as text.
    """
    sheets = [sheet for name, own in pictures.items() for sheet in _sheets(own, protocols[name])]
    return load_template("evaluation.html").render(
        title=title,
        table=_table(content),
        plots=[{"caption": plot.caption, "wide": plot.wide, "svg": as_svg(plot)} for plot in plots],
        palette=PALETTE,
        config=config,
        listings=[listing for name, own in content["protocols"].items() for listing in _listings(name, own)],
        sheets=sheets,
        version=VERSION,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _table(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, own in content["protocols"].items():
        if "accuracy_mean" in own:
            chance = " (chance: 50%)"
            text = "not measured"
            if own["accuracy_mean"] is not None:
                text = f"{own['accuracy_mean']:.2%} ± {own['accuracy_std']:.2%}{_interval(own, 'accuracy')}{chance}"
            rows.append((f"accuracy, {content.get('curves', {}).get(name, {}).get('name', name)}", text))
        elif "tar_at_far" in own:
            far, tar = main_rate(own["tar_at_far"])
            interval = own.get("tar_at_far_interval", {}).get(far, (None, None))
            text = "" if None in interval else f", {percent_interval(interval)}"
            rows.append((f"{name}: TAR at FAR {far}" if far else f"{name}: TAR", f"{_percent(tar)}{text}"))
    rows += [(key, value) for key, value in content.items() if isinstance(value, str)]
    for name, own in content["protocols"].items():
        counts = [
            f"{value:,} {key.removeprefix('num_')}" for key, value in own.items() if key.startswith("num_") and value
        ]
        rows.append((f"{name}: counts", ", ".join(counts).replace("_", " ")))
        if reasons := own.get("not_measured"):
            rows.append((f"{name}: not measured", "; ".join(dict.fromkeys(reasons.values()))))
    return rows


def _interval(own: Mapping[str, Any], figure: str) -> str:
    found = own.get(f"{figure}_interval")
    return f", {percent_interval(found)}" if found and None not in found else ""


def _range(interval: Sequence[float | None]) -> str:
    return percent_interval(interval).removeprefix("95% interval ")


def _listings(name: str, own: Mapping[str, Any]) -> list[Listing]:
    found = []
    if own.get("tar_at_far"):
        caption = "Accepted is a cosine above the threshold. Chance: a TAR equal to the FAR."
        columns, rows = _rates(own)
        found.append(Listing(title=f"{name}: TAR at FAR", caption=caption, columns=columns, rows=rows))
    for column, groups in own.get("groups", {}).items():
        fars = list(own["tar_at_far"])
        rows = [[group, *(_percent(rates["tar_at_far"].get(far)) for far in fars)] for group, rates in groups.items()]
        caption = "TAR of pairs inside each group, by FAR."
        found.append(Listing(title=f"{name}: by {column}", caption=caption, columns=[column, *fars], rows=rows))
    if identification := own.get("identification"):
        galleries = {"all": identification} | {key: own for key, own in identification.items() if "rank" in own}
        columns = [f"rank {rank}" for rank in identification["rank"]]
        columns += [f"TPIR at FPIR {fpir}" for fpir in identification["tpir_at_fpir"]]
        rows = [
            [gallery, *_with_intervals(each, "rank"), *_with_intervals(each, "tpir_at_fpir")]
            for gallery, each in galleries.items()
        ]
        caption = "Probes with a mate in the gallery; all: ranks in all galleries together, mean TPIR."
        found.append(
            Listing(title=f"{name}: identification", caption=caption, columns=["gallery", *columns], rows=rows)
        )
    return found


def _with_intervals(own: Mapping[str, Any], figure: str) -> list[str]:
    intervals = own.get(f"{figure}_interval", {})
    return [
        f"{_percent(value)} ({_range(intervals[key])})" if value is not None and key in intervals else _percent(value)
        for key, value in own[figure].items()
    ]


def _rates(own: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the rates by FAR."""
    intervals, thresholds = own.get("tar_at_far_interval", {}), own.get("threshold_at_far", {})
    rows = []
    for far, tar in own["tar_at_far"].items():
        threshold = thresholds.get(far)
        row = [far, _percent(tar), "-" if threshold is None else f"{threshold:.4f}"]
        rows.append([*row, *([_range(intervals[far]) if far in intervals else "-"] if intervals else [])])
    columns = ["FAR", "TAR", "threshold"]
    return [*columns, "95% interval"] if intervals else columns, rows


def _percent(value: float | None) -> str:
    return "not measured" if value is None else percent(value)


def _sheets(pictures: Pictures, protocol: EvaluationProtocol) -> list[Sheet]:
    kinds = (
        (
            "Worst genuine pairs",
            "Pairs of one person with the lowest cosines: errors of the model or of the labels.",
            0,
        ),
        ("Worst impostor pairs", "Pairs of two persons with the highest cosines.", 1),
    )
    found = []
    for title, caption, kind in kinds:
        pairs = (pictures.genuine, pictures.impostor)[kind]
        if pairs:
            row = Row(who=pictures.name, groups=[_faces(pair, protocol) for pair in pairs])
            found.append(Sheet(title=title, caption=caption, rows=[row]))
    return found


def _faces(pair: ScoredPair, protocol: EvaluationProtocol) -> list[Face]:
    sides = ((pair.a, pair.name_a, f"{pair.score:z.3f}"), (pair.b, pair.name_b, ""))
    return [Face(key=name, caption=caption, jpeg=_picture(protocol, number)) for number, name, caption in sides]


def _picture(protocol: EvaluationProtocol, number: int) -> str:
    """Return an image of a protocol as base64 JPEG, "" if it is not readable."""
    images, readable = protocol.read_readable(number, number + 1)
    return base64.b64encode(simplejpeg.encode_jpeg(images[0], quality=85)).decode() if readable[0] else ""
