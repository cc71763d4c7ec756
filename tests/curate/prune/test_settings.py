"""What must hold of the settings of a prune job before it starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayface import config as configs
from rayface.config import CleanConfig, Config
from rayface.curate.prune.settings import check_clean, check_exclude, check_head, check_settings, fingerprint
from rayface.embedding.embeddings import Embeddings
from rayface.job_folder import changed_name


def config(**keys: Any) -> Config:
    return configs.with_overrides(Config(), {key.replace("__", "."): value for key, value in keys.items()})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"^prune.threshold, prune.keep: neither is given: set one of them"),
        ({"clean__outliers": 0.2, "clean__drop": ["outlier"]}, r"^clean.drop: 'outlier': must be of .*outliers"),
        ({"clean__outliers": 0.2, "clean__drop": ["outliers"]}, r"; prune.keep=1 keeps all that cleaning leaves$"),
        ({"prune__keep": 0.5, "prune__write_shards": True}, r"^prune.write_shards: requires prune.data"),
        ({"prune__keep": 0.5, "clean__drop": ["bytes"]}, r"^clean.drop: 'bytes': needs clean.bytes"),
        ({"prune__keep": 0.5, "clean__above": 0.5}, r"^clean.exclude, clean.above: must be given together"),
        ({"prune__keep": 0.5, "prune__head": "run"}, r"^prune.head: "),
        (
            {"prune__head": "run", "prune__proxy_fraction": 0.1},
            r"^prune: head, proxy_fraction: both are given: must be",
        ),
        (
            {"prune__keep": 0.5, "prune__proxy_preset": "r50"},
            r"proxy_preset: 'r50': has no effect: must be with proxy_",
        ),
    ],
)
def test_check_settings_that_contradict_is_refused_in_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_settings(config(**keys))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", [{"prune__keep": 0.5}, {"prune__threshold": 0.5, "clean__outliers": 0.2}])
def test_check_settings_of_a_share_or_a_threshold_passes(keys: dict[str, Any]) -> None:
    given = config(**keys)
    before = replace(given)
    check_settings(given)
    assert given == before


def test_check_exclude_of_a_cosine_alone_or_a_set_alone_is_refused() -> None:
    check_exclude(CleanConfig(above=0.5, exclude="test"))
    for half in (CleanConfig(above=0.5), CleanConfig(exclude="test")):
        with pytest.raises(ValueError, match=r"^clean.exclude, clean.above: must be given together"):
            check_exclude(half)


def test_check_clean_of_a_test_set_from_another_model_is_refused() -> None:
    source, other = (Embeddings(files=(), size=size, dtype="float16") for size in (512, 256))
    check_clean(CleanConfig(), source, source, None)
    with pytest.raises(ValueError, match=r"^clean.exclude: its embeddings are of length 256, prune.embeddings of 512"):
        check_clean(CleanConfig(), source, other, None)
    with pytest.raises(ValueError, match=r"^clean.bytes: requires prune.data, the dataset with the files$"):
        check_clean(CleanConfig(bytes=True), source, None, None)


def test_fingerprint_holds_what_decides_the_result_in_the_form_of_existing_jobs() -> None:
    """A changed default form would make every existing folder refuse to resume."""
    source, test = (Embeddings(files=(), size=size, dtype="float16") for size in (512, 256))
    given = config(prune__keep=0.5, prune__baselines=["herding"], clean__outliers=0.2, clean__drop=["outliers"])
    plain = fingerprint(given, source, None, None)
    assert plain == {
        "method": "face_nms",
        "threshold": None,
        "keep": 0.5,
        "min_images": 1,
        "global_weight": 0.0,
        "seed": 0,
        "baselines": ["herding"],
        "head": None,
        "clean": {
            "outliers": 0.2,
            "duplicates": None,
            "conflicts": None,
            "bytes": False,
            "test": None,
            "drop": ["outliers"],
            "merge": False,
        },
        "block_size": 2**26,
        "embeddings": source.digest,
        "exclude": None,
        "dataset_digest": None,
        "write_shards": False,
    }
    with_options = configs.with_overrides(given, {"prune.options": {"a": 1}})
    assert fingerprint(with_options, source, None, None) == {**plain, "options": {"a": 1}}
    excluding = configs.with_overrides(given, {"clean.exclude": "test", "clean.above": 0.7})
    clean = {**plain["clean"], "test": 0.7, "drop": ["outliers", "test"]}
    assert fingerprint(excluding, source, test, None) == {**plain, "clean": clean, "exclude": test.digest}


def test_check_head_of_another_model_is_refused_and_of_an_unknown_one_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Embeddings(files=(), size=8, dtype="float16", model="a" * 64)
    check_head(str(tmp_path), source)
    (tmp_path / "model.json").write_text('{"sha256": "' + "a" * 64 + '"}')
    check_head(str(tmp_path), source)
    check_head(str(tmp_path), replace(source, model=None))
    no_model, no_manifest = caplog.messages
    assert no_model.endswith("as the run has no model.json: must be the run whose model embedded the images")
    assert no_manifest.endswith(
        "as the embeddings have no embeddings.json: must be the run whose model embedded the images"
    )
    with pytest.raises(ValueError, match=r"^prune.head: .*: its model is a{12}, that of prune.embeddings b{12}: must "):
        check_head(str(tmp_path), replace(source, model="b" * 64))


def test_fingerprint_of_another_head_under_the_same_path_differs(tmp_path: Path) -> None:
    source = Embeddings(files=(), size=8, dtype="float16")
    given = config(prune__keep=0.5, prune__method="diffprob", prune__head=str(tmp_path))
    with pytest.raises(ValueError, match=r"^prune.head: .*: has no readable checkpoint .*: give a run with one$"):
        fingerprint(given, source, None, None)
    found = []
    for content in ("one run", "one run", "another"):
        checkpoint = tmp_path / "checkpoints" / "step_00000009"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "progress.json").touch()
        (checkpoint / "digests.json").write_text(content)
        found.append(fingerprint(given, source, None, None))
    assert found[0] == found[1]
    assert changed_name(found[0], found[2]) == "head_digest"
