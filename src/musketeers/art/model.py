"""Attention-based transfer: a target domain asks the others for what it can use."""

import math

import torch
from torch import Generator, nn

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

    This holds the parameters; `network` computes with them.

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

    def weights(self) -> Weights:
        """The parameters as arrays, in the parameters' own memory."""
        return Weights(**{name: w.detach().numpy() for name, w in self.named_parameters()})
