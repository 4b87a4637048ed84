"""Losses of the contrastive autoencoder, as pure functions of tensors."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def info_nce(
    original: Float[Tensor, "user dim"],
    masked: Float[Tensor, "user dim"],
    changed: Bool[Tensor, " user"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Pull each user's two views together, push other users' views away.

    With cosine similarity $s$, averaged over both directions and over the users whose
    view `changed` (identical views carry no signal):

        $-\log \exp(s_{uu}/\tau) \,/\, \sum_v \exp(s_{uv}/\tau)$

    A batch in which nobody changed has loss 0 and gradient 0.  One user alone has loss 0.

    Source: the in-batch contrast of CAT (Li et al., WSDM 2023), negatives from the other
    view only; as one product of normalised matrices, users x users, never users x users x dim.
    """
    logits = F.normalize(original, dim=-1) @ F.normalize(masked, dim=-1).T / temperature
    diagonal = torch.arange(len(logits), device=logits.device)
    per_user = F.cross_entropy(logits, diagonal, reduction="none")
    per_user = (per_user + F.cross_entropy(logits.T, diagonal, reduction="none")) / 2
    return (per_user * changed).sum() / changed.sum().clamp(min=1)


def reconstruction(
    rebuilt: Float[Tensor, "user domain dim"],
    values: Float[Tensor, "user domain dim"],
    known: Bool[Tensor, "user domain"],
) -> Float[Tensor, ""]:
    """Mean squared error over the vectors that exist; 0 for a batch without any.

    What a domain does not know of a user has nothing to be rebuilt to.
    """
    errors = (rebuilt - values).square().mean(dim=-1) * known
    return errors.sum() / known.sum().clamp(min=1)
