"""Verb of data: check."""

from typing import Annotated

import typer

from rayface.cli.common import Address, Debug, Json, Verbose, app, flag_option, show_result, tell


@app.command()
def check(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Dataset directory.")],
    deep: Annotated[bool, flag_option("--deep", help="Also compare digests and decode every image.")] = False,
    write_manifest: Annotated[bool, flag_option("--write-manifest", help="Write dataset.json into DIR.")] = False,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Count the images of a dataset and name every fault; exit code 1 if there are any."""
    from rayface.data.check import check as check_dataset

    report = check_dataset(directory, deep=deep, write_manifest=write_manifest)
    facts = {
        "dataset": directory,
        "images": report.num_images,
        "identities": report.num_classes_with_images,
        "label_space": report.num_classes,
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
        show_result(f"checked {directory}", {**facts, "faults": report.counts or 0}, json)
    raise typer.Exit(0 if report.ok else 1)
