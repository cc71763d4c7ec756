"""Run the stages of an experiment in order, in one Ray session; skip finished stages."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rayface.config import ClusterConfig, Config
from rayface.credentials import masked
from rayface.data.convert import JOB as CONVERT_JOB
from rayface.data.dataset import open_dataset
from rayface.experiment.checks import Models, check, config_of
from rayface.experiment.inputs import fingerprint, input_paths
from rayface.experiment.record import Done, Record, brief
from rayface.experiment.spec import Experiment, Stage, load
from rayface.files import remove_folder
from rayface.job_folder import exclusive_job_folder
from rayface.machine import release_gpu_memory
from rayface.plugins import resume_command
from rayface.ray_errors import in_one_line
from rayface.session import ray_session
from rayface.stages.functions import dataset_facts
from rayface.stages.settings import changed_key, changed_keys
from rayface.storage import AnyPath, path_of, uri_of
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_JOB = ".experiment.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checked stage: its config, and the settings and inputs that decide its result.

    `settings` are by config key, with outputs of other stages as ${NAME}; `inputs` are fingerprints of external inputs.
    """

    stage: Stage
    folder: AnyPath
    config: Config
    settings: dict[str, object]
    inputs: dict[str, str]

    @property
    def result(self) -> AnyPath:
        return self.folder / self.stage.type.file

    @property
    def cpus(self) -> int:
        train = self.config.train
        trains = self.stage.verb == "train" or self.config.prune.proxy_fraction is not None
        return train.max_workers * train.cpus_per_worker if trains else 1

    @property
    def resumes(self) -> bool:
        """Whether the stage was interrupted and its verb can resume it."""
        trains = self.stage.verb == "train"
        started = RunDirectory(self.folder).has_started() if trains else self.folder.exists()
        return self.stage.type.resumable and started


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage; `seconds` and `result` are those of the session that finished it."""

    name: str
    verb: str
    output: str
    skipped: bool
    seconds: float
    result: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    experiment: str
    output: str
    seconds: float
    stages: tuple[StageResult, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, as JSON types."""
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}


def run(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    out: str | None = None,
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008  # frozen
) -> ExperimentResult:
    """Run the unfinished stages of an experiment in order.

    Every stage is checked before the first one starts, as far as its inputs exist. A stage is finished if it is
    recorded with the same settings and inputs, and its result is unchanged. An interrupted stage resumes if its verb
    supports it.

    Args:
        file: YAML, see docs/experiments.md.
        overrides: config keys of every stage.
        out: folder of the stages, a path or URI; None: the file's `output`, else experiments/NAME.
        cluster: Ray session of all stages; what it leaves unset is that of the stages' config.

    Raises:
        ValueError: bad input; one line.
        RuntimeError: a stage failed; one line that names it.
    """
    start = time.monotonic()
    experiment = load(file, overrides)
    root = path_of(out or experiment.output or f"experiments/{experiment.name}").absolute()
    prepared = prepare(experiment, root, cluster)
    named = [*overrides, *(["--out", out] if out else []), *(["--address", cluster.address] if cluster.address else [])]
    again = resume_command("run", str(file), *named)
    stages = []
    with exclusive_job_folder(uri_of(root), {"experiment": experiment.name}, _JOB, key="output"):
        record = Record(root)
        pending = [each for each in prepared if _finished(each, prepared, record) is None]
        with _session(prepared, pending):
            for number, each in enumerate(prepared, 1):
                title = f"stage {number} of {len(prepared)}: {each.stage.verb} {each.stage.name}"
                done = _finished(each, prepared, record)
                logger.info("%s%s", title, ": finished before, skipped" if done else "")
                stages.append(_result(each, done or _run(each, prepared, record, again), skipped=done is not None))
    seconds = time.monotonic() - start
    return ExperimentResult(experiment=experiment.name, output=str(root), seconds=seconds, stages=tuple(stages))


def _session(prepared: Sequence[Prepared], pending: Sequence[Prepared]) -> AbstractContextManager[None]:
    """Return the Ray session of all stages; none where no stage is left that uses Ray."""
    on_ray, cluster = [each for each in pending if each.stage.type.uses_ray], prepared[0].config.cluster
    if not on_ray:
        return nullcontext()
    return ray_session(
        cluster.address,
        num_cpus=max(each.cpus for each in on_ray),
        debug=cluster.debug,
        prometheus=any(each.config.tracking.prometheus for each in on_ray),
    )


def prepare(
    experiment: Experiment,
    root: AnyPath,
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008  # frozen
) -> list[Prepared]:
    """Check all stages.

    Raises:
        ValueError: one line that names the first stage that cannot run.
    """
    prepared: list[Prepared] = []
    models: Models = {}
    for stage in experiment.stages:
        try:
            each = _prepare(stage, root, prepared, cluster, models)
            if prepared and each.config.cluster != prepared[0].config.cluster:
                raise ValueError(
                    "cluster.address, cluster.debug: must be those of all stages, which share one Ray session: "
                    "set them in `config` of the experiment"
                )
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error
        exported = stage.references().get("export.model", ())
        model = (
            each.config if stage.verb == "train" else next((models[name] for name in exported if name in models), None)
        )
        if model is not None:
            models[stage.name] = model
        prepared.append(each)
    return prepared


def _prepare(
    stage: Stage, root: AnyPath, earlier: Sequence[Prepared], cluster: ClusterConfig, models: Models
) -> Prepared:
    folder, references = root / stage.name, stage.references()
    paths = {each.stage.name: uri_of(each.result) for each in earlier}
    config = config_of(stage, paths, folder / stage.type.file)
    check(stage, config, models)
    settings = stage.type.settings(config)
    settings = {key: stage.keys[key] if key in references else value for key, value in settings.items()}
    inputs = {f"{key} {', '.join(own)}": fingerprint(key, own) for key, own in input_paths(stage, config).items()}
    return Prepared(
        stage=stage,
        folder=folder,
        config=replace(config, cluster=_merged(config.cluster, cluster)),
        settings=masked(json.loads(json.dumps(settings))),
        inputs=masked(inputs),
    )


def _merged(own: ClusterConfig, given: ClusterConfig) -> ClusterConfig:
    """Return the Ray session of a config, as far as the command line does not set it."""
    return ClusterConfig(address=given.address or own.address, debug=given.debug or own.debug)


def _finished(each: Prepared, prepared: Sequence[Prepared], record: Record) -> Done | None:
    """Return the record of a finished stage, None if it is not finished.

    Raises:
        ValueError: it was finished with other settings or inputs, or its result has changed.
    """
    found = each.stage.type.fingerprint(each.folder)
    done = record.finished(each.stage.name)
    if done is None and found is not None and (result := _unrecorded_result(each)) is not None:
        done = record.ended(each.stage.name, mark=found, seconds=result.get("seconds", 0.0), result=brief(result))
    if done is None or found is None:
        return None
    remedy = f"revert it, or delete {each.folder} to run the stage again"
    where = f"stage {each.stage.name}: is finished"
    if each.stage.verb != done.verb:
        raise ValueError(f"{where} as {done.verb}, is now {each.stage.verb}: {remedy}")
    if key := changed_key(done.settings, each.settings):
        was, now = (tree.get(key) for tree in (done.settings, each.settings))
        raise ValueError(f"{where} with {key} {was!r}, is now {now!r}: {remedy}")
    if key := changed_key(done.inputs, _inputs(each, prepared)):
        raise ValueError(f"{where}, and its input {key} has changed or is missing: {remedy}")
    if found != done.mark:
        raise ValueError(f"{where}, and its result in {each.folder} has changed: {remedy}")
    return done


def _unrecorded_result(each: Prepared) -> Mapping[str, Any] | None:
    """Return the result of a complete stage, for one that was interrupted before its end was recorded.

    None: the verb takes up its own complete output, or starts over.
    """
    if each.stage.verb == "train":
        return RunDirectory(each.folder).read_result()
    if each.stage.verb in ("convert", "align") and not (each.folder / CONVERT_JOB).exists():
        return dataset_facts(open_dataset(uri_of(each.folder)), uri_of(each.folder))
    return None


def _inputs(each: Prepared, prepared: Sequence[Prepared]) -> dict[str, str | None]:
    """Return the fingerprints of a stage's inputs: outputs of other stages, and external inputs."""
    by_name = {other.stage.name: other for other in prepared}
    names = {name for found in each.stage.references().values() for name in found}
    own = {f"stage {name}": by_name[name].stage.type.fingerprint(by_name[name].folder) for name in sorted(names)}
    return {**own, **each.inputs}


def _run(each: Prepared, prepared: Sequence[Prepared], record: Record, again: str) -> Done:
    stage, start = each.stage, time.monotonic()
    inputs = _inputs(each, prepared)
    if each.folder.exists() and not record.begun(stage.name):
        raise ValueError(f"stage {stage.name}: {each.folder}: exists and is not of this experiment: move it away")
    if each.resumes and (key := changed_key(record.inputs(stage.name), inputs)):
        raise ValueError(
            f"stage {stage.name}: was started, and its input {key} has changed since: delete {each.folder} to restart"
        )
    before = record.settings(stage.name)
    if each.resumes and (keys := changed_keys(before, each.settings)):
        changes = ", ".join(f"{key} {each.settings[key]!r} (was {before[key]!r})" for key in keys)
        logger.warning("stage %s: resumes with %s: delete %s to restart it", stage.name, changes, each.folder)
    record.begin(stage.name, verb=stage.verb, settings=each.settings, inputs=inputs)
    resume = each.resumes
    if each.folder.exists() and not resume:
        remove_folder(each.folder)
    try:
        result = stage.type.run(each.config, resume=resume)
    except (KeyboardInterrupt, TrainingInterruptedError) as error:
        raise TrainingInterruptedError(f"stage {stage.name}: interrupted; resume with: {again}", error) from error
    except (ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"stage {stage.name}: {in_one_line(error)}") from error
    release_gpu_memory()  # an evaluation runs in this process; the workers of the next stage need its GPU
    found = stage.type.fingerprint(each.folder)
    if found is None:
        raise RuntimeError(f"stage {stage.name}: left no result in {each.folder}")
    return record.finish(stage.name, mark=found, seconds=time.monotonic() - start, result=brief(result))


def _result(each: Prepared, done: Done, *, skipped: bool) -> StageResult:
    return StageResult(
        name=each.stage.name,
        verb=each.stage.verb,
        output=str(each.result),
        skipped=skipped,
        seconds=done.seconds,
        result=done.result,
    )
