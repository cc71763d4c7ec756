"""Verbs of benchmarks: which settings flags make, and how results are shown; nothing is measured."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.conftest import Call, Result


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the measuring functions were called with; each returns a result of half a second."""
    calls: list[tuple[Any, ...]] = []

    def measure(*given: Any, **options: Any) -> Result:
        calls.append((*given, options))
        return Result(seconds=0.5)

    def scaling(counts: list[int], settings: Any, **options: Any) -> list[Result]:
        calls.append((counts, settings, options))
        return [Result(seconds=0.5) for _ in counts]

    monkeypatch.setattr("rayface.bench.head.bench_head", measure)
    monkeypatch.setattr("rayface.bench.head.bench_scaling", scaling)
    monkeypatch.setattr(
        "rayface.bench.head.as_table", lambda found: [{"seconds of a step": f"{one['seconds']}"} for one in found]
    )
    monkeypatch.setattr("rayface.bench.checkpoint.bench_checkpoint", measure)
    for name in ("embed", "nms", "prune", "rates"):
        monkeypatch.setattr(f"rayface.bench.{name}.bench_{name}", measure)
    return calls


def test_bench_head_of_one_number_of_classes_is_one_result(call: Call, asked: list[tuple[Any, ...]]) -> None:
    code, out, _ = call("bench", "head", "-C", 1000, "--logit-memory=2MB", "--workers=2", "--straightforward", "--json")
    assert (code, json.loads(out)) == (0, {"seconds": 0.5})
    settings, options = asked[0]
    assert (settings.num_classes, settings.logit_memory, settings.workers) == (1000, 2 << 20, 2)
    assert options == {"straightforward": True}


def test_bench_head_of_several_numbers_is_a_result_each(call: Call, asked: list[tuple[Any, ...]]) -> None:
    code, out, _ = call("bench", "head", "-C", 1000, "-C", 2000, "--json")
    assert (code, json.loads(out)) == (0, {"results": [{"seconds": 0.5}] * 2})
    assert [settings.num_classes for settings, _ in asked] == [1000, 2000]
    code, out, _ = call("bench", "head", "-C", 1000, "-C", 2000, "--sampled-rows=64")
    assert code == 0
    assert "seconds of a step" in out
    counts, _, options = asked[-1]
    assert (counts, options["sampled_rows"]) == ([1000, 2000], 64)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["rates", "--workers=3", "--megabytes=8"], {"workers": 3, "megabytes": 8, "size": 2048}),
        (["checkpoint", "-C", "500", "--sample-rate=0.5"], {"num_classes": 500, "sample_rate": 0.5}),
        (
            ["nms", "--faces=100", "--identities=10", "--keep=0.5", "--seed=3"],
            {"faces": 100, "identities": 10, "keep": 0.5, "seed": 3, "dtype": "fp16", "loop_identities": 500},
        ),
        (["prune", "--faces=100", "--block-size=1GiB", "--cpus=2"], {"faces": 100, "block_bytes": 1 << 30, "cpus": 2}),
    ],
)
def test_bench_of_settings_hands_them_over(
    call: Call, asked: list[tuple[Any, ...]], arguments: list[str], given: dict[str, Any]
) -> None:
    assert call("bench", *arguments, "--json")[:2] == (0, '{"seconds": 0.5}\n')
    settings = asked[0][0]
    assert {name: getattr(settings, name) for name in given} == given


def test_bench_embed_takes_the_keys_of_embed(call: Call, asked: list[tuple[Any, ...]]) -> None:
    assert call("bench", "embed", "--model=/m", "--data=[/a,/b]", "--no-flip", "--images=64", "--json")[0] == 0
    settings, images, threads, device, _ = asked[0]
    assert (settings.model, settings.data, settings.flip) == ("/m", ("/a", "/b"), False)
    assert (images, threads, device) == (64, None, "cpu")


def test_bench_train_shows_a_row_for_each_backbone_and_its_operators(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayface.bench.train import PHASES

    def measure(names: list[str], config: Any, **options: Any) -> Any:
        operator = SimpleNamespace(op="conv", calls=3.0, seconds=0.25, share=0.5)
        rows = [
            SimpleNamespace(
                name=name, images_per_second=1234.0, step_seconds=0.5, share=dict.fromkeys(PHASES, 0.25), ops=[operator]
            )
            for name in names
        ]
        return SimpleNamespace(batch_size=8, precision="fp32", threads=1, backbones=rows)

    monkeypatch.setattr("rayface.bench.train.bench_train", measure)
    code, out, _ = call("bench", "train", "-b", "mini", "-b", "r18", "--ops=1")
    assert code == 0
    assert "training, batch 8, fp32, 1 threads" in out
    assert out.count("1.23e+03") == 2
    assert "operators of r18" in out
    assert out.count("50.0%") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["head", "--logit-memory=big"], "size 'big': must be a number of bytes above 0"),
        (["nms", "--faces=0"], "--faces"),
        (["embed", "--model=m", "--data=d", "--precision=fp8"], "embed.precision: 'fp8'"),
    ],
)
def test_bench_with_a_wrong_setting_is_one_line_and_exit_code_2(
    call: Call, asked: list[tuple[Any, ...]], arguments: list[str], message: str
) -> None:
    code, out, err = call("bench", *arguments)
    assert (code, out, asked) == (2, "", [])
    assert message in err
    assert "\n" not in err.strip()
