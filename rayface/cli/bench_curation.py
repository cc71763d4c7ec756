"""Verbs of benchmarks: nms, cluster, prune."""

from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.bench import bench
from rayface.cli.common import Debug, Json, Seed, Verbose, path_option, show_result
from rayface.config_fields import parse_bytes


@bench.command("nms")
def bench_nms(
    faces: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1_000_000,
    identities: Annotated[int, typer.Option(min=1, help="Number of identities.")] = 50_000,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    keep: Annotated[float, typer.Option(help="Fraction of the images to keep; its threshold is searched.")] = 0.6,
    dtype: Annotated[str, typer.Option(help="Type of the stored embeddings: fp16 or fp32.")] = "fp16",
    threads: Annotated[int, typer.Option(min=1, help="Number of threads of Face-NMS; the double loop has one.")] = 1,
    loop_identities: Annotated[
        int, typer.Option(min=1, help="Number of random identities for the double loop; its time is scaled to all.")
    ] = 500,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure Face-NMS on synthetic embeddings, against a plain double loop on some of them."""
    from rayface.bench.nms import NmsBench
    from rayface.bench.nms import bench_nms as measure

    settings = NmsBench(
        faces=faces,
        identities=identities,
        embedding_size=embedding_size,
        keep=keep,
        dtype=dtype,
        threads=threads,
        loop_identities=loop_identities,
        seed=seed,
    )
    show_result("Face-NMS", measure(settings).as_dict(), json)


@bench.command("cluster")
def bench_cluster(
    images: Annotated[
        list[int] | None,
        typer.Option(help="Length of the stream at which to measure; repeat for several (default: 10000, 100000)."),
    ] = None,
    embedding_size: Annotated[int, typer.Option(min=8, help="Length of an embedding.")] = 128,
    images_per_identity: Annotated[int, typer.Option(min=1, help="Number of images per identity.")] = 20,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the time, comparisons and recall of online clustering (OGMC) as a stream of drawn vectors grows."""
    from rayface.bench.cluster import ClusterBench, as_table
    from rayface.bench.cluster import bench_cluster as measure
    from rayface.display import columns, json_line

    marks = tuple(images or (10_000, 100_000))
    size = {"embedding_size": embedding_size, "images_per_identity": images_per_identity}
    found = measure(ClusterBench(marks=marks, seed=seed, **size))
    if json:
        json_line(found.as_dict())
        return
    columns(
        f"OGMC, {embedding_size}-d; 42 million images: {found.projected_hours_42m:.1f} CPU hours (extrapolated)",
        as_table(found),
    )


@bench.command("prune")
def bench_prune(
    faces: Annotated[int, typer.Option(min=1, help="Number of images.")] = 200_000,
    identities: Annotated[int, typer.Option(min=1, help="Number of identities.")] = 10_000,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    keep: Annotated[float, typer.Option(help="Fraction of the images to keep; its threshold is searched.")] = 0.6,
    block_size: Annotated[str, typer.Option(help="Size of the embeddings in a task.")] = "64MB",
    largest: Annotated[
        int, typer.Option(min=0, help="Number of images of one additional, large identity; 0: none.")
    ] = 0,
    cpus: Annotated[int | None, typer.Option(min=1, help="Number of CPUs of the local Ray; default: all.")] = None,
    directory: Annotated[
        Path | None, path_option(help="Folder on the disk to measure; default: the temporary folder.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the seconds of a prune job by stage and its memory, on synthetic embeddings in random order."""
    from rayface.bench.prune import PruneBench
    from rayface.bench.prune import bench_prune as measure

    settings = PruneBench(
        faces=faces,
        identities=identities,
        embedding_size=embedding_size,
        keep=keep,
        block_bytes=parse_bytes(block_size),
        largest=largest,
        cpus=cpus,
        directory=directory,
        seed=seed,
    )
    show_result("pruning", measure(settings).as_dict(), json)
