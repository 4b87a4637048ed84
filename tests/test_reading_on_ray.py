import os
from pathlib import Path

import polars as pl
import pytest
from sharding import KINDS, config, contents, frame, one_machine, put

from musketeers.data.pseudonyms import Secret
from musketeers.data.readers import read
from musketeers.data.shards import read_about, read_shard
from musketeers.errors import ConfigError, DataError, RunError

pytest.importorskip("ray")
pytest.importorskip("moto.server")
pytestmark = [
    pytest.mark.ray,
    # Ray's own, and those of what it imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
REAL = Path(os.environ.get("MUSKETEERS_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def store():
    """A store that speaks S3's language; the nodes find it as they would any other."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in address.items():
            patch.setenv(name, value)
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)  # it looks at the environment when it is imported, which it may be
        yield
        conf.pop("s3", None)
    server.stop()


@pytest.fixture(scope="module")
def nodes(store):
    import ray
    from clusters import cluster

    with cluster({}) as found:
        ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
        yield found


@pytest.fixture
def partition(nodes):
    from musketeers.cluster.reading import partition

    return partition


def as_one_machine(partition, run, base, n_shards=3):
    about = partition(run, base / "found", n_shards, base=base)
    one_machine(run, base, base / "expected", n_shards, inputs=about.inputs)
    assert contents(base / "found") == contents(base / "expected")
    return about


# --- the result of one machine


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("integers", "random"),
        ("mixed", "random"),
        ("bytes", "random"),
        ("unsigned", "last"),
        ("narrow", "time"),
        ("categories", "time"),
    ],
)
def test_files_are_those_of_one_machine_byte_by_byte(partition, tmp_path, kind, method):
    domains = put(tmp_path, KINDS[kind])
    about = as_one_machine(partition, config(domains, method=method), tmp_path)
    assert all(of.repeats and of.dropped and of.pairs for of in about.domains.values())


def test_everybody_is_kept_where_one_pair_is_enough(partition, tmp_path):
    domains = put(tmp_path, [pl.Int64], n_files=1)
    run = config({"a": f"file://{tmp_path}/a/*.parquet"}, min_user=1, min_item=1, timestamp=None)
    about = partition(run, tmp_path / "found", 70, base=tmp_path)
    one_machine(config(domains, min_user=1, min_item=1, timestamp=None), tmp_path,
                tmp_path / "expected", 70, inputs=about.inputs)  # fmt: skip
    # with more shards than users some have nobody
    assert contents(tmp_path / "found") == contents(tmp_path / "expected")
    sizes = [len(read_shard(tmp_path / "found", shard)[0].users) for shard in range(70)]
    assert min(sizes) == 0
    assert sum(sizes) == about.domains["a"].users


def test_a_domain_of_several_widths_and_empty_files_is_one(partition, tmp_path):
    make = frame(5, pl.Int32)
    (tmp_path / "a").mkdir()
    wide = {"user_id": pl.col("user_id").cast(pl.UInt64) + 2**63, "item_id": pl.col("item_id")}
    parts = [make[:300], make[300:500].with_columns(**wide), make[500:].cast({"item_id": pl.Int8})]
    for n, part in enumerate([*parts, make[:0].cast({"user_id": pl.String})]):
        part.write_parquet(tmp_path / "a" / f"{n}.parquet")
    as_one_machine(partition, config({"a": "a"}, min_user=1), tmp_path)


def test_pseudonyms_are_those_of_one_machine(partition, tmp_path):
    domains = put(tmp_path, KINDS["mixed"])
    Secret.make(tmp_path / "key")
    run = config(domains, secret="key")
    as_one_machine(partition, run, tmp_path)
    domains, _ = read_shard(tmp_path / "found", 0)
    assert domains.users.values.str.len_bytes().eq(32).all()


def test_reading_and_splitting_are_told(partition, tmp_path):
    from contextlib import contextmanager

    heard = {}

    @contextmanager
    def told(stage, domain):
        yield lambda n: heard.update({(stage, domain): heard.get((stage, domain), 0) + n})

    about = partition(
        config(put(tmp_path, [pl.Int64])), tmp_path / "found", 2, base=tmp_path, told=told
    )
    assert heard["read", "a"] == about.domains["a"].rows == 600
    assert heard["split", "a"] == about.domains["a"].pairs
    assert {stage for stage, _ in heard} == {"read", "gather", "k-core", "split"}


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real data; set MUSKETEERS_DATA to its folder")
def test_real_data_are_as_one_machine_has_them(partition, tmp_path):
    domains = {n: str(REAL / "anime" / f"{n}.parquet") for n in ("tv", "movie", "ova", "music")}
    as_one_machine(partition, config(domains, min_user=3, timestamp=None), tmp_path)


# --- a store


@pytest.fixture(scope="module")
def bucket(store, tmp_path_factory):
    """A bucket with the domains a (a folder of three files) and b."""
    import s3fs

    folder = tmp_path_factory.mktemp("bucket")
    domains = put(folder, KINDS["mixed"])
    system = s3fs.S3FileSystem()
    system.mkdir("data")
    for name in domains:
        system.put(str(folder / name), f"data/logs/{name}", recursive=True)
    system.pipe("data/rows.csv", b"user_id,item_id\n1,2\n")
    return folder


@pytest.mark.parametrize("source", ["s3://data/logs/{}", "s3://data/logs/{}/[0-9].parquet"])
def test_a_store_is_read_as_a_folder_is(partition, bucket, tmp_path, source):
    about = partition(
        config({name: source.format(name) for name in "ab"}), tmp_path / "found", 2, base=tmp_path
    )
    one_machine(config({"a": "a", "b": "b"}), bucket, tmp_path / "one", 2, inputs=about.inputs)
    assert contents(tmp_path / "found") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://nowhere/a.parquet", "s3://nowhere/a.parquet: no such file or folder"),
        ("s3://data/none.parquet", "s3://data/none.parquet: no such file or folder"),
        ("s3://data/logs/*.parquet", "no file matches the pattern"),
        ("s3://data/logs", "the folder holds no .parquet"),
        ("s3://data/rows.csv", "is CSV, and a cluster reads Parquet; convert it"),
        ("strange://data/rows.parquet", "Protocol not known: strange"),
    ],
)
def test_what_a_store_has_not_is_told_in_one_line(partition, bucket, tmp_path, source, message):
    with pytest.raises(DataError) as caught:
        partition(config({"a": source}), tmp_path / "found", 2, base=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "found").exists()


def test_a_store_that_lets_nobody_in_is_told_in_one_line(partition, bucket, tmp_path):
    from moto.core import set_initial_no_auth_action_count

    @set_initial_no_auth_action_count(0)
    def refused():
        partition(config({"a": "s3://data/logs/a"}), tmp_path / "found", 2, base=tmp_path)

    with pytest.raises(DataError, match=r"^s3://data/logs/a: no permission to read it"):
        refused()


# --- faults: the words of one machine


def rows(**columns):
    whole = {"user_id": [1, 2, 3] * 40, "item_id": [1, 2, 3, 4] * 30, "t": [1, 2] * 60}
    return pl.DataFrame({**whole, **columns})


def late(value, like, *, n=120, at=100):
    return [value if row == at or row == n - 1 else like for row in range(n)]


FAULTS = {
    "missing": {"a": [rows(), rows(user_id=late(None, 1))]},
    "long": {"a": [rows(item_id=late("x" * 300, "x"))]},
    "mixed": {"a": [rows(), rows(user_id=["u"] * 120)]},
    "far time": {"a": [rows(t=[1.0] * 120), rows(t=late(1e300, 1.0))]},
    "no column": {"a": [rows(), rows().drop("t")]},
    "no rows": {"a": [rows()[:0]]},
    "empty core": {"a": [rows(user_id=list(range(120)))]},
    "units": {"a": [rows()], "b": [rows(t=[1.0, 2.0] * 60)]},
    "not UTF-8": {"a": [rows(user_id=[b"\xff", b"a", b"b"] * 40)], "b": [rows()]},
    "too few times": {"a": [rows(t=[1] * 120)]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_as_on_one_machine(partition, tmp_path, fault):
    for name, parts in FAULTS[fault].items():
        (tmp_path / name).mkdir()
        for n, part in enumerate(parts):
            part.write_parquet(tmp_path / name / f"{n}.parquet", row_group_size=50)
    run = config({name: name for name in FAULTS[fault]}, method="time", min_user=2, min_item=1)
    with pytest.raises(DataError) as expected:
        one_machine(run, tmp_path, tmp_path / "one", 2)
    with pytest.raises(DataError) as caught:
        partition(run, tmp_path / "found", 2, base=tmp_path)
    assert str(caught.value) == str(expected.value)
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize("content", [b"PAR1 torn", b"PAR1 rubbish PAR1"])
def test_damaged_files_are_told_as_on_one_machine(partition, tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    run = config({"a": "a.parquet"})
    with pytest.raises(DataError) as expected:
        read(run.data, base=tmp_path)
    with pytest.raises(DataError) as caught:
        partition(run, tmp_path / "found", 2, base=tmp_path)
    assert str(caught.value) == str(expected.value)


def test_ids_of_one_pseudonym_are_told_as_on_one_machine(partition, tmp_path):
    Secret.make(tmp_path / "key")
    users = ["é", "e\u0301", "a", "b"] * 30
    rows(user_id=users).write_parquet(tmp_path / "a.parquet", row_group_size=50)
    run = config({"a": "a.parquet"}, min_user=1, min_item=1, secret="key")
    with pytest.raises(DataError, match=r"2 user ids differ in their Unicode form alone"):
        partition(run, tmp_path / "found", 2, base=tmp_path)
    assert not (tmp_path / "found").exists()


def test_what_only_one_machine_does_is_refused(partition, tmp_path):
    rows(t=["2024-01-01"] * 120).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"times are text, .*; write them as integers"):
        partition(config({"a": "a.parquet"}), tmp_path / "found", 2, base=tmp_path)
    cold = config({"a": "a.parquet"}).model_dump(exclude_none=True)
    cold = type(config({"a": ""})).model_validate({**cold, "split": {"cold": 0.1}})
    with pytest.raises(
        ConfigError, match=r"split\.cold is 0\.1, .* has no cold users; set it to 0"
    ):
        partition(cold, tmp_path / "found", 2, base=tmp_path)
    with pytest.raises(ConfigError, match="shards is 0; use 1 or more"):
        partition(config({"a": "a.parquet"}), tmp_path / "found", 0, base=tmp_path)


# --- once, and whatever happens


def test_a_node_that_is_lost_changes_nothing(partition, nodes, tmp_path, monkeypatch):
    from contextlib import contextmanager

    from clusters import add_node

    monkeypatch.chdir(tmp_path)  # from where no node looks at a relative path
    node = add_node(nodes)
    nodes.wait_for_nodes()
    lost = []

    @contextmanager
    def told(stage, domain):
        if (stage, domain) == ("k-core", "b"):
            lost.append(nodes.remove_node(node, allow_graceful=False))
        yield lambda n: None

    run = config(put(tmp_path, KINDS["mixed"], n_files=6))
    about = partition(run, Path("found"), 2, base=tmp_path, told=told)
    one_machine(run, tmp_path, tmp_path / "one", 2, inputs=about.inputs)
    assert len(lost) == 1
    assert contents(tmp_path / "found") == contents(tmp_path / "one")


def test_what_is_there_is_not_read_again_and_others_are_refused(partition, tmp_path):
    domains, out, said = put(tmp_path, [pl.Int64]), tmp_path / "found", []
    run = config(domains)
    about = partition(run, out, 2, base=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert partition(run, out, 2, base=tmp_path, say=said.append) == about == read_about(out)
    assert said == [f"{out}: holds these data in 2 shards already"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(RunError, match="holds data in 2 shards, and 3 are asked for"):
        partition(run, out, 3, base=tmp_path)
    for other in (config(domains, min_item=2), config(domains, method="last")):
        with pytest.raises(RunError, match="holds data of other settings or files"):
            partition(other, out, 2, base=tmp_path)
    frame(9, pl.Int64).write_parquet(tmp_path / "a" / "3.parquet")
    with pytest.raises(RunError, match="holds data of other settings or files"):
        partition(run, out, 2, base=tmp_path)
