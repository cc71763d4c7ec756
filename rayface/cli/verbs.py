"""The verbs in panels, in the order in which a project uses them."""

from typing import Any

from typer.core import TyperGroup

VERBS = {
    "Data": ("synth", "convert", "align", "check"),
    "Curate": ("embed", "prune", "cluster"),
    "Train": ("plan", "train", "watch", "doctor", "tune"),
    "Evaluate and export": ("evaluate", "compare", "benchmark", "export", "checkpoint", "register", "sync"),
    "Several verbs, clusters": ("run", "submit"),
    "This machine": ("backbones", "bench"),
}


class VerbGroup(TyperGroup):
    """A group whose help lists the verbs as `VERBS` does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for panel, verbs in VERBS.items():
            for verb in verbs:
                self.commands[verb].rich_help_panel = panel  # type: ignore[attr-defined]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the verb that the arguments name, with a hint for the one that other tools have."""
        if args[0] == "clean":
            ctx.fail("Cleaning is a part of prune: rayface prune --keep 1 --outliers T --drop outliers; see --help.")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: object) -> list[str]:
        """Return the names of the verbs."""
        return [verb for verbs in VERBS.values() for verb in verbs]
