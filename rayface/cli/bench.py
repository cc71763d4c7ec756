"""Verbs of benchmarks; ratios are of quantities measured in one run."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayface.cli.common import (
    Address,
    Debug,
    Json,
    Overrides,
    Seed,
    Verbose,
    app,
    path_option,
    show_result,
    show_results,
)
from rayface.config_fields import parse_bytes

if TYPE_CHECKING:
    from rayface.bench.train import Operator

bench = typer.Typer(
    help="Benchmarks on this machine; ratios are of quantities measured in one run.", no_args_is_help=True
)
app.add_typer(bench, name="bench")


@bench.command("head")
def bench_head(
    classes: Annotated[
        list[int] | None, typer.Option("--classes", "-C", min=1, help="Number of classes; repeat for several.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=1, help="Global batch size.")] = 256,
    sample_rate: Annotated[float, typer.Option("--sample-rate", "-r")] = 0.1,
    sampled_rows: Annotated[int | None, typer.Option(help="Sampled rows per step, instead of --sample-rate.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the matrix products: fp32 or bf16.")] = "fp32",
    storage_dtype: Annotated[str, typer.Option(help="Type of centers and momentum: fp32 or bf16.")] = "fp32",
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=1)] = 5,
    logit_memory: Annotated[str, typer.Option(help="See head.logit_memory.")] = "512MB",
    straightforward: Annotated[
        bool, typer.Option("--straightforward", help="Also measure a head with full logits and dense gradients.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
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
        int, typer.Option("--batch-size", "-B", min=1, help="Images, or pairs of dcq and f2c.")
    ] = 128,
    columns: Annotated[int, typer.Option(min=1, help="Length of the queue of dcq and of the pool of f2c.")] = 8192,
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    steps: Annotated[int, typer.Option(min=1)] = 5,
    most_memory: Annotated[str, typer.Option(help="Do not measure heads whose state is larger.")] = "4GB",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
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


@bench.command("rates")
def bench_rates(
    workers: Annotated[int, typer.Option(help="Number of concurrent processes, or GPUs.")] = 2,
    size: Annotated[int, typer.Option(help="Side of the square matrices.")] = 2048,
    megabytes: Annotated[int, typer.Option(help="Size of the copied and all-reduced data.")] = 256,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
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
        list[str] | None, typer.Option("--from", help="Format of a source; repeat for several. Default: all.")
    ] = None,
    folder: Annotated[Path | None, path_option("--folder", help="Folder on the disk to measure.")] = None,
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
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images, from the first shards.")] = 1024,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all CPUs.")] = None,
    flip: Annotated[bool, typer.Option(help="Add the embedding of the mirror image.")] = True,
    precision: Annotated[str, typer.Option(help="Precision of the model: fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
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
    backbone: Annotated[list[str] | None, typer.Option("--backbone", "-b", help="Name; repeat for several.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    classes: Annotated[int, typer.Option("--classes", "-C", min=1, help="Without data.train.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps, after two to warm up.")] = 10,
    ops: Annotated[int, typer.Option(min=0, help="Number of slowest PyTorch operators to list, by a profile.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
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
    readers: Annotated[list[int] | None, typer.Option("--readers", help="May be repeated; default: 1, CPUs.")] = None,
    chunk: Annotated[list[int] | None, typer.Option("--chunk", help="Compare disk and object store; repeat.")] = None,
    latency: Annotated[float, typer.Option(help="Of the simulated object store, seconds.")] = 0.02,
    rounds: Annotated[int, typer.Option(min=1, help="Each pipeline runs once in a round.")] = 5,
    windows: Annotated[int, typer.Option(min=1, help="Of data.window_images, timed each time.")] = 12,
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
    settings = StreamBench(readers=counts, chunks=tuple(chunk or ()), latency=latency, rounds=rounds, windows=windows)
    found = measure(settings, load(preset, None, overrides or []))
    show_results("stream", as_dicts(found), as_table(found), json)


@bench.command("scale")
def bench_scale(
    images: Annotated[int, typer.Option(min=1, help="Default: WebFace42M's.")] = 42_474_557,
    identities: Annotated[int, typer.Option(min=1, help="Default: WebFace42M's.")] = 2_059_906,
    shards: Annotated[int, typer.Option(min=1)] = 1_300,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=1, help="Over all workers.")] = 1024,
    workers: Annotated[int, typer.Option(min=0, help="That the stream is started for; 0: not at all.")] = 2,
    directory: Annotated[Path | None, path_option(help="For the dataset; default: the temporary one.")] = None,
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
    workers: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of the command; medians are shown.")] = 3,
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


@bench.command("nms")
def bench_nms(
    faces: Annotated[int, typer.Option(min=1)] = 1_000_000,
    identities: Annotated[int, typer.Option(min=1)] = 50_000,
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    keep: Annotated[float, typer.Option(help="Fraction of the images to keep; its threshold is searched.")] = 0.6,
    dtype: Annotated[str, typer.Option(help="Type of the stored embeddings: fp16 or fp32.")] = "fp16",
    threads: Annotated[int, typer.Option(min=1, help="Threads of Face-NMS; the double loop has one.")] = 1,
    loop_identities: Annotated[
        int, typer.Option(min=1, help="Random identities for the double loop; its time is scaled to all.")
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
        list[int] | None, typer.Option(help="Where to measure; repeat for several (default: 10000, 100000).")
    ] = None,
    embedding_size: Annotated[int, typer.Option(min=8)] = 128,
    images_per_identity: Annotated[int, typer.Option(min=1)] = 20,
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
    faces: Annotated[int, typer.Option(min=1)] = 200_000,
    identities: Annotated[int, typer.Option(min=1)] = 10_000,
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    keep: Annotated[float, typer.Option(help="Fraction of the images to keep; its threshold is searched.")] = 0.6,
    block_size: Annotated[str, typer.Option(help="Size of the embeddings in a task.")] = "64MB",
    largest: Annotated[int, typer.Option(min=0, help="Images of one additional, large identity.")] = 0,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of the local Ray; default: all.")] = None,
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


@bench.command("checkpoint")
def bench_checkpoint(
    classes: Annotated[int, typer.Option("--classes", "-C", min=1)] = 500_000,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=2)] = 128,
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    sample_rate: Annotated[float, typer.Option(help="Fraction of the classes in a step.")] = 0.1,
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
