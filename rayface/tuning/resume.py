"""Resume a sweep: find its directory and compare its file, which may have been edited, with the original."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import mask, masked
from rayface.files import read_json, write_json, write_text
from rayface.storage import AnyPath, local_copy, normalise, path_of, record_servers, require_known_servers, uri_of
from rayface.tracking.uris import check_stored_uri
from rayface.tuning import spec as specs
from rayface.tuning.spec import Spec
from rayface.tuning.sweep_directory import SPEC, newest
from rayface.values import to_text
from rayface.yaml_text import read_yaml

logger = logging.getLogger(__name__)

_FILE = "started.yaml"  # copy of the sweep's file at its start
_COMMAND = "started.json"  # overrides and preset of the command that started it, and all keys that these resolved to
_FREE = specs.FREE | {"heatmaps"}
_SESSION = "cluster."
_LONGEST = 100  # maximum length of a value in a message


def remember(
    folder: AnyPath, file: Path, overrides: Sequence[str], preset: str | None, resolved: tuple[Spec, Config]
) -> None:
    """Store the file, overrides and preset that a sweep is started with, and what they resolve to."""
    record_servers(specs.flat(*resolved))
    command = {"overrides": list(overrides), "preset": preset, "resolved": specs.flat(*resolved)}
    write_json(folder / _COMMAND, command)
    text = file.read_text(encoding="utf-8-sig")
    if mask(text) != text:
        text = yaml.safe_dump(masked(read_yaml(file)), sort_keys=False)
    write_text(folder / _FILE, text)


def resume_sweep(file: Path, overrides: Sequence[str], preset: str | None) -> tuple[Spec, Config, AnyPath]:
    """Return the spec of a resumed sweep, the base config of its trials, and its directory.

    The sweep is the one that sweep.output names, in the overrides or in the file, else the newest with the file's name.
    Edits of the keys in specs.FREE take effect; all other keys must be unchanged, also in the sweep's own copy.

    Args:
        file: the sweep file as it is now.
        overrides: those of this call.
        preset: that of this call; None: the one that the sweep was started with.

    Raises:
        ValueError: bad input; one line that names each key that differs.
    """
    folder = _folder(file, overrides)
    started = read_json(folder / _COMMAND) if (folder / _COMMAND).exists() else {"overrides": []}
    # An override that the sweep was started with changes nothing, so the same command can be repeated.
    new = [text for text in overrides if not {text, mask(text)} & {*started["overrides"]}]
    specs.check_resumable(new)
    _record_servers(file, overrides, folder)
    kept = [text for text in overrides if text in new or _is_not_stored(text)]
    spec, base = specs.load(local_copy(uri_of(folder / SPEC)), kept)
    # The stored sweep has no credentials and no Ray session, the file may have.
    session = [text for text in overrides if text.startswith(_SESSION)]
    base = configs.with_overrides(replace(base, cluster=Config().cluster), session)
    if resolved := started.get("resolved"):  # not of a sweep of an older rayface
        _refuse_fixed(folder / SPEC, _edited(resolved, masked(specs.flat(spec, base))))
    require_known_servers(specs.flat(spec, base), folder)
    if not _names_server(file, overrides, folder):
        check_stored_uri(base.tracking, folder)
    if _is_own_copy(file, folder):
        return spec, base, folder
    if not (folder / _FILE).exists():
        logger.info("%s: ignored: the sweep in %s was started by an older rayface and resumes unchanged", file, folder)
        return spec, base, folder
    first = started["preset"]
    then = specs.flat(*specs.load(local_copy(uri_of(folder / _FILE)), started["overrides"], first))
    first_overrides = [text for text in started["overrides"] if not text.startswith(_SESSION)]
    now, now_base = specs.load(file, first_overrides, first if preset is None else preset)
    edited = _differing(then, masked(specs.flat(now, now_base)))
    flat = configs.flat(base)
    secret = {key: value for key, value in configs.flat(now_base).items() if value != flat[key] == masked(value)}
    base = configs.with_overrides(replace(base, cluster=now_base.cluster), session)
    base = configs.with_overrides(base, secret)
    _refuse_fixed(file, edited)
    given = {"sweep.output", *(text.partition("=")[0] for text in kept)}
    if holds := {key: values for key, values in edited.items() if key not in given}:
        logger.info("%s: edited since the sweep was started, takes effect: %s", file, _listed(holds))
    changed = {key.removeprefix("sweep."): both[1] for key, both in holds.items() if key != "heatmaps"}
    return replace(spec, sweep=replace(spec.sweep, **changed), heatmaps=now.heatmaps), base, folder


def _record_servers(file: Path, overrides: Sequence[str], folder: AnyPath) -> None:
    """Note the servers of object stores that the command names, or its file."""
    record_servers([text.partition("=")[2] for text in overrides])
    if not _is_own_copy(file, folder):
        record_servers(read_yaml(file))


def _names_server(file: Path, overrides: Sequence[str], folder: AnyPath) -> bool:
    """Return whether this call or its file, and not only the sweep's directory, names the tracking server."""
    if any(text.startswith("tracking.uri=") for text in overrides):
        return True
    own = None if _is_own_copy(file, folder) else read_yaml(file).get("config")
    return isinstance(own, Mapping) and configs.open_groups(own, f"{file}").get("tracking.uri") is not None


def _is_not_stored(override: str) -> bool:
    """Return whether a value must be given again: the folder may have moved, and credentials are stored nowhere."""
    return override.startswith(("sweep.output=", _SESSION)) or mask(override) != override


def _edited(then: Mapping[str, object], now: Mapping[str, object]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ; a config key in only one of them is of another version of rayface."""
    differing = _differing(then, now)
    return {key: both for key, both in differing.items() if (key in then and key in now) or key.startswith("search.")}


def _refuse_fixed(file: AnyPath, edited: Mapping[str, tuple[Any, Any]]) -> None:
    if kept := {key: values for key, values in edited.items() if key not in _FREE}:
        raise ValueError(
            f"{file}: {_listed(kept)}: must not change on a resume, only {', '.join(sorted(_FREE))} may: revert it, or "
            "start a new sweep"
        )


def find_sweep(file: Path, overrides: Sequence[str]) -> AnyPath | None:
    """Return the directory of the sweep that a resume of a file resumes; None if there is no sweep."""
    found = _named(file, overrides)
    return found if found is not None and (found / SPEC).is_file() else None


def _folder(file: Path, overrides: Sequence[str]) -> AnyPath:
    found = find_sweep(file, overrides)
    if found is None:
        if named := _named(file, overrides):
            raise ValueError(f"sweep.output: {named}: no sweep to resume there: start it without --resume")
        text = f"sweeps/{file.stem}-*: no sweep to resume there: name it with sweep.output=DIR"
        raise ValueError(f"sweep.output: {text}")
    return found


def _named(file: Path, overrides: Sequence[str]) -> AnyPath | None:
    given = [text.partition("=")[2] for text in overrides if text.startswith("sweep.output=")]
    if not given and (file.parent / _COMMAND).is_file():  # the sweep's own copy
        given = [str(file.parent)]
    own = {} if given else read_yaml(file).get("sweep")
    if isinstance(own, Mapping) and isinstance(own.get("output"), str):
        given = [own["output"]]
    return path_of(normalise(given[-1])) if given else newest(file.stem)


def _is_own_copy(file: Path, folder: AnyPath) -> bool:
    """Return whether a file is in the sweep's directory; from an object store it was copied to this machine."""
    if isinstance(folder, Path):
        return file.resolve().parent == folder.resolve()
    return file.read_bytes() == (folder / SPEC).read_bytes()


def _differing(then: Mapping[str, object], now: Mapping[str, object]) -> dict[str, tuple[Any, Any]]:
    keys = [*now, *(key for key in then if key not in now)]
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def _listed(edited: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {_short(now)} (was {_short(then)})" for key, (then, now) in edited.items())


def _short(value: object) -> str:
    text = to_text(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
