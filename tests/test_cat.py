"""Stage 2: losses by definition, the published network, and a training that can be repeated."""

import gc
import weakref
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import chisquare
from torch import Generator

from musketeers.cat import network
from musketeers.cat.lanes import Lanes
from musketeers.cat.losses import info_nce, reconstruction
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.cat.on_gpu import OnGpu
from musketeers.cat.train import align, mask_one
from musketeers.config import CatConfig
from musketeers.exchange import UserEmbeddings
from musketeers.seeding import Seed
from musketeers.training import Unwatched

QUICK = CatConfig(max_epochs=4, patience=4, batch_size=16)


def views(seed, *, n_users=5, dim=3):
    generator = Generator().manual_seed(seed)
    original, masked = torch.randn(2, n_users, dim, generator=generator, dtype=torch.float64)
    return original, masked, torch.rand(n_users, generator=generator) < 0.7


def pair_by_pair(original, masked, changed, temperature):
    """The definition: both directions, one user at a time."""

    def cosine(a, b):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def term(own, others, u):
        logits = [cosine(own, other) / temperature for other in others]
        return np.log(sum(np.exp(logits))) - logits[u]

    losses = [
        (term(original[u], masked, u) + term(masked[u], original, u)) / 2
        for u in range(len(original))
        if changed[u]
    ]
    return sum(losses) / len(losses) if losses else 0.0


@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 5), st.floats(0.05, 5))
@settings(deadline=None, max_examples=60)
def test_contrast_is_its_definition_pair_by_pair(seed, n_users, dim, temperature):
    original, masked, changed = views(seed, n_users=n_users, dim=dim)
    expected = pair_by_pair(original.numpy(), masked.numpy(), changed.numpy(), temperature)
    loss = info_nce(original, masked, changed, temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_contrast_by_hand():
    eye = torch.eye(2, dtype=torch.float64)
    both = torch.tensor([True, True])
    # each user: 1 against oneself, 0 against the other
    aligned = info_nce(eye, 5 * eye, both, temperature=1.0)
    assert aligned.item() == pytest.approx(np.log(1 + np.exp(-1)))
    crossed = info_nce(eye, eye.flip(0), both, temperature=0.5)
    assert crossed.item() == pytest.approx(2 + np.log(1 + np.exp(-2)))


def test_contrast_has_the_symmetries_of_its_definition():
    original, masked, changed = views(0, n_users=6)
    loss = info_nce(original, masked, changed, temperature=0.3)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    lengths = torch.arange(1, 7).unsqueeze(1)
    turn = torch.linalg.qr(views(9, n_users=3)[0]).Q
    for other in (
        (masked, original, changed),
        (original[order], masked[order], changed[order]),
        (original * lengths, masked / lengths, changed),
        (original @ turn, masked @ turn, changed),
    ):
        torch.testing.assert_close(info_nce(*other, temperature=0.3), loss)


def test_contrast_has_its_limits():
    original, masked, _ = views(1)
    nobody = torch.zeros(5, dtype=torch.bool)
    original.requires_grad_()
    loss = info_nce(original, masked, nobody, temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not original.grad.any()
    everybody = ~nobody
    one = slice(0, 1)
    alone = info_nce(original[one], masked[one], everybody[one], temperature=0.1)
    assert alone.item() == 0
    flat = info_nce(original, masked, everybody, temperature=1e9)
    assert flat.item() == pytest.approx(np.log(5))
    sharp = info_nce(original, original, everybody, temperature=1e-3)
    assert sharp.item() == pytest.approx(0, abs=1e-9)


def test_losses_have_the_slopes_that_they_state():
    original, masked, changed = views(2)
    inputs = original.requires_grad_(), masked.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, changed, temperature=0.2), inputs)
    rebuilt = torch.randn(4, 2, 3, dtype=torch.float64, generator=Generator().manual_seed(3))
    values, known = torch.zeros_like(rebuilt), torch.tensor([[True, False]] * 4)
    assert torch.autograd.gradcheck(
        lambda x: reconstruction(x, values, known), (rebuilt.requires_grad_(),)
    )


def test_only_what_a_domain_knows_is_to_be_rebuilt():
    rebuilt = torch.tensor([[[1.0, 2.0], [1e9, 1e9]], [[3.0, 0.0], [0.0, 1.0]]])
    values = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 3.0]]])
    known = torch.tensor([[True, False], [True, True]])
    # (1 + 4) / 2, 0 and (0 + 4) / 2 over three vectors
    assert reconstruction(rebuilt, values, known).item() == pytest.approx(4.5 / 3)
    assert reconstruction(rebuilt, values, torch.zeros_like(known)).item() == 0


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_exactly_one_known_domain_is_hidden_but_never_the_only_one(seed, n_users, n_domains):
    rng = np.random.default_rng(seed)
    known = rng.random((n_users, n_domains)) < 0.6
    visible = mask_one(known, rng.random(known.shape))
    assert not (visible & ~known).any()
    hidden = (known & ~visible).sum(1)
    np.testing.assert_array_equal(hidden, known.sum(1) > 1)


def test_the_hidden_domain_is_any_known_one_with_equal_chance():
    known = np.tile([True, True, False, True, True], (8000, 1))
    visible = mask_one(known, np.random.default_rng(0).random(known.shape))
    times = (known & ~visible).sum(0)
    assert times[2] == 0
    assert chisquare(np.delete(times, 2)).pvalue > 0.01


def test_the_published_network_at_five_domains():
    model = ContrastiveAutoencoder(5, 64, generator=Generator())

    def size(part):
        return sum(weight.numel() for weight in part.parameters())

    assert size(model.encoder) == 176_706
    assert size(model.decoder) == 176_962
    assert model.pad.shape == (64,)
    kinds = Counter(type(layer).__name__ for layer in (*model.encoder, *model.decoder))
    assert kinds == {"Linear": 6, "PReLU": 4}


def autoencoder(n_domains=3, dim=4):
    return ContrastiveAutoencoder(n_domains, dim, generator=Generator().manual_seed(0))


def batch(n_users=6, n_domains=3, dim=4):
    generator = Generator().manual_seed(1)
    known = torch.rand(n_users, n_domains, generator=generator) < 0.6
    return torch.randn(n_users, n_domains, dim, generator=generator), known


def test_what_is_not_known_has_no_influence():
    model, (values, known) = autoencoder(), batch()
    assert not known.all()
    strange = values.where(known.unsqueeze(-1), torch.tensor(float("nan")))
    assert torch.equal(model.encode(values, known), model.encode(strange, known))
    padded = values.where(known.unsqueeze(-1), model.pad)
    assert torch.equal(model.encode(values, known), model.encode(padded, torch.ones_like(known)))


def test_one_user_is_a_batch_too():
    model, (values, known) = autoencoder(), batch()
    shared, rebuilt = model(values[:1], known[:1])
    assert shared.shape == (1, 4)
    assert rebuilt.shape == (1, 3, 4)
    torch.testing.assert_close(shared, model(values, known)[0][:1])
    torch.testing.assert_close(rebuilt, model(values, known)[1][:1])


def test_every_weight_learns():
    model, (values, known) = autoencoder(), batch()
    visible = torch.from_numpy(
        mask_one(known.numpy(), np.random.default_rng(2).random(known.shape))
    )
    whole, rebuilt = model(values, known)
    part, _ = model(values, visible)
    loss = info_nce(whole, part, (visible != known).any(1), temperature=0.1)
    (loss + reconstruction(rebuilt, values, known)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_initial_weights_depend_on_the_generator_alone():
    torch.manual_seed(1)
    first = autoencoder().state_dict()
    torch.manual_seed(2)
    again = autoencoder().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def exchanged(n_users=60, *, dim=4, known=0.8, noise=0.1):
    """One taste per user, turned anew in each domain."""
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(n_users, dim))
    tables, present = {}, {}
    for name in ("a", "b", "c"):
        turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        tables[name] = (taste @ turn + noise * rng.normal(size=taste.shape)).astype(np.float32)
        present[name] = rng.random(n_users) < known
    return UserEmbeddings.collect(tables, present)


def aligned(shared, config=QUICK, seed=0, n_threads=2):
    return align(shared, config, Seed(seed), Unwatched(), n_threads=n_threads)


def test_alignment_is_repeatable_bit_by_bit():
    shared = exchanged()
    torch.manual_seed(1)
    first = aligned(shared)
    torch.manual_seed(2)
    again = aligned(shared)
    assert first.users.tobytes() == again.users.tobytes()
    assert all(
        first.weights[name].tobytes() == again.weights[name].tobytes() for name in first.weights
    )
    assert aligned(shared, seed=1).users.tobytes() != first.users.tobytes()


def test_what_was_exchanged_is_let_go_of():
    """At once and not when the collector comes by: at full size it is gigabytes."""
    shared = exchanged()
    values = weakref.ref(shared.values)
    gc.disable()
    try:
        made = aligned(shared)
        del shared
        assert values() is None
    finally:
        gc.enable()
    assert len(made.users) == 60


def test_embeddings_have_mean_length_one_and_nothing_exchanged_changes():
    shared = exchanged()
    before = shared.values.copy()
    result = aligned(shared)
    assert result.users.shape == (60, 4)
    assert result.users.dtype == np.float32
    assert np.linalg.norm(result.users, axis=1).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(shared.values, before)


def test_the_trained_network_makes_the_same_of_the_same_and_other_of_less():
    shared = exchanged()
    made = aligned(shared)
    np.testing.assert_array_equal(made.of(shared), made.users)
    name = shared.domains[0]
    changed = (made.of(shared.hidden(name)) != made.users).any(axis=1)
    np.testing.assert_array_equal(changed, shared.known[:, 0])


def test_training_finds_a_user_again_behind_a_hidden_domain():
    shared = exchanged(300, known=1.0)
    config = CatConfig(max_epochs=40, patience=40, batch_size=64)
    result = aligned(shared, config)
    assert result.history.best.valid > result.history.epochs[0].valid + 0.3
    model = ContrastiveAutoencoder(3, 4, generator=Generator())
    model.load_state_dict({name: torch.from_numpy(w) for name, w in result.weights.items()})
    values = torch.from_numpy(shared.values * 2)  # times the root of the dimension, as in training
    known = torch.from_numpy(shared.known)
    visible = known.clone()
    visible[:, 1] = False
    with torch.no_grad():
        whole, part = model.encode(values, known), model.encode(values, visible)
    similar = torch.nn.functional.cosine_similarity
    nearest = similar(whole.unsqueeze(1), part.unsqueeze(0), dim=-1).argmax(1)
    assert (nearest == torch.arange(300)).float().mean() > 0.3  # by chance 1 in 300


def test_the_plain_autoencoder_rebuilds_the_whole_view_and_nothing_else():
    """Its loss is the definition's; how much and how sharply to contrast has no influence."""
    shared = exchanged()
    plain = QUICK.model_copy(update={"loss": "reconstruction"})
    result = aligned(shared, plain)
    start = Generator().manual_seed(Seed(0).child("init").integer())
    model = ContrastiveAutoencoder(3, 4, generator=start)
    order = Seed(0).child("held out").numpy().permutation(np.flatnonzero(shared.known.any(1)))
    rows = order[: round(0.1 * len(order))]
    values, known = torch.from_numpy(2 * shared.values[rows]), torch.from_numpy(shared.known[rows])
    with torch.no_grad():
        errors = (model(values, known)[1] - values)[known].square()
    assert result.history.epochs[0].valid == pytest.approx(-errors.mean().item(), rel=1e-5)
    assert result.history.best.valid > result.history.epochs[0].valid
    other = plain.model_copy(update={"temperature": 9.0, "contrast_weight": 0.7})
    assert aligned(shared, other).users.tobytes() == result.users.tobytes()
    assert aligned(shared).users.tobytes() != result.users.tobytes()


@pytest.mark.parametrize("batch_size", [2, 7, 500])
def test_a_last_batch_of_any_size_will_do(batch_size):
    # 30 users, of whom 3 are held out: 27 leave one over for batches of 2, six for 7
    config = CatConfig(max_epochs=1, batch_size=batch_size)
    assert np.isfinite(aligned(exchanged(30, known=1.0), config).users).all()


def test_early_stopping_looks_at_users_that_training_never_sees():
    shared = exchanged(20, known=1.0)
    config = CatConfig(max_epochs=2, patience=2, held_out=0.2)

    def losses(values):
        changed = UserEmbeddings(shared.domains, values, shared.known, shared.lengths)
        epochs = aligned(changed, config).history.epochs
        return [e.train_loss for e in epochs], [e.valid for e in epochs]

    train, valid = losses(shared.values)
    held_out = 0
    for user in range(20):
        values = shared.values.copy()
        values[user] *= -1
        train_then, valid_then = losses(values)
        # either kind of user: training or validation, never both on the same weights
        assert (train_then == train) != (valid_then[0] == valid[0])
        held_out += train_then == train
    assert held_out == 4


def test_a_user_known_nowhere_is_neither_trained_on_nor_looked_at():
    shared = exchanged(30)
    nobody = np.zeros_like(shared.known[:5])
    known = np.concatenate([nobody, shared.known])
    rng = np.random.default_rng(0)
    results = []
    for _ in range(2):
        strange = rng.normal(size=(5, 3, 4)).astype(np.float32)
        values = np.concatenate([strange, shared.values])
        results.append(aligned(UserEmbeddings(shared.domains, values, known, shared.lengths)))
    assert results[0].users.tobytes() == results[1].users.tobytes()


def test_two_users_are_enough():
    assert np.isfinite(aligned(exchanged(2, known=1.0)).users).all()


# --- the compiled network


def masked(n_users, n_domains, rng):
    """Who is known where, and what a second view shows."""
    known = rng.random((n_users, n_domains)) < 0.7
    known[:, 0] |= ~known.any(axis=1)
    return known, mask_one(known, rng.random(known.shape))


@pytest.mark.parametrize("loss", ["full", "reconstruction"])
@pytest.mark.parametrize(
    ("n_users", "n_domains", "dim", "batch_size", "n_threads"),
    [(50, 3, 4, 50, 1), (50, 3, 4, 50, 3), (70, 2, 5, 32, 2), (600, 4, 8, 600, 2), (2, 5, 3, 2, 4)],
)
def test_processors_find_the_loss_and_the_slopes_of_the_formulas(
    loss, n_users, n_domains, dim, batch_size, n_threads
):
    rng = np.random.default_rng(n_users)
    known, visible = masked(n_users, n_domains, rng)
    values = (rng.normal(size=(n_users, n_domains, dim)) * known[:, :, None]).astype(np.float32)
    names = tuple(map(str, range(n_domains)))
    shared = UserEmbeddings(names, values, known, np.ones(n_domains, np.float32))
    config = CatConfig(loss=loss, batch_size=batch_size, temperature=0.3)
    model = autoencoder(n_domains, dim)
    rows = rng.permutation(n_users)
    lanes = Lanes(model, shared, config, n_threads=n_threads)
    by_torch = OnGpu(model, shared, config, torch.device("cpu"))
    both = zip(lanes.learn(rows, visible), by_torch.learn(rows, visible), strict=True)
    seen = 0
    for found, expected in both:
        assert found == pytest.approx(float(expected), rel=1e-5)
        expected_slopes = slopes_of(model)
        assert all(slope.any() for slope in expected_slopes.values())
        seen += 1
    assert seen == -(-n_users // batch_size)
    # the last batch again, by the processor alone
    last = slice((seen - 1) * batch_size, None)
    list(lanes.learn(rows[last], visible[last]))
    for name, slope in slopes_of(model).items():
        scale = np.abs(expected_slopes[name]).max()
        np.testing.assert_allclose(slope, expected_slopes[name], atol=2e-5 * scale, err_msg=name)
    assert sum(lanes.losses(rows, visible)) == pytest.approx(
        float(sum(by_torch.losses(rows, visible))), rel=1e-5
    )
    np.testing.assert_allclose(lanes.encode(), by_torch.encode(), atol=1e-5)


def slopes_of(model):
    return {name: weight.grad.numpy().copy() for name, weight in model.named_parameters()}


def test_a_sharp_temperature_neither_overflows_nor_loses_a_user():
    rng = np.random.default_rng(0)
    units = rng.normal(size=(40, 6)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = network.log_sums(units, units, 1e-3)
    exact = np.float64(units) @ np.float64(units).T / 1e-3
    top = exact.max(axis=1)
    expected = top + np.log(np.exp(exact - top[:, None]).sum(axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("furthest", "rtol"), [(0.5, 3e-7), (10, 1e-6), (87, 5e-6)])
def test_the_exponentials_are_those_of_the_definition(furthest, rtol):
    values = -np.linspace(0, furthest, 100_001, dtype=np.float32)
    found = values.copy()
    network._exp(found, np.empty(len(found), np.int32))
    np.testing.assert_allclose(found, np.exp(values.astype(np.float64)), rtol=rtol)


def test_far_below_nothing_is_left_and_what_is_no_number_stays_none():
    values = np.array([-200, -np.inf, np.nan], np.float32)
    network._exp(values, np.empty(3, np.int32))
    assert (values[:2] < 1e-37).all()
    assert np.isnan(values[2])


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_the_largest_is_found_wherever_it_is(n):
    values = -np.ones(n, np.float32)
    for place in range(n):
        values[place] = place
        assert network._largest(values) == place


def test_as_many_threads_give_the_same_bits_and_the_embeddings_do_not_depend_on_them():
    shared = exchanged(300)
    first, again, alone = (aligned(shared, n_threads=n) for n in (2, 2, 1))
    assert first.users.tobytes() == again.users.tobytes()
    np.testing.assert_allclose(first.users, alone.users, atol=1e-3)
    np.testing.assert_array_equal(first.of(shared), first.users)
