"""A sweep's file that was edited before --resume: what holds, and what is refused."""

import re

import pytest

from rayface.files import write_json
from rayface.storage import RemotePath, local_copy
from rayface.tuning import spec as specs
from rayface.tuning.resume import find_sweep, remember, resume_sweep
from rayface.tuning.sweep_directory import SPEC, new_sweep

TEXT = """
preset: debug
config: {train: {epochs: 3}}
search:
  optim.lr: [0.1, 0.2]
  head.scale: {low: 8.0, high: 16.0}
objectives: [{metric: loss, mode: min}]
sweep: {trials: 4}
"""
OVERRIDES = ["data.train=faces", "optim.momentum=0.5", "sweep.pruner=median"]


@pytest.fixture
def sweep(tmp_path, monkeypatch, messages):
    """A sweep that was started, in sweeps/try-001; returns the function that edits its file and resumes it."""
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "try.yaml", tmp_path / "sweeps" / "try-001"
    file.write_text(TEXT)
    folder.mkdir(parents=True)
    resolved = specs.load(file, OVERRIDES)
    remember(folder, file, OVERRIDES, None, resolved)
    specs.dump(*resolved, folder / SPEC)

    def resume(edits, *overrides, preset=None):
        text = TEXT
        for before, now in edits.items():
            assert before in text
            text = text.replace(before, now)
        file.write_text(text)
        spec, base, found = resume_sweep(file, overrides, preset)
        assert found == folder
        return spec, base, messages()

    return resume


def test_resume_with_an_unedited_file_logs_nothing(sweep):
    spec, base, said = sweep({})
    assert (spec.sweep.trials, spec.sweep.pruner, base.train.epochs, base.optim.momentum) == (4, "median", 3, 0.5)
    assert said == []
    assert sweep({"trials: 4": "trials: 04"})[2] == []  # another text of the same


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ("epochs: 3", "epochs: 4", "train.epochs 4.0 (was 3.0)"),
        ("[0.1, 0.2]", "[0.1, 0.3]", 'search.optim.lr {"choices": [0.1, 0.3]} (was {"choices": [0.1, 0.2]})'),
        ("  head.scale: {low: 8.0, high: 16.0}\n", "", "search.head.scale null (was "),
        ("mode: min", "mode: max", "objectives ["),
        ("trials: 4", "trials: 4, sampler: gp", "sweep.sampler gp (was tpe)"),
        ("preset: debug", "preset: mini", "backbone.embedding_size 256 (was 64)"),
    ],
)
def test_resume_with_another_value_of_a_fixed_key_raises_one_line(sweep, before, now, message):
    edits = {before: now, "trials: 4": "trials: 9"} if before != "trials: 4" else {before: now}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        sweep(edits)
    assert "try.yaml: " in str(caught.value)
    assert "must not change on a resume" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resume_with_another_value_of_a_free_key_takes_it_and_logs_it(sweep):
    spec, _, said = sweep({"trials: 4": "trials: 9, concurrency: 2"})
    assert (spec.sweep.trials, spec.sweep.concurrency, spec.sweep.pruner) == (9, 2, "median")
    assert len(said) == 1
    assert said[0].endswith("takes effect: sweep.trials 9 (was 4), sweep.concurrency 2 (was 1)")
    spec, _, said = sweep({"trials: 4": "trials: 9"}, "sweep.trials=12")
    assert (spec.sweep.trials, said) == (12, [])
    spec, _, _ = sweep({"objectives:": "heatmaps: [[optim.lr, head.scale]]\nobjectives:"})
    assert spec.heatmaps == (("optim.lr", "head.scale"),)


def test_resume_of_a_sweep_that_alone_names_a_server_keeps_the_credentials_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "pl4nted-t0ken")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file, folder, uri = tmp_path / "try.yaml", tmp_path / "sweep", "tracking.uri=http://evil:5000"
    file.write_text(TEXT)
    folder.mkdir()
    resolved = specs.load(file, [*OVERRIDES, uri])
    remember(folder, file, [*OVERRIDES, uri], None, resolved)
    specs.dump(*resolved, folder / SPEC)
    for given, output in ((file, [f"sweep.output={folder}"]), (folder / SPEC, [])):
        with pytest.raises(ValueError, match=r"^tracking\.uri: http://evil:5000: is named by the run directory"):
            resume_sweep(given, output, None)
        assert resume_sweep(given, [*output, uri], None)[1].tracking.uri == "http://evil:5000"
    file.write_text(TEXT.replace("config: {", "config: {tracking.uri: 'http://evil:5000', "))
    assert resume_sweep(file, [f"sweep.output={folder}"], None)[1].tracking.uri == "http://evil:5000"


def test_resume_of_a_sweep_that_alone_names_a_store_keeps_the_credentials_from_it(tmp_path, monkeypatch):
    def forget(machine):
        monkeypatch.setattr("rayface.storage.servers._known", set())
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / machine))

    sets = "[s3://b/a, 's3://b/b?endpoint_override=evil:9']"
    file, folder = tmp_path / "try.yaml", tmp_path / "sweep"
    file.write_text(TEXT.replace("search:", f"search:\n  data.train: {sets}"))
    folder.mkdir()
    resolved = specs.load(file, [])
    forget("mine")
    remember(folder, file, [], None, resolved)
    specs.dump(*resolved, folder / SPEC)
    text = (folder / SPEC).read_text().replace("\nconfig:", "\nconfig:\n  cluster: {address: 'ray://evil:10001'}")
    (folder / SPEC).write_text(text)
    forget("mine")
    assert resume_sweep(folder / SPEC, [], None)[1].cluster.address is None
    forget("other")
    with pytest.raises(
        ValueError, match=r"^search\.data\.train: s3://b/b.* 'https://evil:9': must be a server that you"
    ):
        resume_sweep(folder / SPEC, [], None)
    resume_sweep(file, [f"sweep.output={folder}"], None)


def test_resume_with_another_preset_raises_one_line(sweep):
    with pytest.raises(ValueError, match=r"backbone\.embedding_size 256 \(was 64\).*must not change on a resume"):
        sweep({}, preset="mini")


def test_resume_by_its_own_copy_or_by_sweep_output_finds_the_sweep(sweep, tmp_path, messages):
    folder = tmp_path / "sweeps" / "try-001"
    for name in (SPEC, "started.yaml"):
        assert resume_sweep(folder / name, [], None)[2] == folder
        assert messages() == []
    file = tmp_path / "other.yaml"
    file.write_text(TEXT.replace("trials: 4", "trials: 4, output: sweeps/try-001"))
    assert resume_sweep(file, [], None)[2] == folder
    with pytest.raises(ValueError, match=r"missing\.yaml: cannot be read"):
        resume_sweep(tmp_path / "missing.yaml", [], None)


def test_resume_of_a_sweep_of_an_older_version_logs_that_its_file_is_not_compared(sweep, tmp_path):
    (tmp_path / "sweeps" / "try-001" / "started.yaml").unlink()
    spec, _, said = sweep({"trials: 4": "trials: 9"})
    assert spec.sweep.trials == 4
    assert ": ignored: " in said[0]


def test_resume_with_the_overrides_of_the_start_is_the_same_command_again(sweep):
    assert sweep({}, *OVERRIDES)[2] == []
    with pytest.raises(ValueError, match=r"optim\.momentum: must not change on a resume"):
        sweep({}, "optim.momentum=0.6")


def test_resume_with_an_edited_copy_of_the_sweep_raises_one_line(sweep, tmp_path):
    copy = tmp_path / "sweeps" / "try-001" / SPEC
    text = copy.read_text()
    for before, now, message in (
        ("epochs: 3.0", "epochs: 4.0", "train.epochs 4.0 (was 3.0)"),
        ("low: 8.0", "low: 4.0", "search.head.scale {"),
        ("  head.scale:", "  train.grace_seconds:", "search.train.grace_seconds {"),
        ("sampler: tpe", "sampler: gp", "sweep.sampler gp (was tpe)"),
    ):
        assert before in text
        copy.write_text(text.replace(before, now))
        for file in (copy, tmp_path / "try.yaml"):
            with pytest.raises(ValueError, match=re.escape(message)) as caught:
                resume_sweep(file, [], None)
            assert str(caught.value).startswith(f"{copy}: ")
    copy.write_text(text.replace("trials: 4", "trials: 9"))
    assert resume_sweep(copy, [], None)[0].sweep.trials == 9


def test_resume_of_a_sweep_of_an_older_version_does_not_compare_its_copy(sweep, tmp_path):
    folder = tmp_path / "sweeps" / "try-001"
    write_json(folder / "started.json", {"overrides": OVERRIDES, "preset": None})
    (folder / SPEC).write_text((folder / SPEC).read_text().replace("epochs: 3.0", "epochs: 4.0"))
    assert resume_sweep(folder / SPEC, [], None)[1].train.epochs == 4


def test_resume_takes_the_ray_session_of_this_command_else_that_of_the_file(sweep, tmp_path):
    assert sweep({})[1].cluster.address is None
    assert sweep({"train: {": "cluster: {address: f:1}, train: {"})[1].cluster.address == "f:1"
    assert sweep({"train: {": "cluster: {address: f:1}, train: {"}, "cluster.address=c:1")[1].cluster.address == "c:1"
    spec_file = tmp_path / "sweeps" / "try-001" / SPEC
    assert resume_sweep(spec_file, ["cluster.debug=true"], None)[1].cluster.debug


def test_resume_repeated_with_credentials_in_an_override_takes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "try.yaml", tmp_path / "sweeps" / "try-001"
    file.write_text(TEXT)
    folder.mkdir(parents=True)
    overrides = ["data.train=s3://me:pl4nted@bucket/faces", "optim.momentum=0.5", "cluster.address=c:1"]
    resolved = specs.load(file, overrides)
    remember(folder, file, overrides, None, resolved)
    specs.dump(*resolved, folder / SPEC)
    assert all("pl4nted" not in path.read_text() for path in folder.iterdir())
    for given in (file, folder / SPEC):
        base = resume_sweep(given, overrides, None)[1]
        assert (base.data.train, base.cluster.address) == (("s3://me:pl4nted@bucket/faces",), "c:1")
        assert resume_sweep(given, overrides[:2], None)[1].cluster.address is None
    with pytest.raises(ValueError, match=r"data\.train: must not change on a resume"):
        resume_sweep(file, ["data.train=s3://me:pl4nted@other/faces"], None)


def test_resume_takes_credentials_from_the_file_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "try.yaml", tmp_path / "sweeps" / "try-001"
    folder.mkdir(parents=True)

    def write(place):
        file.write_text(TEXT.replace("config: {", f"config: {{data.train: 's3://{place}/faces', "))

    write("me:pl4nted@bucket")
    resolved = specs.load(file, [])
    remember(folder, file, [], None, resolved)
    specs.dump(*resolved, folder / SPEC)
    assert all("pl4nted" not in path.read_text() for path in folder.iterdir())
    for place in ("me:pl4nted@bucket", "me:n3w@bucket"):
        write(place)
        assert resume_sweep(file, [], None)[1].data.train == (f"s3://{place}/faces",)
    write("me:n3w@other")
    with pytest.raises(ValueError, match=r"data\.train .*: must not change on a resume"):
        resume_sweep(file, [], None)


def test_find_sweep_of_a_file_with_malformed_settings_finds_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for settings in ("3", "[a]", "{output: [a]}"):
        (tmp_path / "try.yaml").write_text(f"sweep: {settings}")
        assert find_sweep(tmp_path / "try.yaml", []) is None


def test_find_sweep_finds_the_newest_of_the_file_or_none(sweep, tmp_path):
    assert find_sweep(tmp_path / "try.yaml", []) == tmp_path / "sweeps" / "try-001"
    other, own = f"sweep.output={tmp_path / 'other'}", f"sweep.output={tmp_path / 'sweeps' / 'try-001'}"
    assert find_sweep(tmp_path / "try.yaml", [other]) is None
    assert find_sweep(tmp_path / "try.yaml", [other, own]) == tmp_path / "sweeps" / "try-001"
    (tmp_path / "new.yaml").write_text(TEXT)
    assert find_sweep(tmp_path / "new.yaml", []) is None


def test_resume_of_a_sweep_in_a_store_finds_it_by_sweep_output_or_by_its_own_copy(tmp_path, object_store, monkeypatch):
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    folder, file = RemotePath(object_store.uri("sweeps/try")), tmp_path / "try.yaml"
    file.write_text(TEXT)
    output = f"sweep.output={folder.uri}"
    assert find_sweep(file, [output]) is None
    assert new_sweep(file, [*OVERRIDES, output], None)[2] == folder
    resolved = specs.load(file, [*OVERRIDES, output])
    remember(folder, file, [*OVERRIDES, output], None, resolved)
    specs.dump(*resolved, folder / SPEC)
    with pytest.raises(ValueError, match=r"^sweep\.output: s3://\S+: holds a sweep: resume it"):
        new_sweep(file, [*OVERRIDES, output], None)
    for given, overrides in ((file, [output, "sweep.trials=9"]), (local_copy((folder / SPEC).uri), ["sweep.trials=9"])):
        spec, base, found = resume_sweep(given, overrides, None)
        assert (found, spec.sweep.trials, base.optim.momentum) == (folder, 9, 0.5)
        assert found.uri == folder.uri
    assert not any(object_store.secret.encode() in content for content in object_store.files().values())
