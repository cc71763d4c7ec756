"""Memory, time and network of a training run before it is launched."""

from rayface.plan.memory import Job, job_of, memory
from rayface.plan.planning import Plan, make_plan
from rayface.plan.preflight import check_fits, largest_num_classes, memory_per_worker
from rayface.plan.timing import Rates, step_seconds, step_total

__all__ = [
    "Job",
    "Plan",
    "Rates",
    "check_fits",
    "job_of",
    "largest_num_classes",
    "make_plan",
    "memory",
    "memory_per_worker",
    "step_seconds",
    "step_total",
]
