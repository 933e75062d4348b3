"""Losses as pure functions of tensors.

Shape suffixes: N scored tokens, V vocabulary, B batch (rows or pairs), A predicting axis, G groups, K replies of a group.
Masks are fp32 or bool, 1 on the tokens that count. Losses are per token or per pair: the caller divides their sum by
the count of the whole optimizer step. The "published" forms are those of the recorded specification (CLUE, section 4).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PIECE = 2**21  # logits that are converted to fp32 at a time: 8 MB, which fits the cache of a CPU


def token_logprobs(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """log p(label) in fp32, (N,), from logits of any floating dtype and labels (N,) int64."""
    return _TokenLogprobs.apply(logits_NV, labels_N)


class _TokenLogprobs(torch.autograd.Function):
    """Logits minus their logsumexp, in fp32, on a CPU for ``PIECE`` logits at a time; autograd would keep four such tensors."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        total_N = torch.cat([logits_nV.float().logsumexp(-1) for logits_nV in logits_NV.split(_rows(logits_NV))])
        ctx.save_for_backward(logits_NV, labels_N, total_N)
        return logits_NV.gather(-1, labels_N[:, None]).squeeze(-1).float() - total_N

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits_NV, labels_N, total_N = ctx.saved_tensors
        gradient_NV = torch.empty_like(logits_NV)
        rows = _rows(logits_NV)
        pieces = (tensor.split(rows) for tensor in (gradient_NV, logits_NV, labels_N, total_N, gradients[0]))
        for gradient_nV, logits_nV, labels_n, total_n, gradient_n in zip(*pieces, strict=True):
            wide_nV = (logits_nV.float() - total_n[:, None]).exp_().mul_(-gradient_n[:, None])
            gradient_nV.copy_(wide_nV.scatter_add_(1, labels_n[:, None], gradient_n[:, None]))
        return gradient_NV, None


def _rows(logits_NV: Tensor) -> int:
    """The rows of a piece: all of them, unless a cache is to hold it."""
    whole = logits_NV.device.type != "cpu"
    return max(len(logits_NV) if whole else PIECE // max(logits_NV.shape[1], 1), 1)


def token_entropies(logits_NV: Tensor) -> Tensor:
    """Entropy in nats of each row's distribution, fp32 (N,)."""
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(-1)


def weighted_nll(logprob_BA: Tensor, weights_BA: Tensor, total: Tensor | float | None = None) -> Tensor:
    """Weighted negative log-likelihood, a scalar: sum(weights x -logprob) / total; both fp32, 0 where nothing is scored.

    ``total``: the weights of the whole optimizer step, over all its batches and processes; this batch's if None.
    """
    if total is None:
        total = weights_BA.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return -(weights_BA * logprob_BA).sum() / total


# Reward models


def pairwise_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Bradley-Terry loss of each pair (Stiennon et al. 2020), -log sigmoid(chosen - rejected - margin), any one shape."""
    # The published -log(sigmoid(x)) is infinite below -104.
    return -logsigmoid(chosen - rejected - margin)


def tokenwise_loss(chosen_BA: Tensor, rejected_BA: Tensor, start_B: Tensor, end_B: Tensor) -> Tensor:
    """The published reward loss from 2023-05: the mean of the pairwise loss over places [start, end) of each pair, (B,).

    ``start_B`` (int64): the first place where the ids of the two texts differ. ``end_B`` (int64): one past the end of the
    shorter text; of the longer as published, values on padding included. An empty range: 0, as published NaN.
    """
    place_A = torch.arange(chosen_BA.shape[1], device=chosen_BA.device)
    counts_BA = (place_A >= start_B[:, None]) & (place_A < end_B[:, None])
    losses_BA = pairwise_loss(chosen_BA, rejected_BA) * counts_BA
    return losses_BA.sum(1) / counts_BA.sum(1).clamp_min(1)


# Learning from preferences without a reward model

PreferenceKind = Literal["dpo", "ipo", "hinge", "robust", "simpo"]


class Preference(NamedTuple):
    """The result of a preference loss: losses and both implicit rewards, (B,) each."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: PreferenceKind = "dpo",
    label_smoothing: float = 0.0,
    target: float = 0.0,
) -> Preference:
    """The loss of pairs from log-probabilities of their responses (sums or means over tokens), (B,) each.

    With x = beta ((policy - reference) of the chosen minus that of the rejected response), e the label smoothing:

    - dpo (Rafailov et al. 2023, equation 7): -log sigmoid(x); with e, the share of labels that count as reversed, cDPO
      (Mitchell 2023): (1 - e) dpo(x) + e dpo(-x).
    - robust (Chowdhury et al. 2024, "rDPO", section 3): ((1 - e) dpo(x) - e dpo(-x)) / (1 - 2e), whose mean over labels
      of which a share e is reversed is the loss of the right ones.
    - hinge (Zhao et al. 2023, "SLiC-HF", section 2, with the reference as in Liu et al. 2024, "RSO"): max(0, 1 - x).
    - ipo (Azar et al. 2023, equation 17): (x / beta - 1 / (2 beta))^2, on means over tokens.
    - simpo (Meng et al. 2024, equation 6): dpo(x - target), on means over tokens, with zeros for the reference.
    """
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    margin = chosen - rejected
    right, reversed_ = -logsigmoid(beta * margin - target), -logsigmoid(-beta * margin)
    if kind == "ipo":
        losses = (margin - 1 / (2 * beta)).square()
    elif kind == "hinge":
        losses = torch.relu(1 - beta * margin)
    elif kind == "robust":
        losses = ((1 - label_smoothing) * right - label_smoothing * reversed_) / (1 - 2 * label_smoothing)
    else:
        losses = (1 - label_smoothing) * right + label_smoothing * reversed_
    return Preference(losses, beta * chosen.detach(), beta * rejected.detach())


def thumb_loss(
    log_ratio_B: Tensor,
    up_B: Tensor,
    zero: Tensor | float,
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """KTO's loss of each response, (B,) (Ethayarajh et al. 2024, section 4.1), from its thumb, ``up_B`` (bool).

    Up: desirable (1 - sigmoid(beta (log_ratio - zero))); down: undesirable (1 - sigmoid(beta (zero - log_ratio))).
    ``log_ratio_B``: log policy - log reference of the response; ``zero``: the reference point, see ``reference_point``.
    """
    gain_B = beta * (log_ratio_B - zero)
    # 1 - sigmoid(x) is sigmoid(-x), which loses no digits.
    return torch.where(up_B, desirable * torch.sigmoid(-gain_B), undesirable * torch.sigmoid(gain_B))


def reference_point(log_ratio_sum: Tensor, count: Tensor | float) -> Tensor:
    """KTO's reference point, a scalar without a gradient (Ethayarajh et al. 2024, section 4.1).

    max(0, mean of log policy - log reference of responses to prompts that are not their own), an estimate of the KL from
    the reference to the policy; 0 where there is none.
    """
    count = torch.as_tensor(count, device=log_ratio_sum.device)
    return (log_ratio_sum.detach() / count.clamp_min(1)).clamp_min(0)


# Rewards and advantages


def kl_estimates(logprob: Tensor, reference: Tensor, kind: Literal["k1", "k2", "k3", "published"]) -> Tensor:
    """Per token, an estimate of KL(policy || reference) from tokens drawn by the policy; any one shape.

    With x = log policy - log reference: k1, x, is unbiased; k2, x^2 / 2, is biased and never negative; k3,
    exp(-x) - 1 + x, is both unbiased and never negative; "published", exp(x) - 1 - x, estimates neither direction.
    """
    x = logprob - reference
    if kind == "k1":
        return x
    if kind == "k2":
        return x.square() / 2
    return torch.expm1(-x) + x if kind == "k3" else torch.expm1(x) - x


def adapted_beta(beta: float, kl: float, target: float, horizon: float, count: int) -> float:
    """KL coefficient (Ziegler et al. 2019) after ``count`` samples: beta (1 + clip(kl/target - 1, ±0.2) count/horizon)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * count / horizon)


def token_rewards(
    logprob_BA: Tensor, reference_BA: Tensor, mask_BA: Tensor, scores_B: Tensor, beta: float, published: bool = False
) -> Tensor:
    """Rewards of tokens, (B, A): -beta (log policy - log reference) on the mask, and the reply's score on its last token.

    ``published``: the KL term at every place, padding included.
    """
    penalty_BA = -beta * (logprob_BA - reference_BA)
    rewards_BA = penalty_BA if published else penalty_BA * mask_BA
    places_A = torch.arange(mask_BA.shape[1], device=mask_BA.device)
    last_B = (places_A * (mask_BA != 0)).argmax(1)  # 0 in rows without one
    return rewards_BA.scatter_add(1, last_B[:, None], scores_B[:, None].to(rewards_BA.dtype))


def gae(
    rewards_BA: Tensor, values_BA: Tensor, mask_BA: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """GAE (Schulman et al. 2016): advantages and returns (advantages + values), (B, A) each, 0 off the mask.

    The value after the last token of a row is 0. As published, the mask is all ones.
    """
    mask_BA = mask_BA.bool()
    advantage_B = next_value_B = torch.zeros_like(values_BA[:, 0])
    columns = []
    for place in reversed(range(rewards_BA.shape[1])):
        reward_B, value_B, counts_B = rewards_BA[:, place], values_BA[:, place], mask_BA[:, place]
        found_B = reward_B + gamma * next_value_B - value_B + gamma * lam * advantage_B
        advantage_B = torch.where(counts_B, found_B, advantage_B)
        next_value_B = torch.where(counts_B, value_B, next_value_B)
        columns.append(torch.where(counts_B, found_B, 0.0))
    advantages_BA = torch.stack(columns[::-1], dim=1)
    return advantages_BA, torch.where(mask_BA, advantages_BA + values_BA, 0.0)


def whiten(x: Tensor, mask: Tensor | None = None, keep_mean: bool = False) -> Tensor:
    """Values with mean 0 and (unbiased) variance 1 over the mask, 0 elsewhere; as published there is no mask."""
    mask = torch.ones_like(x) if mask is None else mask.to(x.dtype)
    mean, variance = masked_moments(x, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return (white + mean if keep_mean else white) * mask


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the mask, two scalars."""
    count = mask.sum()
    mean = (x * mask).sum() / count.clamp_min(1)
    return mean, ((x - mean).square() * mask).sum() / (count - 1).clamp_min(1)


def group_advantages(rewards_GK: Tensor, scale: bool = True, leave_one_out: bool = False) -> Tensor:
    """GRPO (Shao et al. 2024, section 4.1), (G, K): rewards minus their group's mean, over its standard deviation if ``scale``.

    Without ``scale``: Liu et al. 2025, "Dr. GRPO", section 3.2. ``leave_one_out``: the mean of the others of the group
    (Kool et al. 2019; Ahmadian et al. 2024, "RLOO").
    """
    mean_GK = rewards_GK.mean(1, keepdim=True)
    if leave_one_out:
        mean_GK = (rewards_GK.sum(1, keepdim=True) - rewards_GK) / (rewards_GK.shape[1] - 1)
    centred_GK = rewards_GK - mean_GK
    return centred_GK / (rewards_GK.std(1, keepdim=True) + 1e-4) if scale else centred_GK


@dataclass
class RunningMoments:
    """Running mean, biased variance and unbiased standard deviation (1 before the first update) of all rewards."""

    mean: float = 0.0
    var: float = 1.0
    std: float = 1.0
    count: float = 0.0

    def update(self, x: Tensor) -> tuple[float, float]:
        """Add a batch of at least two rewards; returns the batch's mean and unbiased standard deviation."""
        x = x.double().flatten()
        count, mean, var = x.numel(), x.mean().item(), x.var(unbiased=False).item()
        total, delta = self.count + count, mean - self.mean
        squares = var * count + self.var * self.count + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.var = squares / total
        self.std = (squares / max(total - 1, 1)) ** 0.5
        self.count = total
        return mean, (var * count / max(count - 1, 1)) ** 0.5


# Policy gradients


def clipped_policy_loss(
    logprob_BA: Tensor,
    old_BA: Tensor,
    advantages_BA: Tensor,
    mask_BA: Tensor,
    clip: float,
    clip_high: float | None = None,
) -> Tensor:
    """PPO's loss (Schulman et al. 2017) of each token, (B, A): max(-A ratio, -A clip(ratio, 1 ± clip)), 0 off the mask.

    ``clip_high``: the bound above 1, if it differs (Yu et al. 2025, "DAPO", section 3.1).
    """
    ratio_BA = ((logprob_BA - old_BA) * mask_BA).exp()
    losses_BA = torch.maximum(-advantages_BA * ratio_BA, -advantages_BA * _clipped(ratio_BA, clip, clip_high))
    return losses_BA * mask_BA


def _clipped(ratio_BA: Tensor, clip: float, clip_high: float | None) -> Tensor:
    return ratio_BA.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))


def reply_means(values_N: Tensor, reply_N: Tensor, replies: int) -> Tensor:
    """The mean over each reply's tokens, at each of its tokens, (N,); ``reply_N`` (int64): the reply of each token.

    The ratio of two such means of log-probabilities is that of whole replies, to the power of 1 / length (Zheng et al.
    2025, "GSPO", section 4.1).
    """
    sums, counts = (values_N.new_zeros(replies).index_add(0, reply_N, x) for x in (values_N, torch.ones_like(values_N)))
    return (sums / counts.clamp_min(1))[reply_N]


def clipped_value_loss(values_BA: Tensor, old_BA: Tensor, returns_BA: Tensor, mask_BA: Tensor, clip: float) -> Tensor:
    """PPO's value loss of each token, (B, A): half the larger squared error of the value and of it clipped to old ± clip."""
    errors_BA, clipped_errors_BA = _value_errors(values_BA, old_BA, returns_BA, clip)
    return 0.5 * torch.maximum(errors_BA, clipped_errors_BA) * mask_BA


@torch.no_grad()
def policy_statistics(
    logprob_BA: Tensor,
    old_BA: Tensor,
    advantages_BA: Tensor,
    mask_BA: Tensor,
    clip: float,
    clip_high: float | None = None,
) -> dict[str, Tensor]:
    """Sums over tokens of the KL from the old to the new policy (k3), of clipped tokens and of ratios."""
    log_ratio_BA = (logprob_BA - old_BA) * mask_BA
    ratio_BA = log_ratio_BA.exp()
    clipped_BA = -advantages_BA * _clipped(ratio_BA, clip, clip_high) > -advantages_BA * ratio_BA
    return {
        "approx_kl": (torch.expm1(log_ratio_BA) - log_ratio_BA).sum(),
        "clip_fraction": (clipped_BA * mask_BA).sum(),
        "ratio": (ratio_BA * mask_BA).sum(),
    }


@torch.no_grad()
def value_clip_count(values_BA: Tensor, old_BA: Tensor, returns_BA: Tensor, mask_BA: Tensor, clip: float) -> Tensor:
    """The number of tokens where the clipped value has the larger error, a scalar."""
    errors_BA, clipped_errors_BA = _value_errors(values_BA, old_BA, returns_BA, clip)
    return ((clipped_errors_BA > errors_BA) * mask_BA).sum()


def _value_errors(values_BA: Tensor, old_BA: Tensor, returns_BA: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    clipped_BA = torch.minimum(torch.maximum(values_BA, old_BA - clip), old_BA + clip)
    return (values_BA - returns_BA).square(), (clipped_BA - returns_BA).square()


@torch.no_grad()
def explained_variance(values_BA: Tensor, returns_BA: Tensor, mask_BA: Tensor) -> Tensor:
    """1 - var(returns - values) / var(returns) over the mask, a scalar: 1 is a perfect critic, below 0 a harmful one."""
    _, left = masked_moments(returns_BA - values_BA, mask_BA)
    _, whole = masked_moments(returns_BA, mask_BA)
    return 1 - left / whole.clamp_min(1e-8)
