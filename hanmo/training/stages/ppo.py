"""Learn from rewards with a critic and a KL penalty (PPO).

Data holds the prompts; responses in it are not used. Rewards are reward models or functions of (prompts, replies).

Example: hanmo train ppo runs/sft/model data/prompts.jsonl runs/ppo rewards=[runs/reward/model] beta=0.1
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather, reduce
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hanmo import losses
from hanmo.data.rows.dataset import ROW_IDS, Collator, RowDataset, make_rows
from hanmo.families.base import OpenedModel
from hanmo.nn.row_model import ValueKind
from hanmo.records import Rejects, iter_records
from hanmo.training.data_files import DataFiles, require_some
from hanmo.training.lifecycle import Ready, Stage
from hanmo.training.rl import stage
from hanmo.training.rl.policy import Experience, PolicyTrainer
from hanmo.training.rl.rollout import Engine, prompt_order


@dataclass(frozen=True)
class PpoConfig(stage.PolicyConfig):
    """Settings of PPO; see ``PolicyConfig`` for the others.

    Attributes:
        gamma: discount of later rewards (Schulman et al. 2016, "GAE"). [γ]
        lam: decay of later temporal-difference errors in an advantage ("GAE"). [λ]
        clip_value: how far a value may move in a round before its error stops counting. [ε, in units of the reward]
        value_weight: weight of the value loss (Schulman et al. 2017, "PPO"). [c₁, factor]
        value_head: the critic's form: "mlp" as published, or "linear".
        critic: a model of the policy's family and vocabulary, such as the reward model, that learns the values; it
            keeps its value head. null: a value head on the policy.
        whiten: scale advantages to mean 0 and variance 1 over the tokens of a round.
        clip_reward: rewards are clipped to ± this; 0: never. [reward, after scaling]
        scale_reward: divide rewards by the standard deviation of all so far ("running") or of the first round
            ("first"); null: leave them.
        kl_target: the KL that beta is adapted to hold (Ziegler et al. 2019); null: beta is fixed. [KL_target, nats per
            reply]
        kl_horizon: number of replies over which beta may change by a fifth. [replies]
        published: hold the published KL at the target: a mean over tokens of exp(x) - 1 - x, in nats per token.
        ptx: file of records whose responses are learned along with the rewards (PPO-ptx); null: none.
        ptx_weight: weight of their loss (Ouyang et al. 2022, "InstructGPT"). [γ of InstructGPT, factor]
    """

    out: str = "runs/ppo"
    gamma: float = 1.0
    lam: float = 0.95
    clip_value: float = 0.2
    value_weight: float = 0.2
    value_head: ValueKind = "mlp"
    critic: str | None = None
    whiten: bool = True
    clip_reward: float = 10.0
    scale_reward: Literal["running", "first"] | None = None
    kl_target: float | None = None
    kl_horizon: float = 10000.0
    published: bool = False
    ptx: str | None = None
    ptx_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            gamma=(0 < self.gamma <= 1, "above 0 and at most 1"),
            lam=(0 <= self.lam <= 1, "between 0 and 1"),
            clip_value=(self.clip_value > 0, "above 0"),
            clip_reward=(self.clip_reward >= 0, "0 (off) or more"),
            kl_target=(self.kl_target is None or self.kl_target > 0, "above 0"),
            kl_horizon=(self.kl_horizon > 0, "above 0"),
            value_weight=(self.value_weight >= 0, "0 or more"),
        )


class PpoTrainer(PolicyTrainer):
    """The critic is a value head on the policy, or a network beside it."""

    config: PpoConfig
    _mixed = (-1, 0)  # the optimizer step, and the number of its batches of the mix so far

    def __init__(self, *args: Any, ptx_rows: RowDataset | None = None):
        super().__init__(*args)
        self.ptx_rows = ptx_rows

    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        scores = self._scaled(scores)
        tensors = [pad_sequence([getattr(one, name) for one in batch], True) for name in ("old", "reference", "values")]
        old_SN, reference_SN, values_SN = tensors
        mask_SN = pad_sequence([torch.ones_like(one.old) for one in batch], True)
        rewards_SN = losses.token_rewards(old_SN, reference_SN, mask_SN, scores, self.beta)
        advantages_SN, returns_SN = losses.gae(rewards_SN, values_SN, mask_SN, self.config.gamma, self.config.lam)
        explained = losses.explained_variance(values_SN, returns_SN, mask_SN).item()
        if self.config.whiten:
            advantages_SN = self._whitened(advantages_SN, mask_SN)
        for row, one in enumerate(batch):
            length = len(one.old)
            one.advantages, one.returns = advantages_SN[row, :length], returns_SN[row, :length]
        self._adapt(old_SN, reference_SN, mask_SN)
        return {"explained_variance": explained, "value": ((values_SN * mask_SN).sum() / mask_SN.sum()).item()}

    def _scaled(self, scores: Tensor) -> Tensor:
        if self.config.scale_reward == "running" or (self.config.scale_reward and not self.moments.count):
            self.moments.update(gather(scores.to(self.args.device)).cpu())
        if self.config.scale_reward:
            scores = scores / max(self.moments.std, 1e-8)
        limit = self.config.clip_reward
        return scores.clamp(-limit, limit) if limit else scores

    def _whitened(self, x: Tensor, mask: Tensor) -> Tensor:
        """Over the real tokens of all processes."""
        sums = self._over_processes(torch.stack([mask.sum(), (x * mask).sum()]))
        mean = sums[1] / sums[0]
        spread = self._over_processes(((x - mean).square() * mask).sum())
        return (x - mean) * torch.rsqrt(spread / (sums[0] - 1).clamp_min(1) + 1e-8) * mask

    def _over_processes(self, sums: Tensor) -> Tensor:
        return reduce(sums.to(self.args.device), "sum").cpu()

    def _adapt(self, old_SN: Tensor, reference_SN: Tensor, mask_SN: Tensor) -> None:
        config = self.config
        if config.kl_target is None:
            return
        kl = (losses.kl_estimates(old_SN, reference_SN, "published" if config.published else "k1") * mask_SN).sum()
        count = mask_SN.numel() if config.published else len(mask_SN)
        total, number = self._over_processes(torch.tensor([kl.item(), float(count)])).tolist()
        self.beta = losses.adapted_beta(self.beta, total / number, config.kl_target, config.kl_horizon, config.samples)

    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], scored_N: Tensor) -> Tensor:
        ones, config = torch.ones_like(logprob_N), self.config
        values_N = output.value.flatten()[scored_N]
        old, advantages, returns, old_values = (tokens[name] for name in ("old", "advantages", "returns", "values"))
        policy_N = losses.clipped_policy_loss(logprob_N, old, advantages, ones, config.clip)
        value_N = losses.clipped_value_loss(values_N, old_values, returns, ones, config.clip_value)
        moved = losses.policy_statistics(logprob_N, old, advantages, ones, config.clip)
        moved["value_clip_fraction"] = losses.value_clip_count(values_N, old_values, returns, ones, config.clip_value)
        moved["policy_loss"], moved["value_loss"] = policy_N.sum(), value_N.sum()
        self.add_figures(ones, **moved)
        return policy_N + config.value_weight * value_N

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.ptx_rows is not None:
            loss = loss + self._learn_text(model, self.ptx_rows)
        return loss

    def _learn_text(self, model: nn.Module, rows: RowDataset) -> Tensor:
        """Train on one batch of the pretraining mix; its gradients are added to those from rewards."""
        args = self.args
        step, had = self.state.global_step, self._mixed[1] if self._mixed[0] == self.state.global_step else 0
        self._mixed = (step, had + 1)
        size = args.per_device_train_batch_size * args.world_size
        place = (step * args.gradient_accumulation_steps + had) * size
        places = prompt_order(len(rows), size, place, args.seed)[args.process_index :: args.world_size]
        batch = Collator(rows.family.padding)([rows[one] for one in places])
        batch.pop(ROW_IDS)
        with self.compute_loss_context_manager():
            loss = model(**self._prepare_inputs(batch)).loss
        loss = self.config.ptx_weight * loss / args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


def build(opened: OpenedModel, config: PpoConfig, files: DataFiles, engine: Engine | None = None) -> Ready:
    trainer = partial(PpoTrainer, ptx_rows=_ptx_rows(opened, config) if config.ptx else None)
    return stage.prepare_policy(opened, config, files, trainer, engine, config.value_head, config.critic)


def _ptx_rows(opened: OpenedModel, config: PpoConfig) -> RowDataset:
    file, rejects = Path(str(config.ptx)), Rejects()
    rows = make_rows(iter_records(file, reply="needed"), opened.family, config.limit, config.response_limit, rejects)
    require_some(rows, file, "ptx: nothing to learn from", rejects)
    return rows


STAGE = ppo = Stage("ppo", "PPO", PpoConfig, build, stage.RESULTS, stage.THEN)
