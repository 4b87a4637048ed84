"""The contrastive autoencoder: many domain embeddings of a user in, one shared one out."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from musketeers.cat.network import Layers, Weights


class ContrastiveAutoencoder(nn.Module):
    """Encoder and mirror-image decoder around a domain-independent user embedding.

    Widths n k -> n k -> 3 k -> k for n domains of k dimensions, PReLU between, which is the
    published network at n = 5.  A domain in which a user is unknown, or is masked, is fed as
    one learned vector (`pad`), so the input width never depends on the user.

    On processors `network` computes the same with these parameters.
    """

    def __init__(self, n_domains: int, dim: int, *, generator: Generator) -> None:
        super().__init__()
        widths = _widths(n_domains, dim)
        self.encoder = _mlp(widths, generator)
        self.decoder = _mlp(widths[::-1], generator)
        self.pad = nn.Parameter(torch.randn(dim, generator=generator))

    def encode(
        self,
        values: Float[Tensor, "user domain dim"],
        known: Bool[Tensor, "user domain"],
    ) -> Float[Tensor, "user dim"]:
        """The domain-independent embedding of each user; what is not `known` has no influence."""
        filled = values.where(known.unsqueeze(-1), self.pad)
        return self.encoder(filled.flatten(1))

    def forward(
        self,
        values: Float[Tensor, "user domain dim"],
        known: Bool[Tensor, "user domain"],
    ) -> tuple[Float[Tensor, "user dim"], Float[Tensor, "user domain dim"]]:
        """The shared embedding, and all domains' embeddings rebuilt from it."""
        shared = self.encode(values, known)
        return shared, self.decoder(shared).unflatten(1, values.shape[1:])

    def weights(self) -> Weights:
        """The parameters as arrays, in the parameters' own memory."""
        encoder, decoder = (
            Layers(*(tuple(one.detach().numpy() for one in group) for group in _groups(part)))
            for part in (self.encoder, self.decoder)
        )
        return Weights(encoder, decoder, self.pad.detach().numpy())

    def set_slopes(self, slopes: Sequence[Weights]) -> None:
        """Hand an optimiser the loss's gradient by the `weights`, the sum of these parts."""
        groups = [*_groups(self.encoder), *_groups(self.decoder), [self.pad]]
        parts = [[*one.encoder, *one.decoder, (one.pad,)] for one in slopes]
        for parameters, *arrays in zip(groups, *parts, strict=True):
            for parameter, *each in zip(parameters, *arrays, strict=True):
                parameter.grad = torch.from_numpy(reduce(np.add, each))


def shapes(n_domains: int, dim: int) -> dict[str, tuple[int, ...]]:
    """The parameters of a `ContrastiveAutoencoder` by name, without making one."""
    found: dict[str, tuple[int, ...]] = {"pad": (dim,)}
    widths = _widths(n_domains, dim)
    for part, along in (("encoder", widths), ("decoder", widths[::-1])):
        for place, (fan_in, fan_out) in enumerate(pairwise(along)):
            found[f"{part}.{2 * place}.weight"] = (fan_out, fan_in)
            found[f"{part}.{2 * place}.bias"] = (fan_out,)
            if place < len(along) - 2:
                found[f"{part}.{2 * place + 1}.weight"] = (1,)
    return found


def _widths(n_domains: int, dim: int) -> list[int]:
    return [n_domains * dim, n_domains * dim, 3 * dim, dim]


def _groups(part: nn.Sequential) -> list[Sequence[Tensor]]:
    """As `Layers` has them."""
    linear = [layer for layer in part if isinstance(layer, nn.Linear)]
    leaks = [layer.weight for layer in part if isinstance(layer, nn.PReLU)]
    return [[one.weight for one in linear], [one.bias for one in linear], leaks]


def _mlp(widths: Sequence[int], generator: Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.PReLU()]
    return nn.Sequential(*layers[:-1])
