"""The result of a run."""

from types import SimpleNamespace

from rayface.training.results import TrainResult, write_results
from rayface.training.run_directory import RunDirectory

DATASET = SimpleNamespace(name="drawn", index=range(24), num_classes=6, num_classes_with_images=6)


def test_train_result_as_dict_has_the_keys_of_the_contract(tmp_path):
    run = RunDirectory(tmp_path)
    pairs = {"accuracy_mean": 0.9, "accuracy_std": 0.01, "num_pairs": 100}
    numbers = {"steps": 3, "faults": 0, "loss": 1.5, "images_per_second": 9.0, "seconds": 2.0}
    assert list(TrainResult(run=run, **numbers).as_dict()) == [
        *("run", "model", "report", "steps", "faults", "loss", "images_per_second", "seconds"),
        *("tracking", "tracking_delivered", "tracking_link"),
    ]
    found = TrainResult(run=run, **numbers, evaluation=pairs, accuracy_before=0.5, tracking="sqlite:///a").as_dict()
    assert found == {
        **{"run": str(tmp_path), "model": str(run.model), "report": str(run.report)},
        **numbers,
        **pairs,
        **{"accuracy_before": 0.5, "tracking": "sqlite:///a", "tracking_delivered": None},
        "tracking_link": None,
    }


def test_write_results_of_a_finished_run_writes_report_and_result(tmp_path):
    run = RunDirectory(tmp_path)
    pairs = {"accuracy_mean": 0.9, "accuracy_std": 0.01, "accuracy_interval": [0.88, 0.92], "num_pairs": 100}
    run.write_outcome({"steps": 3, "faults": 1, "loss": None, **pairs})
    run.write_evaluation({**pairs, "step": 3, "roc": {"far": [0.0, 0.5, 1.0], "tar": [0.1, 0.9, 1.0]}})
    journal = run.worker_journal()
    for step, speed in enumerate((10.0, 30.0, 20.0)):
        journal.metrics({"train/images_per_second": speed, "eval/accuracy": 0.5 + step / 10}, step)
    journal.close()
    result = write_results(run, DATASET, seconds=7.0)
    assert (result.images_per_second, result.accuracy_before, result.loss) == (20.0, 0.5, None)
    assert run.read_result() == result.for_file()
    page = run.report.read_text()
    for text in ("drawn: 24 images, 6 classes", "90.00% ± 1.00%, 95% interval 88.00% to 92.00%, before 50.00%"):
        assert text in page
    assert sorted(path.stem for path in run.plots.iterdir()) == ["accuracy", "det", "roc", "throughput"]
