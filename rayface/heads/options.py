"""Base of a head's own settings."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Settings for which the config group `head` has no key: a head has a subclass, whose fields need defaults.

    They are set as `head.options.NAME=VALUE`.
    """


NO_OPTIONS = HeadOptions()
