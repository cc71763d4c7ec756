"""The plan of a run: by hand, against real tensors, against a published table, and its refusals."""

import json
import math
import sys
from dataclasses import asdict, replace

import pytest

from rayface import cli
from rayface.config import load, with_overrides
from rayface.data.synth import synthesize
from rayface.plan import planning, this_machine
from rayface.plan.counts import PUBLISHED_COUNTS
from rayface.plan.memory import memory
from rayface.plan.planning import make_plan
from rayface.plan.preflight import largest_num_classes
from rayface.plan.published import table_rows
from rayface.plan.timing import Rates, step_seconds, step_total
from tests.plan.small_config import SMALL

TINY = [f"{key}={value}" for key, value in SMALL.items()]


def test_make_plan_with_more_workers_needs_less_memory_and_time(job):
    """From two on: one worker has no NCCL."""
    sizes = [sum(memory(replace(job, num_workers=n)).values()) for n in (2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    speed = [64 / step_total(step_seconds(replace(job, sample_rate=r), Rates())) for r in (0.05, 0.1, 1.0)]
    assert speed == sorted(speed, reverse=True)


def test_largest_num_classes_of_a_job_is_the_edge_of_what_fits(job):
    limit = 3 * 2**30
    largest = largest_num_classes(lambda count: replace(job, num_classes=count), limit)
    assert sum(memory(replace(job, num_classes=largest)).values()) <= limit
    assert sum(memory(replace(job, num_classes=largest + job.num_workers)).values()) > limit
    assert largest_num_classes(lambda count: replace(job, num_classes=count), 2**20) == 0


def test_job_of_a_config_with_data_takes_its_counts(small, tmp_path):
    synthesize(tmp_path / "set", identities=3, images_per_identity=2, processes=1, image_size=32)
    config = with_overrides(small, {"data.train": str(tmp_path / "set"), "train.batch_size": 2})
    plan = make_plan(config, preset="webface42m")
    assert (plan.counts.num_classes, plan.counts.num_images) == (3, 6)
    assert plan.epoch_hours == pytest.approx(3 * step_total(plan.seconds) / 3600)
    with pytest.raises(ValueError, match=r"num_classes, data\.train: both are set"):
        make_plan(config, num_classes=5)
    with pytest.raises(ValueError, match=r"^train\.batch_size: 7: must not exceed the 6 samples of data\.train"):
        make_plan(with_overrides(config, {"train.batch_size": 7}))
    with pytest.raises(ValueError, match=r"^train\.batch_size: 4: rows of 2 must not exceed the 6 samples"):
        make_plan(with_overrides(config, {"train.batch_size": 4, "head.name": "dcq"}))
    (tmp_path / "set" / "dataset.json").unlink()
    assert make_plan(config).counts.num_classes == 3


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayface", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_plan_verb_with_json_and_plot_writes_both(call, tmp_path):
    plot = tmp_path / "plots" / "plan.png"
    code, out, err = call("--preset=webface12m", *TINY, "--gpus=8", "--gpu-memory=16GB", f"--plot={plot}", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["num_classes"], found["num_images"]) == (617_970, 12_720_066)
    assert found["source"] == "published counts, for planning only"
    assert found["num_workers"] == 8
    assert found["fits"] is True
    assert found["memory_total"] == sum(found["memory"].values()) <= found["memory_per_device"] == 16 * 2**30
    assert found["largest_num_classes"] > 617_970
    assert found["images_per_second"] == pytest.approx(1024 / found["step_seconds"])
    assert found["run_hours"] == pytest.approx(20 * found["epoch_hours"])
    assert found["epoch_hours"] == pytest.approx(math.floor(12_720_066 / 1024) * found["step_seconds"] / 3600)
    assert found["rates"] == asdict(Rates())  # the defaults of the options are those of the model
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_plan_verb_without_rates_says_what_is_assumed(call):
    code, out, _ = call("--preset=webface4m", *TINY)
    assert code == 0
    text = " ".join(out.split())
    for word in ("205,990 classes", "planning only", "class centers", "images/s", "memory bandwidth 2,000 GB/s"):
        assert word in text
    assert "assumed gemm 400 TFLOP/s" in text


def test_plan_verb_without_a_number_of_images_says_how_to_get_the_time(call):
    text = " ".join(call("--num-classes=10", *TINY)[1].split())
    assert "10 classes, as given" in text
    assert "time unknown: give --num-images N" in text
    text = " ".join(call("--num-classes=10", "--num-images=50000", *TINY)[1].split())
    assert "10 classes, 50,000 images, as given" in text
    assert "per epoch, " in text


def test_plan_verb_with_measured_rates_uses_them(call, tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"workers": 2, "fp32_tflops": 0.25, "memory_bandwidth": 30}))
    asked = ("--num-classes=10", *TINY, f"--rates={file}", "--memory-bandwidth=40")
    rates = json.loads(call(*asked, "--json")[1])["rates"]
    assert (rates["fp32_tflops"], rates["memory_bandwidth"], rates["gemm_tflops"]) == (0.25, 40, Rates().gemm_tflops)
    text = " ".join(call(*asked)[1].split())
    assert "measured fp32 0.25 TFLOP/s, memory bandwidth 40 GB/s" in text
    file.write_text('{"fp32_tflops": "fast"}')
    assert call(*asked)[0] == 2


def test_plan_verb_with_published_shows_the_table(call):
    code, out, _ = call("--published")
    assert code == 0
    assert "model parallel" in out
    assert out.count(" %") == len(table_rows())
    assert "…" not in out
    found = json.loads(call("--published", "--json")[1])["results"]
    assert max(abs(row["error"]) for row in found) < 0.07


def test_plan_verb_when_too_large_shows_then_refuses(call):
    code, out, err = call("--num-classes=90000000", "--gpus=2", "--gpu-memory=8GB", "--json", *TINY)
    assert code == 2
    assert json.loads(out)["fits"] is False
    assert err.count("\n") == 1
    assert "memory: 90,000,000 classes need" in err
    assert "train.num_workers=" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "num_classes: is not set: give --num-classes N, data.train=DIR, or one of the presets webface42m, "),
        (["--preset=webface42n"], "did you mean webface42m"),
        (["--preset=webface4m", "--gpus=600"], "train.batch_size: 1024: must leave each of 600 workers two images"),
        (["--preset=webface4m", "--gpus=2000"], "train.num_workers: 2000: must not exceed train.batch_size=1024"),
        (["--num-classes=10", "--link-bandwidth=0"], "link_bandwidth: 0: must be above 0"),
        (["--num-classes=10", "--backbone-efficiency=2"], "backbone_efficiency: 2: must be at most 1"),
        (["--num-classes=10", "--gpu-memory=lots"], "'--gpu-memory': size 'lots'"),
        (
            ["--num-classes=10", "--gpu-memory=80"],
            "'--gpu-memory': size '80': has no unit: give one, for example 80MB or",
        ),
        (["--num-classes=10", "--gpu-memory=81920"], "size '81920': has no unit"),
        (["--num-classes=10", "--plot=plan.jpg", *TINY], "plot: plan.jpg: must end in .png"),
        (["data.train=/nowhere"], "/nowhere"),
        (["--num-classes=10", "head.margin=foo"], "head.margin 'foo' must be one of adaface, arcface"),
        (["--num-classes=10", "head.margin_options={m9: 1}"], "head.margin_options.m9: cosface has no such option"),
        (
            ["--num-classes=10", "--rates=/nowhere.json"],
            "rates: /nowhere.json: must be the output of",
        ),
    ],
)
def test_plan_verb_with_wrong_input_exits_2_with_one_line(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_presets_of_the_published_counts_load_by_name():
    for name in PUBLISHED_COUNTS:
        assert make_plan(with_overrides(load(name), TINY), preset=name).counts.num_images > 4_000_000


def test_plan_with_data_on_a_machine_without_a_gpu_is_that_of_the_machine(small, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "runs_here", lambda config: True)
    synthesize(tmp_path / "set", identities=3, images_per_identity=4, image_size=32, processes=1)
    keys = [*TINY, f"data.train={tmp_path / 'set'}", "train.batch_size=4", "train.num_workers=2"]
    here = planning.plan_run(None, None, keys, num_workers=None, rates={}, plot=None)
    assert (here.job.gpu, here.as_dict()["device"]) == (False, "cpu")
    assert {"gemm_tflops", "fp32_tflops", "memory_bandwidth", "backbone_efficiency"} == here.measured
    assert 0 < here.images_per_second < 100_000
    assert here.table()["machine"].startswith("this one, ")
    assert "fits" in here.table()
    on_gpus = planning.plan_run(None, None, keys, num_workers=2, rates={}, plot=None)
    assert on_gpus.job.gpu
    assert "machine" not in on_gpus.table()


@pytest.mark.parametrize(("keys", "here"), [([], True), (["cluster.address=10.0.0.1:6379"], False)])
def test_plan_of_a_cluster_of_cpus_is_not_that_of_this_machine(monkeypatch, keys, here):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert this_machine.runs_here(with_overrides(load("mini"), ["train.device=cpu", *keys])) is here
