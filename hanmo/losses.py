"""Losses as pure functions of tensors. Shape suffixes: N scored tokens, V vocabulary, B batch, A predicting axis."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """log p(label) in fp32, (N,), from logits of any floating dtype and labels (N,) int64."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(-1, labels_N[:, None]).squeeze(-1) - logits_NV.logsumexp(-1)


def token_entropies(logits_NV: Tensor) -> Tensor:
    """Entropy in nats of each row's distribution, fp32 (N,)."""
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def weighted_nll(logprob_BA: Tensor, weights_BA: Tensor, total: Tensor | float | None = None) -> Tensor:
    """Weighted negative log-likelihood, a scalar: sum(weights x -logprob) / total.

    Args:
        logprob_BA: fp32, zero where nothing is scored.
        weights_BA: fp32, zero where nothing is scored.
        total: the weights of the whole optimizer step, over all its batches and processes; this batch's if None.
            Dividing by the step's total is what makes 1 x 4 accumulation equal 4 x 1.
    """
    if total is None:
        total = weights_BA.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return -(weights_BA * logprob_BA).sum() / total
