"""Template protocols: lists of a benchmark and of IJB, features, 1:1 and 1:N."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from rayface.cli.command_line import _outcome
from rayface.config import EvaluateConfig
from rayface.data.writer import write_dataset
from rayface.evaluation.alignment import TEMPLATE
from rayface.evaluation.identification import identify, tar_at_far
from rayface.evaluation.loose_images import LooseImages
from rayface.evaluation.template_protocol import TemplateProtocol, TemplateSettings
from rayface.evaluation.template_set import read_ijb
from rayface.evaluation.templates import template_features
from rayface.models.embedded import Embedded
from rayface.storage import DataError
from tests.small_model import save_small_model

NUM_PEOPLE, NUM_IMAGES = 10, 60  # six images of each: three templates of two
LABELS = np.arange(NUM_IMAGES) // 6
TEMPLATES = np.arange(NUM_IMAGES) // 2 + 100


def jpeg(place: int) -> bytes:
    image = np.random.default_rng(place).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(image, quality=95)


def lists() -> dict[str, list[tuple[object, ...]]]:
    """Template 3k is a gallery's, 3k + 1 and 3k + 2 are probes; people 0 to 4 are in the first gallery."""
    ids = list(range(100, 130))
    of = {template: (template - 100) // 3 for template in ids}
    gallery = [template for template in ids if (template - 100) % 3 == 0]
    probes = [template for template in ids if template not in gallery]
    return {
        "templates": [(int(t), i, f"k{i}.jpg") for i, t in enumerate(TEMPLATES)],
        "template_pairs": [(a, b, int(of[a] == of[b])) for a in gallery for b in probes],
        "gallery_1": [(t, f"id{of[t]}") for t in gallery[:5]],
        "gallery_2": [(t, f"id{of[t]}") for t in gallery[5:]],
        "probes": [(t, f"id{of[t]}") for t in probes],
    }


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark"
    samples = [(f"k{i}", int(LABELS[i]), jpeg(i)) for i in range(NUM_IMAGES)]
    names = [f"id{i}" for i in range(NUM_PEOPLE)]
    write_dataset(folder / "test", samples, name="test", identities=names, image_size=(32, 32))
    heads = {"templates": "template,media,path", "template_pairs": "template_a,template_b,is_same"}
    for name, rows in lists().items():
        lines = [heads.get(name, "template,identity"), *(",".join(map(str, row)) for row in rows)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def ijb(tmp_path: Path) -> Path:
    """The same lists as IJB-C's meta files; the images are 60 x 60 with the face at their centre."""
    root = tmp_path / "release" / "IJBC"
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    points = " ".join(f"{value:.3f}" for value in (TEMPLATE * 60 / 112).ravel())
    for i in range(NUM_IMAGES):
        image = np.random.default_rng(i).integers(0, 255, (60, 60, 3), dtype=np.uint8)
        (root / "loose_crop" / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(image))
    given, meta = lists(), root / "meta"
    faces = [f"{i}.jpg {t} {m}" for i, (t, m, _) in enumerate(given["templates"])]
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(faces) + "\n")
    scores = [f"{i}.jpg {points} {0.5 + i / 200}" for i in range(NUM_IMAGES)]
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(scores) + "\n")
    pairs = [" ".join(map(str, row)) for row in given["template_pairs"]]
    (meta / "ijbc_template_pair_label.txt").write_text("\n".join(pairs) + "\n")
    files = {"gallery_1": "gallery_G1", "gallery_2": "gallery_G2", "probes": "probe_mixed"}
    for name, file in files.items():
        rows = [f"{t},{subject[2:]},{k}.jpg" for t, subject in given[name] for k in range(2)]  # a row for each image
        (meta / f"ijbc_1N_{file}.csv").write_text("\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows]) + "\n")
    return root


def embedded() -> Embedded:
    random = np.random.default_rng(1)
    rows = random.normal(size=(NUM_PEOPLE, 6))[LABELS] + random.normal(size=(NUM_IMAGES, 6))
    norms = np.linalg.norm(rows, axis=1)
    return Embedded((rows / norms[:, None]).astype(np.float32), norms.astype(np.float32))


def wanted(keep_norm: bool, weights: object = None) -> dict[str, object]:
    """The figures by the pure functions."""
    found = embedded()
    raw = found.embeddings.astype(np.float64) * (found.norms[:, None] if keep_norm else 1)
    features, ids = template_features(raw, TEMPLATES, np.arange(NUM_IMAGES), weights, keep_norm)
    of = dict(zip(ids.tolist(), features, strict=True))
    given = lists()
    scores = np.array([of[a] @ of[b] for a, b, _ in given["template_pairs"]])
    same = np.array([is_same == 1 for *_, is_same in given["template_pairs"]])
    probe, probe_ids = [of[t] for t, _ in given["probes"]], [name for _, name in given["probes"]]
    by_gallery = {
        name: identify(probe, probe_ids, [of[t] for t, _ in given[name]], [name for _, name in given[name]])
        for name in ("gallery_1", "gallery_2")
    }
    unmated = [sum(name not in {name for _, name in given[own]} for name in probe_ids) for own in by_gallery]
    assert all(10 <= count < 100 for count in unmated)  # of the FPIRs .01 and .1 they resolve the second
    by_gallery = {name: (ranks.tolist(), [None, tpir[1]]) for name, (ranks, tpir) in by_gallery.items()}
    both = [row for name in by_gallery for row in given[name]]
    together = identify(probe, probe_ids, [of[t] for t, _ in both], [name for _, name in both])
    return {
        "tar": tar_at_far(scores[same], scores[~same], [0.1, 0.01]).tolist(),
        "rank": together[0].tolist(),
        "galleries": by_gallery,
        "tpir": [None, np.mean([tpir[1] for _, tpir in by_gallery.values()])],
    }


def figures_of(figures: dict[str, object], names: tuple[str, str]) -> dict[str, object]:
    found = figures["identification"]
    return {
        "tar": [figures["tar_at_far"][far] for far in ("1e-01", "1e-02")],
        "rank": list(found["rank"].values()),
        "galleries": {
            name: (list(found[own]["rank"].values()), list(found[own]["tpir_at_fpir"].values()))
            for name, own in zip(("gallery_1", "gallery_2"), names, strict=True)
        },
        "tpir": list(found["tpir_at_fpir"].values()),
    }


@pytest.mark.parametrize("keep_norm", [False, True])
def test_template_protocol_of_a_benchmark_equals_the_functions(benchmark: Path, keep_norm: bool) -> None:
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(benchmark), keep_norm=keep_norm), image_size=32)
    assert protocol.num_images == NUM_IMAGES
    result = protocol.score(embedded())
    figures = result.figures()
    assert figures_of(figures, ("gallery_1", "gallery_2")) == wanted(keep_norm)
    assert (figures["num_pairs"], figures["num_templates"], figures["num_left_out"]) == (200, 30, 0)
    assert figures["tar_at_far"]["1e-03"] is None
    assert result.not_measured["tar_at_far.1e-03"] == "180 impostor pairs resolve no FAR below 5.6e-03"
    assert result.main_figure == figures["tar_at_far"]["1e-02"]


@pytest.mark.parametrize("face_scores", [False, True])
def test_template_protocol_of_ijb_equals_the_functions(ijb: Path, face_scores: bool) -> None:
    given = EvaluateConfig(ijb=str(ijb.parent), target="IJBC", face_scores=face_scores)
    protocol = TemplateProtocol.open(TemplateProtocol.settings_of(given), image_size=32)
    weights = 0.5 + np.arange(NUM_IMAGES) / 200 if face_scores else None
    assert figures_of(protocol.score(embedded()).figures(), ("G1", "G2")) == wanted(True, weights)
    images, readable = protocol.read_readable(0, NUM_IMAGES)
    assert images.shape == (NUM_IMAGES, 32, 32, 3)
    assert readable.all()
    assert images[0].std() > 10
    assert len(protocol.digest) == 64


def test_template_protocol_of_ijb_with_an_image_written_anew_has_another_digest(ijb: Path) -> None:
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(ijb), target="IJBC"), image_size=32)
    image = ijb / "loose_crop" / "7.jpg"
    before, folder = protocol.digest, image.parent.stat().st_mtime_ns
    assert protocol.digest == before
    with image.open("r+b") as file:
        file.write(jpeg(99))
    os.utime(image, ns=(0, 0))
    assert image.parent.stat().st_mtime_ns == folder
    assert protocol.digest != before


def test_template_protocol_of_ijb_with_subjects_of_digits_reads_them_as_text(ijb: Path) -> None:
    meta, head = ijb / "meta", "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    (meta / "ijbc_1N_gallery_G1.csv").write_text(head + "100,0045,a.jpg\n103,7,b.jpg\n")
    (meta / "ijbc_1N_probe_mixed.csv").write_text(head + "101,0045,a.jpg\n104,x7,b.jpg\n")
    lists, _ = read_ijb(ijb, "IJBC")
    assert lists.galleries["G1"][1].tolist() == ["0045", "7"]
    assert lists.probes[1].tolist() == ["0045", "x7"]


def test_template_protocol_of_ijb_without_any_of_its_images_is_refused(ijb: Path) -> None:
    for image in (ijb / "loose_crop").iterdir():
        image.rename(image.with_suffix(".jpeg"))
    refused = rf"^evaluate.ijb: {ijb}/loose_crop: has none of \d+ listed images, such as \S+.jpg: must hold them$"
    with pytest.raises(DataError, match=refused):
        TemplateProtocol.open(TemplateSettings(folder=str(ijb), target="IJBC"), image_size=32)


def test_template_protocol_with_an_unreadable_image_leaves_it_out(ijb: Path) -> None:
    (ijb / "loose_crop" / "1.jpg").write_bytes(b"no picture")
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(ijb), target="IJBC"), image_size=32)
    assert np.flatnonzero(~protocol.read_readable(0, 5)[1]).tolist() == [1]
    given = embedded()
    given.embeddings[[0, 1]] = 0  # all images of a gallery's template
    figures = protocol.score(given).figures()
    assert (figures["num_left_out"], figures["num_templates"], figures["num_pairs"]) == (2, 29, 180)


def test_template_protocol_with_templates_that_cancel_out_names_them_and_leaves_them_out(benchmark: Path) -> None:
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(benchmark)), image_size=32)
    given, without = embedded(), embedded()
    given.embeddings[[3, 7]], given.norms[[3, 7]] = -given.embeddings[[2, 6]], given.norms[[2, 6]]
    without.embeddings[[2, 3, 6, 7]] = 0
    result, wanted = protocol.score(given), protocol.score(without)
    assert result.figures() == wanted.figures() | {"num_left_out": 0}
    assert result.not_measured["templates"].startswith(
        "template 101: its weighted images sum to 0, and it is left out with its pairs, as 2 of 30 templates are: check"
    )


@pytest.mark.parametrize("path", ["../../private.png", "/private.png", "link.png", "a\0.png"])
def test_template_protocol_of_images_outside_of_the_folder_reads_none(ijb: Path, path: str) -> None:
    image = simplejpeg.encode_jpeg(np.full((60, 60, 3), 200, np.uint8))
    (ijb.parent / "private.png").write_bytes(image)
    folder = ijb / "loose_crop"
    (folder / "link.png").symlink_to(ijb.parent / "private.png")
    names = [path if path[0] != "/" else f"{ijb.parent}{path}", "1.jpg"]
    loose = LooseImages(folder=folder, names=names, landmarks=np.stack([TEMPLATE * 60 / 112] * 2))
    assert loose.read(0, 2, 112)[1].tolist() == [False, True]


def test_template_protocol_without_a_readable_image_gives_no_figure(ijb: Path) -> None:
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(ijb), target="IJBC"), image_size=32)
    for result in (
        protocol.score(embedded()._replace(embeddings=np.zeros((NUM_IMAGES, 6), np.float32))),
        protocol.score_without(np.ones(NUM_IMAGES, bool), embedded()),
    ):
        assert result.not_measured["tar_at_far"] == "no image of 60 has an embedding"
        assert result.figures()["num_left_out"] == NUM_IMAGES
        assert np.isnan(result.main_figure)


def test_template_protocol_of_a_release_without_its_images_is_refused(ijb: Path) -> None:
    (ijb / "loose_crop").rename(ijb / "elsewhere")
    with pytest.raises(DataError, match=r"^evaluate.ijb: .*IJBC: has no folder loose_crop beside meta") as caught:
        TemplateProtocol.open(TemplateSettings(folder=str(ijb.parent), target="IJBC"), image_size=32)
    assert "\n" not in str(caught.value)


def test_template_protocol_of_nan_or_without_norms_gives_no_figure(benchmark: Path) -> None:
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(benchmark)), image_size=32)
    given = embedded()
    with pytest.raises(ValueError, match=r"^evaluate.keep_norm: the embeddings have no norms"):
        protocol.score(Embedded(given.embeddings, np.full(NUM_IMAGES, np.nan, np.float32)))
    given.embeddings[3] = np.nan
    result = protocol.score(given)
    assert result.not_measured["identification"].startswith("1 of 60 embeddings are NaN")
    assert np.isnan(result.main_figure)


def test_template_protocol_of_a_gallery_with_all_probes_says_that_there_is_no_fpir(benchmark: Path) -> None:
    text = (benchmark / "gallery_2.csv").read_text().partition("\n")[2]
    (benchmark / "gallery_1.csv").open("a").write(text)
    protocol = TemplateProtocol.open(TemplateSettings(folder=str(benchmark)), image_size=32)
    result = protocol.score(embedded())
    assert result.not_measured["identification.gallery_1.tpir_at_fpir"].startswith("every probe has a mate")
    assert result.figures()["identification"]["gallery_1"]["tpir_at_fpir"] == {"0.01": None, "0.1": None}


def test_evaluate_of_a_benchmark_embeds_its_images_once(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    save_small_model(tmp_path / "model")
    rows = [f"k{i}.jpg,k{i + 1}.jpg,{int(LABELS[i] == LABELS[i + 1])},{i % 2}" for i in range(NUM_IMAGES - 1)]
    (benchmark / "pairs.csv").write_text("\n".join(["path_a,path_b,is_same,fold", *rows]))
    pairs = [f"--pairs={benchmark / 'pairs.csv'}", f"--data={benchmark / 'test'}"]
    options = [f"--model={tmp_path / 'model'}", f"--templates={benchmark}", f"--out={tmp_path / 'out'}"]
    assert _outcome(["evaluate", *options, *pairs, "--json"]) == (0, "")
    output = capsys.readouterr()
    assert output.err.count("embed images: started") == 1
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(written["protocols"]) == ["pairs", "templates"]
    assert 0 <= written["protocols"]["templates"]["identification"]["rank"]["1"] <= 1


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("templates.csv", "template,path\n1,k0.jpg\n", "templates.csv: has no column media"),
        ("templates.csv", "template,media,path\n1,0,k99.jpg\n", "templates.csv name k99.jpg, not found in"),
        ("probes.csv", "template,identity\nx,id1\n", "probes.csv: cannot be read"),
        ("probes.csv", "template,identity\n101,id0\n101,id1\n", "template 101: has the identities 'id0', 'id1': must"),
        ("probes.csv", "template,identity\n101,\n", "template 101: has the identities '': must have one"),
        ("probes.csv", "template,identity\n7,id1\n", "probes: no template has an image, for example 7: give lists"),
        ("templates.csv", "template,media,path\n100,,k0.jpg\n", "templates.csv: row 1: has no media"),
        ("templates.csv", "template,template,path\n1,0,k0.jpg\n", "templates.csv: has .*template"),
        ("templates.csv", "template,media,path\n", "lists no image of a template"),
        ("template_pairs.csv", "template_a,template_b,is_same\n100,101,-1\n", "pair 1: is -1: must be 1 for the same"),
    ],
)
def test_template_protocol_of_lists_that_do_not_fit_is_refused(
    benchmark: Path, file: str, text: str, words: str
) -> None:
    (benchmark / file).write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        TemplateProtocol.open(TemplateSettings(folder=str(benchmark)), image_size=32)
    assert "\n" not in str(caught.value)


def test_template_protocol_of_a_gallery_with_repeated_entries_counts_each_once(benchmark: Path) -> None:
    wanted = TemplateProtocol.open(TemplateSettings(folder=str(benchmark)), image_size=32).score(embedded()).figures()
    rows = (benchmark / "gallery_1.csv").read_text().partition("\n")[2]
    (benchmark / "gallery_1.csv").open("a").write(rows)
    repeated = TemplateProtocol.open(TemplateSettings(folder=str(benchmark)), image_size=32)
    assert repeated.score(embedded()).figures() == wanted


def test_template_protocol_of_ijb_reads_templates_and_subjects_by_their_names(ijb: Path) -> None:
    wanted, _ = read_ijb(ijb, "IJBC")
    path = ijb / "meta" / "ijbc_1N_gallery_G1.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(f"{name},{subject},{template}" for template, subject, name in rows))
    found, _ = read_ijb(ijb, "IJBC")
    for one, other in zip(found.galleries["G1"], wanted.galleries["G1"], strict=True):
        assert one.tolist() == other.tolist()


def test_template_protocol_of_ijb_with_a_score_that_is_no_number_names_the_image(ijb: Path) -> None:
    path = ijb / "meta" / "ijbc_name_5pts_score.txt"
    path.write_text(path.read_text().replace(" 0.505\n", " nan\n"))
    with pytest.raises(DataError, match=r"^evaluate.ijb: .*: 1.jpg: has the score nan: correct it, or set"):
        TemplateProtocol.open(TemplateSettings(folder=str(ijb), target="IJBC"), image_size=32)
    TemplateProtocol.open(TemplateSettings(folder=str(ijb), target="IJBC", face_scores=False), image_size=32)


def test_template_protocol_of_a_folder_without_lists_names_the_verb_that_writes_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"templates\.csv: does not exist: .*`rayface benchmark make`"):
        TemplateProtocol.open(TemplateSettings(folder=str(tmp_path)), image_size=32)


def test_template_protocol_of_no_release_or_two_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^evaluate.ijb: .*has no folder meta, nor has IJBB in it"):
        TemplateProtocol.open(TemplateSettings(folder=str(tmp_path), target="IJBB"), image_size=32)
    with pytest.raises(ValueError, match=r"both are set"):
        TemplateProtocol.settings_of(EvaluateConfig(ijb="a", templates="b"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "IJBB"}, r"^evaluate.target: 'IJBB': has no effect: must be with evaluate.ijb, or left out$"),
        ({"templates": "b", "face_scores": False}, r"^evaluate.face_scores: False: has no effect: must be with "),
        ({"keep_norm": False}, r"^evaluate.keep_norm: False: has no effect: must be with evaluate.templates or "),
    ],
)
def test_template_protocol_with_a_setting_of_no_effect_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemplateProtocol.settings_of(EvaluateConfig(**given))
