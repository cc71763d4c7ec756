"""Runs an experiment's stages one after the other, on one Ray; what is finished is skipped."""

import json
import logging
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayface import config as configs
from rayface.config import Config, TrainConfig
from rayface.credentials import masked
from rayface.experiment.checks import Models, check_paths, check_prune, check_train, config_of_stage, proxy_of_stage
from rayface.experiment.inputs import fingerprint, input_paths
from rayface.experiment.record import Done, Record, brief, changed_key
from rayface.experiment.spec import Experiment, Stage, load, overrides_of
from rayface.experiment.verbs import VERBS, Command
from rayface.job_folder import exclusive_job_folder
from rayface.ray_errors import in_one_line
from rayface.session import ray_session
from rayface.storage import on_disk
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_JOB = ".experiment.json"
# Options that do not change a result.
_UNTOLD = ("json", "address", "debug", "overrides", "workers", "resume", "imports")
# Keys of a training that do not change what it learns, but for rounding.
_OPERATIONAL = (
    "name",
    "tracking.",
    "data.readers",
    "train.output",
    "train.num_workers",
    "train.cpus_per_worker",
    "train.wait_for_nodes",
    "train.device",
    "train.teacher_cache",  # which folder; whether there is one is a setting of its own
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.max_failures",
    "train.hang_timeout",
    "train.grace_seconds",
    "evaluate.every",
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stage that was checked: what would be called, and what decides its result.

    `config` is of a train stage, `trains` of whatever is trained in it, a prune stage's proxy too. `inputs` are
    fingerprints of what no stage has made.
    """

    stage: Stage
    command: Command
    folder: Path
    arguments: list[str]
    settings: dict[str, Any]
    config: Config | None
    trains: TrainConfig | None
    inputs: dict[str, str]

    @property
    def result(self) -> Path:
        return self.folder / VERBS[self.stage.verb].file

    @property
    def cpus(self) -> int:
        return self.trains.max_workers * self.trains.cpus_per_worker if self.trains else 1


def run(
    file: Path,
    overrides: Sequence[str],
    commands: Mapping[str, Command],
    *,
    out: str | None = None,
    address: str | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Run the stages of an experiment that are not finished, in their order.

    Every stage is checked before the first one starts, as far as its inputs are there. A stage is finished when its
    record says so, with the same settings and inputs, and its result is there as it was left; one that was interrupted
    goes on as its verb does.

    Args:
        file: YAML, see README.md.
        overrides: config keys of every stage whose verb takes some.
        commands: the verbs as they are called.
        out: folder of the stages; None: the file's `output`, else experiments/NAME.
        address: Ray cluster; None: RAY_ADDRESS, else one local Ray for all stages.
        debug: show the logs of Ray.

    Returns:
        experiment, output, seconds, and of every stage its name, verb, output, skipped, seconds and result.

    Raises:
        ValueError: bad input; one line.
        RuntimeError: a stage failed; one line that names it.
    """
    start = time.monotonic()
    experiment = load(file, overrides, commands)
    root = on_disk(out or experiment.output or f"experiments/{experiment.name}", "output").absolute()
    prepared = prepare(experiment, root, commands, [*(["--address", address] if address else []), *_flag(debug)])
    named = [*overrides, *(["--out", out] if out else []), *(["--address", address] if address else [])]
    again = shlex.join(["rayface", "run", str(file), *named])
    with exclusive_job_folder(str(root), {"experiment": experiment.name}, _JOB):
        record = Record(root)
        pending = [each for each in prepared if _finished(each, prepared, record) is None]
        on_ray = [each for each in pending if VERBS[each.stage.verb].ray]
        session = ray_session(address, num_cpus=max(each.cpus for each in on_ray), debug=debug) if on_ray else None
        stages = []
        with session or nullcontext():
            for number, each in enumerate(prepared, 1):
                title = f"stage {number} of {len(prepared)}: {each.stage.verb} {each.stage.name}"
                done = _finished(each, prepared, record)
                logger.info("%s%s", title, ": finished before, skipped" if done else "")
                stages.append(_shown(each, done or _call(each, prepared, record, again), skipped=done is not None))
    seconds = time.monotonic() - start
    return {"experiment": experiment.name, "output": str(root), "seconds": seconds, "stages": stages}


def _flag(debug: bool) -> list[str]:
    return ["--debug"] if debug else []


def prepare(
    experiment: Experiment, root: Path, commands: Mapping[str, Command], common: Sequence[str]
) -> list[Prepared]:
    """Check all stages; the first that cannot be is named."""
    prepared: list[Prepared] = []
    models: Models = {}
    for stage in experiment.stages:
        try:
            each = _prepare_stage(stage, root, commands[stage.verb], {p.stage.name: p for p in prepared}, common)
            if each.config is not None:
                check_train(stage, each.config, models)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error
        model = each.config or next((models[n] for n in stage.references().get("model", ()) if n in models), None)
        if model is not None and VERBS[stage.verb].makes in ("model", "onnx"):
            models[stage.name] = model
        prepared.append(each)
    return prepared


def _prepare_stage(
    stage: Stage, root: Path, command: Command, earlier: Mapping[str, Prepared], common: Sequence[str]
) -> Prepared:
    verb, folder = VERBS[stage.verb], root / stage.name
    check_paths(stage)
    filled = stage.with_paths({name: str(each.result) for name, each in earlier.items()})
    options, overrides = dict(filled.options), filled.overrides()
    if verb.output in command.options:
        options[verb.output] = str(folder / verb.file)
    else:
        overrides.append(f"{verb.output}={folder}")
    arguments = command.arguments(options, overrides)
    parsed = command.parse(arguments)
    if stage.verb == "prune":
        check_prune(parsed)
    named = {key: value for key, value in parsed.items() if key not in (verb.output, *_UNTOLD)}
    references = {**stage.options, **stage.keys}
    references = {key: references[key] for key in stage.references()}
    config = config_of_stage(filled, options, folder) if stage.verb == "train" else None
    trained = proxy_of_stage(filled, parsed) if parsed.get("proxy_fraction") is not None else config
    settings = {**({} if config else named), **(_learned(trained) if trained else {})}
    settings = {key: references.get(key, value) for key, value in settings.items()}
    resolved = None if trained is None else configs.flat(config) if config else {}
    named_inputs = {option: paths for option, paths in input_paths(stage, resolved).items() if option != "config"}
    return Prepared(
        stage=stage,
        command=command,
        folder=folder,
        arguments=[*common, *arguments],
        settings=masked(json.loads(json.dumps(settings, default=str))),
        config=config,
        trains=trained.train if trained else None,
        inputs=masked({f"{key} {', '.join(paths)}": fingerprint(key, paths) for key, paths in named_inputs.items()}),
    )


def _learned(config: Config) -> dict[str, Any]:
    """What of a config decides what is learned."""
    keys = {key: value for key, value in configs.flat(config).items() if not key.startswith(_OPERATIONAL)}
    return {**keys, "distils from a cache": config.train.teacher_cache is not None}


def _finished(each: Prepared, prepared: Sequence[Prepared], record: Record) -> Done | None:
    """What the record says of a stage, if that still holds.

    Raises:
        ValueError: it was finished with other settings or inputs, or its result is no longer what it left.
    """
    mark = VERBS[each.stage.verb].mark(each.folder)
    done = record.finished(each.stage.name)
    if done is None and mark is not None and each.stage.verb == "train":
        # interrupted between the end of the run and our record of it: the run's own files say that it is whole
        result = RunDirectory(each.folder).read_result()
        done = record.ended(each.stage.name, mark=mark, seconds=result.get("seconds", 0.0), result=brief(result))
    if done is None or mark is None:
        return None
    remedy = f"put it back, or delete {each.folder} to have it done again"
    where = f"stage {each.stage.name}: is finished"
    if each.stage.verb != done.verb:
        raise ValueError(f"{where} as {done.verb}, this is {each.stage.verb}: {remedy}")
    if key := changed_key(done.settings, each.settings):
        was, now = (tree.get(key) for tree in (done.settings, each.settings))
        raise ValueError(f"{where} with {key} {was!r}, this is {now!r}: {remedy}")
    if key := changed_key(done.inputs, _inputs(each, prepared)):
        raise ValueError(f"{where}, and {key}, which it was made of, is another one now or gone: {remedy}")
    if mark != done.mark:
        raise ValueError(f"{where}, and what it left in {each.folder} is not there as it was: {remedy}")
    return done


def _inputs(each: Prepared, prepared: Sequence[Prepared]) -> dict[str, str | None]:
    """Marks of what a stage is made of: results of other stages, and datasets, models and files of others."""
    by_name = {other.stage.name: other for other in prepared}
    names = {name for found in each.stage.references().values() for name in found}
    marks = {f"stage {name}": VERBS[by_name[name].stage.verb].mark(by_name[name].folder) for name in sorted(names)}
    return {**marks, **each.inputs}


def _call(each: Prepared, prepared: Sequence[Prepared], record: Record, again: str) -> Done:
    stage, verb, start = each.stage, VERBS[each.stage.verb], time.monotonic()
    begun = record.begun(stage.name)
    inputs = _inputs(each, prepared)
    if each.folder.exists() and not begun:
        raise ValueError(f"stage {stage.name}: {each.folder}: is there, and was not made by it: move it away")
    if _goes_on(each) and (key := changed_key(record.inputs(stage.name), inputs)):
        raise ValueError(
            f"stage {stage.name}: was begun, and {key}, which it is made of, is another one now: delete "
            f"{each.folder} to have it begun anew"
        )
    record.begin(stage.name, verb=stage.verb, settings=each.settings, inputs=inputs)
    try:
        result = _call_verb(each)
    except (KeyboardInterrupt, TrainingInterruptedError) as error:
        raise TrainingInterruptedError(f"stage {stage.name}: interrupted; go on with: {again}", error) from error
    except (ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"stage {stage.name}: {in_one_line(error)}") from error
    mark = verb.mark(each.folder)
    if mark is None:
        raise RuntimeError(f"stage {stage.name}: has left no result in {each.folder}")
    seconds = time.monotonic() - start
    return record.finish(stage.name, mark=mark, seconds=seconds, result=brief(result))


def _goes_on(each: Prepared) -> bool:
    """Whether the verb would go on with what it left when it was interrupted."""
    begun = RunDirectory(each.folder).has_started() if each.stage.verb == "train" else each.folder.exists()
    return VERBS[each.stage.verb].goes_on and begun


def _call_verb(each: Prepared) -> dict[str, Any]:
    """Call the verb: anew, or where it was interrupted."""
    goes_on, arguments = _goes_on(each), each.arguments
    if each.folder.exists() and not goes_on:
        shutil.rmtree(each.folder)
    if goes_on and each.config is not None:
        # every key: one that was taken out of the file would else stay what the run's own config says
        arguments = ["--resume", *arguments, *overrides_of(configs.flat(each.config))]
    return each.command.call(arguments)


def _shown(each: Prepared, done: Done, *, skipped: bool) -> dict[str, Any]:
    stage = each.stage
    head = {"name": stage.name, "verb": stage.verb, "output": str(each.result), "skipped": skipped}
    return {**head, "seconds": done.seconds, "result": done.result}
