"""Verbs of checkpoints: show, verify, export, reshard."""

from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.common import Debug, Imports, Json, Verbose, app, flag_option, path_option, show_result, tell

checkpoints = typer.Typer(help="Show, verify and export checkpoints.", no_args_is_help=True)
app.add_typer(checkpoints, name="checkpoint")
CheckpointDir = Annotated[
    str, typer.Argument(metavar="DIR", help="Checkpoint, or run directory: its newest checkpoint; a path or URI.")
]


@checkpoints.command("show")
def checkpoint_show(
    directory: CheckpointDir, json: Json = False, verbose: Verbose = False, debug: Debug = False
) -> None:
    """Show what a checkpoint holds and whether it is complete."""
    from rayface.storage import path_of
    from rayface.training.checkpointing.tools import show

    shown = show(path_of(directory))
    show_result("checkpoint", shown.as_dict() if json else shown.table(), json)


@checkpoints.command("verify")
def checkpoint_verify(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Checkpoint, or run directory: all its checkpoints; a path or URI.")
    ],
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Verify all files by their digests and name every fault; exit code 1 if there are any."""
    from rayface.storage import path_of
    from rayface.training.checkpointing.tools import verify

    found = verify(path_of(directory))
    faults = [fault for reasons in found.values() for fault in reasons]
    for fault in faults:
        tell(fault)
    names = {name: "corrupt" if reasons else "valid" for name, reasons in found.items()}
    show_result("verified", {"whole": not faults, "checkpoints": names, **({"faults": faults} if json else {})}, json)
    raise typer.Exit(1 if faults else 0)


@checkpoints.command("export")
def checkpoint_export(
    directory: CheckpointDir,
    out: Annotated[str, typer.Option(help="Folder for model.safetensors and model.json, a path or URI.")],
    imports: Imports = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write the backbone of a checkpoint as a model."""
    from rayface.storage import path_of
    from rayface.training.checkpointing.tools import export

    show_result("exported", export(path_of(directory), out), json)


@checkpoints.command("reshard")
def checkpoint_reshard(
    directory: CheckpointDir,
    out: Annotated[Path, path_option(help="New folder for centers.safetensors, or one file per rank.")],
    ranks: Annotated[
        int, typer.Option("--ranks", "-W", min=1, help="Number of ranks to split the class centers into.")
    ] = 1,
    from_arcface: Annotated[
        bool,
        flag_option(
            "--from-arcface", help="DIR holds arcface_torch's checkpoint_gpu_K.pt or rank_K_softmax_weight.pt."
        ),
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Merge the class centers of all ranks into one safetensors matrix, or split them for another number of ranks."""
    from rayface.storage import path_of
    from rayface.training.checkpointing.tools import reshard

    show_result("resharded", reshard(path_of(directory), out, ranks=ranks, from_arcface=from_arcface), json)
