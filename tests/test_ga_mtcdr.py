"""GA-MTCDR: attention and loss by their definitions, and what the whole promises."""

from dataclasses import replace
from functools import cache

import joint
import numpy as np
import pytest
import torch
from contract import PersonalScorerContract, two_camps
from joint import bits, fitted, ndcg, of_users, small

from musketeers import config as configuration
from musketeers.baselines.ga_mtcdr import GaMtcdrSettings, ga_mtcdr
from musketeers.baselines.ga_network import AttentiveTowers, cross_entropy, directions
from musketeers.baselines.node2vec import Node2vecSettings
from musketeers.baselines.popularity import popularity
from musketeers.data.domains import Split
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError
from musketeers.models.registry import MODELS
from musketeers.seeding import Seed
from musketeers.task import Task
from musketeers.training import Unwatched

QUICK = GaMtcdrSettings(
    graph=Node2vecSettings(walks=2), doublings=1, batch_size=256, max_epochs=3, patience=3
)
ENOUGH = GaMtcdrSettings(doublings=1, batch_size=256, patience=8)
PERSONAL = replace(QUICK, pull=10.0)


@cache
def of_camps():
    settings = replace(ENOUGH, learning_rate=2e-3, max_epochs=150, patience=150)
    return fitted(ga_mtcdr, joint.camps_twice(two_camps()[0]), settings, dim=16).factors


class TestContractOfTheFirstDomain(PersonalScorerContract):
    def fit(self, train):
        return of_camps()["camps"]


class TestContractOfTheSecondDomain(PersonalScorerContract):
    def fit(self, train):
        mirror = of_camps()["mirror"]
        return type(mirror)(mirror.users, mirror.items[::-1].copy())


def network(*, n_users=6, n_domains=3, dim=4, doublings=2):
    """With every parameter away from where it starts, in float64."""
    generator = torch.Generator().manual_seed(0)
    made = AttentiveTowers(n_users, n_domains, dim, doublings, generator=generator).double()
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return made


KNOWN = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool()
EVERYONE = torch.arange(6)
EMBEDDINGS = torch.randn(
    6, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
) * KNOWN.unsqueeze(-1)  # fmt: skip


def slow_weights(net, target, user, d):
    """One softmax for one number of one user, over the domains that know the user."""
    there = [y for y in range(3) if KNOWN[user, y]]
    powers = {y: np.exp(net.logits[target][user, y, d].item()) for y in there}
    return {y: power / sum(powers.values()) for y, power in powers.items()}


def slow_tower(tower, vector):
    for layer in tower:
        if isinstance(layer, torch.nn.Linear):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            vector = np.maximum(weight @ vector + bias, 0)
    return vector


def test_attention_is_its_definition_number_by_number():
    net = network()
    for target in range(3):
        weights = net.weights(target, EVERYONE, KNOWN)
        found = net.users(target, weights, EMBEDDINGS).detach().numpy()
        for user in range(5):
            mixed = np.zeros(4)
            for d in range(4):
                for y, weight in slow_weights(net, target, user, d).items():
                    assert weights[user, y, d].item() == pytest.approx(weight)
                    mapped = EMBEDDINGS[user, y] @ net.maps[y, :, d]
                    mixed[d] += weight * mapped.item()
            np.testing.assert_allclose(found[user], slow_tower(net.user_towers[target], mixed))


def test_weights_add_up_to_1_over_the_domains_that_know_a_user_and_start_equal():
    fresh = AttentiveTowers(6, 3, 4, 1, generator=torch.Generator().manual_seed(0))
    for net, start in ((network(), False), (fresh, True)):
        weights = net.weights(1, EVERYONE, KNOWN)
        assert (weights[:5].masked_select(~KNOWN[:5].unsqueeze(-1)) == 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
        if start:
            shares = KNOWN[:5] / KNOWN[:5].sum(1, keepdim=True)
            torch.testing.assert_close(weights[:5], shares.unsqueeze(-1).expand(5, 3, 4))


def test_one_known_in_one_domain_keeps_the_own_vector_and_one_known_nowhere_gets_no_nan():
    net = network()
    with torch.no_grad():
        net.maps.copy_(torch.eye(4).repeat(3, 1, 1))
        net.user_towers[0] = torch.nn.Identity()
        found = net.users(0, net.weights(0, EVERYONE, KNOWN), EMBEDDINGS)
    torch.testing.assert_close(found[3], EMBEDDINGS[3, 0])
    torch.testing.assert_close(found[4], EMBEDDINGS[4, 2])
    assert (found[5] == 0).all()


def test_towers_double_and_halve():
    net = AttentiveTowers(2, 2, 5, 3, generator=torch.Generator())
    linears = [layer for layer in net.item_towers[0] if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linears] == [10, 20, 40, 20, 10, 5]
    assert isinstance(net.item_towers[0][-1], torch.nn.ReLU)


def test_the_pull_is_its_definition_and_nothing_at_the_start():
    net = network()
    bonds = net.bonds.detach().numpy()
    powers = np.exp(bonds) * (1 - np.eye(3))
    total = 0.0
    for target in range(3):
        expected = 0.0
        for j in range(3):
            mine, theirs = (net.weights(t, EVERYONE, KNOWN).detach().numpy() for t in (target, j))
            distances = ((mine - theirs) ** 2).sum(axis=(1, 2)) / 4
            expected += powers[target, j] / powers.sum() * (1 - np.exp(-distances)).mean()
        assert net.pull(target, EVERYONE, KNOWN).item() == pytest.approx(expected)
        total += expected
    assert 0 < total < 1
    fresh = AttentiveTowers(6, 3, 4, 1, generator=torch.Generator().manual_seed(0))
    assert fresh.pull(0, EVERYONE, KNOWN).item() == 0


def test_slopes_of_the_whole_equal_finite_differences():
    net = network(dim=2, doublings=1)
    users, known = EVERYONE[:5], KNOWN[:5]
    rows = torch.tensor([[0, 1, 2], [3, 2, 1]])

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self):
            weights = self.net.weights(0, users, known)
            mine = directions(self.net.users(0, weights, EMBEDDINGS[:5, :, :2]))[[0, 2]]
            theirs = directions(self.net.items(0, EMBEDDINGS[:4, 0, 2:] + 0.5))[rows]
            cosines = torch.einsum("pd,pnd->pn", mine, theirs)
            return cross_entropy(cosines) + self.net.pull(0, users, known)

    def loss(*changed):
        names = ("net.maps", "net.logits.0", "net.logits.1", "net.bonds")
        return torch.func.functional_call(Whole(), dict(zip(names, changed, strict=True)), ())

    inputs = [p.detach().clone().requires_grad_() for p in (net.maps, *net.logits[:2], net.bonds)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_loss_by_hand():
    expected = -np.log(0.8) - np.log(1 - 0.6) - np.log(1 - 0.0)
    assert cross_entropy(torch.tensor([[0.8, 0.6, 0.0]])).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_cosines_of_0_and_1_and_dead_vectors_have_finite_losses_and_slopes():
    ends = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [3.0, 0.0]], requires_grad=True)
    for user in range(4):
        for order in ([0, 1], [1, 0], [2, 3], [3, 2], [0, 3], [1, 2]):
            unit = directions(ends)
            loss = cross_entropy((unit[order] @ unit[user]).unsqueeze(0))
            (slope,) = torch.autograd.grad(loss, ends)
            assert torch.isfinite(loss)
            assert torch.isfinite(slope).all()


@pytest.mark.parametrize("settings", [ENOUGH, replace(ENOUGH, pull=0.1)])
def test_learns_more_than_popularity(settings):
    splits = planted(("tv", "film"), Seed(0), n_users=300, n_items=60, known=0.8).splits
    found = fitted(ga_mtcdr, splits, settings, dim=16).factors
    for name, split in splits.items():
        assert ndcg(found[name], split) > ndcg(popularity(split.train), split) + 0.03


def test_factors_are_directions():
    for model in fitted(ga_mtcdr, small(), QUICK).factors.values():
        for table in (model.items, model.users):
            lengths = np.linalg.norm(table, axis=1)
            assert table.dtype == np.float32
            assert (np.isclose(lengths, 1, atol=1e-5) | (lengths < 1)).all()
            assert (lengths > 0.99).mean() > 0.9


def test_users_unknown_here_differ_and_one_known_nowhere_has_the_mean_direction():
    everyone = np.arange(120)
    splits = {
        name: Split(
            *(
                of_users(table, np.delete(everyone, gone))
                for table in (split.train, split.valid, split.test)
            )
        )
        for (name, split), gone in zip(small(known=1.0).items(), ([5, 6, 7], [5]), strict=True)
    }
    users = fitted(ga_mtcdr, splits, QUICK).factors["tv"].users
    known = splits["tv"].train.known_users()
    assert not known[[5, 6, 7]].any()
    np.testing.assert_allclose(users[5], users[known].mean(axis=0), atol=1e-6)
    assert np.abs(users[6] - users[7]).max() > 1e-4


def test_the_mean_of_the_domains_chooses_the_epoch():
    splits = small()
    found = fitted(ga_mtcdr, splits, QUICK)
    looked_at = joint.validations(splits)
    values = [looked_at[name].ndcg(found.factors[name]) for name in splits]
    assert found.history.best.valid == np.mean(values)


@pytest.mark.parametrize("settings", [QUICK, PERSONAL])
def test_the_same_seed_gives_the_same_bits(settings):
    splits = small()
    first = bits(fitted(ga_mtcdr, splits, settings))
    assert first == bits(fitted(ga_mtcdr, splits, settings))
    assert first != bits(fitted(ga_mtcdr, splits, settings, seed=1))


def test_the_pull_changes_what_is_learned():
    splits = small()
    free, pulled = (fitted(ga_mtcdr, splits, s).history.last for s in (QUICK, PERSONAL))
    assert free.valid != pulled.valid


def test_an_interrupted_fit_goes_on_to_the_same_bits():
    splits = small()
    expected = bits(fitted(ga_mtcdr, splits, PERSONAL))
    job = joint.Remembering("ga-mtcdr", after=2)
    with pytest.raises(KeyboardInterrupt):
        fitted(ga_mtcdr, splits, PERSONAL, job=job)
    assert bits(fitted(ga_mtcdr, splits, PERSONAL, job=job)) == expected


def test_too_much_attention_is_refused_before_it_starts():
    settings = replace(QUICK, max_bytes=40 * 120 * 4 * 8 - 1)
    with pytest.raises(
        ConfigError, match=r"120 users over 2 domains in 8 dimensions needs 153,600 "
    ):
        fitted(ga_mtcdr, small(), settings)
    fitted(ga_mtcdr, small(), replace(settings, max_bytes=settings.max_bytes + 1))


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [("doublings", 0, "at least 1"), ("negatives", 0, "at least 1"),
     ("batch_size", 0, "at least 1"),
     ("learning_rate", 0.0, "above 0"), ("regularization", -1.0, "not be negative"),
     ("pull", float("nan"), "not be negative")],
)  # fmt: skip
def test_bad_settings_are_refused(setting, value, rule):
    with pytest.raises(ConfigError, match=rf"^{setting} is {value}; it must .*{rule}"):
        GaMtcdrSettings(**{setting: value})


@pytest.mark.parametrize("name", ["ga_mtcdr", "ga_mtcdr_p"])
def test_all_that_a_comparison_tunes_is_a_setting(name):
    config = configuration.parse({"dim": 4, "data": {"domains": {"tv": "a", "film": "b"}}}, "test")
    splits = small(n_users=40, n_items=15)
    task = Task(splits, joint.validations(splits), config, {}, n_threads=1)
    model = MODELS[name]
    least = {key: bounds.low for key, bounds in model.space.items()}
    tuned, plain = (model.fit(task, settings) for settings in (least, {}))
    for domain in splits:
        assert tuned[domain].scorer.n_items == splits[domain].train.n_items
        assert (tuned[domain].scorer.users != plain[domain].scorer.users).any()


def test_bad_domains_are_refused():
    splits = small()
    looked_at = joint.validations(splits)
    with pytest.raises(DataError, match=r"give one of each"):
        ga_mtcdr(splits, {"tv": looked_at["tv"]}, QUICK, Seed(0), Unwatched(), dim=4)
