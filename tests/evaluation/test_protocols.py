"""A protocol of a plugin, in one new file, is taken by `rayface evaluate` and by training."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayface import config as configs
from rayface import plugins
from rayface.cli.command_line import _outcome
from rayface.data.synth import synthesize
from rayface.evaluation import evaluate
from rayface.evaluation.protocols import PROTOCOLS, configured_protocols, open_protocols
from tests.small_model import save_small_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "plugins.md").read_text()
    (example,) = re.findall(r"## An evaluation protocol.*?```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_protocol.py").write_text(example)
    yield "my_protocol"
    PROTOCOLS.pop("nearest", None)
    sys.modules.pop("my_protocol", None)


def test_protocol_of_a_plugin_is_measured_by_evaluate(
    plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path / "faces", identities=4, images_per_identity=3, image_size=32, processes=1)
    save_small_model(tmp_path / "model", embedding_size=16)
    options = ["--model=model", "--protocol=nearest", "--data=faces", "--out=out", "--json"]
    assert _outcome(["evaluate", "--import", plugin, *options]) == (0, "")
    result = json.loads(capsys.readouterr().out)
    assert 0 <= result["rank_1"] <= 1
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    config = configs.load("debug", overrides=["evaluate.protocols=nearest", f"evaluate.data={tmp_path / 'faces'}"])
    assert list(configured_protocols(config.evaluate)) == ["nearest"]  # as training asks
    config = configs.with_overrides(config, {"evaluate.options.join": "names"})
    assert list(configured_protocols(config.evaluate)) == ["nearest"]


def test_configured_protocols_of_options_without_a_plugin_are_refused() -> None:
    evaluate = configs.load(overrides={"evaluate.all_vs_all": "set", "evaluate.options.k": 3}).evaluate
    with pytest.raises(ValueError, match=r"^evaluate.options: have no effect: must be with a protocol of a plugin"):
        configured_protocols(evaluate)


def test_open_protocols_with_a_join_joins_the_labels_of_all_vs_all_by_it(tmp_path: Path) -> None:
    for name in "ab":
        synthesize(tmp_path / name, identities=3, images_per_identity=2, image_size=32, processes=1)
    evaluate = configs.load(overrides={"evaluate.all_vs_all": [str(tmp_path / name) for name in "ab"]}).evaluate
    for join, num_classes in (("labels", 3), ("separate", 6), (None, 3)):
        protocol = open_protocols(evaluate, image_size=32, join=join)["all_vs_all"]
        assert protocol.source.dataset.num_classes == num_classes


def test_evaluate_joins_labels_of_all_vs_all_as_data_join_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def opened(*args: object, join: object, **options: object) -> None:
        asked.append(join)
        raise ValueError("enough")

    monkeypatch.setattr(evaluate, "open_protocols", opened)
    save_small_model(tmp_path / "m")
    keys = {"evaluate.model": str(tmp_path / "m"), "evaluate.all_vs_all": "[a,b]"}
    with pytest.raises(ValueError, match="enough"):
        evaluate.evaluate(configs.load(overrides={**keys, "evaluate.out": "o", "data.join": "separate"}))
    assert asked == ["separate"]


def test_configured_protocols_of_an_unknown_name_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^evaluate.protocols: 'none': must be one of .*pairs.*, or registered by"):
        configured_protocols(configs.load(overrides=["evaluate.protocols=none"]).evaluate)


def test_configured_protocols_of_a_name_without_its_inputs_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^evaluate.protocols: pairs: its inputs are not set"):
        configured_protocols(configs.load(overrides=["evaluate.protocols=[pairs]"]).evaluate)


def test_configured_protocols_of_pairs_without_data_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^evaluate.pairs: requires evaluate.data"):
        configured_protocols(configs.load(overrides=["evaluate.pairs=p.csv"]).evaluate)
    assert configured_protocols(configs.load().evaluate) == {}


def test_configured_protocols_of_data_without_pairs_name_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"^evaluate.data: requires evaluate.pairs \(--pairs\), .*all_vs_all"):
        configured_protocols(configs.load(overrides=["evaluate.data=faces"]).evaluate)


def test_config_of_an_older_run_names_its_protocol_in_evaluate_protocols(tmp_path: Path) -> None:
    tree = configs.to_dict(configs.load())
    del tree["evaluate"]["protocols"]
    tree["evaluate"]["protocol"] = "nearest"
    assert configs.from_dict(tree).evaluate.protocols == ("nearest",)
    (tmp_path / "config.yaml").write_text("evaluate: {protocol: pairs}")
    assert configs.load(file=tmp_path / "config.yaml").evaluate.protocols == ()
