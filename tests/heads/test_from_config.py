"""Settings of heads from a config: defaults of their papers, their own settings, and what is refused."""

import re

import pytest
import torch

from rayface import config as configs
from rayface import precision
from rayface.config import Config
from rayface.heads import HEADS, MARGINS, Margin
from rayface.heads.from_config import (
    build_config_margin,
    build_config_options,
    check_config_head,
    head_settings,
    scale_of,
)
from rayface.plan.memory import job_of
from rayface.presets import PRESETS
from rayface.training.builders import build_config_head
from rayface.training.distributed import World
from rayface.training.validate import _STREAMS
from tests.heads.momentum_oracle import small_net


def config_of(*overrides: str) -> Config:
    return configs.load(None, None, ["data.train=unused", *overrides])


@pytest.mark.parametrize(
    ("overrides", "scale", "margin"),
    [
        (["head.name=partial_fc"], 64, 0.4),
        (["head.name=dcq"], 50, 0.3),
        (["head.name=f2c"], 32, 0.4),
        (["head.name=dcq", "head.scale=20", "head.margin_value=0.1"], 20, 0.1),
    ],
)
def test_margin_of_a_head_is_that_of_its_paper_where_it_is_not_set(
    overrides: list[str], scale: float, margin: float
) -> None:
    head = config_of(*overrides).head
    built = build_config_margin(head)
    assert (built.scale, built.m3, scale_of(head)) == (scale, margin, scale)


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        ([], "cuda", "bf16"),
        ([], "cpu", "fp32"),
        (["train.precision=fp32"], "cuda", "fp32"),
        (["train.precision=bf16"], "cpu", "fp32"),
        (["train.precision=fp32", "head.compute_dtype=bf16"], "cpu", "bf16"),
        (["head.compute_dtype=fp32"], "cuda", "fp32"),
    ],
)
def test_products_of_a_head_are_in_bf16_where_the_backbone_is_on_a_gpu(
    overrides: list[str], device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fast_bf16", lambda device: True)
    config = config_of(*overrides)
    assert head_settings(config, 10, device=device).compute_dtype == expected
    bytes_planned = job_of(config, 10, gpu=device == "cuda").compute_bytes
    assert bytes_planned == (2 if expected == "bf16" else 4)


def test_options_of_a_head_are_its_own_settings_typed() -> None:
    dcq = build_config_options(config_of("head.name=dcq", "head.options={queue_size: 256, momentum: 0.9}").head)
    assert (dcq.queue_size, dcq.momentum) == (256, 0.9)
    assert dcq.queue_rows(128) == 256
    usual = build_config_options(config_of("head.name=dcq").head)
    assert [usual.queue_rows(batch) for batch in (128, 96, 100, 20_000)] == [8192, 8160, 8200, 20_000]
    f2c = build_config_options(config_of("head.name=f2c", "head.options.pool_size=7").head)
    assert (f2c.pool_size, f2c.momentum) == (7, 0.99)


@pytest.mark.parametrize(
    ("name", "size", "own"),
    [("dcq", {"queue_size": 256}, "queue"), ("f2c", {"pool_size": 256}, "pool")],
)
def test_head_that_is_built_of_a_config_has_each_of_its_settings(name: str, size: dict[str, int], own: str) -> None:
    keys = ("head.scale=20", "head.margin_value=0.1", "train.seed=3", "backbone.embedding_size=8")
    config = configs.with_overrides(config_of(f"head.name={name}", *keys), {"head.options": {**size, "momentum": 0.9}})
    net = small_net()
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    head = build_config_head(config, 10, world, net)
    assert (head.margin.scale, head.margin.m3, head.momentum) == (20, 0.1, 0.9)
    wanted = HEADS[name](net, embedding_size=8, seed=3, **size)
    assert torch.equal(getattr(head, own), getattr(wanted, own))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.options.size=1"], "head.options.size: partial_fc has no such setting: it has none"),
        (["head.name=f2c", "head.options.size=1"], "head.options.size: f2c has no such setting: it has pool_size, mom"),
        (["head.name=f2c", "head.options.pool_size=0"], "head.options.pool_size: 0: must be at least 1"),
        (["head.name=dcq", "head.options.queue_size=0"], "head.options.queue_size: 0: must be above 0"),
        (["head.name=dcq", "head.conflict_threshold=0.4"], "head.conflict_threshold: 0.4: dcq keeps no class centers"),
        (["head.margin=magface", "head.margin_value=0.2"], "head.margin_value: 0.2: magface takes none: set head.marg"),
        (["head.margin_options.m1=1"], "head.margin_options.m1: cosface has no such option: it has none"),
        (["head.margin=arcface", "head.margin_options.m1=1"], ".*m1: arcface has no such option: it has gradient$"),
        (
            ["head.margin_options.scale=32"],
            "head.margin_options.scale: 32: .*: take it out of head.margin_options and set head.scale=32$",
        ),
        (["head.margin_options.margin=0.2"], ".*margin: 0.2: .*: take it out .* set head.margin_value=0.2$"),
        (
            ["head.margin_options.conflict_threshold=null"],
            ".*threshold: None: .*: take it out .* set head.conflict_threshold=null$",
        ),
        (["head.name=dcq", "head.options.queue_size=a"], "head.options.queue_size: 'a': input should be a valid int"),
        (
            ["head.name=dcq", "head.options.queue_size=100"],
            "head.options.queue_size: 100: must be a multiple of .* 128",
        ),
        (["head.name=dcq", "head.options.momentum=2"], "head.options.momentum: 2.0: must be at least 0 and below 1"),
        (["head.name=dcq", "head.margin=arcface"], "head.margin: arcface: dcq .* must be cosface"),
        (["head.name=f2c", "head.margin=adaface"], "head.margin: adaface: f2c takes margins of the cosine alone"),
        (
            ["head.name=f2c", "head.sample_rate=0.1"],
            "head.sample_rate: 0.1: head.name=f2c keeps no class centers: must be",
        ),
        (
            ["head.name=dcq", "head.host_memory=true"],
            "head.host_memory: True: head.name=dcq keeps no class centers: must be",
        ),
        (["head.name=dcq", "train.max_batch_per_worker=8"], "train.max_batch_per_worker: 8: head.name=dcq takes its b"),
        (["head.name=f2c", "train.teacher=runs/a"], "train.teacher: .*runs/a: cannot be combined with head.name=f2c"),
    ],
)
def test_check_of_settings_that_a_head_cannot_work_with_raises_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        check_config_head(config_of(*overrides))
    assert "\n" not in str(caught.value)


def test_streams_known_without_pytorch_are_those_of_the_heads() -> None:
    assert {name: HEADS[name].stream for name in _STREAMS} == _STREAMS


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("preset", PRESETS)
def test_margin_in_place_of_that_of_a_preset_has_its_own_defaults_where_the_preset_sets_none(
    preset: str, margin: str
) -> None:
    own = configs.load(preset).head.margin_value
    overrides = ["head.margin_value=null"] if own and margin in ("combined", "magface") else []
    built = build_config_margin(configs.load(preset, overrides=[f"head.margin={margin}", *overrides]).head)
    usual = MARGINS[margin](**({"margin": own} if own and not overrides else {}))
    assert {**vars(built), "scale": 64} == vars(usual)
    assert built.scale == {"mini": 24, "debug": 16}.get(preset, 64)


def test_head_in_place_of_that_of_a_published_preset_has_the_defaults_of_its_paper() -> None:
    margin = build_config_margin(configs.load("webface42m", overrides=["head.name=dcq"]).head)
    assert (margin.scale, margin.m3) == (50, 0.3)


@pytest.mark.parametrize(
    ("margin", "overrides", "message"),
    [
        ("cosface", ["head.margin_value=-1"], "head.margin_value: -1.0: must be a number at least 0"),
        ("combined", ["head.margin_options.m2=-1"], "head.margin_options.m2: -1: must be a number at least 0"),
        ("arcface", ["head.margin_options.gradient=none"], "head.margin_options.gradient: 'none': must be one of"),
        ("elasticface", ["head.margin_options.std=-0.1"], "head.margin_options.std: -0.1: must be a number at least 0"),
        ("elasticface", ["head.margin_options.kind=both"], "head.margin_options.kind: 'both': must be arc or cos"),
        (
            "magface",
            ["head.margin_options.high=5"],
            "head.margin_options.low: 10.0: must be above 0 and below high, 5",
        ),
        ("adaface", ["head.margin_options.h=abc"], "head.margin_options.h: 'abc': must be a number at least 0"),
        ("curricularface", ["head.margin_options.momentum=5"], "head.margin_options.momentum: 5: must be a number in"),
    ],
)
def test_margin_of_a_config_with_a_value_out_of_range_names_its_key(
    margin: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        build_config_margin(config_of(f"head.margin={margin}", *overrides).head)


def test_margin_of_a_plugin_that_fails_without_a_parameter_names_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(strength: float, **others: object) -> Margin:
        raise ValueError("too cold")

    monkeypatch.setitem(MARGINS, "mine", mine)
    for overrides, message in (
        ([], "head.margin: mine: .* missing 1 required positional argument: 'strength'"),
        (["head.margin_options={strength: 1, any: 2}"], "head.margin: mine: too cold"),
    ):
        with pytest.raises(ValueError, match=message):
            build_config_margin(config_of("head.margin=mine", *overrides).head)
