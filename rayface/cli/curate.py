"""Verbs of curation: embed, prune."""

from typing import Annotated

import typer

from rayface.cli.common import Address, Debug, Json, Overrides, app, show_result

Data = Annotated[str, typer.Option(help="Dataset directory, or several as one: '[A,B]', as data.train.")]


@app.command()
def embed(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, or a published .pt with --backbone.")],
    data: Data,
    out: Annotated[str, typer.Option(help="Folder for the parquet files; run again to go on in it.")],
    overrides: Overrides = None,
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    flip: Annotated[bool, typer.Option(help="Add the embedding of the mirror image.")] = True,
    precision: Annotated[str, typer.Option(help="Of the model's products: fp32 or bf16.")] = "fp32",
    dtype: Annotated[str, typer.Option(help="As stored: fp16 or fp32.")] = "fp16",
    workers: Annotated[int | None, typer.Option(min=1, help="Actors; default: one a GPU, else one a CPU.")] = None,
    json: Json = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Embed a dataset with a model, as a Ray Data job: one parquet file of key, label, embedding for each shard."""
    from rayface.config import load, parse_paths
    from rayface.curate.embed import EmbedSettings
    from rayface.curate.embed import embed as embed_data
    from rayface.display import counting

    settings = EmbedSettings(
        model=model,
        backbone=backbone,
        flip=flip,
        precision=precision,  # type: ignore[arg-type]  # checked there
        dtype=dtype,  # type: ignore[arg-type]
    )
    with counting("embedding shards") as progress:
        result = embed_data(
            settings,
            parse_paths("--data", data),
            out,
            config=load(overrides=overrides or []),
            workers=workers,
            address=address,
            debug=debug,
            progress=progress,
        )
    for fault in result["faults"]:
        typer.echo(fault, err=True)
    shown = ("model", "data", "num_rows", "num_classes", "embedding_size", "flip", "parts_skipped", "seconds")
    facts = {name: result[name] for name in shown} | {"faults": len(result["faults"])}
    show_result(f"embedded into {out}", {"out": out, **result} if json else facts, json)
