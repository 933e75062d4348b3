"""Learning from rewards: the rounds that GRPO and PPO share.

A round is: prompts are answered (rollout), the replies get rewards and advantages, and the policy takes ``epochs``
passes over them in minibatches. transformers' Trainer runs the optimizer steps; its "data loader" is the rounds.
Checkpoints are written between rounds only, so that one holds all there is to know.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hanmo.errors import ConfigError, DivergedError
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text
from hanmo.generation.draws import Place
from hanmo.losses import RunningMoments, kl_estimates
from hanmo.rows import IGNORE, Row, collate
from hanmo.training.rl.config import rollout_settings
from hanmo.training.rl.rollout import Engine, Question, Reference, Reward, Sample, prompt_order, scored, without_critic
from hanmo.training.rl.rounds import BetweenRounds, Rounds, chunked
from hanmo.training.trainable import switch_dropout_off
from hanmo.training.trainer import RowTrainer

STATE = "rounds.json"  # in a checkpoint
CRITIC = "critic.safetensors"


@dataclass
class Experience:
    """One reply to learn from; tensors are (N,), over its tokens and the stop token if it ended by itself."""

    sample: Sample
    row: Row
    score: float
    old: Tensor
    reference: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor


class PolicyTrainer(RowTrainer):
    """Trains a policy in rounds; a stage gives the advantages and the loss.

    Args:
        opened: the policy; its network is the one under ``model``.
        engine: makes the replies.
        rewards: by name.
    """

    def __init__(
        self, config: Any, opened: OpenedModel, engine: Engine, rewards: dict[str, Reward], model: nn.Module,
        args: TrainingArguments, questions: Sequence[Question], *others: Any,
    ):  # fmt: skip
        switch_dropout_off(model)
        super().__init__(model, args, None, *others)
        self.add_callback(BetweenRounds(self))
        self.config, self.opened, self.engine, self.rewards, self.questions = config, opened, engine, rewards, questions
        self.settings = rollout_settings(config, opened, questions)
        suppressed = self.settings.suppressed_ids
        self.suppressed_ids = torch.tensor(suppressed, device=args.device) if suppressed else None
        self.critic = opened.network.critic
        self.reference = Reference(model, config.reference)
        self.round, self.beta, self.moments = 0, config.beta, RunningMoments()
        self.left = 0  # batches of this round that are still to come
        self.seconds = {"rollout": 0.0, "reward": 0.0, "score": 0.0}
        self._round_figures: dict[str, float] = {}
        self._step_figures: list[dict[str, Tensor]] = []
        self.moved: list[tuple[Tensor, int]] = []  # by each batch of this step: nats a token, and of how many tokens

    # For stages to override

    group = 1  # replies to each prompt

    @abstractmethod
    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        """Set the advantages (and returns) of a round's replies; returns figures to log."""

    @abstractmethod
    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], labels_BA: Tensor) -> Tensor:
        """The loss of each token, (N,), of the replies of a minibatch end to end."""

    def token_weights(self, length: int) -> float:
        """How much each token of a reply of this many tokens counts."""
        return 1.0

    needs_values = False

    # Rounds

    def get_train_dataloader(self) -> Any:
        return Rounds(self)

    def collect(self) -> list[Experience]:
        """This process's share of a round's replies, ready to learn from."""
        start = time.perf_counter()
        samples = self._replies()
        self.seconds["rollout"] += (replied := time.perf_counter()) - start
        by_source = {name: list(reward(samples)) for name, reward in self.rewards.items()}
        self.seconds["reward"] += (rewarded := time.perf_counter()) - replied
        raw = torch.tensor([sum(scores) for scores in zip(*by_source.values(), strict=True)])
        finished = torch.tensor([float(sample.generation.finished) for sample in samples])
        scores = raw - self.config.unfinished_penalty * (1 - finished)
        if not torch.isfinite(scores).all():
            raise DivergedError(self._diverged(f"a reward is not finite: {raw.tolist()}"))
        batch = self._experience(samples, scores)
        figures = self.weigh(batch, scores)
        self.seconds["score"] += time.perf_counter() - rewarded
        self._describe(batch, raw, by_source, finished, figures)
        return batch

    def _replies(self) -> list[Sample]:
        world, rank, seed = self.args.world_size, self.args.process_index, self.args.seed
        wanted = self.config.samples // self.group
        order = prompt_order(len(self.questions), wanted, self.round * wanted, seed)
        places = [Place(number, choice) for number in range(rank, wanted, world) for choice in range(self.group)]
        questions = [self.questions[order[place.record]] for place in places]
        drawn = replace(self.settings, seed=seed * 1_000_003 + self.round)
        replies = self.engine([one.context for one in questions], drawn, places)
        if banned := {id_ for reply in replies for id_ in reply.ids} & set(drawn.suppressed_ids):
            raise ConfigError(f"the engine generated the ids {sorted(banned)}, which its settings ban (suppressed_ids)")
        decode = self.opened.family.decode
        return [
            Sample(one.record, one.context, reply, one.text, decode(reply.ids))
            for one, reply in zip(questions, replies, strict=True)
        ]

    @torch.no_grad()
    def _experience(self, samples: Sequence[Sample], scores: Tensor) -> list[Experience]:
        """The replies with the log-probabilities and values of their tokens by policy, reference and critic."""
        family, model = self.opened.family, self.model
        assert isinstance(model, nn.Module)
        rows = [family.row(sample.parts, stop=sample.generation.finished) for sample in samples]
        mixed = self.args.bf16 or self.args.fp16  # whoever decodes rounds elsewhere
        known = self.engine.exact and not mixed and not (self.needs_values and self.critic is None)
        old = [torch.tensor(sample.generation.logprobs) for sample in samples]
        values = nothing = [torch.zeros_like(x) for x in old]
        if not known:
            old, values = self._scores(model, rows)
        elif self.critic is not None:
            _, values = self._scores(self.critic, rows, tokens=False)
        reference = old
        if self.beta > 0:
            with self.reference.active() as network:
                reference, _ = self._scores(network, rows)
        columns = (samples, rows, scores.tolist(), old, reference, nothing, values, nothing)
        return [Experience(*one) for one in zip(*columns, strict=True)]

    def _scores(
        self, network: nn.Module, rows: Sequence[Row], tokens: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Log-probabilities and values of the scored tokens of every row, (N,) each, on the CPU; zeros where not known.

        Rows of similar length share a batch. Without ``tokens`` the log-probabilities are not computed.
        """
        logprobs, values = ([torch.zeros(int((row.labels != IGNORE).sum())) for row in rows] for _ in range(2))
        training = network.training
        network.eval()
        order = sorted(range(len(rows)), key=lambda place: rows[place].size)
        for places in chunked(order, self.args.per_device_eval_batch_size):
            batch = collate([rows[place] for place in places], self.opened.family.padding)
            inputs = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            if not tokens:
                inputs["labels"] = torch.full_like(inputs["labels"], IGNORE)
            output = network(**inputs, suppressed_ids=self.suppressed_ids)
            for found, by_place in ((output.logprob, logprobs), (output.value, values)):
                if found is not None:
                    for place, one in zip(places, scored(found.float().cpu(), batch["labels"]), strict=True):
                        by_place[place] = one
        network.train(training)
        return logprobs, values

    def minibatch(self, batch: Sequence[Experience]) -> dict[str, Any]:
        """Rows as one batch, and under ``tokens`` the figures of their scored tokens, end to end, (N,) each."""
        names = ("old", "reference", "advantages", "values", "returns")
        tokens = {name: torch.cat([getattr(one, name) for one in batch]) for name in names}
        tokens["weights"] = torch.cat([torch.full_like(one.old, self.token_weights(len(one.old))) for one in batch])
        return {**collate([one.row for one in batch], self.opened.family.padding), "tokens": tokens}

    # Steps

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor | None:
        total = sum(batch["tokens"]["weights"].sum() for batch in batch_samples)
        total = torch.as_tensor(total).to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        tokens = inputs.pop("tokens")
        output = model(**inputs, suppressed_ids=self.suppressed_ids)
        logprob_N = output.logprob[inputs["labels"] >= 0]
        losses_N = self.token_losses(output, logprob_N, tokens, inputs["labels"])
        return (losses_N * tokens["weights"]).sum() / num_items_in_batch * self.args.world_size

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = Trainer.training_step(self, model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise DivergedError(self._diverged(f"the loss is {loss.item()}"))
        return loss

    def add_figures(self, tokens: int, **totals: Tensor) -> None:
        """Take the sums over the tokens of a batch, whose means are logged."""
        self._step_figures.append({"tokens": torch.tensor(tokens), **{name: x.detach() for name, x in totals.items()}})
        self.moved.append((totals["approx_kl"].detach(), tokens))

    @property
    def between_rounds(self) -> bool:
        return not self.left or self.moved_too_far()

    def moved_too_far(self) -> bool:
        if self.config.max_kl is None:
            return False
        kl, tokens = sum(total.item() for total, _ in self.moved), sum(count for _, count in self.moved)
        if self.args.world_size > 1:
            sums = self.accelerator.gather(torch.tensor([[kl, tokens]], device=self.args.device)).sum(0)
            kl, tokens = sums.tolist()
        return kl > self.config.max_kl * tokens

    # Figures

    def _describe(
        self, batch: list[Experience], raw: Tensor, by_source: dict[str, list[float]], finished: Tensor,
        figures: dict[str, float],
    ) -> None:  # fmt: skip
        numbers = zip(raw.tolist(), finished.tolist(), *by_source.values(), strict=True)
        replies = [(one.old.cpu(), one.reference.cpu(), *own) for one, own in zip(batch, numbers, strict=True)]
        if self.args.world_size > 1:
            replies = gather_object(replies)
        old, references, rewards, ended, *sources = zip(*replies, strict=True)
        logprob, reference, reward = torch.cat(old), torch.cat(references), torch.tensor(rewards)
        own_figures = {**figures, "rollout_share": self.seconds["rollout"] / max(sum(self.seconds.values()), 1e-9)}
        if self.args.world_size > 1:
            every = gather_object([own_figures])
            own_figures = {name: fmean(one[name] for one in every) for name in own_figures}
        self._round_figures = {
            "round": float(self.round),
            "reward": reward.mean().item(),
            "reward_std": reward.std().item(),
            **{f"reward/{name}": fmean(s) for name, s in zip(by_source, sources, strict=True) if len(sources) > 1},
            **{f"kl_{kind}": kl_estimates(logprob, reference, kind).mean().item() for kind in ("k1", "k2", "k3")},
            "kl_reply": (logprob - reference).sum().item() / len(replies),
            "entropy": -logprob.mean().item(),
            "length": fmean(len(one) for one in old),
            "finished": fmean(ended),
            "beta": self.beta,
            **own_figures,
        }
        if self.round % self.config.show_rounds == 0 and self.is_world_process_zero():
            with (self.folder.parent / "samples.jsonl").open("a", encoding="utf-8") as file:
                for one in batch[:4]:
                    entry = {"round": self.round, "prompt": one.sample.prompt, "reply": one.sample.reply}
                    file.write(json_text({**entry, "reward": round(one.score, 4)}) + "\n")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._step_figures:
            sums = self.sums(self._step_figures)
            tokens = sums.pop("tokens")
            logs |= {name: total / tokens for name, total in sums.items()} | self._round_figures
            self._step_figures = []
        super().log(logs, *args, **kwargs)

    def measured_batch(self) -> tuple[dict[str, Any], float]:
        """The longest replies of a round as a minibatch, and the seconds of the round before its steps, by step."""
        start = time.perf_counter()
        batch = sorted(self.collect(), key=lambda one: one.row.size)
        seconds = time.perf_counter() - start
        steps = self.config.steps_of_round(self.args.world_size)
        return self.minibatch(batch[-self.args.per_device_train_batch_size :]), seconds / steps

    # Checkpoints and the model

    def final_model(self, network: Any) -> tuple[Any, dict[str, Tensor] | None]:
        """Without value head and critic: the saved model is one that writes."""
        trained, weights = super().final_model(network)
        trained.value_head = trained.config.value_head = trained.critic = None
        if weights is not None:
            weights = {name: x for name, x in weights.items() if not name.startswith(("value_head.", "critic."))}
        return trained, weights

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with without_critic(self.model):
            super()._save(output_dir, state_dict)
        if self.critic is not None and self.args.should_save:
            save_model(self.critic, str(Path(output_dir or self.folder) / CRITIC))  # its tensors may be tied

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with without_critic(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.critic is not None:
            load_model(self.critic, str(Path(resume_from_checkpoint) / CRITIC))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            state = {"round": self.round, "beta": self.beta, "moments": asdict(self.moments)}
            write_text(Path(output_dir) / STATE, json_text(state))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.restore_rounds(Path(checkpoint))

    def restore_rounds(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        self.round, self.beta, self.moments = state["round"], state["beta"], RunningMoments(**state["moments"])
