"""Verbs of training: train, plan, register, sync."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.common import (
    Address,
    Debug,
    Imports,
    Json,
    Overrides,
    Verbose,
    app,
    cluster_keys,
    file_option,
    flag_option,
    path_option,
    resume_mode,
    run_argument,
    run_directory,
    show_result,
    show_results,
)
from rayface.config import with_overrides
from rayface.config_fields import parse_bytes
from rayface.presets import PRESETS


def _gpu_memory(text: str) -> int:
    try:
        return parse_bytes(text, bare_from=2**20)  # nvidia-smi shows MiB
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


GpuMemory = Annotated[
    int | None,
    typer.Option(
        parser=_gpu_memory,
        metavar="SIZE",
        help="Memory of one GPU, for example 80GiB; a run that does not fit is refused.",
    ),
]
Efficiency = Annotated[float | None, typer.Option(help="Fraction of the products' rate that the backbone reaches.")]
Recompute = Annotated[
    bool,
    flag_option("--recompute", help="Plan for backbone.checkpointing=true: the backward pass recomputes activations."),
]
NumClasses = Annotated[int | None, typer.Option(min=1, help="Number of classes, if there is no dataset yet.")]
NumImages = Annotated[int | None, typer.Option(min=1, help="Number of images of an epoch, if there is no dataset yet.")]
Published = Annotated[
    bool, flag_option("--published", help="Show the error of the memory model on arcface_torch's table, and exit.")
]


@app.command(
    epilog=f"Presets: {', '.join(PRESETS)}. Example: rayface train --preset mini data.train=faces/ train.epochs=5. "
    "All config keys: see docs/configuration.md."
)
def train(
    overrides: Overrides = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    config: Annotated[Path | None, file_option("--config", "-c", help="YAML file of config keys.")] = None,
    resume: Annotated[
        bool,
        flag_option(
            "--resume",
            help="Resume from the run's last checkpoint; `--resume auto` starts the run, resumes it, or shows the "
            "result of a finished one, so the same command can be repeated.",
        ),
    ] = False,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Train a model into a run directory, tracked in MLflow."""
    from rayface.stages import STAGES
    from rayface.training.run_output import resolve

    when, keys = resume_mode(resume, overrides)
    resolved = with_overrides(resolve(preset, config, keys, resume=when), cluster_keys(address, debug))
    if when == "auto":
        from rayface.training.trainer import train_or_resume

        result = train_or_resume(resolved, address=resolved.cluster.address, debug=resolved.cluster.debug)
    else:
        result = STAGES["train"].run(resolved, resume=when)
    show_result("trained", dict(result if json else STAGES["train"].shown(result)), json)


@app.command()
def plan(
    overrides: Overrides = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="A published recipe to start from.")] = None,
    config: Annotated[Path | None, file_option("--config", "-c", help="YAML file of config keys.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Number of workers; default: train.num_workers.")] = None,
    gpu_memory: GpuMemory = None,
    num_classes: NumClasses = None,
    num_images: NumImages = None,
    rates: Annotated[Path | None, file_option(help="Output of `rayface bench rates --json`.")] = None,
    gemm_tflops: Annotated[float | None, typer.Option(help="Rate of large bf16 matrix products, TFLOP/s.")] = None,
    fp32_tflops: Annotated[float | None, typer.Option(help="Rate of large fp32 matrix products, TFLOP/s.")] = None,
    memory_bandwidth: Annotated[float | None, typer.Option(help="Bandwidth of device memory, GB/s.")] = None,
    link_bandwidth: Annotated[float | None, typer.Option(help="Bandwidth of a worker per direction, GB/s.")] = None,
    backbone_efficiency: Efficiency = None,
    recompute: Recompute = False,
    plot: Annotated[Path | None, path_option(help="PNG of memory and images/s over the number of classes.")] = None,
    published: Published = False,
    imports: Imports = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Estimate memory, time and network traffic of a training run, and refuse a run that cannot fit."""
    from rayface.plan.planning import plan_run

    if published:
        _show_published(json)
        return
    planned = plan_run(
        preset,
        config,
        overrides or [],
        num_workers=gpus,
        memory_per_device=gpu_memory,
        num_classes=num_classes,
        num_images=num_images,
        rates={
            "gemm_tflops": gemm_tflops,
            "fp32_tflops": fp32_tflops,
            "memory_bandwidth": memory_bandwidth,
            "link_bandwidth": link_bandwidth,
            "backbone_efficiency": backbone_efficiency,
        },
        rates_file=rates,
        recompute=recompute,
        plot=plot,
    )
    show_result("planned", planned.as_dict() if json else planned.table(), json)
    if planned.refusal:
        raise ValueError(planned.refusal)


def _show_published(json: bool) -> None:
    from rayface.plan.published import as_dicts, as_table, table_rows

    show_results("memory of a GPU, MiB", as_dicts(table_rows()), as_table(table_rows()), json)


@app.command()
def register(
    run: Annotated[str, run_argument("Directory of a finished run that was tracked in MLflow, a path or URI.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the registered model; default: the run's config key `name`.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Register a run's model in MLflow's model registry; repeating it for a run does not create a new version."""
    from rayface.training.registry import register as register_run

    show_result("registered", register_run(run_directory(run), name).as_dict(), json)


@app.command()
def sync(
    run: Annotated[str, run_argument("Run directory, or the output of another job; a path or URI.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for MLflow.")] = 60.0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Deliver to MLflow what a run could not deliver while the server was down."""
    from rayface.storage import normalise
    from rayface.tracking import deliver
    from rayface.tracking.spool import JOURNAL

    with _synced(run) as folder:
        delivered = deliver(folder / JOURNAL, timeout, normalise(run))
    show_result("synced", {"run": run, "delivered": delivered}, json)
    raise typer.Exit(0 if delivered else 1)


def _synced(run: str) -> AbstractContextManager[Path]:
    """Provide the local folder with the journals of a run, sweep or other job."""
    from rayface.storage import RemotePath, normalise
    from rayface.tracking.spool import spool

    directory = run_directory(run)
    if directory.has_started():
        return directory.synced()
    if isinstance(directory.path, RemotePath):
        from rayface.tuning.sweep_directory import SweepDirectory  # imports Optuna

        if (sweep := SweepDirectory(directory.path)).spec.exists():
            return sweep.synced()
    return spool(normalise(run))
