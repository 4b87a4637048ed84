"""A table of items of which each member holds a share: it learns as one that all of them hold."""

import tempfile

import numpy as np
import pytest
from members import of_member, rows_of, together

from musketeers.config import ArtConfig, CatConfig, DataConfig, PretrainConfig, RunConfig, changed
from musketeers.data.synthetic import planted
from musketeers.errors import ArtifactError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.group import of_all
from musketeers.pipeline import cat_art, choices
from musketeers.pretrain import sharded
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.mf import pretrain
from musketeers.pretrain.sharded import item_table, rows_held
from musketeers.pretrain.tables import Catalogue, Tables
from musketeers.ranking import Factors, top_k
from musketeers.run_folder import FolderCheckpoint
from musketeers.scratch import table_on_disk
from musketeers.seeding import Seed
from musketeers.task import unwatched

NAMES = ("a", "b", "c")
CONFIG = RunConfig(
    dim=8,
    data=DataConfig(domains=dict.fromkeys(NAMES, "-")),
    pretrain=PretrainConfig(max_epochs=6, patience=3, tries=1, regularization=0.05),
    cat=CatConfig(max_epochs=3, batch_size=64),
    art=ArtConfig(max_epochs=4, batch_size=64),
)


def how(config, tables):
    return changed(config, {"pretrain.item_tables": tables})


@pytest.fixture(scope="module")
def splits():
    return planted(NAMES, Seed(3), n_users=400, n_items=70).splits


def stages(splits, config, n, *, n_threads):
    """What the stages made of each domain by `n` members: all vectors, and NDCG@10 of all users."""

    def work(place):
        mine = of_member(splits, place, n)
        made = cat_art(mine, config, unwatched, n_threads=n_threads)
        chosen = choices(mine, made, config, unwatched, n_threads=n_threads, max_bytes=0)
        found = {}
        for name in NAMES:
            alone, told = made.alone[name], made.transferred[name]
            split = mine[name]
            quality = evaluate(told.factors, split.test, split.seen(), n_threads=1)
            found[name] = (
                alone.factors.items.copy(), of_all(alone.factors.users), alone.item_squares,
                told.factors.items.copy(), of_all(told.factors.users),
                of_all(quality.values["ndcg@10"]), chosen[name].verdict,
            )  # fmt: skip
        return found

    return together(n, work)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_two_members_learn_bit_by_bit_what_they_learn_where_both_have_all(
    splits, n_threads, kept_as
):
    whole = stages(splits, how(CONFIG, "replicated"), 2, n_threads=n_threads)
    shared = stages(splits, how(CONFIG, "sharded"), 2, n_threads=n_threads)
    for one, other in zip(whole, shared, strict=True):
        for name in NAMES:
            *arrays, verdict = one[name]
            *theirs, same = other[name]
            assert [a.tobytes() for a in arrays] == [a.tobytes() for a in theirs]
            assert repr(verdict) == repr(same)


def test_of_more_members_sums_alone_are_rounded_in_another_order(splits):
    whole = stages(splits, how(CONFIG, "replicated"), 3, n_threads=1)[0]
    shared = stages(splits, how(CONFIG, "sharded"), 3, n_threads=1)[0]
    for name in NAMES:
        for one, other in zip(whole[name][:3], shared[name][:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=0.02, atol=0.002)


def test_merged_in_small_blocks_it_is_as_good(monkeypatch):
    """As a large catalogue is: in blocks that look at few of its rows."""
    splits = planted(("a",), Seed(1), n_users=3000, n_items=1000).splits
    settings = {"max_epochs": 6, "patience": 6, "regularization": 0.035, "tries": 1}

    def quality(n, tables):
        config = PretrainConfig(**settings, item_tables=tables)

        def work(place):
            mine = of_member(splits, place, n)["a"]
            looked_at = Validation.of(mine, Seed(0), n_threads=1)
            made = pretrain(mine, looked_at, config, Seed(0), unwatched("a", "a", 1), dim=16)
            found = evaluate(made.factors, mine.test, mine.seen(), n_threads=1)
            return of_all(found.values["ndcg@10"]).mean()

        return together(n, work)[0]

    whole = quality(4, "replicated")
    monkeypatch.setattr(sharded, "MEMBERS_BLOCK", 200)
    assert quality(4, "sharded") > 0.98 * whole


def test_a_member_holds_its_share_and_what_it_has_fetched():
    train = planted(("a",), Seed(0), n_users=300, n_items=1000).splits["a"].train

    def work(place):
        mine = train.of_each(rows_of(place, 4, train.n_users))
        config = PretrainConfig(item_tables="sharded", candidates=2)
        tables = Tables([Catalogue(mine, Seed(0))], Seed(0), config, dim=4, n_lanes=2)
        items = tables.lanes[0]
        held, seen = [len(items.items)], []
        for turn in tables.turns(1):
            items.fetch(mine, turn.users, turn.key)

            def learn(part, rows, turn=turn):
                # nothing else is there to be looked at
                liked = np.concatenate([mine.of(int(user)) for user in turn.users[part]])
                seen.append(len(rows.items))
                rows.items[rows.places[liked]] += 1
                rows.touched[rows.places[liked]] = True

            items.run(mine.counts()[turn.users], learn)
            items.merge()
        return held[0], max(seen), items.table().copy(), rows_held(1000, "sharded")

    found = together(4, work)
    assert [held for held, *_ in found] == [250] * 4
    assert [(rows.start, rows.stop) for *_, rows in found] == [
        (0, 250), (250, 500), (500, 750), (750, 1000)
    ]  # fmt: skip
    tables = [table.tobytes() for _, _, table, _ in found]
    assert len(set(tables)) == 1
    assert all(0 < seen < 1000 for _, seen, *_ in found)


def test_alone_a_member_has_all():
    items, squares = np.ones((5, 2), np.float32), np.ones(5, np.float32)
    assert rows_held(5, "sharded") == slice(0, 5)
    table = item_table(items, squares, "sharded", n_items=5, n_lanes=1, n_candidates=1)
    assert isinstance(table, ItemLanes)


def test_fewer_items_than_members(splits):
    few = planted(("a",), Seed(1), n_users=60, n_items=3).splits

    def work(place):
        mine = of_member(few, place, 4)["a"]
        config = PretrainConfig(item_tables="sharded")
        tables = Tables([Catalogue(mine.train, Seed(0))], Seed(0), config, dim=4, n_lanes=1)
        loss = tables.epoch(1, lambda turn, part, rows: float(len(turn.users[part])))
        return loss, tables.lanes[0].table().shape, tables.lanes[0].all_squares().shape

    assert len({tuple(one) for one in together(4, work)}) == 1


def test_stage_one_goes_on_from_each_members_own_rows(splits, tmp_path, kept_as):
    class Stop(Exception):
        pass

    def fit(place, folder, stop):
        mine = of_member(splits, place, 2)["a"]
        config = how(CONFIG, "sharded")

        class OneJob:
            def checkpoint(self, part):
                return FolderCheckpoint(folder / str(place) / part)

            def on_epoch(self, epoch):
                if epoch.number >= stop:
                    raise Stop

        looked_at = Validation.of(mine, Seed(0), n_threads=1)
        made = pretrain(mine, looked_at, config.pretrain, Seed(0), OneJob(), dim=8)
        return made.factors.items.tobytes(), made.factors.users.tobytes()

    whole = together(2, lambda place: fit(place, tmp_path / "whole", 99))
    with pytest.raises(Stop):
        together(2, lambda place: fit(place, tmp_path / "cut", 3))
    saved = [len(list((tmp_path / "cut" / str(place)).rglob("*.safetensors"))) for place in (0, 1)]
    assert min(saved) > 0
    assert together(2, lambda place: fit(place, tmp_path / "cut", 99)) == whole


# --- ranking what is on the disk


@pytest.mark.parametrize("k", [1, 5, 40])
def test_ranking_from_the_disk_is_that_from_memory(k, monkeypatch):
    monkeypatch.setattr("musketeers.ranking.ITEMS_AT_A_TIME", 13)
    rng = np.random.default_rng(0)
    users = rng.integers(-3, 4, (50, 4)).astype(np.float32)
    # whole numbers, so that many scores are equal and their order counts
    items = rng.integers(-2, 3, (61, 4)).astype(np.float32)
    users[7] = 0
    on_disk = table_on_disk(*items.shape)
    on_disk[:] = items
    seen = planted(("a",), Seed(0), n_users=50, n_items=61).splits["a"].train
    rows = rng.permutation(50)[:30]
    for skip in (seen, None):
        one, other = (
            top_k(Factors(users, held), rows, k=k, seen=skip, n_threads=2)
            for held in (items, on_disk)
        )
        assert np.array_equal(one.items, other.items)
        assert np.array_equal(one.scores, other.scores, equal_nan=True)


def test_no_room_is_noticed_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ArtifactError, match="was not written; free some"):
        table_on_disk(1 << 50, 64)
    assert not list(tmp_path.iterdir())
