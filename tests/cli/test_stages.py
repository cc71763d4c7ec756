"""The command line of stages: every flag sets a config key, KEY=VALUE sets any."""

from pathlib import Path
from typing import Any

import pytest
import typer

from rayface.cli.command_line import _outcome, app
from rayface.cli.stages import config_of
from rayface.config import Config, flat
from rayface.stages import STAGES, StageType

REPEATED = [
    (verb, flag)
    for verb, stage in STAGES.items()
    for flag, key in stage.flags.items()
    if isinstance(flat(Config())[key], list | tuple) and flag not in stage.arguments
]


def parsed(verb: str, *arguments: str) -> dict[str, Any]:
    """Return the values of a verb's parameters on a command line."""
    command = typer.main.get_command(app).commands[verb]
    return command.make_context(verb, list(arguments)).params


@pytest.mark.parametrize(("verb", "flag"), REPEATED)
def test_option_of_a_list_given_twice_keeps_both_values(verb: str, flag: str) -> None:
    spelling = f"--{flag.replace('_', '-')}"
    places = ["a"] * len(STAGES[verb].arguments)
    assert parsed(verb, *places, spelling, "a", spelling, "b")["from_" if flag == "from" else flag] == ["a", "b"]


def test_options_of_lists_are_found() -> None:
    assert {("evaluate", "bin"), ("prune", "baseline"), ("convert", "from"), ("embed", "data")} <= {*REPEATED}


@pytest.mark.parametrize("value", [["a.bin", "b.bin"], ["[a.bin,b.bin]"], "[a.bin,b.bin]"])
def test_config_of_a_list_repeated_or_in_brackets_holds_each(value: Any) -> None:
    config = config_of("evaluate", {"bin": value}, [], address=None, debug=False)
    assert [path.rpartition("/")[2] for path in config.evaluate.bin] == ["a.bin", "b.bin"]


def test_help_shows_choices_and_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert _outcome(["embed", "--help"]) == (0, "")
    text = capsys.readouterr().out
    assert "fp32 | bf16" in text
    assert text.count("(required)") == 3
    assert text.count("[KEY=VALUE]...") == 1
    assert "--json" in text
    assert text.count("<bool>") <= 1  # of --help


def test_config_of_flags_and_overrides_holds_both() -> None:
    flags = {"keep": "0.6", "bytes": True, "baseline": ["herding"], "data": "[a,b]", "min_images": None}
    config = config_of("prune", flags, ["clean.outliers=0.2"], address="c:1", debug=True)
    assert (config.prune.keep, config.prune.baselines, len(config.prune.data)) == (0.6, ("herding",), 2)
    assert (config.clean.bytes, config.clean.outliers, config.prune.min_images) == (True, 0.2, 1)
    assert (config.cluster.address, config.cluster.debug) == ("c:1", True)


def test_config_of_keys_of_the_cluster_without_their_options_keeps_them() -> None:
    keys = ["cluster.address=c:1", "cluster.debug=true"]
    for address, wanted in ((None, "c:1"), ("d:1", "d:1")):
        cluster = config_of("embed", {}, keys, address=address, debug=False).cluster
        assert (cluster.address, cluster.debug) == (wanted, True)


def test_config_of_a_key_given_as_flag_and_override_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^prune.keep: is given twice, as an option and as prune.keep=VALUE"):
        config_of("prune", {"keep": "0.6"}, ["prune.keep=0.5"], address=None, debug=False)


def test_config_of_a_prune_by_proxy_takes_the_preset_of_the_proxy() -> None:
    flags = {"proxy_fraction": "0.1", "proxy_preset": "debug", "keep": "0.6"}
    config = config_of("prune", flags, ["train.epochs=3"], address=None, debug=False)
    assert (config.backbone.embedding_size, config.train.epochs) == (64, 3)


def test_flag_of_another_type_is_one_line_that_names_its_key() -> None:
    code, message = _outcome(["embed", "--model=m", "--data=d", "--out=o", "--precision=fp8"])
    assert code == 2
    assert message.startswith("embed.precision: 'fp8': ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "photos", "out"], "convert.kind (--from): is not set: Format of the source"),
        (["align", "photos", "out"], "align.detector (--detector): is not set: "),
        (["embed", "--model=m", "--out=o"], "embed.data (--data): is not set: "),
    ],
)
def test_verb_without_a_required_option_names_the_option(arguments: list[str], message: str) -> None:
    code, text = _outcome(arguments)
    assert code == 2
    assert text.startswith(message)


def test_help_of_a_stage_holds_the_descriptions_of_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert _outcome(["embed", "--help"]) == (0, "")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--no-flip" in text
    assert "Number of actors" in text


def test_help_of_an_option_with_a_list_shows_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert _outcome(["align", "--help"]) == (0, "")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "see convert.kind (default: folder)." in text


def test_table_of_a_stage_names_the_report_that_it_has_written_and_json_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(StageType, "run", lambda self, config: {"model": "m", "protocols": {"mine": {"rank": 0.5}}})
    assert _outcome(["evaluate", "--model=m", f"--out={out}"]) == (0, "")
    assert "report.html" not in capsys.readouterr().out
    (out / "report.html").touch()
    assert _outcome(["evaluate", "--model=m", f"--out={out}"]) == (0, "")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["model", "m"], ["rank", "50.00%"], ["report", f"{out}/report.html"]]  # a scalar figure of a plugin
    assert _outcome(["evaluate", "--model=m", f"--out={out}", "--json"]) == (0, "")
    assert capsys.readouterr().out == '{"model": "m", "protocols": {"mine": {"rank": 0.5}}}\n'


def test_table_of_a_stage_names_its_report_in_a_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], object_store: Any
) -> None:
    """Whose URI has a query."""
    where = f"s3://{object_store.bucket}/%s?endpoint_override={object_store.endpoint}&scheme=http&region=us-east-1"
    object_store.put("out/report.html", b"page")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(StageType, "run", lambda self, config: {"model": "m", "protocols": {}})
    for out, reports in (("out", 1), ("other", 0)):
        assert _outcome(["evaluate", "--model=m", f"--out={where % out}"]) == (0, "")
        assert capsys.readouterr().out.count(where % f"{out}/report.html") == reports


def test_help_of_an_option_that_is_a_size_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert _outcome(["prune", "--help"]) == (0, "")
    assert "--block-size SIZE" in " ".join(capsys.readouterr().out.replace("│", " ").split())
