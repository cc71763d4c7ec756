"""How long ranks wait for each other, seconds."""

import math

JOIN = 300
"""Timeout of joining a process group: ranks are all there by then, and a closed port must not be a silent hang."""


def collective_seconds(hang_timeout: float) -> int:
    """Return the timeout of a collective. With watchdogs, which detect hangs, it is long: ranks may wait for slow work.

    Args:
        hang_timeout: that of the watchdogs, seconds; 0: there are none.
    """
    return math.ceil(2 * hang_timeout) + 86_400 if hang_timeout else 1800
