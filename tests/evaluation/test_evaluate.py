"""Evaluation of a finished model: figures and plots in a folder, bad input in one line before any work."""

import json
import re
import shutil
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from rayface.config import Config, load
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.evaluation import embedding, evaluation_tracking
from rayface.evaluation import evaluate as module
from rayface.evaluation.evaluate import evaluate
from rayface.evaluation.image_rows import ImageRows
from rayface.models.embedded import Embedded
from rayface.models.model_files import load_model
from rayface.report import Plot
from rayface.tracking.journal import Journal
from tests.small_model import save_small_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and a drawn set with pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    synthesize(folder / "set", identities=40, images_per_identity=3, image_size=32, processes=1, pairs=40)
    save_small_model(folder / "model")
    return folder


@pytest.fixture
def given(inputs: Path, tmp_path: Path) -> Any:
    """A function of keys of `evaluate` -> config; those that are None are not set."""

    def given(**changes: Any) -> Config:
        keys = {
            "model": str(inputs / "model"),
            "pairs": str(inputs / "set" / "pairs.csv"),
            "data": str(inputs / "set"),
            "out": str(tmp_path / "out"),
            "cache": str(tmp_path / "cache"),
            **changes,
        }
        return load(overrides={f"evaluate.{key}": value for key, value in keys.items() if value is not None})

    return given


def test_evaluate_of_a_model_on_pairs_returns_the_figures_it_writes(
    given: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rayface.progress")
    evaluated = evaluate(given(batch_size=16))
    result = evaluated.as_dict()
    assert result["num_pairs"] == 40
    rows = evaluated.to_pandas().set_index("figure")
    assert rows.loc["accuracy_mean", ["value", "low", "high"]].tolist() == [
        result["accuracy_mean"],
        *result["accuracy_interval"],
    ]
    assert 0 <= result["accuracy_mean"] <= 1
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {key: written[key] for key in result} == json.loads(json.dumps(result))
    assert written["roc"]["far"][-1] == 1
    assert (tmp_path / "out" / "plots" / "roc.png").read_bytes().startswith(b"\x89PNG")
    started = [text.partition(":")[0] for text in caplog.messages if ": started" in text]
    assert started == ["embed images", "score", "write results"]
    assert evaluate(given(batch_size=7)).as_dict()["accuracy_mean"] == result["accuracy_mean"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"^evaluate.model, evaluate.embeddings: neither is set"),
        (
            {"model": None, "embeddings": "e", "flip": False},
            r"^evaluate.flip: False: has no effect: must be with evaluate.model, or left out$",
        ),
        ({"model": None, "embeddings": "e", "write_card": True}, r"^evaluate.write_card: True: has no effect: must be"),
        ({"out": None}, r"^evaluate.out: is not set"),
        (
            {"pairs": None, "data": None},
            r"^evaluate.protocols: no inputs of a protocol are set, for example",
        ),
        ({"model": "nowhere"}, r"nowhere must be a run directory"),
        ({"pairs": "nowhere.csv"}, r"nowhere.csv"),
    ],
)
def test_evaluate_with_an_input_missing_is_refused_and_writes_nothing(
    given: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(given(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_evaluate_into_a_folder_that_cannot_be_written_names_the_key(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_bytes", refuse)
    with pytest.raises(ValueError, match=r"^evaluate.out: .*out: cannot be written: .*No space left.*choose another"):
        evaluate(given())


def test_evaluate_again_on_the_same_images_costs_no_forward_pass(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(given()).as_dict()
    monkeypatch.setattr(embedding, "embed_with_norms", lambda *given, **keys: pytest.fail("a forward pass"))
    assert evaluate(given()).as_dict() == first


def test_evaluate_of_a_dataset_in_part_in_the_cache_says_how_many(
    given: Any, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rayface")
    evaluate(given())
    assert not any("in the cache" in text for text in caplog.messages)
    evaluate(given(pairs=None, data=None, all_vs_all=str(inputs / "set"), out=str(tmp_path / "all")))
    (line,) = (text for text in caplog.messages if "in the cache" in text)
    known, every = map(int, re.findall(r"\d+", line))
    assert 0 < known < every == open_dataset(inputs / "set").num_images


def test_evaluate_of_given_embeddings_equals_the_model(given: Any, inputs: Path, tmp_path: Path) -> None:
    wanted = evaluate(given()).as_dict()
    dataset, net = open_dataset(inputs / "set"), load_model(inputs / "model")
    images, _ = ImageRows(dataset=dataset, rows=np.arange(dataset.num_images)).read(0, dataset.num_images, 32)
    table = {"key": dataset.keys(), "label": dataset.index.label.astype(np.int64)}
    lists = pa.FixedSizeListArray.from_arrays(pa.array(net.embed(images).ravel()), net.info.embedding_size)
    pq.write_table(pa.table({**table, "embedding": lists}), tmp_path / "embeddings.parquet")
    own = {"embeddings": str(tmp_path / "embeddings.parquet"), "out": str(tmp_path / "own")}
    found = evaluate(given(model=None, **own)).as_dict()
    assert found["model"] == str(tmp_path / "embeddings.parquet")
    assert found["accuracy_mean"] == wanted["accuracy_mean"]
    assert found["tar_at_far"] == wanted["tar_at_far"]


def test_evaluate_of_embeddings_of_another_dataset_is_refused(given: Any, tmp_path: Path) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float32)), 4)
    pq.write_table(pa.table({"key": ["other"], "label": [0], "embedding": lists}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=r"^evaluate.embeddings: .*has no key of .*set"):
        evaluate(given(model=None, embeddings=str(tmp_path / "e.parquet")))


def test_evaluate_report_in_a_browser_shows_curves_and_the_worst_pairs(
    given: Any, inputs: Path, tmp_path: Path, browser: Any
) -> None:
    (tmp_path / "groups.csv").write_text("label,race\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(40)))
    changes = {"all_vs_all": str(inputs / "set"), "group_by": "race", "groups": str(tmp_path / "groups.csv")}
    evaluate(given(**changes))
    names = [f"{prefix}{name}" for prefix in ("", "all_vs_all-") for name in ("roc", "det", "scores")]
    names.append("discard")
    plots = sorted(path.stem for path in (tmp_path / "out" / "plots").iterdir())
    assert plots == sorted([*names, "all_vs_all-groups-race"])
    seen = browser(tmp_path / "out" / "report.html")
    assert seen.console == []
    assert seen.dom.count("<svg") == 8
    assert seen.dom.count("data:image/jpeg;base64,") == 4 * 12 * 2  # worst pairs of both kinds and protocols
    for text in ("Evaluation report", ">model<", "ROC of pairs", "chance: 50%", "Worst genuine pairs", "not measured"):
        assert text in seen.dom


def test_evaluate_again_without_figures_leaves_nothing_of_the_evaluation_before(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluation_plots", lambda content: [Plot("roc", "", Figure())])
    out = tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "plots" / "own.png").write_bytes(b"of the user")
    evaluate(given())
    assert (out / "plots" / "own.png").exists()
    assert (out / "pair_scores.parquet").exists()
    files_at_first_plot = []

    def draw(folder: Path, plots: Any) -> dict[str, Path]:
        files_at_first_plot.extend(path.name for path in out.rglob("*.*"))
        return {}

    monkeypatch.setattr(module, "write_pngs", draw)
    diverged = Embedded(np.full((80, 8), np.nan, np.float32), np.ones(80, np.float32))
    monkeypatch.setattr(embedding.ModelEmbeddings, "__call__", lambda *given: diverged)
    result = evaluate(given()).as_dict()
    assert result["accuracy_mean"] is None
    assert sorted(files_at_first_plot) == [".evaluate_job.json", ".lock"]
    assert {path.name for path in out.glob("[!.]*")} == {"evaluation.json", "report.html", "plots"}
    assert list((out / "plots").iterdir()) == []


def test_evaluate_with_a_tracking_uri_logs_figures_and_files(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journals = []

    @contextmanager
    def tracked(folder: Path, config: Any, params: Any, output: str) -> Iterator[Any]:
        journals.append((Journal(folder / "journal" / "driver.jsonl"), params))
        yield types.SimpleNamespace(journal=journals[-1][0])

    monkeypatch.setattr(evaluation_tracking, "tracked_job", tracked)
    config = given()
    evaluate(config)
    assert journals == []  # no server is named
    result = evaluate(replace(config, tracking=replace(config.tracking, uri="sqlite:///m.db"))).as_dict()
    ((journal, params),) = journals
    journal.close()
    lines = [json.loads(line) for line in (tmp_path / "out" / "journal" / "driver.jsonl").read_text().splitlines()]
    (values,) = [line["values"] for line in lines if line["kind"] == "metrics"]
    assert values["pairs/accuracy_mean"] == result["accuracy_mean"]
    assert values["pairs/tar_at_far/1e-01"] == result["tar_at_far"]["1e-01"]
    files = {Path(line["path"]).name for line in lines if line["kind"] == "artifact"}
    assert {"report.html", "evaluation.json", "pair_scores.parquet", "roc.png", "det.png"} <= files
    assert params["evaluate.pairs"] == config.evaluate.pairs


def test_evaluate_of_a_large_dataset_embeds_it_by_the_job(
    given: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"pairs": None, "data": None, "all_vs_all": str(inputs / "set")}
    wanted = evaluate(given(**changes)).as_dict()
    jobs = []

    def embed(config: Config) -> None:
        jobs.append(config.embed)
        dataset = open_dataset(config.embed.data)
        images, _ = ImageRows(dataset=dataset, rows=np.arange(dataset.num_images)).read(0, dataset.num_images, 32)
        found = load_model(str(config.embed.model)).embed(images)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
        columns = {"key": dataset.keys(), "label": dataset.index.label.astype(np.int64), "embedding": lists}
        norms = np.ones(len(found), np.float32)
        Path(config.embed.out).mkdir(parents=True)
        pq.write_table(pa.table({**columns, "norm": norms}), Path(config.embed.out) / "part-000000.parquet")

    monkeypatch.setattr("rayface.embedding.embed.embed", embed)
    monkeypatch.setattr(embedding, "_JOB_IMAGES", 100)
    found = evaluate(given(**changes, cache=str(tmp_path / "other"))).as_dict()
    (job,) = jobs
    assert (job.data, job.flip, job.dtype) == ((str(inputs / "set"),), True, "fp32")
    assert Path(job.out).parent == tmp_path / "other"
    assert found["tar_at_far"] == wanted["tar_at_far"]


def test_evaluate_into_the_folder_of_another_evaluation_or_run_is_refused_and_changes_nothing(
    given: Any, inputs: Path, tmp_path: Path
) -> None:
    save_small_model(tmp_path / "other", fill=0.1)
    evaluate(given())
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"evaluate.out: .*: was started with model .*model, this job has .*other: choose"
    ):
        evaluate(given(model=str(tmp_path / "other")))
    (tmp_path / "out" / ".evaluate_job.json").unlink()  # as earlier versions left it
    with pytest.raises(
        ValueError, match=r"evaluate.out: .*: holds an evaluation of model .*model, not .*other: choose"
    ):
        evaluate(given(model=str(tmp_path / "other")))
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    (tmp_path / "out" / "report.html").unlink()
    evaluate(given())  # of the same model on the same pairs
    assert (tmp_path / "out" / "report.html").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("of a run")
    with pytest.raises(ValueError, match=r"evaluate.out: .*run: holds report.html of another job: choose another dir"):
        evaluate(given(out=str(tmp_path / "run")))
    assert (tmp_path / "run" / "report.html").read_text() == "of a run"


@pytest.mark.parametrize("is_again", [False, True])
def test_evaluate_interrupted_before_any_write_is_run_again_into_its_folder(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_again: bool
) -> None:
    out, plot = tmp_path / "out", Plot("roc", "", Figure())
    monkeypatch.setattr(module, "evaluation_plots", lambda content: [plot])
    steps = ("make_folder", "_delete_earlier", "write_pngs", "write_pair_scores", "write_bytes")
    wanted = evaluate(given()).as_dict()
    calls = 7 + is_again
    for stop in range(calls + 1):
        if not is_again:
            shutil.rmtree(out)
        with monkeypatch.context() as patched:
            left = iter(range(stop))

            def interrupted(real: Any, left: Iterator[int] = left) -> Any:
                def step(*args: Any) -> Any:
                    if next(left, None) is None:
                        raise KeyboardInterrupt
                    return real(*args)

                return step

            for name in steps:
                patched.setattr(module, name, interrupted(getattr(module, name)))
            if stop < calls:
                with pytest.raises(KeyboardInterrupt):
                    evaluate(given())
            else:
                evaluate(given())  # every step was tried
        assert evaluate(given()).as_dict() == wanted
        assert {path.name for path in out.glob("[!.]*")} == {
            "evaluation.json",
            "report.html",
            "plots",
            "pair_scores.parquet",
        }


def test_evaluate_stopped_before_its_results_leaves_the_folder_to_another_model_and_the_users_plots(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_model(tmp_path / "other", fill=0.1)
    own, other = tmp_path / "out" / "plots" / "mine.png", str(tmp_path / "other")
    own.parent.mkdir(parents=True)
    own.write_bytes(b"of the user")

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write", interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                evaluate(given())
    evaluate(given(model=other))
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["model"] == other
    assert own.read_bytes() == b"of the user"


@pytest.mark.parametrize("has_job_file", [True, False])
def test_evaluate_into_a_folder_of_another_model_names_the_files_to_delete(
    given: Any, tmp_path: Path, has_job_file: bool
) -> None:
    save_small_model(tmp_path / "other", fill=0.1)
    evaluate(given(model=str(tmp_path / "other")))
    if not has_job_file:
        (tmp_path / "out" / ".evaluate_job.json").unlink()  # as earlier versions left it
    with pytest.raises(ValueError, match=r", or delete evaluation.json, pair_scores.parquet, report.html in it$"):
        evaluate(given())
    for name in ("evaluation.json", "pair_scores.parquet", "report.html"):
        (tmp_path / "out" / name).unlink()
    evaluate(given())


def test_evaluate_into_the_folder_of_a_running_evaluation_is_refused(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._write

    def second(*args: Any) -> None:
        with pytest.raises(ValueError, match=r"^evaluate.out: .*out: another process owns it: wait for it, or stop"):
            evaluate(given())
        write(*args)

    monkeypatch.setattr(module, "_write", second)
    evaluate(given())
