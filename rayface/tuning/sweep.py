"""Driver of a sweep: check its file, own its directory, run its trials."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import optuna

from rayface import config as configs
from rayface import tracking
from rayface.config import Config
from rayface.session import is_cluster, ray_session
from rayface.storage import RemotePath
from rayface.tracking import shared_tracking
from rayface.tracking.job import tracked_job
from rayface.tracking.origin import origin
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.run_output import Resume
from rayface.training.validate import dry_run
from rayface.tuning import spec as specs
from rayface.tuning.ray_tune_settings import keep_credentials, quiet_tune
from rayface.tuning.resources import check_room, most_workers, wait_for_nodes, worker_cpus
from rayface.tuning.results import SweepResult
from rayface.tuning.resume import find_sweep, remember, resume_sweep
from rayface.tuning.shipped import sweep_file
from rayface.tuning.spec import Spec
from rayface.tuning.study import interrupted, num_new_trials, open_study
from rayface.tuning.sweep_directory import SweepDirectory, new_sweep
from rayface.tuning.trials import Trials

_INTERRUPTS = (KeyboardInterrupt, TrainingInterruptedError)
logger = logging.getLogger(__name__)


def tune(
    file: str | Path,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    preset: str | None = None,
    resume: Resume = False,
    address: str | None = None,
    debug: bool = False,
) -> SweepResult:
    """Run the sweep that a file describes.

    Args:
        file: path or URI of a sweep file, see `Spec`, or the name of one that comes with rayface.
        overrides: as `load_config` takes them; `sweep.KEY` are search settings, others config keys of every trial.
        preset: replaces the file's preset.
        resume: resume a sweep of that file: sweep.output, else the newest of its name under sweeps/. The file is
            compared with the one that the sweep was started with. "auto": start one if there is none.
        address: Ray cluster; None: cluster.address, else RAY_ADDRESS, else a local Ray.
        debug: show the logs of Ray, as cluster.debug does.

    Raises:
        ValueError: bad input; one line.
        RuntimeError: all trials failed, the first ones failed for the same reason, or nodes were lost; one line.
        TrainingInterruptedError: Ctrl-C or SIGTERM stopped it; one line.
    """
    file, overrides = sweep_file(file), configs.override_texts(overrides)
    resume = find_sweep(file, overrides) is not None if resume == "auto" else resume
    start = resume_sweep if resume else new_sweep
    spec, base, folder = start(file, overrides, preset)
    address, debug = address or base.cluster.address, debug or base.cluster.debug
    directory = SweepDirectory(folder)
    total_steps = _check_trials(spec, base, directory)
    base = replace(base, tracking=shared_tracking(base.tracking, directory.working))
    quiet_tune(debug)
    keep_credentials()
    with directory.exclusive(), directory.delivering(resume=resume), ExitStack() as stack:
        storage = spec.sweep.storage or os.environ.get("OPTUNA_STORAGE") or directory.storage
        study = open_study(spec, directory.study_name(resume=resume), storage, total_steps=total_steps, resume=resume)
        directory.store_study()
        if num_new_trials(spec, study) or interrupted(study):
            stack.enter_context(_session_with_room(spec, most_workers(spec, base), address, debug=debug))
        if not resume:
            remember(folder, file, overrides, preset, (spec, base))
            specs.dump(spec, base, directory.spec)
        return _run_trials(spec, base, directory, study, address)


def _check_trials(spec: Spec, base: Config, directory: SweepDirectory) -> int:
    """Check the settings and the data of the trials, against the first one; return their number of training steps."""
    for choice in spec.search["data.train"].edges() if "data.train" in spec.search else ():
        dry_run(configs.with_overrides(base, {"data.train": choice}))
    searched = {"data.train", "data.join"} & spec.search.keys()
    return dry_run(base, data_of=None if searched else directory.run(0))


@contextmanager
def _session_with_room(spec: Spec, most: Config, address: str | None, *, debug: bool) -> Iterator[None]:
    """A Ray session whose cluster has room for the concurrent trials; `most`: see `most_workers`."""
    num_cpus = spec.sweep.concurrency * worker_cpus(most) + 1
    with ray_session(address, num_cpus=num_cpus, debug=debug, prometheus=most.tracking.prometheus):
        if is_cluster(address):
            wait_for_nodes(spec, most)
        check_room(spec, most)
        yield


def _run_trials(
    spec: Spec, base: Config, directory: SweepDirectory, study: optuna.Study, address: str | None
) -> SweepResult:
    """Run the trials of a study as one tracked job."""
    tags = {**origin(), "rayface.sweep": directory.name}  # a trial's own command is that of a Ray worker
    tracked = tracked_job(
        directory.working,
        base.tracking,
        _params(spec, base),
        tags=tags,
        interrupts=_INTERRUPTS,
        output=str(directory),
        name=directory.name if isinstance(directory.path, RemotePath) else None,
    )
    with directory.session() as seconds, tracked as job:
        job.journal.artifact(directory.spec)
        trials = Trials(spec, base, directory, study, job.journal)
        nested = _nested_in(job.delivery, base.tracking.timeout) if job.delivery else {}
        trials.run({**tags, **nested}, address or os.environ.get("RAY_ADDRESS"))
        result = trials.finish(seconds(), {**tags, **nested})
    return replace(result, tracked=job.result())


def _params(spec: Spec, base: Config) -> dict[str, object]:
    """Return the params of the sweep's own MLflow run."""
    searched = {f"search.{key}": json.dumps(parameter.given()) for key, parameter in spec.search.items()}
    return {**configs.flat(base, specs.groups_of(base)), **searched}


def _nested_in(delivery: tracking.Delivery, timeout: float) -> dict[str, str]:
    deadline = time.monotonic() + timeout
    while delivery.run_id is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if delivery.run_id is None:
        logger.warning(f"MLflow at {delivery.uri} does not answer: the trials' runs are not nested in the sweep's run")
        return {}
    return {tracking.PARENT: delivery.run_id}
