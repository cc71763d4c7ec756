"""Hangs that NCCL sees: which ranks are behind in which collective, reported as faults; the watchdog restarts."""

from collections.abc import Sequence
from dataclasses import replace

from rayface.config import TrainConfig
from rayface.ray_internals.train import (
    NCCL_RAS_ACTION_ENV_VAR,
    NCCL_RAS_ACTION_OBSERVE,
    NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR,
    NCCLRASCallback,
    RASReport,
)
from rayface.session import environment, with_defaults
from rayface.training.run_directory import CONTROLLER, RunDirectory

_MAX_RANKS = 8  # named in a line


class NcclHangs(NCCLRASCallback):
    """Callback of Ray Train's controller: asks NCCL's RAS every 15 s for the collectives of all ranks.

    Where counts differ between the ranks of a communicator and none of them grows for half of the watchdog's timeout,
    it appends a line to faults.log, and Ray Train writes the stacks of all workers into the run's `ray/` folder. It
    never ends a run: the watchdog does. Without the program `ncclras` (NCCL 2.28 or newer) on the workers' PATH it
    does nothing.

    Args:
        run: the run directory.
        hang_timeout: the watchdog's timeout, seconds.
    """

    def __init__(self, run: RunDirectory, hang_timeout: float) -> None:
        confirm = with_defaults({NCCL_RAS_CONFIRM_DURATION_S_ENV_VAR: str(hang_timeout / 2)})
        with environment({**confirm, NCCL_RAS_ACTION_ENV_VAR: NCCL_RAS_ACTION_OBSERVE}):  # Ray reads it here
            super().__init__()
        self._run, self._ray_storage = replace(run, writer=CONTROLLER), run.ray_storage

    def handle_confirmed_hangs(self, confirmed_comm_hangs: list[str], report: RASReport) -> None:
        """Append which ranks are behind to faults.log; then Ray Train's diagnostics."""
        still = self._confirm_duration_s
        self._run.add_faults(
            f"NCCL reports a hang: {behind(report.comm_op_counts[each])}, no progress for {still:.0f} s; stacks of the "
            f"workers: {self._ray_storage}/*/hang_detector"
            for each in confirmed_comm_hangs
        )
        super().handle_confirmed_hangs(confirmed_comm_hangs, report)


def reports_nccl_hangs(train: TrainConfig, *, gpu: bool) -> bool:
    """Return whether workers of a run meet in NCCL, and a watchdog looks after them."""
    return gpu and train.max_workers > 1 and train.hang_timeout > 0


def behind(counts: dict[int, dict[str, int]]) -> str:
    """Describe which ranks of a communicator have done fewer of an operation than others, in one line.

    Args:
        counts: number of each operation by rank.
    """
    found = []
    for operation in sorted({name for done in counts.values() for name in done}):
        done = {rank: count.get(operation, 0) for rank, count in counts.items()}
        most = max(done.values())
        late = [rank for rank in sorted(done) if done[rank] < most]
        if late:
            found.append(f"{_ranks(late)} behind in {operation} ({min(done.values())} of {most})")
    return " and ".join(found)


def _ranks(ranks: Sequence[object]) -> str:
    named = ", ".join(map(str, ranks[:_MAX_RANKS])) + (", ..." if len(ranks) > _MAX_RANKS else "")
    return f"rank{'s' * (len(ranks) > 1)} {named}"
