"""Stage 3: attention by definition, and a transfer that never costs a domain anything."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Generator

from musketeers.art.model import AttentionTransfer
from musketeers.art.train import Transferred, transfer
from musketeers.cat.train import Aligned, align
from musketeers.config import ArtConfig, CatConfig, DataConfig, PretrainConfig, RunConfig
from musketeers.data.synthetic import Planted, planted
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.seeding import Seed
from musketeers.training import Epoch, Unwatched

DIM = 4


def module(n_sources=3, dim=DIM, *, dropout=0.0, seed=0):
    """One whose every weight is at work, as after training."""
    generator = Generator().manual_seed(seed)
    made = AttentionTransfer(n_sources, dim, dropout=dropout, generator=generator)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return made.double()


def users(n_users=7, n_sources=3, dim=DIM, *, seed=1):
    """target, target_known, sources, sources_known, shared; the first user has no source."""
    generator = Generator().manual_seed(seed)
    target, shared = torch.randn(2, n_users, dim, generator=generator, dtype=torch.float64)
    sources = torch.randn(n_users, n_sources, dim, generator=generator, dtype=torch.float64)
    target_known = torch.rand(n_users, generator=generator) < 0.6
    sources_known = torch.rand(n_users, n_sources, generator=generator) < 0.6
    sources_known[0], sources_known[1] = False, True
    return target, target_known, sources, sources_known, shared


def one_by_one(model, target, target_known, sources, sources_known, shared):
    """The docstring's formula for one user after the other; attention and output."""
    w = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    weights, outputs = [], []
    for u in range(len(target)):
        known = [s for s in range(len(sources[u])) if sources_known[u, s]]
        alpha = np.zeros(len(sources[u]))
        if not known:
            weights.append(alpha)
            outputs.append(np.zeros(target.shape[1]))
            continue
        own = target[u].numpy() if target_known[u] else w["pad"]
        query = own @ w["query"] + w["query_bias"]
        adapted = {s: sources[u, s].numpy() @ w["adapt"][s] + w["adapt_bias"][s] for s in known}
        keys = {s: a @ w["key"] + w["key_bias"] for s, a in adapted.items()}
        values = {s: a @ w["value"] + w["value_bias"] for s, a in adapted.items()}
        powers = {s: np.exp(query @ keys[s] / np.sqrt(target.shape[1])) for s in known}
        for s in known:
            alpha[s] = powers[s] / sum(powers.values())
        attended = sum(alpha[s] * values[s] for s in known)
        weights.append(alpha)
        outputs.append(attended @ w["out"] + shared[u].numpy() @ w["shared"] + w["bias"])
    return np.array(weights), np.array(outputs)


def attention_of(model, target, target_known, sources, sources_known, _shared):
    return model.attention(target, target_known, model.adapted(sources), sources_known)


@pytest.mark.parametrize(("n_sources", "dim"), [(1, 3), (3, 4), (5, 2)])
def test_what_is_added_is_its_definition_user_by_user(n_sources, dim):
    model, inputs = module(n_sources, dim), users(20, n_sources, dim)
    weights, outputs = one_by_one(model, *inputs)
    np.testing.assert_allclose(model(*inputs).detach(), outputs, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(attention_of(model, *inputs).detach(), weights, atol=1e-12)


def test_attention_sums_to_one_over_the_known_sources():
    model, inputs = module(), users(30)
    known = inputs[3]
    weights = attention_of(model, *inputs)
    assert not weights[~known].any()
    assert (weights[known] > 0).all()
    torch.testing.assert_close(weights.sum(1), known.any(1).double())


def test_the_untrained_module_adds_exactly_nothing():
    model = AttentionTransfer(3, DIM, dropout=0.1, generator=Generator().manual_seed(0)).double()
    assert not model(*users()).any()
    assert not model(*users(), generator=Generator()).any()


def test_a_user_whom_no_source_knows_gets_exactly_nothing():
    added = module()(*users())
    assert not added[0].any()
    assert added[1].all()


def test_what_is_not_known_has_no_influence():
    model = module()
    target, target_known, sources, sources_known, shared = users()
    other_target = target.where(target_known.unsqueeze(-1), target + 1e3)
    other_sources = sources.where(sources_known.unsqueeze(-1), sources - 1e3)
    first = model(target, target_known, sources, sources_known, shared)
    again = model(other_target, target_known, other_sources, sources_known, shared)
    assert torch.equal(first, again)


def test_one_user_is_a_batch_too():
    model, inputs = module(), users()
    alone = model(*(tensor[1:2] for tensor in inputs))
    assert alone.shape == (1, DIM)
    torch.testing.assert_close(alone, model(*inputs)[1:2])


def test_the_slopes_are_right_for_every_input_and_weight():
    model = module(2, 3)
    target, target_known, sources, sources_known, shared = users(4, 2, 3)
    names = [name for name, _ in model.named_parameters()]

    def added(target, sources, shared, *weights):
        inputs = target, target_known, sources, sources_known, shared
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), inputs)

    inputs = (target, sources, shared, *(weight.detach() for weight in model.parameters()))
    assert torch.autograd.gradcheck(added, [tensor.requires_grad_() for tensor in inputs])


def test_every_weight_learns():
    model, inputs = module(), users()
    model(*inputs).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_attention_drops_out_only_with_a_generator_and_keeps_its_mean():
    model, inputs = module(dropout=0.3), users()
    still = model(*inputs)
    assert torch.equal(still, model(*inputs))
    generator = Generator().manual_seed(0)
    draws = torch.stack([model(*inputs, generator=generator) for _ in range(1000)])
    assert (draws.std(0)[1:] > 0).all()
    error = draws.std(0) / np.sqrt(len(draws))
    assert ((draws.mean(0) - still).abs() <= 5 * error).all()
    again = model(*inputs, generator=Generator().manual_seed(0))
    assert torch.equal(again, draws[0])


@dataclass(frozen=True)
class Ready:
    """Everything that stage 3 starts from."""

    data: Planted
    config: RunConfig
    alone: dict[str, Pretrained]
    shared: UserEmbeddings
    aligned: Aligned


def ready(names=("a", "b", "c"), *, n_users=120, known=0.7, common=0.9, seed=0):
    data = planted(
        names, Seed(seed), n_users=n_users, n_items=40, dim=3, common=common, known=known
    )
    config = RunConfig(
        seed=seed,
        dim=6,
        data=DataConfig(domains=dict.fromkeys(names, "-")),
        pretrain=PretrainConfig(max_epochs=15, patience=3, halvings=0, regularization=0.05),
        cat=CatConfig(max_epochs=5),
        art=ArtConfig(max_epochs=6, patience=6, batch_size=32, learning_rate=5e-3),
    )
    alone = {
        name: pretrain(
            split, looking(split), config.pretrain, Seed(seed).child("pretrain", name),
            Unwatched(), dim=config.dim,
        )
        for name, split in data.splits.items()
    }  # fmt: skip
    present = {name: split.train.known_users() for name, split in data.splits.items()}
    shared = UserEmbeddings.collect({n: alone[n].factors.users for n in names}, present)
    return Ready(data, config, alone, shared, align(shared, config.cat, Seed(seed), Unwatched()))


def looking(split, n_threads=1):
    return Validation.of(split, Seed(0).child("validation"), n_threads=n_threads)


@pytest.fixture(scope="module")
def three():
    return ready()


def transferred(
    made, target="a", *, shared=None, aligned=None, job=None, n_threads=1, seed=0, **art
) -> Transferred:
    split = made.data.splits[target]
    config = made.config.model_copy(update={"art": made.config.art.model_copy(update=art)})
    return transfer(
        target, split, looking(split, n_threads), made.alone[target], shared or made.shared,
        made.aligned.users if aligned is None else aligned, config, Seed(seed),
        job or Unwatched(),
    )  # fmt: skip


def bits(result):
    arrays = (result.factors.users, result.factors.items, *result.weights.values())
    return [array.tobytes() for array in arrays]


def test_it_learns_and_starts_from_the_domain_alone(three):
    result = transferred(three)
    history = result.history
    alone = looking(three.data.splits["a"]).ndcg(three.alone["a"].factors)
    assert history.epochs[0].valid == alone
    assert history.best.number > 0
    assert history.best.valid > alone
    assert looking(three.data.splits["a"]).ndcg(result.factors) == history.best.valid


def test_a_transfer_that_only_harms_gives_back_the_domain_alone(three):
    result = transferred(three, learning_rate=50.0, items="fixed")
    assert result.history.best.number == 0
    np.testing.assert_array_equal(result.factors.users, three.alone["a"].factors.users)
    np.testing.assert_array_equal(result.factors.items, three.alone["a"].factors.items)


def test_users_whom_no_source_knows_keep_their_vector(three):
    result = transferred(three)
    lonely = ~three.shared.without("a").known.any(axis=1)
    assert lonely.any()
    assert result.history.best.number > 0
    moved = (result.factors.users != three.alone["a"].factors.users).any(axis=1)
    np.testing.assert_array_equal(moved, ~lonely)


def test_the_items_control_learns_items_and_leaves_users(three):
    result = transferred(three, shared=three.shared.hidden())
    alone = three.alone["a"].factors
    assert result.factors.users.tobytes() == alone.users.tobytes()
    # whatever its best epoch, items did move on the way
    assert result.history.epochs[1].train_loss != result.history.epochs[2].train_loss
    assert result.attention == {"b": 0.0, "c": 0.0}


def test_fixed_items_stay_bit_by_bit(three):
    result = transferred(three, items="fixed")
    assert result.history.best.number > 0
    assert result.factors.items.tobytes() == three.alone["a"].factors.items.tobytes()


def test_tuned_items_learn_the_first_row_included(three):
    result = transferred(three)
    moved = (result.factors.items != three.alone["a"].factors.items).any(axis=1)
    assert moved.all()


def test_nothing_that_came_in_changes(three):
    before = copy.deepcopy([(made.factors, made.item_squares) for made in three.alone.values()])
    shared = three.shared.values.copy(), three.shared.known.copy(), three.aligned.users.copy()
    transferred(three)
    for (factors, squares), made in zip(before, three.alone.values(), strict=True):
        assert made.factors.users.tobytes() == factors.users.tobytes()
        assert made.factors.items.tobytes() == factors.items.tobytes()
        assert made.item_squares.tobytes() == squares.tobytes()
    np.testing.assert_array_equal(three.shared.values, shared[0])
    np.testing.assert_array_equal(three.shared.known, shared[1])
    np.testing.assert_array_equal(three.aligned.users, shared[2])


def test_mean_attention_is_shared_out_among_the_sources(three):
    attention = transferred(three).attention
    assert attention.keys() == {"b", "c"}
    assert sum(attention.values()) == pytest.approx(1, rel=1e-5)
    assert all(weight > 0 for weight in attention.values())


@dataclass
class Watched:
    """Counts the network's passes of each epoch, with and without dropout."""

    passes: list[tuple[int, int]] = field(default_factory=list)
    now: list[bool] = field(default_factory=list)

    def checkpoint(self, part: str) -> None:
        return None

    def on_epoch(self, epoch: Epoch, /) -> None:
        self.passes.append((sum(self.now), len(self.now) - sum(self.now)))
        self.now.clear()


def test_dropout_is_on_in_every_training_epoch_and_off_in_every_validation(three, monkeypatch):
    watched, forward = Watched(), AttentionTransfer.forward

    def noted(self, *inputs, generator=None):
        watched.now.append(generator is not None)
        return forward(self, *inputs, generator=generator)

    monkeypatch.setattr(AttentionTransfer, "forward", noted)
    transferred(three, job=watched, max_epochs=3)
    n_batches = -(-int(three.data.splits["a"].train.known_users().sum()) // 32)
    assert [with_dropout for with_dropout, _ in watched.passes] == [0] + 3 * [n_batches]
    assert all(without >= 1 for _, without in watched.passes)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_seed_and_the_threads_decide_every_bit(three, n_threads):
    torch.manual_seed(1)
    first = bits(transferred(three, n_threads=n_threads, max_epochs=2))
    torch.manual_seed(2)
    assert bits(transferred(three, n_threads=n_threads, max_epochs=2)) == first
    assert bits(transferred(three, n_threads=n_threads, max_epochs=2, seed=1)) != first


@pytest.mark.parametrize("batch_size", [1, 13, 1000])
def test_a_last_batch_of_any_size_will_do(three, batch_size):
    result = transferred(three, batch_size=batch_size, max_epochs=1)
    assert np.isfinite(result.factors.users).all()


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d")])
def test_any_number_of_domains(names):
    made = ready(names, n_users=60)
    result = transferred(made, max_epochs=2)
    assert result.attention.keys() == set(names[1:])
    assert result.factors.users.shape == (60, 6)


def test_vectors_that_stand_for_unknown_users_have_no_influence(three):
    """Each domain holds some vector for everybody; only those of its own users count."""
    present = dict(zip(three.shared.domains, three.shared.known.T, strict=True))
    rng = np.random.default_rng(0)
    tables = {
        name: np.where(
            present[name][:, None],
            made.factors.users,
            rng.normal(size=made.factors.users.shape).astype(np.float32),
        )
        for name, made in three.alone.items()
    }
    shared = UserEmbeddings.collect(tables, present)
    aligned = align(shared, three.config.cat, Seed(0), Unwatched())
    result = transferred(three, shared=shared, aligned=aligned.users, max_epochs=2)
    assert bits(result) == bits(transferred(three, max_epochs=2))


def test_one_common_scale_of_a_source_makes_no_difference(three):
    """Domains train to different lengths; what is exchanged has length 1."""
    present = dict(zip(three.shared.domains, three.shared.known.T, strict=True))
    tables = {name: made.factors.users for name, made in three.alone.items()}
    louder = UserEmbeddings.collect(tables | {"b": tables["b"] * np.float32(4)}, present)
    assert bits(transferred(three, shared=louder, max_epochs=2)) == bits(
        transferred(three, max_epochs=2)
    )
