"""Processor or GPU; where there is none, what would run on one runs by torch on the processor."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from test_ease import only, pairs

from musketeers import device
from musketeers.baselines.ease import EaseSettings, ease
from musketeers.baselines.item_knn import ItemKnnSettings, item_knn
from musketeers.baselines.linear import Linear
from musketeers.cat.train import align
from musketeers.config import CatConfig
from musketeers.data.interactions import Interactions
from musketeers.device import computing_on, gpu
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings
from musketeers.heads.gate import Gated
from musketeers.ranking import Factors, top_k
from musketeers.seeding import Seed
from musketeers.shortlist import Shortlists
from musketeers.training import Unwatched

WHERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def on_gpu(monkeypatch):
    """A context in which all that asks for a GPU gets one, or torch on the processor."""
    monkeypatch.setattr(device, "_found", lambda _: WHERE)
    return lambda: computing_on("cuda")


# --- which device


def test_the_processor_is_the_default_and_comes_back():
    assert gpu() is None
    with computing_on("cpu"):
        assert gpu() is None


def test_a_device_is_set_for_the_block_alone(on_gpu):
    with on_gpu():
        assert gpu() == WHERE
    with pytest.raises(ZeroDivisionError), on_gpu():
        raise ZeroDivisionError
    assert gpu() is None


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "CUDA", "", "tpu", "cpu:0", "cudas"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match="use cpu, cuda, or"), computing_on(name):
        raise AssertionError


def test_a_gpu_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(ConfigError, match=r"torch .* finds no GPU here; install"),
        computing_on("cuda"),
    ):
        raise AssertionError
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="there are 2 GPUs"), computing_on("cuda:2"):
        raise AssertionError


def test_a_gpu_without_triton_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="install the package triton"), computing_on("cuda"):
        raise AssertionError


def test_too_little_memory_there_is_one_clear_line(on_gpu):
    with (
        pytest.raises(ConfigError, match=r"memory of cuda does not suffice \(CUDA out of memory\)"),
        on_gpu(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB. And so on.")
    with pytest.raises(RuntimeError, match="another"), on_gpu():
        raise RuntimeError("another")


# --- lists


def vectors(n_users, n_items, *, dim=8, entropy=0, ties=False):
    make = Seed(entropy).numpy()
    users, items = (make.standard_normal((n, dim)).astype(np.float32) for n in (n_users, n_items))
    if ties:
        items[1::2] = items[::2][: len(items[1::2])]
        users[::5] = 0
    return Factors(users, items)


def seen_by(n_users, n_items, share, entropy=1):
    make = Seed(entropy).numpy()
    users, items = np.nonzero(make.random((n_users, n_items)) < share)
    return Interactions.from_pairs(
        users.astype(np.int64), items.astype(np.int32), n_users=n_users, n_items=n_items
    )


def same(scorer, on_gpu, *, k, seen, users=None):
    users = np.arange(seen.n_users) if users is None else users
    here = top_k(scorer, users, k=k, seen=seen, n_threads=2)
    with on_gpu():
        there = top_k(scorer, users, k=k, seen=seen, n_threads=2)
    assert here.items.tobytes() == there.items.tobytes()
    assert here.scores.tobytes() == there.scores.tobytes()
    return there


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_lists_of_vectors_are_bitwise_the_same(on_gpu, ties, share, k):
    scorer = vectors(60, 300, ties=ties)
    found = same(scorer, on_gpu, k=k, seen=seen_by(60, 300, share))
    assert (found.items >= 0).any() == (share < 1)


@pytest.mark.parametrize("n_items", [1, 2, 33])
def test_small_catalogues_too(on_gpu, n_items):
    same(vectors(9, n_items), on_gpu, k=3, seen=seen_by(9, n_items, 0.2))


def test_users_in_any_order_and_none_at_all(on_gpu):
    scorer, seen = vectors(60, 300), seen_by(60, 300, 0.1)
    same(scorer, on_gpu, k=5, seen=seen, users=np.array([7, 3, 3, 59]))
    same(scorer, on_gpu, k=5, seen=seen, users=np.arange(0))


def test_all_items_alike_are_told_apart_by_their_rows(on_gpu):
    scorer = Factors(np.ones((3, 4), np.float32), np.ones((200, 4), np.float32))
    found = same(scorer, on_gpu, k=5, seen=seen_by(3, 200, 0.0))
    assert found.items.tolist() == 3 * [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("kind", ["dense", "sparse", "gate"])
def test_lists_of_linear_models_are_bitwise_the_same(on_gpu, kind):
    train = pairs(80, 50, entropy=3)
    made = ease(only(train), EaseSettings(5.0))
    if kind == "sparse":
        made = item_knn(only(train), ItemKnnSettings())
        assert isinstance(made.weights, csr_array)
    if kind == "gate":
        made = Gated(made, vectors(80, 50), Seed(0).numpy().random(80) < 0.5)
    same(made, on_gpu, k=7, seen=train)


def test_a_user_without_inputs_is_served_in_the_order_of_the_rows(on_gpu):
    made = Linear.of(csr_array((4, 6), dtype=np.float32), np.ones((6, 50), np.float32))
    same(made, on_gpu, k=3, seen=seen_by(4, 50, 0.2))


def test_a_gpu_was_asked(on_gpu, monkeypatch):
    asked = []
    of = Shortlists.of
    monkeypatch.setattr(Shortlists, "of", lambda *a: (asked.append(len(a[1])), of(*a))[1])
    same(vectors(60, 300), on_gpu, k=5, seen=seen_by(60, 300, 0.1))
    assert asked == [60]


def scarce(most, failures=None):
    """Scores on a GPU that holds those of so many users."""

    def scores_on(self, where):
        def scores(users):
            if len(users) > most:
                if failures is not None:
                    failures.append(len(users))
                raise torch.OutOfMemoryError
            return torch.from_numpy(self.score(users)).to(where)

        return scores

    return scores_on


def test_less_memory_means_fewer_users_at_once_and_the_same_lists(on_gpu, monkeypatch):
    failures = []
    monkeypatch.setattr(Factors, "scores_on", scarce(8, failures))
    monkeypatch.setattr("musketeers.shortlist._TILE_BYTES", 4 * 300 * 20)
    same(vectors(60, 300), on_gpu, k=5, seen=seen_by(60, 300, 0.1))
    # three tiles of twenty; the later ones know what the first has learned
    assert failures == [20, 10]


def test_a_model_that_does_not_fit_is_left_to_the_processor(on_gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Factors, "scores_on", full)
    same(vectors(60, 300), on_gpu, k=5, seen=seen_by(60, 300, 0.1))


def test_no_memory_at_all_is_one_clear_line(on_gpu, monkeypatch):
    monkeypatch.setattr(Factors, "scores_on", scarce(0))
    with on_gpu(), pytest.raises(ConfigError, match="GPU's memory does not suffice"):
        top_k(vectors(60, 300), np.arange(60), k=5, seen=None, n_threads=1)


def test_products_are_of_full_precision_whatever_others_set(on_gpu):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        same(vectors(60, 300, dim=64), on_gpu, k=5, seen=seen_by(60, 300, 0.1))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# --- stage 2


def shared():
    make = Seed(2).numpy()
    taste = make.standard_normal((200, 1, 8))
    values = (taste + 0.3 * make.standard_normal((200, 3, 8))).astype(np.float32)
    known = make.random((200, 3)) < 0.8
    tables = {name: values[:, n] for n, name in enumerate("abc")}
    return UserEmbeddings.collect(tables, {name: known[:, n] for n, name in enumerate("abc")})


def test_what_is_the_same_of_users_is_learned_there_as_well(on_gpu):
    config = CatConfig(max_epochs=15, batch_size=64)
    here = align(shared(), config, Seed(0), Unwatched(), n_threads=2)
    with on_gpu():
        there = align(shared(), config, Seed(0), Unwatched(), n_threads=2)
        again = align(shared(), config, Seed(0), Unwatched(), n_threads=2)
        encoded = there.of(shared())
    assert there.users.tobytes() == again.users.tobytes()
    np.testing.assert_allclose(encoded, there.users, atol=1e-5)
    # products round otherwise, the quality is the same
    assert there.history.best.valid == pytest.approx(here.history.best.valid, rel=0.1)
    # what a GPU has trained a processor can use
    np.testing.assert_allclose(there.of(shared()), there.users, atol=1e-4)


def test_a_training_is_interrupted_and_goes_on_there(on_gpu):
    config = CatConfig(max_epochs=4, batch_size=64)
    kept = {}

    class Keeping(Unwatched):
        def checkpoint(self, part):
            return Memory()

    class Memory:
        def load(self):
            return kept.get("state")

        def save(self, tensors, about):
            kept["state"] = dict(tensors), dict(about)

    with on_gpu():
        whole = align(shared(), config, Seed(0), Unwatched(), n_threads=2)
        short = CatConfig(max_epochs=2, batch_size=64)
        align(shared(), short, Seed(0), Keeping(), n_threads=2)
        assert kept
        again = align(shared(), config, Seed(0), Keeping(), n_threads=2)
    assert again.users.tobytes() == whole.users.tobytes()
