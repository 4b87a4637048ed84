"""The plan for size: the model by hand, the page against what was measured, the shaped network."""

import importlib
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from musketeers.art.model import AttentionTransfer
from musketeers.cat.model import ContrastiveAutoencoder

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _scripts_are_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield


@pytest.fixture(scope="module")
def model():
    return importlib.import_module("scale_model")


@pytest.fixture(scope="module")
def page():
    return importlib.import_module("scale_page")


def rates(model, **given):
    """All nothing, but what is given."""
    return model.Rates(**{field.name: 0.0 for field in fields(model.Rates)} | given)


def machine(model, **given):
    """Of two threads, to which nothing is slow."""
    return replace(model.Machine("tiny", 2, 1e9, 1e30, 0.0, 1e30, 36.0), **given)


def tiny(model, **given):
    """Two domains of a hundred users, one epoch of each stage and no validation."""
    domains = (model.Domain(100, 10, 1_000), model.Domain(100, 20, 1_000))
    load = model.Workload(100, domains, 4, (1, 1, 1), (0, 0, 0), cat_batch=40, art_batch=30)
    return replace(load, **given)


def found(model, load, at, n, **given):
    return model.costs(load, at, n, rates(model, **given))


def test_pairs_and_users_are_shared_by_members_and_threads(model):
    # .64 of 2,000 pairs, on two members of two threads
    parts = found(model, tiny(model), machine(model), 2, pair=1.0, art_pair=10.0)
    assert parts["stage 1"].work == pytest.approx(1280 / 4)
    assert parts["stage 3"].work == pytest.approx(12800 / 4)
    parts = found(model, tiny(model), machine(model, share=0.5), 2, user=1.0)
    assert parts["stage 1"].work == pytest.approx(200 / 4 / 0.5)


def test_a_ring_sends_all_but_one_part_twice(model):
    at = machine(model, link=100.0, latency=0.5)
    one = model.all_reduce(600, at, 3, rates(model, hop=0.25))
    assert one.sent == pytest.approx(800)
    # each step a message there and one back, but for a single number
    assert one.network == pytest.approx(4 * (0.25 + 2 * 0.5) + 8)
    one = model.all_reduce(8, at, 3, rates(model))
    assert one.network == pytest.approx(4 * 0.5 + 8 * 4 / 3 / 100)
    # 600 and a length of 8 bytes to each of two others
    one = model.all_gather(600, at, 3, rates(model))
    assert one.sent == pytest.approx(1216)
    assert one.network == pytest.approx(4 * 2 * 0.5 + 12.16)
    # gloo's own rate where that is the limit
    slow = model.all_reduce(600, at, 3, rates(model, sent_byte=0.1))
    assert slow.network == pytest.approx(4 * 2 * 0.5 + 80)
    assert model.all_reduce(600, at, 1, rates(model)) == model.NOTHING


def test_what_is_sent_in_stage_1(model):
    # 32 merges at least, each of items x (4 numbers and a sum) x 4 bytes; a half goes out twice
    parts = found(model, tiny(model), machine(model), 2)
    assert parts["stage 1"].sent == pytest.approx(32 * (10 + 20) * 5 * 4)
    # and more where there are more pairs than 2 members of 2 lanes take between two merges
    many = replace(tiny(model), domains=(model.Domain(100, 10, 5_000_000),))
    merges = 3_200_000 // (4 * 16_384)
    parts = found(model, many, machine(model), 2)
    assert parts["stage 1"].sent == pytest.approx(merges * 10 * 5 * 4)


@pytest.mark.parametrize(
    ("pairs", "merges"),
    # 80 of an item make 32 merges; 20,000 make 256, then 52; 320,000 make 833, 384 by 384
    [(1_250, 3 * 32), (312_500, 256 + 2 * 52), (5_000_000, 3 * 833)],
)
def test_many_lanes_are_merged_as_often_as_items_are_met(model, pairs, merges):
    load = model.Workload(100, (model.Domain(100, 10, pairs),), 4, (3, 0, 0), (0, 0, 0))
    parts = found(model, load, machine(model, threads=3), 2)
    assert parts["stage 1"].sent == pytest.approx(merges * 10 * 5 * 4)


def test_what_is_sent_in_stages_2_and_3(model):
    load = replace(tiny(model), gathered=False)
    # 90 users learn in steps of 40: three, in each three sums of 8 bytes, and all slopes
    slopes = 4 * model.cat_parameters(2, 4)
    parts = found(model, load, machine(model), 2)
    assert parts["stage 2"].sent == pytest.approx(3 * (3 * 8 + slopes))
    # gathered: 20 users' three vectors, a bit and two sums, with six lengths; and 40 slopes
    parts = found(model, tiny(model), machine(model), 2)
    more = 20 * (3 * 16 + 1 + 2 * 4) + 6 * 8 + 40 * 16
    assert parts["stage 2"].sent == pytest.approx(3 * (3 * 8 + slopes + more))
    # 100 users in steps of 30: four; one merge at the end of the epoch
    slopes = 4 * model.art_parameters(2, 4)
    assert parts["stage 3"].sent == pytest.approx(2 * 4 * (8 + slopes) + (10 + 20) * 5 * 4)


def test_alone_nothing_is_sent(model):
    parts = found(model, tiny(model), machine(model, threads=1), 1, pair=1.0)
    assert model.total(parts).sent == 0
    assert model.total(parts).network == 0


def test_dollars_and_memory(model):
    parts = found(model, tiny(model), machine(model), 2, start=100.0)
    assert model.dollars(parts, machine(model), 2) == pytest.approx(2.0)
    some = rates(model, base=7.0, user_tables=3.0, item_tables=5.0, pair_bytes=2.0)
    # 50 users of two domains and 4 numbers; 30 items; two lanes and what was merged; 1,000 pairs
    held = model.memory(tiny(model), 2, 2, some)
    assert held == 7 + 3 * 50 * 2 * 4 * 4 + 5 * 30 * 4 * 4 + 3 * 20 * 4 * 4 + 2 * 1000
    at = machine(model, memory=held / 0.9)
    assert model.members_needed(tiny(model), at, some) == 2
    assert model.members_needed(tiny(model), machine(model, memory=8.0), some) is None


def test_more_members_stop_helping_where_waiting_outweighs_work(model):
    # 1,280 s of work over n members of two threads, and 32 merges twice, 2 (n - 1) hops each
    some = rates(model, pair=1.0, hop=1 / 800)
    load = tiny(model, epochs=(1, 0, 0))
    n, steps = model.best(load, machine(model), some)
    # 640 / n + 0.16 (n - 1) is least at 63.2
    assert n == steps["stage 1"] == 64


@pytest.mark.parametrize(("n_domains", "dim"), [(2, 4), (5, 8)])
def test_parameters_are_those_of_the_networks(model, n_domains, dim):
    def count(module):
        return sum(weight.numel() for weight in module.parameters())

    generator = torch.Generator()
    cat = ContrastiveAutoencoder(n_domains, dim, generator=generator)
    assert count(cat) == model.cat_parameters(n_domains, dim)
    art = AttentionTransfer(n_domains - 1, dim, generator=generator)
    assert count(art) == model.art_parameters(n_domains, dim)


def test_the_page_says_what_was_measured(page):
    content = page.kept()
    written = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(written, content) == written
    drawn = page.PICTURE.read_text(encoding="utf-8")
    assert page.picture(page.Rates.of(content["rates"])) == drawn


def test_a_shaped_network_leaves_nothing_behind_when_interrupted():
    network = importlib.import_module("shaped")
    ask = "import socket, sys; socket.create_connection((sys.argv[1], 80), 5)"
    places = []
    try:
        with network.shaped(2, rate=1e8, delay=0.03) as places:
            words = [*places[0].prefix, sys.executable, "-c", ask, places[1].host]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            # it was reached, and nobody listens there
            assert "ConnectionRefusedError" in done.stderr
            raise KeyboardInterrupt
    except network.CannotShapeError as reason:
        pytest.skip(str(reason))
    except KeyboardInterrupt:
        pass
    for place in places:
        assert not (Path("/run/netns") / place.device).exists()
