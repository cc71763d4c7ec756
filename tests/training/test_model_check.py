"""What is refused of a model before workers start, and that it needs no optimizer."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayface.training.distillation import teacher_digest
from rayface.training.model_check import check_names, check_teacher
from rayface.training.run_directory import RunDirectory
from tests.training.small_run import config_of


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head.name=mine", "^head.name 'mine' must be one of dcq, f2c, partial_fc, or registered by a plugin$"),
        ("head.margin=none", "head.margin"),
        ("schedule.name=none", "schedule.name"),
    ],
)
def test_check_names_of_an_unknown_name_raises_one_line(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        check_names(config_of(change))
    assert "\n" not in str(refused.value)


def test_check_names_imports_no_compiler() -> None:
    """PyTorch's first optimizer imports TorchDynamo and SymPy, 1 s of CPU time before the workers start."""
    code = (
        "import sys\nfrom rayface import config\nfrom rayface.training.model_check import check_names\n"
        "check_names(config.load('debug'))\nprint(sorted({'torch._dynamo', 'sympy', 'numba'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_teacher_of_other_weights_under_the_same_path_is_refused(tmp_path: Path) -> None:
    run, teacher = RunDirectory(tmp_path / "run"), tmp_path / "teacher.pt"
    run.path.mkdir()
    config = config_of(f"train.teacher={teacher}")
    teacher.write_bytes(b"one")
    check_teacher(run, config)  # of an earlier version, without a digest
    run.write_data_facts({"teacher_sha256": teacher_digest(config)})
    check_teacher(run, config)
    teacher.write_bytes(b"two")
    with pytest.raises(ValueError, match=r"^train.teacher: .*teacher.pt: its weights differ .* must not change on a"):
        check_teacher(run, config)
