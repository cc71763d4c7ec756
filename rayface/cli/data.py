"""Verbs of data: synth, convert, check."""

from collections import Counter
from typing import Annotated

import typer

from rayface.cli.common import (
    Address,
    Debug,
    Imports,
    Json,
    Seed,
    ShardSize,
    Verbose,
    app,
    dataset_facts,
    show_result,
    tell,
)
from rayface.config import parse_bytes


@app.command()
def synth(
    out: Annotated[str, typer.Argument(help="Directory to make.")],
    identities: Annotated[int, typer.Option(min=1)] = 200,
    images_per_identity: Annotated[int, typer.Option(min=1)] = 20,
    seed: Seed = 0,
    pairs: Annotated[int, typer.Option(min=0, help="Also write pairs.csv with so many pairs to verify.")] = 0,
    image_size: Annotated[int, typer.Option(min=16)] = 112,
    shard_size: ShardSize = "256MB",
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Draw a set of faces; nobody's likeness, the same for a seed."""
    from rayface.data.synth import synthesize

    dataset = synthesize(
        out,
        identities=identities,
        images_per_identity=images_per_identity,
        seed=seed,
        pairs=pairs,
        image_size=image_size,
        shard_size=parse_bytes(shard_size),
    )
    show_result(f"drawn into {out}", dataset_facts(dataset, out), json)


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="What there is.")],
    out: Annotated[str, typer.Argument(help="Dataset directory to make.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="Kind of SRC: folder (one of images per identity), webdataset (tars of any shape), or a plugin's.",
        ),
    ],
    imports: Imports = None,
    shard_size: ShardSize = "256MB",
    layout: Annotated[str, typer.Option(help="shuffled or by_identity.")] = "shuffled",
    seed: Seed = 0,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Convert face images to a dataset of tar shards."""
    from rayface.data.convert import ConvertSettings
    from rayface.data.convert import convert as convert_source
    from rayface.data.sources import open_source

    settings = ConvertSettings(layout=layout, shard_size=parse_bytes(shard_size), seed=seed)  # type: ignore[arg-type]
    dataset = convert_source(open_source(source, src), out, settings)
    left_out: Counter[str] = Counter()
    for fault in dataset.faults:
        tell(fault)
        left_out[fault.kind] += fault.num_lost
    show_result(f"converted into {out}", {**dataset_facts(dataset, out), "left_out": dict(left_out)}, json)


@app.command()
def check(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Dataset directory.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also compare digests and decode every image.")] = False,
    write_manifest: Annotated[bool, typer.Option("--write-manifest", help="Write dataset.json into DIR.")] = False,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Count a dataset and name every fault in it; exit code 1 where there are faults."""
    from rayface.data.check import check as check_dataset

    report = check_dataset(directory, deep=deep, write_manifest=write_manifest)
    facts = {
        "dataset": directory,
        "images": report.num_images,
        "identities": report.num_classes,
        "identities_with_images": report.num_classes_with_images,
        "shards": len(report.shards),
        "bytes": report.num_bytes,
        "keys": "unique" if report.shared_key is None else f"SHARD/KEY, as several shards have {report.shared_key}",
        "faults": report.counts,
        "samples_lost": report.num_lost,
    }
    if json:
        show_result("", {**facts, "fault_list": [str(fault) for fault in report.faults]}, json)
    else:
        for fault in report.faults:
            tell(fault)
        show_result(f"checked {directory}", facts, json)
    raise typer.Exit(0 if report.ok else 1)
