"""Credentials in URIs: what is masked, what is not, and what a masked URI is opened with."""

import contextlib
import dataclasses
import json
import shlex

import pytest
from pyarrow import fs

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import is_masked, mask, masked, openable, recall, unmasked
from rayface.data.manifest import Manifest, ShardEntry, digest_of
from rayface.files import write_json
from rayface.tracking import Journal
from rayface.tuning import spec as specs
from rayface.tuning.resume import remember, resume_sweep
from rayface.tuning.spec import Spec
from rayface.tuning.sweep_directory import SPEC

PLANTED = "s3://AKIAHUNTER2:hunter2/with@signs@bucket/faces?region=eu&token=hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to http://me:secret@host:1/x failed", "to http://***@host:1/x failed"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("s3://KEY:SECRET@bucket/a.tar?region=eu", "s3://***@bucket/a.tar?region=eu"),
        ("s3://KEY:se/cr/et@bucket/a", "s3://***@bucket/a"),
        ("s3://KEY:1/2@bucket/a", "s3://***@bucket/a"),
        ("mysql://me:p@ss@host/db", "mysql://***@host/db"),
        ("mysql://me:p@s/s@host/db", "mysql://***@host/db"),
        ("mysql://me@firm.com:p?s#s@host/db", "mysql://***@host/db"),
        ("'s3://K:pa'ss@bucket'", "'s3://***@bucket'"),
        ("[s3://K:S@a/x,s3://L:T@b/y]", "[s3://***@a/x,s3://***@b/y]"),
        ("abfss://data:pass@account.net/x", "abfss://data:***@account.net/x"),
        ("https://h/x?password=a@b&user=me", "https://h/x?password=***&user=me"),
        ("https://h/x?a=1&token=t&X-Amz-Signature=f0&z=1", "https://h/x?a=1&token=***&X-Amz-Signature=***&z=1"),
        ("h?access_key=A&secret_key=B&sig=D", "h?access_key=***&secret_key=***&sig=***"),
        ("h?X-Amz-Credential=A&AWSAccessKeyId=B", "h?X-Amz-Credential=***&AWSAccessKeyId=***"),
        ("h?X-Amz-Security-Token=A&sslpassword=C", "h?X-Amz-Security-Token=***&sslpassword=***"),
    ],
)
def test_mask_of_a_uri_with_a_secret_hides_it(text, shown):
    assert mask(text) == shown
    assert mask(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "http://h/?pass=S&pw=S&passphrase=S&jwt=S&sas=S&a=b",
            "http://h/?pass=***&pw=***&passphrase=***&jwt=***&sas=***&a=b",
        ),
        ("env MLFLOW_TRACKING_PASSWORD=S was refused", "env MLFLOW_TRACKING_PASSWORD=*** was refused"),
        ("{'Authorization': 'Bearer S.s-S'}", "{'Authorization': 'Bearer ***'}"),
        ("WANDB_API_KEY=S python x.py", "WANDB_API_KEY=*** python x.py"),
        ("MLFLOW_TRACKING_PASSWORD='S S' rayface", "MLFLOW_TRACKING_PASSWORD='***' rayface"),
        ('MLFLOW_TRACKING_PASSWORD="S \\" S" rayface', 'MLFLOW_TRACKING_PASSWORD="***" rayface'),
        ("MLFLOW_TRACKING_PASSWORD='S", "MLFLOW_TRACKING_PASSWORD='***"),
        (shlex.join(["env", "A_TOKEN=S 'S' S", "x"]), "env 'A_TOKEN=***' x"),
        ('["A_TOKEN=S S", "x"]', '["A_TOKEN=***", "x"]'),
        ("{'AWS_SECRET_ACCESS_KEY': 'S S', 'x': 'y'}", "{'AWS_SECRET_ACCESS_KEY': '***', 'x': 'y'}"),
        ('{"AZURE_STORAGE_KEY" : "S"}', '{"AZURE_STORAGE_KEY" : "***"}'),
        ("AZURE_STORAGE_KEY: 'S'", "AZURE_STORAGE_KEY: '***'"),
        ("A=B_TOKEN=S", "A=B_TOKEN=***"),
        (r"A_TOKEN=\'S\' in a repr", r"A_TOKEN=\'***' in a repr"),
    ],
)
def test_mask_of_text_with_a_secret_hides_it(text, shown):
    assert mask(text) == shown
    assert mask(shown) == shown


def test_mask_hides_secrets_of_the_environment_wherever_they_are(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter-22")
    monkeypatch.setenv("API_TOKEN", "sentence")  # a word
    monkeypatch.setenv("AZURE_STORAGE_KEY", "Eby8vdM02/==")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token1")
    assert mask("no account of Eby8vdM02/==") == "no account of ***"
    assert mask("denied: wJalr/XUtn+FEMI of wJalr%2FXUtn%2BFEMI (hunter-22)") == "denied: *** of *** (***)"
    assert masked({"a": ["hunter-22", 2]}) == {"a": ["***", 2]}
    assert mask("a sentence in /home/me/token1") == "a sentence in /home/me/token1"


@pytest.mark.parametrize("name", ["DB_PASS", "REDISCLI_AUTH", "JWT_KEY", "GITHUB_PAT", "AZURE_STORAGE_SAS", "DB_PW"])
def test_mask_hides_variables_whose_last_word_says_that_they_are_secret(monkeypatch, name):
    assert mask(f"env {name}=S-1 x {name}_COUNT=2 {name}S=3") == f"env {name}=*** x {name}_COUNT=2 {name}S=3"
    assert mask(f"http://h/?my-{name.lower()}=S-1&sort_keys=a") == f"http://h/?my-{name.lower()}=***&sort_keys=a"
    monkeypatch.setenv(name, "hunter-22")
    monkeypatch.setenv("SORT_KEYS", "name-and-label")
    assert mask("hunter-22 by name-and-label") == "*** by name-and-label"


@pytest.mark.parametrize(
    "name", ["image", "label", "object", "row", "sort", "group", "join", "partition", "primary", "foreign"]
)
def test_mask_keeps_keys_of_data(monkeypatch, name):
    variable = f"{name.upper()}_KEY"
    text = f"env {variable}=image-22 '{variable}': 'image-22' s3://b/?{name}_key=image-22&{name}-key=2"
    monkeypatch.setenv(variable, "image-22")
    assert mask(text) == text
    assert mask(f"MY_{variable}=S-1 {variable}_TOKEN=S-1 ?{name}_key2_key=S-1") == (
        f"MY_{variable}=*** {variable}_TOKEN=*** ?{name}_key2_key=***"
    )


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@2x/b.tar?region=eu",
        "hdfs://namenode:8020/faces@v2",
        "http://127.0.0.1:5000/#/runs?x=a@b",
        "sqlite:////home/a@b/mlflow.db?timeout=1",
        "abfss://data@account.net/x",
        "postgresql+psycopg://me@host/db a@b.c",
        "file:///a:b@c/d",
        "/data/a:b@c?tokens",
        "mail a@b.c, key=value, password: none",
        "MLFLOW_TRACKING_PASSWORD: is not set",
        '{"NUM_TOKENS": 5, "A_TOKEN": "", "B_TOKEN": null}',
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to those of the cluster",
    ],
)
def test_mask_of_a_text_without_a_secret_returns_it(text):
    assert mask(text) == text
    assert not is_masked(text)


@pytest.mark.parametrize(
    "letters", ["a", "A", "SECRET", "A_TOKEN ", "'A_TOKEN", "A_TOKEN:  ", "x://a", "?passw", "s3://"]
)
def test_mask_of_a_text_of_a_million_letters_returns_it(letters):
    text = letters * (10**6 // len(letters))  # a search from each letter would take hours
    assert mask(text) == text


@pytest.mark.parametrize("start", ["x://", "x://y ", "?", "?passw"])
@pytest.mark.parametrize("letters", ["a", "passw", "a.", "%a"])
def test_mask_of_a_long_word_after_the_start_of_a_uri_or_parameter_returns_it(start, letters):
    text = start + letters * (10**6 // len(letters))
    assert mask(text) == text


def test_mask_of_a_text_of_a_million_quotes_hides_its_secrets():
    assert mask("A_TOKEN='" * 10**5).count("***") >= 10**5 // 2


def test_masked_tree_hides_secrets_everywhere_and_stays_json():
    tree = {"data s3://K:S@b": ["s3://K:S@b", ("x", 1, None, 0.5)], "deep": {"s3://h:80/x": 'a"me@b'}}
    plain = masked(tree)
    assert json.loads(json.dumps(plain)) == plain
    assert plain == {"data s3://***@b": ["s3://***@b", ["x", 1, None, 0.5]], "deep": {"s3://h:80/x": 'a"me@b'}}


@pytest.mark.parametrize("secret", ["ab/cd+ef", "a@b", "a?b#c", "a%2Fb"])
def test_openable_of_a_secret_with_special_characters_quotes_it(secret):
    uri = openable(f"s3://AK:{secret}@bucket/faces?region=us-east-1")
    filesystem, path = fs.FileSystem.from_uri(uri)
    assert path == "bucket/faces"
    assert filesystem.__reduce__()[1][0]["secret_key"] == secret.replace("%2F", "/")


def test_openable_of_a_masked_uri_takes_what_was_seen_for_its_place_else_none():
    stored = mask("s3://AK:se/cret@own-bucket/a?region=eu&token=T")
    assert openable(stored) == "s3://own-bucket/a?region=eu"
    assert recall(stored) == stored
    openable("s3://AK:se/cret@own-bucket/elsewhere?region=eu&token=T")
    assert recall(stored) == openable(stored) == "s3://AK:se%2Fcret@own-bucket/a?region=eu&token=T"
    for other in ("s3://***@other/a?region=eu&token=***", "s3://***@own-bucket/a?endpoint_override=evil&token=***"):
        assert recall(other) == other
        assert "cret" not in openable(other)
    assert openable("abfss://data:***@account.net/x") == "abfss://data@account.net/x"
    assert openable("s3://own-bucket/a") == "s3://own-bucket/a"


def test_unmasked_of_a_masked_setting_takes_the_environment_or_is_refused():
    stored = "postgresql://***@host/db"
    assert unmasked(stored, "tracking.uri", "postgresql://me:pw@host/db", "URI") == "postgresql://me:pw@host/db"
    assert unmasked("http://host", "tracking.uri", None, "URI") == "http://host"
    for given in (None, "postgresql://me:pw@other/db"):
        with pytest.raises(ValueError, match=r"^tracking.uri: postgresql://\*\*\*@host/db: its password is not stored"):
            unmasked(stored, "tracking.uri", given, "URI")


def planted_configs():
    """A config for every key that takes a URI, with a secret in it."""
    for key in configs.flat(Config()):
        with contextlib.suppress(ValueError):
            yield key, configs.with_overrides(Config(), {key: PLANTED})


def test_every_setting_that_takes_a_uri_is_written_without_its_secret(tmp_path):
    keys = []
    journal = Journal(tmp_path / "journal" / "driver.jsonl")
    for key, config in planted_configs():
        keys.append(key)
        configs.dump(config, tmp_path / f"{key}.yaml", [field.name for field in dataclasses.fields(Config)])
        again = configs.load(file=tmp_path / f"{key}.yaml")
        assert "***" in str(configs.flat(again)[key])
        journal.params(configs.flat(config))
        write_json(tmp_path / f"{key}.json", configs.to_dict(config))
        specs.dump(Spec(search={"optim.lr": [0.1]}), config, tmp_path / f"{key}.sweep")
    assert {
        "data.train",
        "evaluate.data",
        "evaluate.pairs",
        "prune.embeddings",
        "tracking.uri",
        "train.teacher",
    } <= set(keys)
    journal.tags({"reason": f"no answer from {PLANTED}"})
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3 * len(keys) + 1
    for path in written:
        assert "hunter2" not in path.read_text(), path


def test_sweep_without_kept_credentials_resumes_with_those_of_its_file(tmp_path, messages):
    file, folder = tmp_path / "s.yaml", tmp_path / "sweep"
    folder.mkdir()
    config = f"{{data: {{train: '{PLANTED}'}}, evaluate: {{pairs: p, data: d}}}}"
    text = f"config: {config}\nsearch: {{optim.lr: [0.1, 0.2]}}\n"
    file.write_text(text)
    overrides = [f"sweep.output={folder}"]
    spec, base = specs.load(file, overrides)
    remember(folder, file, overrides, None, (spec, base))
    specs.dump(spec, base, folder / SPEC)
    assert all("hunter2" not in path.read_text() for path in folder.iterdir())
    _, again, _ = resume_sweep(file, overrides, None)
    assert configs.flat(again)["data.train"] == [PLANTED]
    assert messages() == []
    file.write_text(text.replace("bucket", "another"))
    with pytest.raises(ValueError, match=r"data.train .*another.* \(was .*bucket.*\): must not change") as refused:
        resume_sweep(file, overrides, None)
    assert "hunter2" not in mask(str(refused.value))
    file.write_text(text.replace("[0.1, 0.2]", f"[0.1, 0.2], backbone.weights: [m, '{PLANTED}']"))
    with pytest.raises(ValueError, match=r"^search: backbone.weights: must not hold credentials"):
        specs.load(file, overrides)


def test_selection_of_shards_elsewhere_is_written_without_their_credentials():
    entry = ShardEntry(path=PLANTED, num_images=1, num_bytes=1)
    manifest = Manifest(
        name="n", num_classes=1, num_images=1, parent={"path": [PLANTED]}, shards=[entry], selection="s"
    )
    stored = manifest.to_json()
    assert b"hunter2" not in stored
    assert digest_of(Manifest.model_validate_json(stored)) == digest_of(manifest)
