"""Evaluate a model by protocols and write the results into a folder."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import yaml

from rayface.config import Config, require_keys, to_dict
from rayface.config_fields import refuse_ineffective
from rayface.credentials import masked
from rayface.evaluation.embedding import GivenEmbeddings, ModelEmbeddings
from rayface.evaluation.evaluation_tracking import track_evaluation
from rayface.evaluation.leak_check import LeakCertificate, LeakCheck
from rayface.evaluation.pair_scores import write_pair_scores
from rayface.evaluation.plots import evaluation_plots
from rayface.evaluation.protocol import (
    EvaluationProtocol,
    ProtocolResult,
    card_figures,
    evaluation_content,
    evaluation_dict,
    figure_rows,
    required_sources,
    scores_of,
)
from rayface.evaluation.protocols import configured_protocols, open_protocols
from rayface.evaluation.report import evaluation_page
from rayface.job_folder import exclusive_job_folder
from rayface.models.model_files import check_writable_card, write_metrics
from rayface.models.model_info import WEIGHTS
from rayface.models.run_files import PAIR_SCORES
from rayface.progress import phase
from rayface.report import write_pngs
from rayface.storage import join, list_names, make_folder, normalise, one_line, path_of, read_bytes, write_bytes
from rayface.tracking.origin import job_name

RESULT = "evaluation.json"  # written last
_REPORT = "report.html"
_FILES = {RESULT, _REPORT, PAIR_SCORES}
_JOB = ".evaluate_job.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Model, inputs and figures of an evaluation, by protocol."""

    model: str
    """The model, or the embeddings that were given in its place."""
    inputs: Mapping[str, str]
    """Names and paths of what the model was measured on."""
    results: Mapping[str, ProtocolResult]
    leaks: Mapping[str, LeakCertificate] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the figures by name, for --json; those of the first protocol also at the top level."""
        leaks = {name: certificate.as_dict() for name, certificate in self.leaks.items()}
        return {
            "model": self.model,
            **self.inputs,
            **evaluation_dict(self.results),
            **({"leaks": leaks} if leaks else {}),
        }

    def for_file(self) -> dict[str, object]:
        """Return the content of evaluation.json: `as_dict` with the curves."""
        return {**self.as_dict(), **evaluation_content(self.results)}

    def to_pandas(self) -> pd.DataFrame:
        """Return the figures: protocol, figure (`tar_at_far.0.001` of a mapping), value, and its 95 % interval."""
        rows = [
            {"protocol": name, **row} for name, result in self.results.items() for row in figure_rows(result.figures())
        ]
        return pd.DataFrame(rows, columns=["protocol", "figure", "value", "low", "high"])


def evaluate(config: Config) -> EvaluationResult:
    """Measure `evaluate.model` by the configured protocols; write the results into `evaluate.out`.

    The results are evaluation.json, report.html, plots, and for pairs pair_scores.parquet; see also `track_evaluation`.

    Runs in this process, in float32, on a GPU if there is one; large datasets are embedded by the job of `embed`.

    A folder of an evaluation of the same model on the same inputs is written anew; one of others is refused once it
    holds results.

    Raises:
        ValueError: bad input, one line.
    """
    given = config.evaluate
    if (given.model is None) == (given.embeddings is None):
        which = "both are" if given.model else "neither is"
        raise ValueError(f"evaluate.model, evaluate.embeddings: {which} set: set one of the two")
    for name in ("backbone", "batch_size", "flip", "write_card"):
        rule = "must be with evaluate.model"
        refuse_ineffective(given, name, given.model is not None, rule, prefix="evaluate.")
    require_keys(config, "evaluate.out")
    if not configured_protocols(given):
        raise ValueError("evaluate.protocols: no inputs of a protocol are set, for example evaluate.pairs")
    embedded = ModelEmbeddings(config) if given.embeddings is None else GivenEmbeddings(given.embeddings)
    protocols = open_protocols(given, image_size=embedded.image_size, join=config.data.join)
    if given.embeddings is not None:
        required_sources(protocols, "evaluate.embeddings", "set evaluate.model instead")
    leak_check = LeakCheck(given, protocols, weights=embedded.weights, embedding_size=embedded.embedding_size)
    if given.write_card:
        check_writable_card(str(given.model))
    root, inputs = normalise(str(given.out)), _inputs(protocols.values())
    model = str(given.model or given.embeddings)
    with _own_folder(root, {"model": model, **inputs}) as has_results:
        make_folder(join(root, "plots"))  # fail before the work if it cannot be written
        results, leaks = {}, {}
        for name, protocol in protocols.items():
            images = embedded(name, protocol)
            with phase("score" if len(protocols) == 1 else f"score {name}"):
                results[name] = protocol.score(images)
            if (certificate := leak_check(name, protocol, images)) is not None:
                leaks[name] = certificate
        result = EvaluationResult(model=model, inputs=inputs, results=results, leaks=leaks)
        with phase("write results"):
            if has_results:
                _delete_earlier(root)
            _write(root, config, result, protocols)
            if given.write_card:
                write_metrics(str(given.model), card_figures(results))
        track_evaluation(root, config, results)
    return result


@contextmanager
def _own_folder(root: str, measured: Mapping[str, str]) -> Iterator[bool]:
    """Own the output folder inside the context; yield whether it holds results of the same, complete or not.

    It may hold other files.

    Raises:
        ValueError: it holds another evaluation, or another process owns it; one line.
    """
    make_folder(root)
    names = set(list_names(root))
    if _JOB not in names:  # new, or of a version without it
        _require_own(root, names, measured)
    beside = set() if _JOB in names else names
    with exclusive_job_folder(root, measured, _JOB, key="evaluate.out", beside=beside, results=_FILES):
        yield bool(names & _FILES)


def _require_own(root: str, names: set[str], measured: Mapping[str, str]) -> None:
    """Refuse a folder whose results are not those of the same model on the same inputs.

    Raises:
        ValueError: one line.
    """
    if RESULT not in names:
        if found := names & _FILES:
            raise ValueError(f"evaluate.out: {root}: holds {min(found)} of another job: choose another directory")
        return
    try:
        before = json.loads(read_bytes(join(root, RESULT)))
    except ValueError:
        before = {}
    for name, value in masked(dict(measured)).items():
        if before.get(name) != value:
            held = f"an evaluation of {name} {before[name]}, not {value}" if name in before else f"no {name} {value}"
            remedy = f"choose another directory, or delete {', '.join(sorted(names & _FILES))} in it"
            raise ValueError(f"evaluate.out: {root}: holds {held}: {remedy}")


def _inputs(protocols: Iterable[EvaluationProtocol]) -> dict[str, str]:
    """Return the inputs of all protocols; several of one kind are joined by commas."""
    found: dict[str, list[str]] = {}
    for protocol in protocols:
        for key, value in protocol.inputs.items():
            found.setdefault(key, []).append(value)
    return {key: ", ".join(values) for key, values in found.items()}


def _write(root: str, config: Config, result: EvaluationResult, protocols: Mapping[str, EvaluationProtocol]) -> None:
    content = masked(result.for_file())
    plots = evaluation_plots(content)
    pictures = {name: found.pictures for name, found in result.results.items() if found.pictures is not None}
    text = yaml.safe_dump(masked(to_dict(config, ("evaluate",))), sort_keys=False)
    page = evaluation_page(content, plots, protocols, pictures, title=_title(result.model), config=text)
    try:
        with tempfile.TemporaryDirectory() as drawn:
            pngs = write_pngs(Path(drawn), plots)
            write_bytes(join(root, _REPORT), page.encode())  # before the plots, see `_delete_earlier`
            for name, path in pngs.items():
                write_bytes(join(root, f"plots/{name}.png"), path.read_bytes())
        write_pair_scores(root, scores_of(result.results))
        write_bytes(join(root, RESULT), json.dumps(content, indent=1).encode())
    except (pa.ArrowException, OSError) as error:
        where = f"evaluate.out: {root}"
        raise ValueError(f"{where}: cannot be written: {one_line(error)}: choose another directory") from error


def _delete_earlier(root: str) -> None:
    """Delete the results of an earlier evaluation, which the new ones may not replace: fewer protocols have figures.

    The report is written before the plots and deleted after them: without it, plots are the user's.
    """
    out = path_of(root)
    for name in (RESULT, PAIR_SCORES):
        (out / name).unlink(missing_ok=True)
    plots = out / "plots"
    for name in sorted(path.name for path in plots.iterdir()) if plots.is_dir() else ():
        if name.endswith(".png"):
            (plots / name).unlink()
    (out / _REPORT).unlink(missing_ok=True)


def _title(model: str) -> str:
    """Return the name of the run, or of the model's file."""
    path = Path(model)
    return job_name(path.parent if path.name == WEIGHTS and path.parent.name else path)
