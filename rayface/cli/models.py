"""Verb of models: backbones."""

from typing import Annotated, Any

import typer

from rayface.cli.common import Debug, Imports, Json, Verbose, app, flag_option


@app.command()
def backbones(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Backbones to list; default: all.")] = None,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    image_size: Annotated[int, typer.Option(min=16, help="Side of an aligned image, pixels.")] = 112,
    measure: Annotated[bool, flag_option("--measure", help="Also measure images/s on this machine.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --measure: number of images of a batch (default: 16).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="With --measure: device, cpu or cuda (default: cpu).")] = None,
    imports: Imports = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """List the backbones: parameters, multiply-adds, paper; with --measure their speed on this machine."""
    from rayface.backbones.table import backbone_table
    from rayface.display import columns, json_line

    settings: dict[str, Any] = {"embedding_size": embedding_size, "image_size": image_size}
    for name, value in (("batch_size", batch_size), ("device", device)):
        if value is not None and not measure:
            raise ValueError(f"--{name.replace('_', '-')}: {value}: has no effect: must be with --measure, or left out")
        settings |= {} if value is None else {name: value}
    rows = backbone_table(names or (), measure=measure, **settings)
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
