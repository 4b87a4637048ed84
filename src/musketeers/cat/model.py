"""The contrastive autoencoder: many domain embeddings of a user in, one shared one out."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn


class ContrastiveAutoencoder(nn.Module):
    """Encoder and mirror-image decoder around a domain-independent user embedding.

    Widths n k -> n k -> 3 k -> k for n domains of k dimensions, PReLU between, which is the
    published network at n = 5.  A domain in which a user is unknown, or is masked, is fed as
    one learned vector (`pad`), so the input width never depends on the user.
    """

    def __init__(self, n_domains: int, dim: int, *, generator: Generator) -> None:
        super().__init__()
        widths = [n_domains * dim, n_domains * dim, 3 * dim, dim]
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


def _mlp(widths: Sequence[int], generator: Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.PReLU()]
    return nn.Sequential(*layers[:-1])
