"""Verbs of models: backbones, evaluate, export."""

from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.common import Address, Debug, Imports, Json, Verbose, app, path_option, show_result


@app.command()
def backbones(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all.")] = None,
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    image_size: Annotated[int, typer.Option(min=16, help="Side of an aligned face, pixels.")] = 112,
    measure: Annotated[bool, typer.Option("--measure", help="Also measure images/s embedded here.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a measured batch.")] = 16,
    device: Annotated[str, typer.Option(help="Where to measure: cpu or cuda.")] = "cpu",
    imports: Imports = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """List the backbones: parameters, multiply-adds, paper; with --measure their speed on this machine."""
    from rayface.backbones.table import backbone_table
    from rayface.display import columns, json_line

    sizes = {"embedding_size": embedding_size, "image_size": image_size}
    rows = backbone_table(names or (), **sizes, measure=measure, batch_size=batch_size, device=device)
    if json:
        json_line({"backbones": rows})
        return
    shown = [
        {
            "backbone": row["name"],
            "parameters": f"{row['parameters'] / 1e6:,.3f}M",
            "MACs": f"{row['macs'] / 1e9:,.3f}G",
            "dim": str(row["embedding_size"]),
            **({"images/s": f"{row['images_per_second']:,.3g}"} if measure else {}),
            "paper (arXiv)": row["paper"],
        }
        for row in rows
    ]
    columns(f"backbones at {image_size} x {image_size}", shown)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, .onnx, published .pt with --backbone.")],
    pairs: Annotated[str, typer.Option(help="CSV of pairs: path_a,path_b,is_same,fold; or LFW's pairs.txt.")],
    data: Annotated[str, typer.Option(help="Dataset directory, or '[A,B]', that holds the members of the pairs.")],
    out: Annotated[str, typer.Option(help="Directory for evaluation.json and the ROC curve.")],
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure verification accuracy (10 folds, mirrored images added) on pairs."""
    from rayface.config import parse_paths
    from rayface.evaluation.evaluate import evaluate_on_pairs

    paths = parse_paths("--data", data)
    result = evaluate_on_pairs(model, pairs, paths, out, backbone=backbone, batch_size=batch_size)
    show_result("evaluated", result, json)


@app.command()
def export(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, or a published .pt with --backbone.")],
    onnx: Annotated[Path, path_option(help="File to write; model_card.md goes beside it.")],
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Weights in a file beside it; always so above 1.9 GB.")
    ] = False,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Export a model to ONNX with a dynamic batch, checked against PyTorch."""
    from rayface.models.model_files import load_model
    from rayface.models.onnx_export import export_onnx

    result = export_onnx(load_model(model, backbone=backbone), onnx, external_data=external_data)
    show_result("exported", {"onnx": str(onnx), **result}, json)
