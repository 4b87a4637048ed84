"""Attention-based transfer: a target domain asks the others for what it can use."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn


class AttentionTransfer(nn.Module):
    """What the other domains and the shared embedding add to a user's vector in one target.

    With e the user's target vector, e_j those of the sources, g the shared one:

        a_j = A_j e_j + b_j                                  one linear map per source
        alpha = softmax_j((W_q e + b_q).(W_k a_j + b_k) / sqrt(dim))   over known sources
        output = W_o (sum_j alpha_j (W_v a_j + b_v)) + b_o + W_g g + b_g

    The user's final vector is e + output.  W_o, W_g and their biases start at zero, so the
    untrained module adds nothing.  A user whom no source knows gets exactly zero, always.
    A user whom the target does not know is fed as one learned vector (`pad`).

    Source: ART (Li et al., WSDM 2023) with the projections of the authors' code.
    """

    def __init__(self, n_sources: int, dim: int, *, dropout: float, generator: Generator) -> None:
        super().__init__()

        def square(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(dim))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape))

        self.adapt, self.adapt_bias = square(n_sources, dim, dim), zeros(n_sources, dim)
        self.query, self.query_bias = square(dim, dim), zeros(dim)
        self.key, self.key_bias = square(dim, dim), zeros(dim)
        self.value, self.value_bias = square(dim, dim), zeros(dim)
        self.out, self.shared, self.bias = zeros(dim, dim), zeros(dim, dim), zeros(dim)
        self.pad = zeros(dim)
        self.dropout = dropout

    def forward(
        self,
        target: Float[Tensor, "user dim"],
        target_known: Bool[Tensor, " user"],
        sources: Float[Tensor, "user source dim"],
        sources_known: Bool[Tensor, "user source"],
        shared: Float[Tensor, "user dim"],
        *,
        generator: Generator | None = None,
    ) -> Float[Tensor, "user dim"]:
        """What to add to each user's vector; attention weights drop out only with a `generator`."""
        adapted = self.adapted(sources)
        weights = self.attention(target, target_known, adapted, sources_known)
        if generator is not None and self.dropout > 0:
            kept = torch.rand(weights.shape, generator=generator) >= self.dropout
            weights = weights * kept / (1 - self.dropout)
        # weights times (values + bias): the map is applied once to the sum, not to every source
        attended = (weights.T.unsqueeze(-1) * adapted).sum(0) @ self.value
        attended = attended + weights.sum(1, keepdim=True) * self.value_bias
        added = torch.addmm(self.bias, attended, self.out) + shared @ self.shared
        return added * sources_known.any(1, keepdim=True)

    def adapted(
        self, sources: Float[Tensor, "user source dim"]
    ) -> Float[Tensor, "source user dim"]:
        """Each source's vectors in the target's terms, source by source: one batched product."""
        return torch.baddbmm(self.adapt_bias.unsqueeze(1), sources.transpose(0, 1), self.adapt)

    def attention(
        self,
        target: Float[Tensor, "user dim"],
        target_known: Bool[Tensor, " user"],
        adapted: Float[Tensor, "source user dim"],
        sources_known: Bool[Tensor, "user source"],
    ) -> Float[Tensor, "user source"]:
        """How much each known source counts, summing to 1; all zeros for a user without any."""
        own = target.where(target_known.unsqueeze(-1), self.pad)
        query = torch.addmm(self.query_bias, own, self.query)
        # q.(W a + b) = (W^T q).a + q.b: the map is applied once to the query
        logits = (adapted * (query @ self.key.T)).sum(-1) + query @ self.key_bias
        logits = logits.T / math.sqrt(target.shape[1])
        floor = torch.finfo(logits.dtype).min
        return logits.masked_fill(~sources_known, floor).softmax(-1) * sources_known
