from pathlib import Path

from rayface.training.run_directory import RunDirectory


def restarts(run: Path) -> list[str]:
    return RunDirectory(run).restarts()


def drain_requested(run: Path) -> bool:
    return RunDirectory(run).drain_requested()


def clear_drain_request(run: Path) -> bool:
    return RunDirectory(run).clear_drain_request()
