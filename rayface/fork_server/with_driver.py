"""Imports the command line, and what the driver of a training needs, into a process that will be forked."""

from rayface.fork_server.with_ray import unseeded

with unseeded():
    import rayface.cli.command_line
    import rayface.display
    import rayface.plan.preflight
    import rayface.progress_bars
    import rayface.stages
    import rayface.training.fit
    import rayface.training.model_check
    import rayface.training.recovery.placement_groups
    import rayface.training.trainer  # noqa: F401
