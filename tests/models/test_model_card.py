"""The card beside a model: what it says of the net, the data, the figures and the use."""

from dataclasses import replace

from rayface.models.model_card import CARD, card, write_card
from rayface.models.model_info import ModelInfo
from rayface.models.threshold_card import threshold_rows

INFO = ModelInfo(backbone="r50", embedding_size=512, image_size=112, sha256="abc")


def test_card_of_a_bare_model_says_what_is_not_known() -> None:
    text = card(INFO)
    assert text.startswith("# Face embeddings by r50\n")
    assert "| backbone | r50 |" in text
    assert "| licence of the training data | not stated |" in text
    assert "| digest of the training data | `unknown` |" in text
    assert "Nothing is recorded." in text
    assert "onnxruntime" not in text


def test_card_with_backbone_arguments_leaves_out_those_that_are_none() -> None:
    text = card(replace(INFO, backbone_args={"width": 0.25, "dropout": None, "mask_ratio": 0.1}))
    assert "| backbone | r50 (width 0.25, mask_ratio 0.1) |" in text


def test_card_with_nested_metrics_has_a_row_for_each_number() -> None:
    metrics = {"accuracy_mean": 0.98765, "num_pairs": 6000, "tar": {"at_far_1e-4": 0.5}}
    text = card(replace(INFO, metrics=metrics))
    for row in (
        "| metric | value |",
        "| accuracy_mean | 0.9877 |",
        "| num_pairs | 6000 |",
        "| tar at_far_1e-4 | 0.5000 |",
    ):
        assert row in text
    assert "Nothing is recorded." not in text


def test_card_with_intervals_shows_them_beside_the_values_and_thresholds_in_a_table() -> None:
    metrics = {
        "accuracy_mean": 0.9,
        "accuracy_interval": [0.88, 0.92],
        "tar_at_far": {"1e-02": 0.7},
        "tar_at_far_interval": {"1e-02": [0.65, 0.75]},
        "threshold_at_far": {"1e-02": 0.31},
        "threshold_at_far_interval": {"1e-02": [0.3, 0.33]},
    }
    text = card(replace(INFO, metrics=metrics, thresholds=threshold_rows(metrics)))
    assert "| accuracy_mean | 0.9000 [0.8800, 0.9200] |" in text
    assert "| tar_at_far 1e-02 | 0.7000 [0.6500, 0.7500] |" in text
    assert "threshold_at_far" not in text
    assert "| 1e-02 | 0.3100 [0.3000, 0.3300] | 0.7000 [0.6500, 0.7500] |" in text
    assert "## Thresholds" not in card(INFO)


def test_card_of_an_onnx_file_shows_onnxruntime_with_its_name() -> None:
    text = card(INFO, "net.onnx")
    assert 'load_model("net.onnx")' in text
    assert 'InferenceSession("net.onnx")' in text


def test_write_card_with_a_secret_in_it_masks_it_and_replaces_an_older_card(tmp_path) -> None:
    (tmp_path / CARD).write_text("old")
    write_card(tmp_path, replace(INFO, backbone_args={"weights": "s3://key:secret@bucket/net"}))
    text = (tmp_path / CARD).read_text()
    assert "r50" in text
    assert "secret" not in text
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_card_of_values_with_markdown_and_html_shows_them_as_plain_text() -> None:
    evil = "MIT |\n\n# Install\n\n```bash\nrun\n```\n<img src=x> [a](http://b) &lt;"
    figures = {"threshold_at_far": {evil: 0.3}, "groups": {"race": {evil: {"threshold_at_far": {"1e-03": 0.2}}}}}
    names = ("backbone", "licence", "training_digest", "network", "normalisation", "sha256", "image_size")
    info = replace(INFO, **dict.fromkeys(names, evil), metrics={evil: evil}, thresholds=threshold_rows(figures))
    text = card(info)
    shown = (
        "MIT &#124; &#35; Install &#96;&#96;&#96;bash run &#96;&#96;&#96; &lt;img src=x&gt; &#91;a](http://b) &amp;lt;"
    )
    assert f"| licence of the training data | {shown} |" in text
    assert f"| {shown} | {shown} |" in text  # a metric
    assert "<img" not in text
    assert text.count("```") == 2
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == [
        "## Measured",
        "## Thresholds",
        "## Use",
    ]
