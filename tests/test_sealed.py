"""One signed file: nothing in it that its manifest has no name for, and no byte that can change."""

import json
import os
import shutil

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from musketeers.errors import ArtifactError, ConfigError, MissingExtraError
from musketeers.parties import places, sealed
from musketeers.parties.alignment import read_alignment
from musketeers.parties.defences import Defences
from musketeers.parties.guarantee import statement
from musketeers.parties.home import Home
from musketeers.parties.keys import Signer, check_public, is_signed_by
from musketeers.parties.publication import SCHEMA, AboutUsers, publish, read_publication
from musketeers.seeding import Seed
from musketeers.tensor_files import header, in_parts

DIM, USERS = 4, 5
KEYS = pl.Series("id", sorted(f"{n:032x}" for n in (3, 1, 7, 250, 2**90)))


@pytest.fixture(scope="module")
def signers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: Signer.make(folder / f"{name}.pem") for name in ("tv", "movie")}


@pytest.fixture(scope="module")
def public(signers):
    return {name: signer.public for name, signer in signers.items()}


def about(**changes):
    given = {
        "users": USERS, "dim": DIM, "space": "0" * 16, "secret": "1" * 16,
        "defences": Defences(), "mode": "vectors", "mu": None,
        "statement": statement("vectors", None, None),
    }  # fmt: skip
    return AboutUsers(**{**given, **changes})


def vectors():
    return Seed(0).numpy().standard_normal((USERS, DIM)).astype(np.float32)


@pytest.fixture
def file(tmp_path, signers):
    place = tmp_path / "tv"
    publish(str(place), KEYS, vectors(), about(), signers["tv"], domain="tv", sequence=1)
    return place


def written(file, signer, manifest, tensors):
    """What somebody with a key could write who does not use our writer."""
    text = manifest if isinstance(manifest, str) else canonical(manifest)
    notes = {
        "manifest": text,
        "signature": signer.sign(b"musketeers/sealed\0" + text.encode()).hex(),
    }
    file.write_bytes(b"".join(bytes(p) if isinstance(p, bytes) else p.tobytes()
                              for p in in_parts(tensors, notes)))  # fmt: skip


def canonical(fields):
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def parts(file):
    """The manifest and the tensors of a file."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    notes = json.loads(data[8 : 8 + length])["__metadata__"]
    return json.loads(notes["manifest"]), load_file(file)


def refused(file, public, message, dim=DIM):
    with pytest.raises(ArtifactError, match=message) as caught:
        read_publication(str(file), public, dim=dim)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_it_reads_back_bit_by_bit(file, public):
    found = read_publication(str(file), public, dim=DIM)
    assert (found.domain, found.sequence) == ("tv", 1)
    assert found.keys.equals(KEYS)
    assert found.users.tobytes() == vectors().tobytes()
    assert load_file(file).keys() == {"keys", "users"}


def test_narrower_vectors_are_filled_with_zeros(file, public):
    found = read_publication(str(file), public, dim=6)
    assert np.array_equal(found.users[:, :DIM], vectors())
    assert not found.users[:, DIM:].any()


def test_any_changed_bit_is_refused(file, public):
    data = bytearray(file.read_bytes())
    for place in range(8 * len(data)):
        data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        with pytest.raises(ArtifactError):
            read_publication(str(file), public, dim=DIM)
        data[place // 8] ^= 1 << place % 8
    assert 8 * len(data) > 8000
    file.write_bytes(data)
    read_publication(str(file), public, dim=DIM)


@pytest.mark.parametrize("more", [b"\0", b"interactions"])
def test_bytes_at_the_end_are_refused(file, public, more):
    file.write_bytes(file.read_bytes() + more)
    refused(file, public, f"has {160 + len(more)} bytes of arrays where its manifest says 160")


@pytest.mark.parametrize("left", [0, 4, 8, 100, 700, -1])
def test_a_file_that_is_cut_off_is_refused(file, public, left):
    file.write_bytes(file.read_bytes()[:left])
    refused(file, public, "damaged or forged|is not signed")


# --- a party that does not play by the rules, with a key that counts


@pytest.mark.parametrize(
    "extra",
    [
        {"items": np.ones((3, DIM), np.float32)},
        {"counts": np.ones(USERS, np.int64)},
        {"interactions": np.zeros((9, 2), np.int32)},
    ],
)
def test_another_tensor_is_refused_though_it_is_signed(file, signers, public, extra):
    manifest, tensors = parts(file)
    written(file, signers["tv"], manifest, {**tensors, **extra})
    refused(file, public, "has a header with more, or less, than its manifest says")


def test_another_type_or_shape_is_refused(file, signers, public):
    manifest, tensors = parts(file)
    for users in (
        tensors["users"].astype(np.float64),
        tensors["users"].T.copy(),
        tensors["users"][1:],
    ):
        written(file, signers["tv"], manifest, {**tensors, "users": users})
        refused(file, public, "has a header with more, or less, than its manifest says")


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ("about", {"item_ids": ["a", "b"]}),
        ("about", {"interactions": 7}),
        (None, {"note": "hello"}),
    ],
)
def test_another_field_is_refused_though_it_is_signed(file, signers, public, where, field):
    manifest, tensors = parts(file)
    (manifest[where] if where else manifest).update(field)
    written(file, signers["tv"], manifest, tensors)
    refused(file, public, f"has a manifest with '{next(iter(field))}' wrong: Extra inputs")


def test_room_for_a_message_in_the_header_is_refused(file, signers, public):
    manifest, tensors = parts(file)
    text = canonical(manifest)
    written(file, signers["tv"], text.replace(",", " ,", 1), tensors)
    refused(file, public, "has a manifest that is not in its one form")
    written(file, signers["tv"], text.replace('"mode"', '"mod\\u0065"'), tensors)
    refused(file, public, "has a manifest that is not in its one form")
    notes = {
        "manifest": text,
        "signature": signers["tv"].sign(b"musketeers/sealed\0" + text.encode()).hex(),
    }
    layout = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    head = header(layout, notes)
    wider = (len(head) - 8 + 8).to_bytes(8, "little") + head[8:] + b" " * 8
    body = b"".join(array.tobytes() for array in (tensors["users"], tensors["keys"]))
    file.write_bytes(wider + body)
    refused(file, public, "has a header with more, or less, than its manifest says")
    file.write_bytes(head + body)
    read_publication(str(file), public, dim=DIM)


def with_data(file, signer, **changes):
    """Signed anew over other arrays."""
    manifest, tensors = parts(file)
    tensors |= changes
    found = sealed.hashlib.sha256()
    for part in in_parts(tensors)[1:]:
        found.update(part.tobytes())
    written(file, signer, {**manifest, "sha256": found.hexdigest()}, tensors)


def test_values_are_checked(file, signers, public):
    _, tensors = parts(file)
    users, keys = tensors["users"], tensors["keys"]
    for change, message in (
        (
            {"users": np.where(np.arange(DIM) == 1, np.nan, users).astype(np.float32)},
            "holds nan in row 0",
        ),
        ({"users": np.full_like(users, np.inf)}, "holds inf in row 0"),
        ({"users": np.zeros_like(users)}, "of which half or more are zero"),
        (
            {"users": users * np.array([[1e6], [1], [1], [1], [1]], np.float32)},
            "in row 0 of length",
        ),
        ({"keys": keys[[0, 0, 2, 3, 4]]}, "pseudonyms that repeat or do not ascend"),
        ({"keys": keys[::-1].copy()}, "pseudonyms that repeat or do not ascend"),
    ):
        with_data(file, signers["tv"], **change)
        refused(file, public, message)


def test_a_promise_that_does_not_follow_is_refused(file, signers, public):
    manifest, tensors = parts(file)
    manifest["about"]["statement"] = "Differentially private."
    written(file, signers["tv"], manifest, tensors)
    refused(file, public, "says of itself what does not follow from what it states")


@pytest.mark.parametrize("defences", [{}, {"clip": 1.0, "epsilon": 8.0, "delta": 1e-6}])
def test_less_told_than_this_release_alone_tells_is_refused(file, signers, public, defences):
    manifest, tensors = parts(file)
    how = Defences(**defences)
    manifest["about"] |= {
        "defences": how.model_dump(mode="json"), "mu": 0.01,
        "statement": statement("vectors", 0.01, how.delta),
    }  # fmt: skip
    written(file, signers["tv"], manifest, tensors)
    refused(file, public, "says of itself what does not follow from what it states")


def test_wider_vectors_than_agreed_are_refused(file, public):
    refused(file, public, "tv's vectors have 4 numbers, the settings' dim is 3", dim=3)


def test_a_size_that_nobody_has_memory_for_is_refused_before_it_is_taken(file, signers, public):
    manifest, tensors = parts(file)
    manifest["about"]["users"] = 2**40
    written(file, signers["tv"], manifest, tensors)
    refused(file, public, "has a header with more, or less, than its manifest says")
    layout = SCHEMA.layout(about(users=2**40))
    text = canonical(manifest)
    notes = {
        "manifest": text,
        "signature": signers["tv"].sign(b"musketeers/sealed\0" + text.encode()).hex(),
    }
    file.write_bytes(header(layout, notes) + b"\0" * 100)
    refused(file, public, "has 100 bytes of arrays where its manifest says 35,184,372,088,832")


# --- who made it


def test_what_is_not_signed_is_refused(file, public):
    tensors = load_file(file)
    save_file(tensors, file)
    refused(file, public, "is not signed; take files that musketeers party wrote")
    save_file(tensors, file, metadata={"manifest": "{}"})
    refused(file, public, "is not signed")


def test_a_swapped_party_is_refused_by_name(file, signers, public):
    manifest, tensors = parts(file)
    written(file, signers["movie"], manifest, tensors)
    refused(file, public, "says that it is by tv, but movie signed it; ask tv for its own")


def test_a_stranger_is_refused(file, signers, public, tmp_path):
    manifest, tensors = parts(file)
    written(file, Signer.make(tmp_path / "stranger.pem"), manifest, tensors)
    refused(file, public, "is by tv, but its signature is not tv's: it was changed, or the public")
    refused(file, {"movie": public["movie"]}, "is by 'tv', who is none of movie; add the party")


@pytest.mark.parametrize(
    "signature", ["", "00", "zz" * 64, "00" * 64, "00" * 65, "AB" * 64], ids=range(6)
)
def test_what_is_no_signature_is_refused(file, public, signature):
    manifest, tensors = parts(file)
    notes = {"manifest": canonical(manifest), "signature": signature}
    file.write_bytes(b"".join(bytes(p) if isinstance(p, bytes) else p.tobytes()
                              for p in in_parts(tensors, notes)))  # fmt: skip
    refused(file, public, "signature")


def test_a_newer_format_and_another_kind_are_told(file, signers, public):
    manifest, tensors = parts(file)
    written(file, signers["tv"], {**manifest, "format": 2}, tensors)
    refused(file, public, r"written by a newer version \(format 2, this version reads 1\); upgrade")
    for number in (0, True, "1", None):
        written(file, signers["tv"], {**manifest, "format": number}, tensors)
        refused(file, public, "has a manifest with 'format' wrong|not in its one form")
    written(file, signers["tv"], {**manifest, "kind": "alignment"}, tensors)
    refused(file, public, "is 'alignment' where 'publication' is needed; check the path")
    written(file, signers["tv"], manifest, tensors)
    with pytest.raises(ArtifactError, match="is 'publication' where 'alignment' is needed"):
        read_alignment(str(file), public["tv"], dim=DIM)


def test_the_writer_refuses_other_arrays(tmp_path, signers):
    with pytest.raises(ValueError, match="are not the arrays of a publication"):
        publish(str(tmp_path / "x"), KEYS, vectors()[:, :3], about(), signers["tv"],
                domain="tv", sequence=1)  # fmt: skip
    assert not (tmp_path / "x").exists()


# --- keys


def test_a_private_key_is_the_owners_and_openssl_can_make_one(tmp_path):
    made = Signer.make(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert Signer.read(tmp_path / "key.pem").public == made.public
    with pytest.raises(ArtifactError, match="already exists, and is kept"):
        Signer.make(tmp_path / "key.pem")
    assert is_signed_by(made.public, made.sign(b"a"), b"a")
    assert not is_signed_by(made.public, made.sign(b"a"), b"b")
    assert not is_signed_by("ed25519:AAAA", made.sign(b"a"), b"a")


@pytest.mark.parametrize("text", [b"", b"nothing", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_private_key_is_one_line(tmp_path, text):
    (tmp_path / "key.pem").write_bytes(text)
    with pytest.raises(ConfigError, match="is no private Ed25519 key in PEM"):
        Signer.read(tmp_path / "key.pem")


def test_public_keys_are_keys_and_each_partys_own(public):
    check_public(public)
    with pytest.raises(ConfigError, match="the public key of tv is 'abc', no key; it is ed25519:"):
        check_public({"tv": "abc"})
    with pytest.raises(ConfigError, match="tv and film have the same public key; each needs its"):
        check_public({"tv": public["tv"], "film": public["tv"]})


# --- places


def test_a_place_can_be_an_address(signers, public):
    place = "memory://bucket/publish/tv"
    publish(place, KEYS, vectors(), about(), signers["tv"], domain="tv", sequence=1)
    assert places.exists(place)
    assert not places.exists("memory://bucket/publish/movie")
    (globbed,) = places.find(["memory://bucket/publish/*"])
    for one in (place, globbed):
        assert np.array_equal(read_publication(one, public, dim=DIM).users, vectors())


def test_what_a_killed_writer_left_matches_no_pattern(file):
    (file.parent / ".saving-123").write_bytes(b"half")
    assert places.find([f"{file.parent}/*"]) == [str(file)]


def test_a_file_address_is_a_path(file, public):
    assert read_publication(f"file://{file}", public, dim=DIM).domain == "tv"


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("nothing://bucket/tv", ConfigError, "nothing://bucket/tv: is no address that is known"),
        (
            "memory://bucket/nobody",
            ArtifactError,
            "memory://bucket/nobody: cannot be reached: there is no such file",
        ),
        (
            "gs://bucket/tv",
            MissingExtraError,
            "gs://bucket/tv: needs a package that is not installed: ",
        ),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(public, place, error, message):
    with pytest.raises(error, match=message):
        read_publication(place, public, dim=DIM)


def test_links_pipes_and_folders_are_not_read(file, public, tmp_path):
    (tmp_path / "link").symlink_to(file)
    refused(tmp_path / "link", public, "cannot be read: Too many levels of symbolic links")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", public, "is not a regular file; name the file itself")
    refused(tmp_path, public, "is not a regular file; name the file itself")
    refused(tmp_path / "nobody", public, "cannot be read: No such file")


def test_a_place_that_cannot_be_written_keeps_what_was_there(file, signers):
    before = file.read_bytes()
    with pytest.raises(ArtifactError, match="a file is in the way"):
        publish(str(file / "x"), KEYS, vectors(), about(), signers["tv"], domain="tv", sequence=2)
    assert file.read_bytes() == before
    shutil.rmtree(file.parent)


def test_a_home_without_a_key_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"key\.pem: cannot be read: .*musketeers party key"):
        Home(tmp_path).signer()
