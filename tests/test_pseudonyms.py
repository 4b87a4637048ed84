"""Users' ids under a secret key."""

import hashlib
import hmac
import os
import stat

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers import config as configuration
from musketeers.data import readers
from musketeers.data.pseudonyms import Secret
from musketeers.errors import ArtifactError, ConfigError, DataError

KEY = Secret(bytes(range(32)))


def one(value, dtype=None):
    return KEY.of(pl.Series([value], dtype=dtype))[0]


def test_it_is_the_hmac_of_the_id_cut_to_128_bits():
    expected = hmac.new(bytes(range(32)), b"musketeers/user\0anna", hashlib.sha256).hexdigest()
    assert one("anna") == expected[:32]


@pytest.mark.parametrize(
    ("form", "other"),
    [
        (("7",), (7,)),
        ((-7, pl.Int8), ("-7",)),
        ((2**63, pl.UInt64), (str(2**63),)),
        (("Zoe\u0308",), ("Zo\u00eb",)),
        ((b"anna",), ("anna",)),
        (("Zoe\u0308".encode(),), ("Zo\u00eb",)),
        (("anna", pl.Categorical), ("anna",)),
    ],
)
def test_an_id_has_one_form_whatever_type_it_comes_in(form, other):
    assert one(*form) == one(*other)


@pytest.mark.parametrize(
    ("form", "other"), [("007", "7"), ("anna ", "anna"), ("Anna", "anna"), (b"\xff", "\xff")]
)
def test_ids_that_read_otherwise_stay_apart(form, other):
    assert one(form) != one(other)


@given(st.lists(st.text(max_size=20), min_size=2, max_size=2, unique=True))
def test_another_key_gives_other_pseudonyms(ids):
    there = set(KEY.of(pl.Series(ids)))
    assert there.isdisjoint(Secret(bytes(32)).of(pl.Series(ids)))


def test_missing_ids_and_floats_are_refused():
    with pytest.raises(DataError, match="1 of 2 ids are null"):
        KEY.of(pl.Series(["a", None]))
    with pytest.raises(DataError, match="ids are Float64"):
        KEY.of(pl.Series([1.5]))


# --- the key


def test_a_new_key_is_256_bits_for_its_owner_alone_and_is_never_overwritten(tmp_path):
    made = Secret.make(tmp_path / "users.key")
    assert Secret.read(tmp_path / "users.key") == made
    assert len(made.key) == 32
    assert stat.S_IMODE((tmp_path / "users.key").stat().st_mode) == 0o600
    with pytest.raises(ArtifactError, match=r"users\.key: already exists, and is kept"):
        Secret.make(tmp_path / "users.key")
    assert Secret.read(tmp_path / "users.key") == made


@pytest.mark.parametrize("text", [b"", b"abc", b"00" * 15, b"\xff\xfe", b"-----BEGIN KEY-----"])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path, text):
    (tmp_path / "users.key").write_bytes(text)
    with pytest.raises(
        ConfigError, match="is no key; it must hold 32 hexadecimal digits"
    ) as caught:
        Secret.read(tmp_path / "users.key")
    assert not text or text.decode(errors="replace") not in str(caught.value)


def test_a_key_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: No such file.*musketeers party secret"):
        Secret.read(tmp_path / "users.key")


def test_a_key_does_not_show_in_its_repr():
    assert repr(KEY) == "Secret()"
    assert KEY.key.hex() not in KEY.check


# --- reading


def frame(users):
    return pl.DataFrame({"user_id": users, "item_id": [f"i{n % 3}" for n in range(len(users))]})


def settings(tmp_path, **more):
    (tmp_path / "users.key").write_text(os.urandom(16).hex())
    given = {"secret": str(tmp_path / "users.key"), "min_user": 1, "min_item": 1, **more}
    return configuration.parse({"data": {"domains": {"a": "-"}, **given}}, "test").data


def test_two_domains_meet_though_one_writes_numbers_and_the_other_text(tmp_path):
    config = settings(tmp_path)
    found = readers.from_frames({"a": frame([1, 2, 3]), "b": frame(["2", "3", "x"])}, config)
    assert len(found.domains.users) == 4
    known = [domain.pairs.known_users() for domain in found.domains.domains.values()]
    assert (known[0] & known[1]).sum() == 2
    secret = Secret.read(tmp_path / "users.key")
    assert set(found.domains.users.values) == set(secret.of(pl.Series(["1", "2", "3", "x"])))


def test_interactions_stay_with_their_users(tmp_path):
    config, users = settings(tmp_path), ["u9", "u1", "u5", "u1"]
    plain = readers.from_frames({"a": frame(users)}, config.model_copy(update={"secret": None}))
    hidden = readers.from_frames({"a": frame(users)}, config)
    secret = Secret.read(tmp_path / "users.key")
    for user in set(users):
        rows = [
            reading.domains.users.rows([name])[0]
            for reading, name in ((plain, user), (hidden, secret.of(pl.Series([user]))[0]))
        ]
        items = [
            reading.domains.domains["a"].pairs.of(int(row)).tolist()
            for reading, row in zip((plain, hidden), rows, strict=True)
        ]
        assert items[0] == items[1]


def test_two_users_of_one_unicode_form_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"domain a: 2 user ids differ in their Unicode form alone"):
        readers.from_frames({"a": frame(["Zo\u00eb", "Zoe\u0308", "anna"])}, settings(tmp_path))
