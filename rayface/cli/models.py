"""Verb of models: backbones."""

from typing import Annotated

import typer

from rayface.cli.common import Debug, Imports, Json, Verbose, app, flag_option


@app.command()
def backbones(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Backbones to list; default: all.")] = None,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    image_size: Annotated[int, typer.Option(min=16, help="Side of an aligned image, pixels.")] = 112,
    measure: Annotated[bool, flag_option("--measure", help="Also measure images/s on this machine.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images of a measured batch.")] = 16,
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
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
