"""Several directories as one label space: by names, by labels, or separate; ambiguous labels are refused."""

import logging
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayface import config as configs
from rayface.config import Config
from rayface.curate.prune import core_set
from rayface.data import label_join
from rayface.data.check import check
from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import open_dataset
from rayface.data.label_join import LabelJoin, Labelled, join_labels
from rayface.data.selection import select, write_selection
from rayface.data.shards.tar import encode_member, end_of_archive
from rayface.data.sources.listed_files import ListSource
from rayface.data.sources.webdataset import WebDatasetSource
from rayface.data.writer import write_dataset
from rayface.embedding import embed
from rayface.plan.planning import make_plan
from rayface.stages import proxy
from rayface.storage import DataError
from rayface.training import trainer, validate
from rayface.training.run_directory import RunDirectory
from rayface.training.run_output import DataFacts, check_data, check_output
from rayface.values import counted

SEPARATE = ConvertSettings(join="separate")
ZOE, ZOE_DECOMPOSED = (unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD"))


def named(folder: Path, names: Sequence[str]) -> Path:
    samples = [(f"{folder.name}{label}", label, b"\xff\xd8%d" % label) for label in range(len(names))]
    write_dataset(folder, samples, name=folder.name, identities=names, image_size=None)
    return folder


def bare(folder: Path, labels: Sequence[int]) -> Path:
    folder.mkdir()
    members = [
        encode_member(f"{folder.name}{n}.jpg", b"\xff\xd8") + encode_member(f"{folder.name}{n}.cls", b"%d" % n)
        for n in labels
    ]
    data = b"".join(members)
    (folder / "a.tar").write_bytes(data + end_of_archive(len(data)))
    return folder


def joined(*parts: Sequence[str] | int, mode: Any = None) -> LabelJoin:
    """Join directories of these names, or of so many labels."""
    return join_labels(
        [
            Labelled(
                name="abc"[n],
                identities=None if isinstance(part, int) else part,
                num_classes=part if isinstance(part, int) else len(part),
                labels=np.arange(part if isinstance(part, int) else len(part)),
            )
            for n, part in enumerate(parts)
        ],
        mode,
    )


def maps(join: LabelJoin) -> list[list[int] | None]:
    return [None if each is None else each.tolist() for each in join.maps]


def test_join_labels_with_names_joins_by_name() -> None:
    join = joined(["ann", "bob"], ["zed", "bob", "ann"])
    assert (join.mode, join.identities, maps(join)) == ("names", ("ann", "bob", "zed"), [[0, 1], [2, 1, 0]])
    assert join.text == ("joined by names: a 2 identities, b 3 identities; 2 in more than one (ann, bob); 3 classes")


@pytest.mark.parametrize(
    ("parts", "shared", "by_label"),
    [
        ((30, 50), 30, [None, None]),
        ((["ann", "bob"], 3), 2, [None, None]),
        # Numbers that stand in the place of names: the labels that images had at first.
        ((["0", "1", "2"], ["0", "1"]), 2, [None, None]),
        ((["1", "10", "11", "2"], ["1", "10", "2"]), 3, [[0, 2, 3, 1], [0, 2, 1]]),  # folders, in their order
        ((["0000045", "0000099"], ["45", "102"]), 1, [None, [0, 2]]),
        ((["3", "1"], 3), 1, [[3, 1], None]),
        ((["20231234567890", "7"], 2), 0, [[3, 2], None]),
    ],
)
def test_join_labels_of_ambiguous_labels_is_refused(parts: Any, shared: int, by_label: list[list[int] | None]) -> None:
    if shared:
        with pytest.raises(DataError, match=r"set data.join=labels if .* or data.join=separate if") as caught:
            joined(*parts)
        assert "\n" not in str(caught.value)
    else:
        assert joined(*parts).mode == "labels"
    sizes = [part if isinstance(part, int) else len(part) for part in parts]
    labels, apart = (joined(*parts, mode=mode) for mode in ("labels", "separate"))
    assert (labels.mode, labels.num_classes, maps(labels)) == ("labels", sum(sizes) - shared, by_label)
    assert f"{counted(shared, 'label')} with images in more than one" in str(labels.text)
    assert (apart.num_classes, maps(apart)) == (sum(sizes), [[*range(sizes[0])], [*range(sizes[0], sum(sizes))]])


def test_join_labels_of_numbers_by_name_is_offered_where_all_have_them() -> None:
    with pytest.raises(DataError, match=r"only numbers for identity .* data.join=names if a name is") as one:
        joined(["1", "2"], ["2", "7"])
    assert joined(["1", "2"], ["2", "7"], mode="names").identities == ("1", "2", "7")
    with pytest.raises(DataError, match="b has no identity names") as other:
        joined(["ann", "7"], 2)
    assert ["data.join=names" in str(each.value) for each in (one, other)] == [True, False]
    assert joined(["ann", "7"], ["7", "8b"]).mode == "names"


def test_join_labels_of_disjoint_numbers_keeps_them_apart() -> None:
    """As of two parts of one label space, each of which was converted and numbered again."""
    join = joined(["2", "7"], ["3", "8"])
    assert (join.mode, join.identities, maps(join)) == ("labels", ("2", "3", "7", "8"), [[0, 2], [1, 3]])


def test_join_labels_of_numbers_with_names_keeps_both() -> None:
    """As CASIA-WebFace and a folder of names: numbers of one directory alone meet no others by chance."""
    join = joined(["0000045", "0000099"], ["alice", "bob"])
    assert (join.mode, join.identities) == ("names", ("0000045", "0000099", "alice", "bob"))
    by_label = joined(["7", "0"], ["alice", "bob"], mode="labels")
    assert (by_label.identities, maps(by_label)) == (("alice", "bob", "7"), [[2, 0], None])
    assert joined(["1", "0"], ["alice", "bob"], ["carl", "alice"], mode="labels").num_classes == 2


@pytest.mark.parametrize(
    "parts",
    [
        (["ann", "bob"], ["carl", "alice"]),  # a label has two names
        (["ann", "bob"], 3),  # a label has none
        (["7"], ["ann", "ann"]),  # two labels have one
    ],
)
def test_join_labels_by_label_without_one_name_for_each_has_no_names(parts: Any) -> None:
    join = joined(*parts, mode="labels")
    assert (join.mode, join.identities) == ("labels", None)


def test_join_labels_by_label_with_the_same_names_keeps_them() -> None:
    assert joined(["ann"], ["ann", "bob"], 2, mode="labels").identities == ("ann", "bob")


def test_join_labels_separately_into_more_labels_than_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_join, "_MAX_LABEL", 9)
    with pytest.raises(DataError, match=r"^data\.join: separate: 10 classes are more than 9: join by names or labels$"):
        joined(6, 4, mode="separate")
    assert joined(5, 4, mode="separate").num_classes == 9


def test_join_labels_of_disjoint_labels_keeps_them() -> None:
    parts = [
        Labelled(name="a", identities=None, num_classes=3, labels=np.array([0, 2])),
        Labelled(name="b", identities=None, num_classes=5, labels=np.array([1, 4])),
    ]
    join = join_labels(parts, None)
    assert (join.mode, join.num_classes, maps(join)) == ("labels", 5, [None, None])
    assert "0 labels with images in more than one" in str(join.text)


def test_join_labels_with_two_unicode_forms_of_a_name_makes_one_class() -> None:
    join = joined([ZOE, "ann"], ["bob", ZOE_DECOMPOSED])
    assert (join.identities, maps(join)) == ((ZOE, "ann", "bob"), [[0, 1], [2, 0]])
    assert "1 in more than one" in str(join.text)
    within = joined([ZOE, "ann", ZOE_DECOMPOSED])
    assert (within.mode, within.text, within.num_classes, maps(within)) == (None, None, 2, [[0, 1, 0]])
    assert maps(joined([ZOE_DECOMPOSED, "ann"])) == [None]


def test_join_labels_by_missing_names_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.join: names: b has no identities.parquet"):
        joined(["ann"], 2, mode="names")
    assert joined(["0", "1"], ["0", "1", "2"], mode="names").num_classes == 3


def test_join_labels_separately_keeps_all_names() -> None:
    assert joined(["ann"], ["bob"], mode="separate").identities == ("ann", "bob")
    apart = joined(["ann", "bob"], ["ann"], mode="separate")
    assert apart.identities == ("a/ann", "a/bob", "b/ann")
    assert "1 name in more than one, treated as different persons" in str(apart.text)
    assert joined(["ann"], 3, mode="separate").identities is None


def test_open_dataset_of_two_has_one_index_digest_and_selection(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    """Labels and digest follow the join, also in a selection."""
    a, b = named(tmp_path / "a", ["ann", "bob"]), bare(tmp_path / "b", range(3))
    found = {}
    for mode in ("labels", "separate"):
        found[mode] = open_dataset([a, b], join=mode)  # type: ignore[arg-type]
        assert messages() == [found[mode].join_text]
    assert found["labels"].index.label.tolist() == [0, 1, 0, 1, 2]
    assert found["separate"].index.label.tolist() == [0, 1, 2, 3, 4]
    assert found["separate"].index.source_label.tolist() == [0, 1, 0, 1, 2]
    assert found["labels"].digest != found["separate"].digest
    (tmp_path / "some").mkdir()
    some = write_selection(str(tmp_path / "some"), select(found["separate"], np.array([1, 4])), name="some")
    assert (some.index.label.tolist(), some.index.source_label.tolist()) == ([0, 1], [1, 2])
    assert open_dataset(a, join="separate").digest == open_dataset(a).digest


def test_digest_of_equal_shards_with_other_names_differs(tmp_path: Path) -> None:
    a, b = named(tmp_path / "a", ["ann", "bob"]), named(tmp_path / "b", ["bob", "cy"])
    before = open_dataset([a, b])
    columns = {"label": [0, 1], "identity": ["cy", "bob"], "num_images": [1, 1]}
    pq.write_table(pa.table(columns), b / "identities.parquet")
    after = open_dataset([a, b])
    assert (before.num_classes, after.num_classes) == (3, 3)
    assert before.digest != after.digest
    assert open_dataset(b).digest != before.digest


def test_check_of_equal_names_reports_them_and_writes_none(tmp_path: Path) -> None:
    folder = named(tmp_path / "a", ["ann", ZOE])
    columns = {"label": [0, 1, 2], "identity": ["ann", ZOE, ZOE_DECOMPOSED], "num_images": [1, 1, 0]}
    pq.write_table(pa.table(columns), folder / "identities.parquet")
    (folder / "dataset.json").unlink()
    report = check(folder)
    assert report.counts == {"name": 1}
    assert "labels 1 and 2 have one name in two Unicode forms" in report.faults[0].reason
    assert open_dataset(folder).identities == ("ann", ZOE)
    (folder / "identities.parquet").unlink()
    check(folder, write_manifest=True)
    assert open_dataset(folder).identities is None


class StoppedError(Exception):
    """Raised instead of the work that follows."""


def stop(*args: Any, **kwargs: Any) -> None:
    raise StoppedError


def _embed(config: Config) -> None:
    given = {"embed.model": config.name, "embed.data": config.data.train, "embed.out": "out"}
    embed.embed(configs.with_overrides(config, given))


def _prune(config: Config) -> None:
    given = {"prune.threshold": 0.5, "prune.embeddings": config.name, "prune.out": "out"}
    core_set.prune(configs.with_overrides(config, {**given, "prune.data": config.data.train}))


def _prune_by_proxy(config: Config) -> None:
    given = {"prune.threshold": 0.5, "prune.proxy_fraction": 0.5, "prune.out": "out"}
    proxy.prune(configs.with_overrides(config, {**given, "prune.data": config.data.train}))


def _train(config: Config) -> None:
    trainer.train(config)


def _tune(config: Config) -> None:
    validate.dry_run(config)


def _plan(config: Config) -> None:
    logging.getLogger("rayface").info(make_plan(config).table()["data"])
    raise StoppedError


@pytest.mark.parametrize("verb", [_embed, _prune, _prune_by_proxy, _train, _tune, _plan])
def test_every_verb_with_several_datasets_joins_as_configured(
    verb: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("embedding.embed.EmbedJob.of", "curate.prune.core_set.check_clean", "stages.proxy._job"):
        monkeypatch.setattr(f"rayface.{place}", stop)
    monkeypatch.setattr(validate, "_sample_order", stop)
    monkeypatch.setattr(core_set, "open_embeddings", lambda path, key: None)
    a, b = bare(tmp_path / "a", range(30)), bare(tmp_path / "b", range(50))
    overrides = {"data.train": [str(a), str(b)], "train.batch_size": 8}
    with pytest.raises(ValueError, match=r"30 labels are in more than one of a, b, .* set data.join=labels if"):
        verb(configs.load("debug", overrides=overrides))
    assert not messages()
    with pytest.raises(StoppedError):
        verb(configs.load("debug", overrides={**overrides, "data.join": "separate"}))
    assert "kept separate: a 30 labels, b 50 labels, no person in two; 80 classes" in "; ".join(messages())


def test_resume_with_another_join_is_refused(tmp_path: Path) -> None:
    config = configs.load(overrides={"data.train": ["a", "b"], "data.join": "labels", "train.output": str(tmp_path)})
    configs.dump(config, tmp_path / "config.yaml")
    check_output(config, resume=True)
    with pytest.raises(ValueError, match=r"data.join: 'separate': the run was started with 'labels'"):
        check_output(replace(config, data=replace(config.data, join="separate")), resume=True)
    a, b = named(tmp_path / "a", ["ann"]), named(tmp_path / "b", ["bob"])
    facts = DataFacts.of(open_dataset([a, b]))
    assert facts.join == "names"
    RunDirectory(tmp_path).write_data_facts(asdict(facts))
    check_data(RunDirectory(tmp_path), facts)
    with pytest.raises(ValueError, match="the run was started with"):
        check_data(RunDirectory(tmp_path), DataFacts.of(open_dataset([a, b], join="labels")))


def test_join_labels_of_converted_lists_is_by_the_labels_of_the_lists(tmp_path: Path) -> None:
    """Each was numbered again: 54 pairs of other people had one label."""
    images = [(f"{number}.png", label) for number, label in enumerate((3, 7, 20, 41, 7, 9, 41, 50))]
    for name, _ in images:
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    for name, rows in (("a", images[:4]), ("b", images[4:])):
        lines = "".join(f"{path},{label}\n" for path, label in rows)
        (tmp_path / f"{name}.csv").write_text(f"path,label\n{lines}")
        convert(ListSource(tmp_path / f"{name}.csv"), tmp_path / name, ConvertSettings(layout="by_identity"))
    joint = open_dataset([tmp_path / "a", tmp_path / "b"], join="labels")
    assert joint.identities == ("3", "7", "9", "20", "41", "50")
    assert [joint.identities[label] for label in joint.index.label] == ["3", "7", "20", "41", "7", "9", "41", "50"]
    again = [WebDatasetSource(tmp_path / name) for name in "ab"]
    written = convert(again, tmp_path / "both", ConvertSettings(join="labels", layout="by_identity"))
    assert written.identities == ("3", "7", "9", "20", "41", "50")
    apart = convert([ListSource(tmp_path / f"{name}.csv") for name in "ab"], tmp_path / "c", SEPARATE)
    assert (apart.num_classes, apart.identities) == (8, None)
    left = [select(open_dataset(tmp_path / name), np.array([1, 2])) for name in "ab"]
    assert [each.identities for each in left] == [("7", "20"), ("9", "41")]
    lines = "0.png,0\n1.png,1\n2.png,1\n3.png,2\n"
    (tmp_path / "c.csv").write_text(f"path,label\n{lines}")
    assert convert(ListSource(tmp_path / "c.csv"), tmp_path / "dense").identities is None
    assert select(open_dataset(tmp_path / "dense"), np.array([3])).identities is not None
    few = convert(ListSource(tmp_path / "c.csv"), tmp_path / "few", ConvertSettings(min_images=2))
    assert few.identities == ("1",)


def test_resume_of_a_run_that_joined_numbers_by_name_joins_them_so(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    """As an older rayface did by itself; a new run has to say so."""
    a, b, output = named(tmp_path / "a", ["3", "5"]), named(tmp_path / "b", ["5", "9"]), tmp_path / "run"
    overrides = {"data.train": [str(a), str(b)], "train.batch_size": 2, "train.output": str(output)}
    config = configs.load("debug", overrides=overrides)
    with pytest.raises(ValueError, match="only numbers for identity names"):
        validate.open_run(config)
    output.mkdir()
    configs.dump(config, output / "config.yaml")
    RunDirectory(output).write_data_facts(asdict(DataFacts.of(open_dataset([a, b], join="names"))))
    assert validate.open_run(config, resume=True).dataset.identities == ("3", "5", "9")
