"""Verbs of benchmarks: head, heads."""

from dataclasses import replace
from typing import Annotated

import typer

from rayface.cli.bench import bench
from rayface.cli.common import Debug, Json, Verbose, flag_option, show_result, show_results
from rayface.config_fields import parse_bytes


@bench.command("head")
def bench_head(
    classes: Annotated[
        list[int] | None, typer.Option("--classes", "-C", min=1, help="Number of classes; repeat for several.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=1, help="Global batch size.")] = 256,
    sample_rate: Annotated[
        float, typer.Option("--sample-rate", "-r", help="Fraction of the classes that a step samples.")
    ] = 0.1,
    sampled_rows: Annotated[
        int | None, typer.Option(help="Number of classes that a step samples, instead of --sample-rate.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the matrix products: fp32 or bf16.")] = "fp32",
    storage_dtype: Annotated[str, typer.Option(help="Type of centers and momentum: fp32 or bf16.")] = "fp32",
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes that share the head.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Number of measured steps.")] = 5,
    logit_memory: Annotated[str, typer.Option(help="Memory of the logits, as config key head.logit_memory.")] = "512MB",
    straightforward: Annotated[
        bool, flag_option("--straightforward", help="Also measure a head with full logits and dense gradients.")
    ] = False,
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the seconds and memory of a head's step, against its three matrix products alone."""
    from rayface.bench.head import HeadBench, as_table, bench_scaling
    from rayface.bench.head import bench_head as measure

    counts = classes or [1_000_000]
    settings = HeadBench(
        num_classes=counts[0],
        batch_size=batch_size,
        sample_rate=sample_rate,
        dtype=dtype,
        workers=workers,
        steps=steps,
        embedding_size=embedding_size,
        storage_dtype=storage_dtype,
        logit_memory=parse_bytes(logit_memory),
        device=device,
    )
    if sampled_rows is not None:
        found = bench_scaling(counts, settings, sampled_rows=sampled_rows, straightforward=straightforward)
    else:
        each = [replace(settings, num_classes=count) for count in counts]
        found = [measure(one, straightforward=straightforward) for one in each]
    if len(found) == 1:
        show_result("head, one step", found[0].as_dict(), json)
    else:
        show_results("head, one step", [one.as_dict() for one in found], as_table(found), json)


@bench.command("heads")
def bench_heads(
    classes: Annotated[
        list[int] | None, typer.Option("--classes", "-C", min=1, help="Number of identities; repeat for several.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-B", min=1, help="Number of images of a step; of pairs for dcq and f2c.")
    ] = 128,
    columns: Annotated[int, typer.Option(min=1, help="Length of the queue of dcq and of the pool of f2c.")] = 8192,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="Number of measured steps.")] = 5,
    most_memory: Annotated[str, typer.Option(help="Largest state of a head that is measured.")] = "4GB",
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the seconds and memory of a step of partial_fc, dcq and f2c beside each other."""
    from rayface.bench.heads import HeadsBench, as_dicts
    from rayface.bench.heads import bench_heads as measure

    counts = classes or [100_000, 1_000_000, 10_000_000]
    settings = HeadsBench(
        num_classes=counts[0],
        batch_size=batch_size,
        columns=columns,
        embedding_size=embedding_size,
        steps=steps,
        device=device,
        most_bytes=parse_bytes(most_memory),
    )
    found = measure(settings, counts)
    show_results("heads, one step", as_dicts(found), [cost.row() for cost in found], json)
