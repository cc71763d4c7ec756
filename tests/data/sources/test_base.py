"""The interface of sources: a plugin's source goes through `rayface convert`; converted bytes stay the same."""

import base64
import hashlib
import io
import json
import pickle
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayface import plugins
from rayface.bench.source_files import WRITERS
from rayface.cli.command_line import _outcome
from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import SOURCES, PartListing, SourceSettings, open_source
from rayface.data.sources.folder import FolderSettings
from tests.data.scanned_tars import picture
from tests.data.sources.rec_files import insightface
from tests.data.sources.test_webface_zip import archive

ROOT = Path(__file__).parents[3]
# A grey JPEG of 112 x 112 pixels.
GREY = zlib.decompress(
    base64.b85decode(
        "c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I?pTn}?5wOMs7;Pe@QeSVBWeLQG7;P+3)0!^+s!#?sir+`%Kp&%q_!)!ZT=H!wUtDLo_I"
        "&bP3#Af+NEH9h(N0S0akh608HMn*w~|3?_)frhg(f&l{*FfuW-u(GjpaB^`26>Jq?U}9uuW@2GxWo2Oj%GLtq8CV2ag%k}P*@OcV"
        "*_8@Kj2b5{<WP3ncu+Lx;s+Juq@pHHE-`TlNhwt|bq!4|6H_yD3rj0!7gslT4^OY)kkGL3h{&kql+?8JjLfX!lG3vBipr|yme#iR"
        "j?S)0lc!9bHhsp-S&J4gS-Ncbij}K2ZQinV+x8thcO5!><mj>ECr+Nabot8FYu9hwy!G(W<0ns_J%91?)yGetzkL1n{m0K=|8FsH"
        "fc#_6ps}cHu%Z7q0T7z8`~"
    )
)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(plugins, "_entry_points", lambda: ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = dict(SOURCES)
    yield
    SOURCES.clear()
    SOURCES.update(before)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def marked(number: int) -> bytes:
    """Return the grey JPEG with its number in a comment."""
    return GREY[:2] + b"\xff\xfe\x00\x06%04d" % number + GREY[2:]


def digest(dataset: Dataset) -> str:
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in dataset.shard_paths())).hexdigest()[:16]


@pytest.mark.parametrize(
    ("layout", "expected"), [("shuffled", "334398e3552900e7"), ("by_identity", "7d026e676ef67593")]
)
def test_folder_converted_with_a_seed_gives_the_recorded_bytes(tmp_path: Path, layout: str, expected: str) -> None:
    for n in range(60):
        path = tmp_path / "in" / f"id {n % 7}" / f"{n}.{n % 2}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(marked(n))
    settings = ConvertSettings(layout=layout, seed=3, shard_size=50_000)  # type: ignore[arg-type]
    dataset = convert(open_source("folder", tmp_path / "in"), tmp_path / "out", settings)
    assert len(dataset.shards) > 1
    assert digest(dataset) == expected


@pytest.mark.parametrize(
    ("layout", "expected"), [("shuffled", "746bd1f4c48a5c52"), ("by_identity", "0200a3cf7142d0bb")]
)
def test_webdataset_converted_with_a_seed_gives_the_recorded_bytes(tmp_path: Path, layout: str, expected: str) -> None:
    for number, name in enumerate(("a.tar", "more/b.tar.gz")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tmp_path / "in" / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for n in range(30):
                for suffix, data in (("jpg", marked(30 * number + n)), ("cls", b"%d" % (9 * (n % 5) + number))):
                    info = tarfile.TarInfo(f"{n}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    settings = ConvertSettings(layout=layout, seed=3, shard_size=50_000)  # type: ignore[arg-type]
    dataset = convert(open_source("webdataset", tmp_path / "in"), tmp_path / "out", settings)
    assert len(dataset.shards) > 1
    assert digest(dataset) == expected


def test_documented_source_of_a_plugin_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    (example,) = re.findall(r"## A source of images.*?```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_source.py").write_text(example)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for part in range(2):
        np.savez(tmp_path / f"{part}.npz", images=pixels[6 * part : 6 * part + 6], labels=[7, 7, 900, 7, 900, 5])
    code, message = _outcome(["convert", ".", "out", "--import", "my_source", "--from", "mine", "--json"])
    assert (code, message) == (0, "")
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["identities"], told["left_out"]) == (12, 3, {})
    dataset = open_dataset(tmp_path / "out")
    samples = {s.key: s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)}
    assert [samples[f"1/{row:06d}"].label for row in range(6)] == [1, 1, 2, 1, 2, 0]
    assert dataset.about.source == f"mine {tmp_path.name}"


def test_plugin_that_fails_for_one_image_names_it_as_a_fault(tmp_path: Path) -> None:
    (tmp_path / "half_source.py").write_text(
        "import pyarrow as pa\n"
        "from rayface.data.sources import SOURCES, DatasetSource, PartListing, SourceImage\n"
        "class Half(DatasetSource):\n"
        "    kind = 'half'\n"
        "    def parts(self):\n"
        "        return ['only']\n"
        "    def list_images(self, part):\n"
        "        return PartListing(images=pa.table({'key': ['a', 'b', 'c'], 'identity': ['ann', 'ann', 'bob']}))\n"
        "    def read(self, part, images):\n"
        "        for key in images['key'].to_pylist():\n"
        "            yield SourceImage(b'no image', 'file', key, 7) if key == 'b' else SourceImage(GREY, 'file', key)\n"
        f"GREY = {GREY!r}\n"
        "SOURCES['half'] = Half\n"
    )
    plugins.load_plugins(["half_source"])
    dataset = convert(open_source("half", tmp_path), tmp_path / "out")
    assert (dataset.identities, sorted(dataset.keys())) == (("ann", "bob"), ["a", "c"])
    assert [(fault.shard, fault.member, fault.offset, fault.kind) for fault in dataset.faults] == [
        ("file", "b", 7, "unreadable")
    ]


def test_open_source_of_an_unknown_kind_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"convert.kind: 'tape': must be one of bin, .*folder, .*, or registered by"):
        open_source("tape", "src")


def test_open_source_with_options_sets_its_settings() -> None:
    assert open_source("folder", "src").settings == FolderSettings(image_size=112, quality=95)
    options = {"image_size": 64, "quality": 80}
    assert open_source("folder", "src", options).settings == FolderSettings(image_size=64, quality=80)
    assert open_source("webdataset", "src", {"image_size": None}).settings == SourceSettings()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 3}, "convert.options.side: folder has no such setting: it has image_size, quality"),
        ({"quality": 0}, "convert.options.quality 0: must be from 1 to 100"),
        ({"quality": "high"}, "convert.options.quality: 'high': input should be a valid integer"),
    ],
)
def test_open_source_with_an_invalid_option_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_source("folder", "src", options)
    assert "\n" not in str(caught.value)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size 0: must be at least 1"):
        SourceSettings(image_size=0)
    with pytest.raises(ValueError, match="quality 101: must be from 1 to 100"):
        SourceSettings(quality=101)


@pytest.mark.parametrize("columns", [{"key": ["a"]}, {"key": ["a", None], "identity": [1, 2]}])
def test_listing_without_keys_or_identities_is_refused(columns: dict[str, list[object]]) -> None:
    with pytest.raises(ValueError, match=r"must have a column '(key|identity)' without nulls"):
        PartListing(images=pa.table(columns))


@pytest.mark.parametrize("kind", WRITERS)
def test_source_that_is_pickled_after_prepare_lists_and_reads_the_same(kind: str, tmp_path: Path) -> None:
    """Tasks on other machines get copies."""
    samples = [Sample(f"{n}", n % 2, picture(n, "jpg"), 0, 0) for n in range(6)]
    source = open_source(kind, WRITERS[kind](tmp_path, samples))
    source.prepare("")
    copy = pickle.loads(pickle.dumps(source))
    found = []
    for part in range(len(copy.parts())):
        listing = copy.list_images(part).images
        assert listing.equals(source.list_images(part).images)
        found += [image.data for image in copy.read(part, listing)]
    assert sorted(found) == sorted(sample.jpeg for sample in samples)


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("rec", "a.rec", insightface([(0, GREY)]).data),
        ("webface-zip", "a.zip", archive({"ada/0.jpg": GREY})),
    ],
)
def test_convert_of_a_folder_with_archives_in_sub_folders_names_those(
    tmp_path: Path, kind: str, name: str, data: bytes
) -> None:
    for folder in ("in", "in/more/deep", "in/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_bytes(data)
    dataset = convert(open_source(kind, tmp_path / "in"), tmp_path / "out")
    assert [(fault.kind, fault.shard) for fault in dataset.faults] == [("not read", f"{tmp_path}/in/more/deep/{name}")]
    assert dataset.num_images == 1
