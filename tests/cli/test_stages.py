"""The command line of stages: every flag sets a config key, KEY=VALUE sets any."""

import pytest

from rayface.cli.command_line import _outcome
from rayface.cli.stages import config_of


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
