"""Verb `bench all_vs_all`."""

from typing import Annotated

import typer

from rayface.cli.bench import bench
from rayface.cli.common import Debug, Json, Seed, Verbose, show_result


@bench.command("all_vs_all")
def bench_all_vs_all(
    images: Annotated[int, typer.Option(help="Number of embeddings.")] = 100_000,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    far: Annotated[
        list[float] | None, typer.Option(help="False acceptance rate (default: 1e-6). Repeat for several.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the pairs/s and memory of all-vs-all on drawn embeddings, against the bare matrix product."""
    from rayface.bench.all_vs_all import AllVsAllBench
    from rayface.bench.all_vs_all import bench_all_vs_all as measure

    settings = AllVsAllBench(
        images=images, embedding_size=embedding_size, fars=tuple(far or (1e-6,)), device=device, seed=seed
    )
    show_result("all-vs-all", measure(settings).as_dict(), json)
