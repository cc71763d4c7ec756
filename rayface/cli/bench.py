"""Verbs of benchmarks; ratios are of quantities measured in one run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayface.cli.common import (
    Address,
    Debug,
    Json,
    Overrides,
    Verbose,
    app,
    flag_option,
    path_option,
    show_result,
    show_results,
)

if TYPE_CHECKING:
    from rayface.bench.train import Operator

bench = typer.Typer(
    help="Benchmarks on this machine; ratios are of quantities measured in one run.", no_args_is_help=True
)
app.add_typer(bench, name="bench")


@bench.command("rates")
def bench_rates(
    workers: Annotated[int, typer.Option(help="Number of concurrent processes, or GPUs.")] = 2,
    size: Annotated[int, typer.Option(help="Side of the square matrices.")] = 2048,
    megabytes: Annotated[int, typer.Option(help="Size of the copied and all-reduced data, MB.")] = 256,
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure matrix products, memory and link; --json writes the input of `rayface plan --rates`."""
    from rayface.bench.rates import RatesBench
    from rayface.bench.rates import bench_rates as measure

    settings = RatesBench(workers=workers, size=size, megabytes=megabytes, device=device)
    show_result("rates", measure(settings), json)


@bench.command("convert")
def bench_convert(
    data: Annotated[str, typer.Option(help="Dataset directory whose images are written in every format.")],
    images: Annotated[int, typer.Option(min=2, help="Number of images, from the first shards.")] = 5000,
    formats: Annotated[
        list[str] | None, typer.Option("--from", help="Format to convert from; repeat for several. Default: all.")
    ] = None,
    folder: Annotated[
        Path | None, path_option("--folder", help="Folder on the disk to measure; default: the temporary folder.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the images/s of converting each format in threads, against a copy of the same files."""
    from rayface.bench.convert import as_table
    from rayface.bench.convert import bench_convert as measure

    found = measure(data, images=images, formats=formats or [], folder=folder)
    show_results("convert", [one.as_dict() for one in found], as_table(found), json)


@bench.command("embed")
def bench_embed(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, or a published .pt with --backbone.")],
    data: Annotated[str, typer.Option(help="Dataset directory, or several as one: '[A,B]'.")],
    backbone: Annotated[str | None, typer.Option(help="Backbone of a published checkpoint, for example r50.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images, from the first shards.")] = 1024,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads; default: one per CPU.")] = None,
    flip: Annotated[bool, flag_option(help="Add the embedding of the mirror image.")] = True,
    precision: Annotated[str, typer.Option(help="Precision of the model: fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the images/s of embedding shards, against the model alone on batches in memory."""
    from rayface.bench.embed import bench_embed as measure
    from rayface.config import load

    given = {"model": model, "backbone": backbone, "data": data, "flip": flip, "precision": precision}
    config = load(overrides={f"embed.{name}": value for name, value in given.items()})
    result = measure(config.embed, images, threads, device)
    show_result("embedding", result.as_dict(), json)


@bench.command("train")
def bench_train(
    overrides: Overrides = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", "-b", help="Backbone to measure; repeat for several. Default: the config's."),
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    classes: Annotated[
        int, typer.Option("--classes", "-C", min=1, help="Number of classes, unless data.train is set.")
    ] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Number of measured steps, after two to warm up.")] = 10,
    ops: Annotated[int, typer.Option(min=0, help="Number of slowest PyTorch operators to list; 0: no profile.")] = 0,
    device: Annotated[str, typer.Option(help="Device to measure on: cpu or cuda.")] = "cpu",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure images/s of training steps in one worker, and the time of each part; data.train=DIR reads real data."""
    from rayface.bench.train import PHASES
    from rayface.bench.train import bench_train as measure
    from rayface.config import load
    from rayface.display import columns, json_line

    config = load(preset, None, overrides or [])
    names = backbone or [config.backbone.name]
    result = measure(names, config, num_classes=classes, steps=steps, ops=ops, device=device)
    if json:
        json_line(result.as_dict())
        return
    rows = [
        {
            "backbone": found.name,
            "images/s": f"{found.images_per_second:,.3g}",
            "step": f"{found.step_seconds:,.3g}s",
            **{phase.removeprefix("data_"): f"{found.share[phase]:.1%}" for phase in PHASES},
        }
        for found in result.backbones
    ]
    columns(f"training, batch {result.batch_size}, {result.precision}, {result.threads} threads", rows)
    for found in result.backbones if ops else ():
        columns(f"operators of {found.name}, one step", [_operator(op) for op in found.ops or ()])


def _operator(found: "Operator") -> dict[str, str]:
    calls, seconds = f"{found.calls:,.0f}", f"{found.seconds:,.3g}s"
    return {"operator": found.op, "share": f"{found.share:.1%}", "calls": calls, "time": seconds}


@bench.command("stream")
def bench_stream(
    overrides: Overrides = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    readers: Annotated[
        list[int] | None,
        typer.Option("--readers", help="Number of concurrent readers; repeat for several. Default: 1 and one per CPU."),
    ] = None,
    simulated: Annotated[
        list[int] | None,
        typer.Option(
            "--simulated", help="Number of readers to simulate, each with a CPU of its own; repeat for several."
        ),
    ] = None,
    chunk: Annotated[
        list[int] | None,
        typer.Option(
            "--chunk", help="Value of data.chunk_images to compare on disk and object store; repeat for several."
        ),
    ] = None,
    latency: Annotated[float, typer.Option(help="Latency of a request to the simulated object store, seconds.")] = 0.02,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds; each pipeline runs once in a round.")] = 5,
    windows: Annotated[
        int, typer.Option(min=1, help="Number of windows of data.window_images to time in each run.")
    ] = 12,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Images/s from the shards of data.train to normalised batches, against the decoder alone and webdataset."""
    from rayface import machine
    from rayface.bench.stream import StreamBench, as_dicts, as_table
    from rayface.bench.stream import bench_stream as measure
    from rayface.config import load

    counts = tuple(readers or sorted({1, machine.num_cpus()}))
    settings = StreamBench(
        readers=counts,
        simulated=tuple(simulated or ()),
        chunks=tuple(chunk or ()),
        latency=latency,
        rounds=rounds,
        windows=windows,
    )
    found = measure(settings, load(preset, None, overrides or []))
    show_results("stream", as_dicts(found), as_table(found), json)


@bench.command("scale")
def bench_scale(
    images: Annotated[int, typer.Option(min=1, help="Number of images; default: that of WebFace42M.")] = 42_474_557,
    identities: Annotated[
        int, typer.Option(min=1, help="Number of identities; default: that of WebFace42M.")
    ] = 2_059_906,
    shards: Annotated[int, typer.Option(min=1, help="Number of shards.")] = 1_300,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=1, help="Global batch size.")] = 1024,
    workers: Annotated[
        int, typer.Option(min=0, help="Number of workers to start the stream for; 0: do not start it.")
    ] = 2,
    directory: Annotated[
        Path | None, path_option(help="Folder for the dataset; default: the temporary folder.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Seconds and memory to open, order, stream and embed a simulated dataset of any size."""
    from rayface.bench.scale import ScaleBench, as_tables
    from rayface.bench.scale import bench_scale as measure
    from rayface.bench.simulated import Simulated
    from rayface.display import columns, json_line

    size = Simulated(images=images, identities=identities, shards=shards)
    found = measure(ScaleBench(size=size, batch_size=batch_size, workers=workers, directory=directory))
    if json:
        json_line(found.as_dict())
        return
    for title, rows in as_tables(found):
        columns(title, rows)


@bench.command("start")
def bench_start(
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of training workers.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of the command; medians are shown.")] = 3,
    address: Address = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Seconds from the command to the first step, and from the last step to the exit, by phase; Linux only."""
    from rayface.bench.start import bench_start as measure
    from rayface.display import columns, json_line

    found = measure(overrides or [], workers=workers, rounds=rounds, address=address)
    if json:
        json_line(found.as_dict())
        return
    rows = [{"phase": each.phase, "seconds": f"{each.seconds:.2f}"} for each in found.phases]
    rows += [
        {"phase": "command to first step", "seconds": f"{found.first_step_seconds:.2f}"},
        {"phase": "last step to exit", "seconds": f"{found.end_seconds:.2f}"},
    ]
    columns(f"start and end of a run, {found.workers} workers", rows)
    columns(
        "CPU seconds up to the first step",
        [{"process": kind, "CPU s": f"{seconds:.2f}"} for kind, seconds in found.cpu_seconds.items()],
    )


@bench.command("checkpoint")
def bench_checkpoint(
    classes: Annotated[int, typer.Option("--classes", "-C", min=1, help="Number of classes.")] = 500_000,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=2, help="Global batch size.")] = 128,
    embedding_size: Annotated[int, typer.Option(min=1, help="Length of an embedding.")] = 512,
    sample_rate: Annotated[float, typer.Option(help="Fraction of the classes that a step samples.")] = 0.1,
    directory: Annotated[
        Path | None, path_option(help="Folder on the disk to measure; default: the temporary folder.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure the seconds that training waits for a checkpoint, against the seconds of its write."""
    from rayface.bench.checkpoint import CheckpointBench
    from rayface.bench.checkpoint import bench_checkpoint as measure

    settings = CheckpointBench(
        num_classes=classes,
        batch_size=batch_size,
        embedding_size=embedding_size,
        sample_rate=sample_rate,
        directory=directory,
    )
    show_result("checkpoint", measure(settings).as_dict(), json)
