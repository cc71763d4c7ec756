"""Settings of Ray Tune that it takes from its own globals: what it prints, and what it sends with every trial."""

import logging
import os

from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE


def quiet_tune(debug: bool) -> None:
    """Silence Ray Tune: stdout is for the result, and a failed trial is reported in one line of ours."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if not debug:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def keep_credentials() -> None:
    """Keep Ray Tune from sending AWS_SECRET_ACCESS_KEY and the like with every trial: Ray writes them into its logs.

    The processes of trials have the environment of their node.
    """
    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])
