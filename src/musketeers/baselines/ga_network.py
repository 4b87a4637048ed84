"""GA-MTCDR's network: attention over a user's domains number by number, and two towers."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

_MARGIN = 1e-6


class AttentiveTowers(nn.Module):
    """The formulas of Zhu et al. (TKDE 2023) after the graph embeddings, for every domain.

    A user's vector in target x is the sum over y of W_xy * (M_y U_y), number by number: U_y are the
    domains' graph embeddings, W_xy free parameters for each user and number that add up to 1 over
    the domains that know the user, M_y a matrix.  Users and items then each pass a tower,
    k -> 2k -> ... -> 2^h k -> ... -> 2k -> k with ReLU after every layer.

    Weights start equal, at 1 over the number of domains that know the user, and matrices at 1.
    Towers start as He et al. (ICCV 2015) have it: behind six layers of the published N(0, .01)
    nothing of the input is left.
    """

    def __init__(
        self, n_users: int, n_domains: int, dim: int, doublings: int, *, generator: Generator
    ) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.eye(dim).repeat(n_domains, 1, 1))
        self.logits = nn.ParameterList(
            torch.zeros(n_users, n_domains, dim) for _ in range(n_domains)
        )
        widths = [dim * 2 ** min(n, 2 * doublings - n) for n in range(2 * doublings + 1)]
        self.user_towers = nn.ModuleList(_tower(widths, generator) for _ in range(n_domains))
        self.item_towers = nn.ModuleList(_tower(widths, generator) for _ in range(n_domains))
        self.bonds = nn.Parameter(torch.zeros(n_domains, n_domains))

    def weights(
        self, target: int, users: Int[Tensor, " row"], known: Bool[Tensor, "row domain"]
    ) -> Float[Tensor, "row domain dim"]:
        """How much the target takes from each domain; 0 from one that does not know the user."""
        # finite, so that a user known nowhere, whose embeddings are all zero, gets no NaN
        logits = self.logits[target].index_select(0, users)
        return logits.masked_fill(~known.unsqueeze(-1), -1e9).softmax(dim=1)

    def users(
        self,
        target: int,
        weights: Float[Tensor, "row domain dim"],
        embeddings: Float[Tensor, "row domain dim"],
    ) -> Float[Tensor, "row dim"]:
        """The tower's vectors of users."""
        mapped = torch.einsum("udk,dkl->udl", embeddings, self.maps)
        return self.user_towers[target]((weights * mapped).sum(dim=1))

    def items(self, target: int, embeddings: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """The tower's vectors of items, which attention leaves alone."""
        return self.item_towers[target](embeddings)

    def pull(
        self, target: int, users: Int[Tensor, " row"], known: Bool[Tensor, "row domain"]
    ) -> Float[Tensor, ""]:
        r"""GA-MTCDR-P's penalty on targets that attend differently, of one target's pairs.

        $\sum_{j \ne x} \lambda_{xj} A(\|W^x - W^j\|^2)$ with $A(d) = 1 - e^{-d}$; $\lambda$ are
        trained and add up to 1 over all pairs of targets.  Inferred: the penalty is each user's,
        and the users' mean counts; the distance is divided by the dimensions, with theta = 1.
        """
        n_domains, dim = known.shape[1], self.maps.shape[-1]
        same = torch.eye(n_domains, dtype=torch.bool)
        shares = self.bonds.masked_fill(same, -torch.inf).flatten().softmax(0)
        mine = self.weights(target, users, known)
        penalties = [
            -torch.expm1(-(mine - self.weights(j, users, known)).square().sum((1, 2)) / dim).mean()
            for j in range(n_domains)
        ]
        return shares.unflatten(0, same.shape)[target] @ torch.stack(penalties)


def directions(vectors: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Vectors of length 1, whose inner products are cosines; 0, and no slope, where all is 0."""
    return nn.functional.normalize(vectors, dim=1)


def cross_entropy(cosines: Float[Tensor, "pair one_plus_negatives"]) -> Float[Tensor, ""]:
    """Of liking the first of a pair's items and none of the others, summed over the items.

    The mean over pairs.  Cosines of towers that end in ReLU lie in 0..1; the probability of a
    cosine c is m + (1 - 2 m) c with m = 1e-6, so that there is a slope at both ends, where the
    source's clipping has none at 0, and log 0 at 1.
    """
    likely = _MARGIN + (1 - 2 * _MARGIN) * cosines.clamp(max=1)
    return -(likely[:, 0].log().mean() + torch.log1p(-likely[:, 1:]).sum(dim=1).mean())


def _tower(widths: list[int], generator: Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)
