"""Attention-based transfer: a target domain asks the others for what it can use."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from musketeers.art.network import Weights


class AttentionTransfer(nn.Module):
    """What the other domains and the shared embedding add to a user's vector in one target.

    With e the user's target vector, e_j those of the sources, g the shared one:

        a_j = A_j e_j + b_j                                  one linear map per source
        alpha = softmax_j((W_q e + b_q).(W_k a_j) / sqrt(dim))         over known sources
        output = W_o W_v sum_j alpha_j a_j + W_g g + b

    The user's final vector is e + output.  W_o, W_g and b start at zero, so the
    untrained module adds nothing.  A user whom no source knows gets exactly zero, always.
    A user whom the target does not know is fed as one learned vector (`pad`).

    The paper's ablations have other weights in place of alpha (`config.art.sources`): 1 / m or 1
    for each of the m sources that know the user, or 0; or have no g (`config.art.shared`).  The
    parameters that then have no part in the output get a slope of zero and stay at their start.

    On processors `network` computes the same with these parameters.

    Source: ART (Li et al., WSDM 2023) with the projections of the authors' code, less two
    biases that change nothing: one on the keys adds the same to every source's logit, one on
    the values is part of b.
    """

    def __init__(self, n_sources: int, dim: int, *, generator: Generator) -> None:
        super().__init__()

        def square(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(dim))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape))

        self.adapt, self.adapt_bias = square(n_sources, dim, dim), zeros(n_sources, dim)
        self.query, self.query_bias = square(dim, dim), zeros(dim)
        self.key, self.value = square(dim, dim), square(dim, dim)
        self.out, self.shared, self.bias = zeros(dim, dim), zeros(dim, dim), zeros(dim)
        self.pad = zeros(dim)

    def forward(
        self,
        target: Float[Tensor, "user dim"],
        target_known: Bool[Tensor, " user"],
        sources: Float[Tensor, "source user dim"],
        sources_known: Bool[Tensor, "user source"],
        shared: Float[Tensor, "user dim"],
        sharpness: float,
        factors: Float[Tensor, "user source"],
    ) -> Float[Tensor, "user dim"]:
        """What to add to each user's vector; `network.weighing` gives sharpness and factors."""
        somewhere = sources_known.any(1, keepdim=True)
        adapted = torch.baddbmm(self.adapt_bias[:, None], sources, self.adapt)
        # products of maps first, as in `network.forward`
        queries = target.where(target_known[:, None], self.pad) @ (self.query @ self.key.T)
        queries = queries + self.key @ self.query_bias
        logits = (queries * adapted).sum(2).T * sharpness
        # who is known nowhere has all weights alike, which nothing comes of
        attention = logits.masked_fill(~sources_known & somewhere, -torch.inf).softmax(1)
        attended = torch.einsum("us,sud->ud", attention * factors, adapted)
        added = attended @ (self.value @ self.out) + shared @ self.shared + self.bias
        return added.where(somewhere, 0.0)

    def weights(self) -> Weights:
        """The parameters as arrays; on a processor they are the parameters' own memory."""
        return Weights(**{name: w.detach().cpu().numpy() for name, w in self.named_parameters()})
