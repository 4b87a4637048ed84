import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers import config
from musketeers.config import PretrainConfig, RunConfig
from musketeers.errors import ConfigError

LEAST = {"data": {"domains": {"tv": "tv.parquet", "movie": "movies/*.csv.gz"}}}


def merged(base, changes):
    nested = {
        key: merged(base.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return base | nested


def fault(changes):
    with pytest.raises(ConfigError) as caught:
        config.parse(merged(LEAST, changes), "run.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_enough():
    settings = config.parse(LEAST, "run.toml")
    assert (settings.seed, settings.dim) == (0, 64)
    assert settings.data.column("user", "tv") == "user_id"
    assert settings.data.column("timestamp", "tv") is None
    assert (settings.split.method, settings.split.test, settings.split.valid) == (
        "random",
        0.2,
        0.16,
    )


def test_columns_may_differ_by_domain():
    names = {"tv": "viewer", "movie": "uid"}
    settings = config.parse(merged(LEAST, {"data": {"user": names}}), "run.toml")
    assert settings.data.column("user", "movie") == "uid"
    assert settings.data.column("item", "movie") == "item_id"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed: Input should be greater than or equal to 0 (found -1)"),
        ({"seed": 2**63}, "seed: Input should be less than 9223372036854775808"),
        ({"seed": True}, "seed: Input should be a valid integer (found True)"),
        ({"seed": "3"}, "seed: Input should be a valid integer (found '3')"),
        ({"dim": 0}, "dim: Input should be greater than or equal to 1 (found 0)"),
        ({"dim": 4097}, "dim: Input should be less than or equal to 4096 (found 4097)"),
        ({"dim": 64.0}, "dim: Input should be a valid integer (found 64.0)"),
        ({"data": {"min_user": 0}}, "data.min_user: Input should be greater than or equal to 1"),
        ({"data": {"min_item": 0}}, "data.min_item: Input should be greater than or equal to 1"),
        ({"data": {"domains": {"a/b": "x"}}}, "data.domains: 'a/b' is no domain name; use letters"),
        ({"data": {"user": {"tv": "u"}}}, "data: user must name one column for each domain; check"),
        (
            {"data": {"timestamp": {"tv": "t", "movie": "t", "ova": "t"}}},
            "data: timestamp must name one column for each domain; check ova",
        ),
        ({"split": {"method": "hash"}}, "split.method: Input should be 'random', 'last' or 'time'"),
        ({"split": {"test": 1.0}}, "split.test: Input should be less than 1 (found 1.0)"),
        ({"split": {"valid": -0.1}}, "split.valid: Input should be greater than or equal to 0"),
        ({"split": {"test": 0.9}}, "split: test 0.9 + valid 0.16 leave nothing to train on"),
        ({"split": {"method": "time"}}, "split.method 'time' needs times; set data.timestamp"),
        ({"split": {"method": "last"}}, "split.method 'last' needs times; set data.timestamp"),
        ({"pretrain": {"learning_rate": 0}}, "pretrain.learning_rate: Input should be greater tha"),
        ({"pretrain": {"regularization": -1.0}}, "pretrain.regularization: Input should be"),
        ({"pretrain": {"max_epochs": 0}}, "pretrain.max_epochs: Input should be"),
        ({"pretrain": {"patience": 0}}, "pretrain.patience: Input should be"),
        ({"cat": {"temperature": 0.0}}, "cat.temperature: Input should be greater than 0"),
        ({"cat": {"contrast_weight": 1.1}}, "cat.contrast_weight: Input should be less than or"),
        ({"cat": {"batch_size": 1}}, "cat.batch_size: Input should be greater than or equal to 2"),
        ({"cat": {"held_out": 0.0}}, "cat.held_out: Input should be greater than 0 (found 0.0)"),
        ({"cat": {"held_out": 0.6}}, "cat.held_out: Input should be less than or equal to 0.5"),
        ({"art": {"dropout": 1.0}}, "art.dropout: Input should be less than 1 (found 1.0)"),
        (
            {"art": {"items": "free"}},
            "art.items: Input should be 'tuned' or 'fixed' (found 'free')",
        ),
        ({"art": {"batch_size": 0}}, "art.batch_size: Input should be greater than or equal to 1"),
        ({"cat": {"loss": "rec"}}, "cat.loss: Input should be 'full' or 'reconstruction'"),
        (
            {"art": {"sources": "max"}},
            "art.sources: Input should be 'attention', 'mean', 'sum' or 'none' (found 'max')",
        ),
        ({"art": {"shared": 1}}, "art.shared: Input should be a valid boolean (found 1)"),
        (
            {"art": {"sources": "none", "shared": False}},
            "art: sources 'none' and shared false leave nothing to transfer; change one of them",
        ),
    ],
)
def test_each_rule_names_the_key_and_what_it_found(changes, message):
    assert message in fault(changes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "key",
    ["pretrain.learning_rate", "pretrain.regularization", "cat.temperature", "art.learning_rate"],
)
def test_numbers_are_finite(key, value):
    section, name = key.split(".")
    assert f"{key}: Input should be a finite number (found {value})" in fault(
        {section: {name: value}}
    )


@pytest.mark.parametrize(
    ("loss", "sources", "shared"),
    [
        ("full", "attention", True),
        ("full", "attention", False),
        ("full", "mean", True),
        ("full", "sum", True),
        ("full", "none", True),
        ("reconstruction", "none", True),
    ],
)
def test_every_ablation_is_a_matter_of_settings(tmp_path, loss, sources, shared):
    changes = {"cat": {"loss": loss}, "art": {"sources": sources, "shared": shared}}
    settings = config.parse(merged(LEAST, changes), "run.toml")
    (tmp_path / "run.toml").write_text(config.dump(settings), encoding="utf-8")
    again = config.load(tmp_path / "run.toml")
    assert (again.cat.loss, again.art.sources, again.art.shared) == (loss, sources, shared)


def test_no_domain_at_all_is_a_fault():
    with pytest.raises(ConfigError, match=r"data\.domains: no domain is given; name at least one"):
        config.parse({"data": {"domains": {}}}, "run.toml")
    with pytest.raises(ConfigError, match=r"run\.toml: settings: data\.domains: no domain is"):
        config.parse({}, "run.toml")


def test_a_section_that_is_a_number_is_a_fault():
    assert "cat: Input should be a valid dictionary" in fault({"cat": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, "sede: unknown key; did you mean seed?"),
        ({"cat": {"temprature": 1.0}}, "cat.temprature: unknown key; did you mean temperature?"),
        ({"pretain": {}}, "pretain: unknown key; did you mean pretrain?"),
        ({"data": {"min_users": 1}}, "data.min_users: unknown key; did you mean min_user?"),
        ({"quux": 1}, "quux: unknown key"),
        ({"a\nb": 1}, r"'a\nb': unknown key"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(changes, message):
    assert fault(changes).endswith(message)


def test_all_faults_come_in_one_message():
    text = fault({"dim": 0, "cat": {"temprature": 1.0}, "art": {"items": "free"}})
    assert text.startswith("run.toml: ")
    assert [part.split(":")[0] for part in text.removeprefix("run.toml: ").split("; ")] == [
        "dim",
        "cat.temprature",
        "did you mean temperature?",
        "art.items",
    ]


@pytest.mark.parametrize("name", ["tv", "DRUG GM", "MEAT-PCKGD", "v1.2", "книги", "本", "a" * 64])
def test_names_that_any_file_system_takes(name):
    config.check_domain_name(name)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "..", ".tv", "tv.", "tv ", "a\\b", "a\nb", "a:b", "a\0", "a" * 65, "本" * 22],
)
def test_names_that_some_file_system_refuses(name):
    with pytest.raises(ValueError, match=r"is no domain name; use letters, digits"):
        config.check_domain_name(name)


@pytest.mark.parametrize("name", ["CON", "nul", "com1.x"])
def test_device_names_are_refused(name):
    with pytest.raises(ValueError, match="is no domain name"):
        config.check_domain_name(name)


def test_names_that_differ_in_case_only_are_refused():
    assert "'tv' and 'TV' are one file on some systems" in fault(
        {"data": {"domains": {"TV": "x.csv"}}}
    )


def test_settings_cannot_be_changed():
    settings = config.parse(LEAST, "run.toml")
    with pytest.raises(ValueError, match="frozen"):
        settings.dim = 3


positive = st.floats(1e-9, 1e3)
sections = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "dim": st.integers(1, 4096),
        "pretrain": st.fixed_dictionaries({"learning_rate": positive, "patience": st.just(3)}),
        "cat": st.fixed_dictionaries({"temperature": positive, "held_out": st.floats(0.01, 0.5)}),
        "art": st.fixed_dictionaries({"items": st.sampled_from(["tuned", "fixed"])}),
        "split": st.fixed_dictionaries({"test": st.floats(0, 0.5), "valid": st.floats(0, 0.4)}),
    },
)


@given(sections)
def test_what_is_dumped_reads_back(tmp_path_factory, changes):
    settings = config.parse(merged(LEAST, changes), "run.toml")
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text(config.dump(settings), encoding="utf-8")
    assert config.load(path) == settings


def test_a_dump_holds_every_setting():
    text = config.dump(config.parse(LEAST, "run.toml"))
    found = tomllib.loads(text)
    for name, field in RunConfig.model_fields.items():
        assert name in found, field
    assert found["pretrain"]["learning_rate"] == PretrainConfig().learning_rate


def test_per_domain_columns_and_times_read_back():
    columns = {"tv": "t", "movie": "when"}
    changes = {"data": {"timestamp": columns}, "split": {"method": "time"}}
    settings = config.parse(merged(LEAST, changes), "run.toml")
    assert config.parse(tomllib.loads(config.dump(settings)), "again") == settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"seed = = 1", r"run\.toml: is not TOML: Invalid value \(at line 1, column 8\)"),
        (b"\xff\xfe", r"run\.toml: is not UTF-8 text"),
        (b"seed = 1", r"run\.toml: settings: data\.domains: no domain is given"),
        (b"x = " + b"[" * 5000, r"run\.toml: is not TOML for settings: nested"),
    ],
)
def test_an_unusable_file_is_one_line(tmp_path, data, message):
    (tmp_path / "run.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(tmp_path / "run.toml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path)


def test_paths_stay_as_written():
    settings = config.parse(LEAST, Path("elsewhere/run.toml"))
    assert settings.data.domains["movie"] == "movies/*.csv.gz"
