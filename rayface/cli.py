"""The command line: one verb each, no logic.

Exit codes: 0 done, 1 failed while running, 2 the input is wrong, 130 interrupted, 143 terminated.
"""

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from rayface import __version__
from rayface.config import parse_bytes

app = typer.Typer(
    name="rayface",
    help="Very-large-scale face-recognition training on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer brings its own copy of click or uses the installed one, by version: take the class from what it exports.
_USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout instead of a table.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster, if the verb uses one; default: RAY_ADDRESS or a local Ray.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's logs, and tracebacks of errors.")]
Seed = Annotated[int, typer.Option(min=0, help="Every seed is another result; the same seed is the same one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config keys, dotted.")]
ShardSize = Annotated[str, typer.Option(help="Largest shard, as 256MB.")]


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
    _show(f"drawn into {out}", _dataset_facts(dataset, out), json)


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="What there is.")],
    out: Annotated[str, typer.Argument(help="Dataset directory to make.")],
    source: Annotated[str, typer.Option("--from", help="Kind of SRC: folder (one of images for each identity).")],
    shard_size: ShardSize = "256MB",
    layout: Annotated[str, typer.Option(help="shuffled or by_identity.")] = "shuffled",
    seed: Seed = 0,
    json: Json = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Convert face images to a dataset of tar shards."""
    from rayface.data.convert import CONVERTERS
    from rayface.display import counting

    if source not in CONVERTERS:
        raise ValueError(f"--from: {source!r}: must be one of {', '.join(CONVERTERS)}")
    with counting("converting") as progress:
        dataset = CONVERTERS[source](
            src, out, shard_size=parse_bytes(shard_size), layout=layout, seed=seed, progress=progress
        )
    for fault in dataset.faults:
        typer.echo(str(fault), err=True)
    _show(f"converted into {out}", _dataset_facts(dataset, out), json)


@app.command()
def check(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Dataset directory.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also compare digests and decode every image.")] = False,
    write_manifest: Annotated[bool, typer.Option("--write-manifest", help="Write dataset.json into DIR.")] = False,
    json: Json = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Count a dataset and name every fault in it; exit code 1 where there are faults."""
    from rayface.data.check import check as check_dataset
    from rayface.display import counting

    with counting("checking") as progress:
        report = check_dataset(directory, deep=deep, write_manifest=write_manifest, progress=progress)
    facts = {
        "dataset": directory,
        "images": report.num_images,
        "identities": report.num_classes,
        "shards": len(report.shards),
        "bytes": report.num_bytes,
        "faults": report.counts,
    }
    if json:
        _show("", {**facts, "fault_list": [str(fault) for fault in report.faults]}, json)
    else:
        for fault in report.faults:
            typer.echo(str(fault), err=True)
        _show(f"checked {directory}", facts, json)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def train(
    overrides: Overrides = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of config keys.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    json: Json = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Train a model into a run directory, logged to MLflow."""
    from rayface.display import follow_training
    from rayface.training.run_directory import resolve
    from rayface.training.trainer import train as train_model

    resolved = resolve(preset, config, overrides or [], resume=resume)
    result = train_model(
        resolved,
        resume=resume,
        address=address,
        debug=debug,
        follow=follow_training,
        say=lambda text: typer.echo(text, err=True),
    )
    _show("trained", result, json)


@app.command()
def plan(
    overrides: Overrides = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of config keys.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Workers; default: train.num_workers.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Of one GPU, as 80GB: refuse what does not fit.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="C, where there is no dataset yet.")] = None,
    num_images: Annotated[int | None, typer.Option(min=1, help="Of an epoch, where there is no dataset yet.")] = None,
    gemm_tflops: Annotated[float, typer.Option(help="Large bf16 matrix products.")] = 400.0,
    fp32_tflops: Annotated[float, typer.Option(help="Large fp32 matrix products.")] = 40.0,
    memory_bandwidth: Annotated[float, typer.Option(help="Of device memory, GB/s.")] = 2000.0,
    link_bandwidth: Annotated[float, typer.Option(help="Of a worker, each way, GB/s.")] = 50.0,
    backbone_efficiency: Annotated[float, typer.Option(help="Share of the products' rate it reaches.")] = 0.25,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute activations of blocks twice.")] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG of memory and images/s against the classes.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a training run will take, and refuse what cannot fit."""
    from rayface.plan.planning import plan_run

    rates = {
        "gemm_tflops": gemm_tflops,
        "fp32_tflops": fp32_tflops,
        "memory_bandwidth": memory_bandwidth,
        "link_bandwidth": link_bandwidth,
        "backbone_efficiency": backbone_efficiency,
    }
    planned = plan_run(
        preset,
        config,
        overrides or [],
        num_workers=gpus,
        memory_per_device=parse_bytes(gpu_memory) if gpu_memory else None,
        num_classes=num_classes,
        num_images=num_images,
        rates=rates,
        recompute=recompute,
        plot=plot,
    )
    _show("planned", planned.as_dict() if json else planned.table(), json)
    if planned.refusal:
        raise ValueError(planned.refusal)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, or a published .pt with --backbone.")],
    pairs: Annotated[str, typer.Option(help="CSV of pairs: path_a,path_b,is_same,fold.")],
    data: Annotated[str, typer.Option(help="Dataset directory that holds the members named in the pairs.")],
    out: Annotated[Path, typer.Option(help="Directory for evaluation.json and the ROC curve.")],
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    json: Json = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Measure verification accuracy (10 folds, mirrored images added) on pairs."""
    from rayface.evaluation.jobs import evaluate_on_pairs

    _show("evaluated", evaluate_on_pairs(model, pairs, data, out, backbone=backbone, batch_size=batch_size), json)


@app.command()
def export(
    model: Annotated[str, typer.Option(help="Run directory, model.safetensors, or a published .pt with --backbone.")],
    onnx: Annotated[Path, typer.Option(help="File to write.")],
    backbone: Annotated[str | None, typer.Option(help="Of a published checkpoint, for example r50.")] = None,
    json: Json = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Export a model to ONNX with a dynamic batch, checked against PyTorch."""
    from rayface.evaluation.export import export_onnx, load_model

    result = export_onnx(load_model(model, backbone=backbone), onnx)
    _show("exported", {"onnx": str(onnx), **result}, json)


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for MLflow.")] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Deliver to MLflow what a run could not, because the server was down."""
    from rayface.tracking import deliver

    delivered = deliver(run / "journal", timeout)
    _show("synced", {"run": str(run), "delivered": delivered}, json)
    raise typer.Exit(0 if delivered else 1)


bench = typer.Typer(help="Measure this machine; ratios are of things measured in one run.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("head")
def bench_head(
    classes: Annotated[int, typer.Option("--classes", "-C", min=1)] = 1_000_000,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", min=1, help="Over all workers.")] = 256,
    sample_rate: Annotated[float, typer.Option("--sample-rate", "-r")] = 0.1,
    dtype: Annotated[str, typer.Option(help="Of the matrix products: fp32 or bf16.")] = "fp32",
    storage_dtype: Annotated[str, typer.Option(help="Of centers and momentum: fp32 or bf16.")] = "fp32",
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=1)] = 5,
    logit_memory: Annotated[str, typer.Option(help="As head.logit_memory.")] = "512MB",
    straightforward: Annotated[bool, typer.Option("--straightforward", help="Measure the plain way too.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Seconds and memory of a class layer's step, against its three bare matrix products."""
    from rayface.bench.head import bench_head as measure

    result = measure(
        classes,
        batch_size,
        sample_rate,
        dtype,
        workers,
        steps,
        embedding_size=embedding_size,
        storage_dtype=storage_dtype,
        logit_memory=parse_bytes(logit_memory),
        straightforward=straightforward,
        device=device,
    )
    _show("class layer, a step", result, json)


@bench.command("nms")
def bench_nms(
    faces: Annotated[int, typer.Option(min=1)] = 1_000_000,
    identities: Annotated[int, typer.Option(min=1)] = 50_000,
    embedding_size: Annotated[int, typer.Option(min=1)] = 512,
    keep: Annotated[float, typer.Option(help="Share of the faces to keep; its threshold is searched.")] = 0.6,
    dtype: Annotated[str, typer.Option(help="Of the stored embeddings: fp16 or fp32.")] = "fp16",
    threads: Annotated[int, typer.Option(min=1, help="Of the matrix products.")] = 1,
    loop_identities: Annotated[int, typer.Option(min=1, help="Drawn for the double loop; its time is scaled.")] = 500,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Faces a second of Face-NMS on drawn embeddings, against a plain double loop on some of them."""
    from rayface.bench.nms import bench_nms as measure

    result = measure(
        faces, identities, embedding_size, keep, dtype, threads, loop_identities=loop_identities, seed=seed
    )
    _show("Face-NMS", result, json)


checkpoints = typer.Typer(help="Look into a checkpoint and take parts out of it.", no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoint")
CheckpointDir = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, or a run directory: its newest.")]


@checkpoints.command("show")
def checkpoint_show(directory: CheckpointDir, json: Json = False, debug: Debug = False) -> None:
    """Say what a checkpoint holds and whether it is whole."""
    from rayface.training.checkpoint_tools import show, table

    shown = show(directory)
    _show("checkpoint", shown if json else table(shown), json)


@checkpoints.command("verify")
def checkpoint_verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, or a run directory: all of its.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare every byte with the digests; exit code 1 where there are faults, each is named."""
    from rayface.training.checkpoint_tools import verify

    found = verify(directory)
    faults = [fault for reasons in found.values() for fault in reasons]
    for fault in faults:
        typer.echo(fault, err=True)
    names = {name: "damaged" if reasons else "whole" for name, reasons in found.items()}
    _show("verified", {"whole": not faults, "checkpoints": names, **({"faults": faults} if json else {})}, json)
    raise typer.Exit(1 if faults else 0)


@checkpoints.command("export")
def checkpoint_export(
    directory: CheckpointDir,
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors and model.json.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the backbone of a checkpoint as a model."""
    from rayface.training.checkpoint_tools import export

    _show("exported", export(directory, out), json)


@checkpoints.command("reshard")
def checkpoint_reshard(
    directory: CheckpointDir,
    out: Annotated[Path, typer.Option(help="New folder for centers.safetensors, or a file for each rank.")],
    ranks: Annotated[int, typer.Option("--ranks", "-W", min=1, help="Files to split the class centers into.")] = 1,
    from_arcface: Annotated[
        bool,
        typer.Option(
            "--from-arcface", help="DIR holds arcface_torch's checkpoint_gpu_K.pt or rank_K_softmax_weight.pt."
        ),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge the class centers of all ranks into one safetensors matrix, or split them for so many ranks."""
    from rayface.training.checkpoint_tools import reshard

    _show("resharded", reshard(directory, out, ranks=ranks, from_arcface=from_arcface), json)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _dataset_facts(dataset: Any, out: str) -> dict[str, Any]:
    return {
        "dataset": out,
        "images": dataset.num_images,
        "identities": dataset.num_classes,
        "shards": len(dataset.shards),
        "faults": len(dataset.faults),
    }


def _show(title: str, result: dict[str, Any], as_json: bool) -> None:
    from rayface.display import json_line, result_table

    if as_json:
        json_line(result)
    else:
        result_table(title, {name.replace("_", " "): _text(value) for name, value in result.items()})


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "-"
    return str(value)


def main() -> None:
    """Run the command line; errors are one line on stderr unless --debug asks for the traceback."""
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _end("interrupted", 130)
    except _USAGE_ERROR as error:
        _end(" ".join(error.format_message().split()), 2)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        text = " ".join(str(error).split()) or "no message"
        if not isinstance(error, ValueError | RuntimeError):
            text = f"{type(error).__name__}: {text[:2000]} (--debug shows more)"
        _end(text, getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    typer.echo(f"rayface: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
