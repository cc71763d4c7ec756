"""Verb of own benchmarks: benchmark make."""

from typing import Annotated

import typer

from rayface.cli.common import Debug, Json, Seed, Verbose, app, show_result, tell

benchmark = typer.Typer(help="Make a benchmark from a labelled dataset.", no_args_is_help=True)
app.add_typer(benchmark, name="benchmark")
_SHOWN = ("source", "test", "train", "pairs", "templates")


@benchmark.command("make")
def benchmark_make(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset directory, or several as '[A,B]'.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="New folder for the benchmark.")],
    identities: Annotated[int, typer.Option(help="Number of identities with at least two images to hold out.")] = 500,
    pairs: Annotated[int, typer.Option(help="Number of verification pairs; half of them are genuine.")] = 6000,
    folds: Annotated[int, typer.Option(help="Number of folds of the pairs; no identity is in two.")] = 10,
    template_size: Annotated[int, typer.Option(help="Maximum number of images of a template.")] = 5,
    embeddings: Annotated[
        str | None, typer.Option(help="Embeddings of DATASET by a reference model, for hard impostors.")
    ] = None,
    hard: Annotated[float, typer.Option(help="Fraction of impostor pairs chosen as hard (needs --embeddings).")] = 0.5,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="names|labels|separate",
            help="How the labels of several datasets are joined, as config key data.join.",
        ),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Hold out identities: a test set with pairs, templates, galleries and probes, and the rest to train on."""
    from rayface.config import load
    from rayface.config_fields import parse_paths
    from rayface.evaluation.benchmark import BenchmarkSettings, make_benchmark

    settings = BenchmarkSettings(
        identities=identities,
        pairs=pairs,
        folds=folds,
        template_size=template_size,
        embeddings=embeddings,
        hard=hard,
        seed=seed,
    )
    join_by = load(overrides={"data.join": join}).data.join
    made = make_benchmark(parse_paths("DATASET", dataset), out, settings, join_by=join_by)
    found = made.as_dict()
    show_result(f"benchmark in {out}", found if json else {name: found[name] for name in _SHOWN}, json)
    drawn = made.pairs["genuine"] + made.pairs["impostor"]
    if drawn < pairs:
        genuine = f"{made.pairs['genuine']:,} genuine pairs within the folds"
        tell(f"{drawn:,} of {pairs:,} pairs: these identities have {genuine}: raise --identities for more")
