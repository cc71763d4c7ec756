"""Several dataset directories as one: names, index, description and digest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.data.directory import Part
from rayface.data.joint import distinct_names, join_descriptions, join_indices, join_parts, joint_digest
from rayface.data.manifest import Manifest, Parent, ShardEntry, digest_of
from rayface.storage import DataError


def part(root: str, labels: list[int], identities: list[str] | None = None, **about: Any) -> Part:
    """A directory of one shard."""
    rows = np.arange(len(labels))
    entry = ShardEntry(path="a.tar", num_images=len(labels), num_bytes=9, sha256=root)
    facts = {"name": Path(root).name, "num_classes": len(identities or ()) or max(labels) + 1, **about}
    columns = {
        "label": np.array(labels, np.int32),
        "shard": np.zeros(len(labels), np.int32),
        "offset": 512 * rows,
        "num_bytes": np.full(len(labels), 512, np.int32),
    }
    manifest = Manifest(num_images=len(labels), shards=[entry], **facts)
    return Part(root=root, manifest=manifest, columns=columns, keys_file="index.parquet", identities=identities)


@pytest.mark.parametrize(
    ("roots", "names"),
    [
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/faces", "/y/faces"], ["x/faces", "y/faces"]),
        (["s3://ID:secret@one/faces?region=x", "s3://ID:secret@two/faces?region=x"], ["one/faces", "two/faces"]),
        (["s3://one/faces?endpoint_override=a", "s3://one/faces?endpoint_override=b"], ["0", "1"]),
        (["/a", "/x/a"], ["0", "1"]),
    ],
)
def test_distinct_names_of_directories_are_the_shortest_that_differ(roots: list[str], names: list[str]) -> None:
    assert distinct_names(roots) == names


def test_join_parts_without_names_that_share_labels_is_refused_with_their_names() -> None:
    with pytest.raises(
        DataError, match=r"^data.join: is not set, and 2 labels are .* x/set, y/set, and x/set has no"
    ) as e:
        join_parts([part("/x/set", [0, 1]), part("/y/set", [0, 1])], None)
    assert "\n" not in str(e.value)


def test_join_indices_of_named_parts_numbers_shards_and_labels_anew() -> None:
    parts = [part("/x/a", [0, 1], ["ann", "bob"]), part("/x/b", [0, 1, 1], ["bob", "cy"])]
    joined = join_parts(parts, None)
    index = join_indices(parts, joined.maps)
    assert index.shard.tolist() == [0, 0, 1, 1, 1]
    assert index.label.tolist() == [0, 1, 1, 2, 2]
    assert index.source_label.tolist() == [0, 1, 0, 1, 1]
    assert index.offset.tolist() == [0, 512, 0, 512, 1024]


def test_join_indices_of_one_part_keeps_its_columns() -> None:
    own = part("/x/a", [0, 1])
    label = own.columns["label"]
    index = join_indices([own], [None])
    assert index.label is label
    assert index.source_label is label


def test_join_descriptions_of_parts_that_differ_keeps_what_they_share() -> None:
    shared = {"image_size": (32, 32), "licence": "CC0"}
    same = [part(f"/x/{name}", [0], layout="shuffled", **shared) for name in "ab"]
    found = join_descriptions(same)
    assert (found.name, found.image_size, found.layout, found.licence) == ("a+b", (32, 32), "shuffled", "CC0")
    mixed = [same[0], part("/x/c", [0], layout="by_identity", image_size=(64, 64), licence="mine")]
    found = join_descriptions(mixed)
    assert (found.image_size, found.layout, found.licence) == (None, "by_identity", "CC0; mine")
    parent = Parent(path="/x", digest="d")
    alone = part("/x/d", [0], parent=parent)
    assert join_descriptions([alone]).parent == parent
    assert join_descriptions([alone, same[0]]).parent is None


def test_joint_digest_of_other_parts_modes_or_names_differs() -> None:
    def digest(mode: Any, *names: list[str]) -> str:
        parts = [part(f"/x/{n}", [0, 1], each) for n, each in enumerate(names)]
        return joint_digest(parts, join_parts(parts, mode))

    digests = [
        digest("names", ["ann", "bob"], ["bob", "cy"]),
        digest("names", ["ann", "bob"], ["cy", "bob"]),
        digest("labels", ["ann", "bob"], ["bob", "cy"]),
        digest("separate", ["ann", "bob"], ["bob", "cy"]),
    ]
    assert len(set(digests)) == 4
    apart = ["ann", "bob"], ["cy", "di"]
    assert digest("names", *apart) != digest("separate", *apart)  # of equal label maps
    assert digest(None, ["ann", "bob"]) == digest(None, ["cy", "bob"])  # of one directory, its shards alone


def test_joint_digest_of_one_part_is_its_own_unless_its_names_become_one_and_of_several_is_of_all() -> None:
    one, two = part("/x/a", [0, 1]), part("/x/b", [2, 3])
    assert joint_digest([one], join_parts([one], None)) == digest_of(one.manifest)
    for mode in ("labels", "separate"):
        found = joint_digest([one, two], join_parts([one, two], mode))
        assert found not in (digest_of(one.manifest), digest_of(two.manifest))
    twice = part("/x/a", [0, 1], ["\u00e9", "e\u0301"])  # composed and not
    assert digest_of(twice.manifest) == digest_of(one.manifest)
    assert joint_digest([twice], join_parts([twice], None)) != digest_of(one.manifest)
