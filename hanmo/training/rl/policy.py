"""Learning from rewards: the rounds that GRPO and PPO share.

A round: prompts are answered (rollout), the replies get rewards and advantages, and the policy is trained on them for
``epochs`` passes, in minibatches. transformers' Trainer runs the optimizer steps; its data loader is ``Rounds``.
Checkpoints are written between rounds only, so that each holds the whole state of the run.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hanmo.data.rows.mixture import mixture_of
from hanmo.errors import ConfigError, DivergedError
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text
from hanmo.generation.draws import Place
from hanmo.losses import RunningMoments, kl_estimates
from hanmo.rows import IGNORE, Row, chunked, collate
from hanmo.training.restoring import restoring
from hanmo.training.rl import rollout
from hanmo.training.rl.rewards import Rewards
from hanmo.training.trainable import switch_dropout_off
from hanmo.training.trainer import RowTrainer

STATE = "rounds.json"  # in a checkpoint
CRITIC = "critic.safetensors"


@dataclass
class Experience:
    """One reply to learn from; tensors are (N,), over its tokens and, if it is finished, the stop token."""

    sample: rollout.Sample
    row: Row
    score: float
    old: Tensor
    reference: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor


@dataclass(frozen=True)
class _State:
    """The content of ``STATE``."""

    round: NonNegativeInt
    beta: FiniteFloat
    moments: RunningMoments


class PolicyTrainer(RowTrainer):
    """Trains a policy in rounds; a stage adds advantages and loss. ``model`` is the network of ``opened``."""

    def __init__(
        self, config: Any, opened: OpenedModel, engine: rollout.Engine, rewards: Rewards,
        model: nn.Module, args: TrainingArguments, questions: Sequence[rollout.Question], *others: Any,
    ):  # fmt: skip
        switch_dropout_off(model)
        super().__init__(model, args, None, *others)
        self.add_callback(BetweenRounds(self))
        self.group = getattr(config, "group", 1)  # replies to each prompt
        self.config, self.opened, self.engine, self.rewards, self.questions = config, opened, engine, rewards, questions
        self.settings = rollout.rollout_settings(config, opened, questions)
        suppressed = self.settings.suppressed_ids
        self.suppressed_ids = torch.tensor(suppressed, device=args.device) if suppressed else None
        self.critic = opened.network.critic
        self.reference = rollout.Reference(model, config.reference)
        self.round, self.beta, self.moments = 0, config.beta, RunningMoments()
        self.left = 0  # batches of this round that are still to come
        self.seconds = {"rollout": 0.0, "round": 0.0}  # seconds for replies, and for everything before a round's steps
        self.moved: list[tuple[Tensor, int]] = []  # for each batch of this step: nats a token, and the number of tokens

    # For stages to override

    @abstractmethod
    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        """Set the advantages (and returns) of a round's replies; returns figures to log."""

    @abstractmethod
    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], labels_BA: Tensor) -> Tensor:
        """The loss of each token, (N,), of the replies of a minibatch end to end."""

    def token_weights(self, length: int) -> float:
        """The weight of each token in a reply of this many tokens."""
        return 1.0

    # Rounds

    def get_train_dataloader(self) -> Any:
        return Rounds(self)

    def collect(self) -> list[Experience]:
        """This process's share of a round's replies, ready to learn from."""
        start = time.perf_counter()
        samples = self._replies()
        self.seconds["rollout"] += time.perf_counter() - start
        totals, by_source = self.rewards(samples)
        raw = torch.tensor(totals)
        finished = torch.tensor([float(sample.generation.finished) for sample in samples])
        scores = raw - self.config.unfinished_penalty * (1 - finished)
        if not torch.isfinite(scores).all():
            raise DivergedError(self._diverged(f"a reward is not finite: {raw.tolist()}"))
        batch = self._experience(samples, scores)
        figures = self.weigh(batch, scores)
        self.seconds["round"] += time.perf_counter() - start
        self._describe(batch, raw, by_source, finished, figures)
        return batch

    def _replies(self) -> list[rollout.Sample]:
        world, rank, seed = self.args.world_size, self.args.process_index, self.args.seed
        wanted = self.config.samples // self.group
        mixture = mixture_of(self.questions)
        order = rollout.prompt_order(mixture.total, wanted, self.round * wanted, seed, mixture)
        places = [Place(number, choice) for number in range(rank, wanted, world) for choice in range(self.group)]
        questions = [self.questions[order[place.record]] for place in places]
        drawn = replace(self.settings, seed=seed * 1_000_003 + self.round)
        with self.accelerator.autocast():
            replies = self.engine([one.context for one in questions], drawn, places)
        if banned := {id_ for reply in replies for id_ in reply.ids} & set(drawn.suppressed_ids):
            raise ConfigError(f"the engine generated the ids {sorted(banned)}, which its settings ban (suppressed_ids)")
        decode = self.opened.family.decode
        pairs = zip(questions, replies, strict=True)
        return [rollout.Sample(**vars(one), generation=reply, reply=decode(reply.ids)) for one, reply in pairs]

    @torch.no_grad()
    def _experience(self, samples: Sequence[rollout.Sample], scores: Tensor) -> list[Experience]:
        """The replies with the log-probabilities and values of their tokens by policy, reference and critic.

        They are computed in the batches of the first pass: before the first update of a round the policy's ratio is 1, and
        before the first of a run its KL is 0, bit for bit.
        """
        family, model = self.opened.family, self.model
        assert isinstance(model, nn.Module)
        rows = [family.row(sample.parts, stop=sample.generation.finished) for sample in samples]
        old, values = self._scores(model, rows)
        reference, nothing = old, [torch.zeros_like(x) for x in old]
        if self.beta > 0:
            with self.reference.active() as network:
                reference, _ = self._scores(network, rows)
        columns = (samples, rows, scores.tolist(), old, reference, nothing, values, nothing)
        return [Experience(*one) for one in zip(*columns, strict=True)]

    def _scores(self, network: nn.Module, rows: list[Row]) -> tuple[list[Tensor], list[Tensor]]:
        """Log-probabilities and values (0 without a critic) of each row's scored tokens, (N,) each, on the CPU."""
        logprobs, values = ([torch.zeros(int((row.labels != IGNORE).sum())) for row in rows] for _ in range(2))
        for places in passes(self.args, self.round, 0, [row.size for row in rows]):
            batch = collate([rows[place] for place in places], self.opened.family.padding)
            inputs = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
            output = self.output_as_trained(network, **inputs, suppressed_ids=self.suppressed_ids)
            for found, by_place in ((output.logprob, logprobs), (output.value, values)):
                if found is not None:
                    by_row = rollout.scored(found.detach().float().cpu(), batch["labels"])
                    for place, one in zip(places, by_row, strict=True):
                        by_place[place] = one
        return logprobs, values

    def minibatch(self, batch: Sequence[Experience]) -> dict[str, Any]:
        """Rows as one batch, and under ``tokens`` the figures of their scored tokens, end to end, (N,) each."""
        names = ("old", "reference", "advantages", "values", "returns")
        tokens = {name: torch.cat([getattr(one, name) for one in batch]) for name in names}
        tokens["weights"] = torch.cat([torch.full_like(one.old, self.token_weights(len(one.old))) for one in batch])
        return {**collate([one.row for one in batch], self.opened.family.padding), "tokens": tokens}

    # Steps

    def weights_of(self, batch: dict[str, Any]) -> Tensor:
        return batch["tokens"]["weights"]

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

    def add_figures(self, count: Tensor, **figures: Tensor) -> None:
        """Sums over the ``count`` tokens of a batch."""
        super().add_figures(count, **figures)
        self.moved.append((figures["approx_kl"].detach(), len(count)))

    def moved_too_far(self) -> bool:
        if self.config.max_kl is None:
            return False
        moved = gather_object([(total.item(), count) for total, count in self.moved])
        return sum(kl for kl, _ in moved) > self.config.max_kl * sum(count for _, count in moved)

    # Figures

    def _describe(
        self, batch: list[Experience], raw: Tensor, by_source: dict[str, list[float | None]], finished: Tensor,
        figures: dict[str, float],
    ) -> None:  # fmt: skip
        numbers = zip(raw.tolist(), finished.tolist(), *by_source.values(), strict=True)
        own = [(one.old.cpu(), one.reference.cpu(), *more) for one, more in zip(batch, numbers, strict=True)]
        replies = gather_object(own)
        old, references, rewards, ended, *sources = zip(*replies, strict=True)
        logprob, reference, reward = torch.cat(old), torch.cat(references), torch.tensor(rewards)
        applied = {name: [s for s in scores if s is not None] for name, scores in zip(by_source, sources, strict=True)}
        means = {name: fmean(scores) for name, scores in applied.items() if scores}
        every = gather_object([{**figures, "rollout_share": self.seconds["rollout"] / self.seconds["round"]}])
        self._other_figures = {
            "round": float(self.round),
            "reward": reward.mean().item(),
            "reward_std": reward.std().item(),
            **{f"reward/{name}": mean for name, mean in means.items() if len(sources) > 1},
            **{f"kl_{kind}": kl_estimates(logprob, reference, kind).mean().item() for kind in ("k1", "k2", "k3")},
            "kl_reply": (logprob - reference).sum().item() / len(replies),
            "entropy": -logprob.mean().item(),
            "length": fmean(len(one) for one in old),
            "finished": fmean(ended),
            "beta": self.beta,
            **{name: fmean(one[name] for one in every) for name in every[0]},
        }
        if self.round % self.config.show_rounds == 0 and self.is_world_process_zero():
            with (self.folder.parent / "samples.jsonl").open("a", encoding="utf-8") as file:
                for one in batch[:4]:
                    entry = {"round": self.round, "prompt": one.sample.prompt, "reply": one.sample.reply}
                    file.write(json_text({**entry, "reward": round(one.score, 4)}) + "\n")

    def measured_batch(self) -> tuple[dict[str, Any], float]:
        """The longest replies of a round as a minibatch, and the seconds of the round before its steps, by step."""
        start = time.perf_counter()
        batch = sorted(self.collect(), key=lambda one: one.row.size)
        seconds = time.perf_counter() - start
        steps = self.config.steps_of_round(self.args.world_size)
        return self.minibatch(batch[-self.args.per_device_train_batch_size :]), seconds / steps

    # Checkpoints and the model

    def final_model(self, network: Any) -> tuple[Any, dict[str, Tensor] | None]:
        """The model without value head and critic: the saved model is for generation."""
        trained, weights = super().final_model(network)
        trained.value_head = trained.config.value_head = trained.critic = None
        if weights is not None:
            weights = {name: x for name, x in weights.items() if not name.startswith(("value_head.", "critic."))}
        return trained, weights

    def final_adapter(self, network: Any) -> dict[str, Tensor]:
        """Without value head and critic."""
        beside = ("base_model.model.value_head.", "base_model.model.critic.")
        return {name: x for name, x in super().final_adapter(network).items() if not name.startswith(beside)}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with rollout.without_critic(self.model):
            super()._save(output_dir, state_dict)
        if self.critic is not None and self.args.should_save:
            save_model(self.critic, str(Path(output_dir or self.folder) / CRITIC))  # its tensors may be tied

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with rollout.without_critic(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.critic is not None:
            with restoring(file := Path(resume_from_checkpoint) / CRITIC):
                load_model(self.critic, str(file))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            state = _State(self.round, self.beta, self.moments)
            write_text(Path(output_dir) / STATE, json_text(asdict(state)))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            with restoring(file := Path(checkpoint) / STATE):
                state = TypeAdapter(_State).validate_json(file.read_bytes(), strict=True)
            self.round, self.beta, self.moments = state.round, state.beta, state.moments


# Rounds as transformers' Trainer sees them


def passes(args: TrainingArguments, number: int, epoch: int, sizes: Sequence[int]) -> list[Sequence[int]]:
    """The batches of a pass over the replies of a round, by place; ``sizes``: the tokens of each reply's row."""
    size = args.per_device_train_batch_size
    draws = torch.Generator().manual_seed((args.seed * 1_000_003 + number) * 101 + epoch)
    batches: list[Sequence[int]] = []
    # The batches of an optimizer step are summed, so each may hold rows of similar length.
    for step in chunked(torch.randperm(len(sizes), generator=draws).tolist(), size * args.gradient_accumulation_steps):
        batches += chunked(sorted(step, key=sizes.__getitem__), size)
    return batches


class Rounds:
    """The data loader of the Trainer: minibatches, round after round."""

    def __init__(self, trainer: PolicyTrainer):
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.args.max_steps * self.trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer = self.trainer
        args, accumulated = trainer.args, trainer.args.gradient_accumulation_steps
        while True:
            batch = trainer.collect()
            sizes = [one.row.size for one in batch]
            batches = [
                places for epoch in range(trainer.config.epochs) for places in passes(args, trainer.round, epoch, sizes)
            ]
            trainer.left = len(batches)
            trainer.round += 1
            for number, places in enumerate(batches):
                if number % accumulated == 0 and number and trainer.moved_too_far():
                    break
                trainer.left -= 1
                yield trainer.minibatch([batch[place] for place in places])


class BetweenRounds(TrainerCallback):
    """Saves and stops the run only between rounds, and saves it as often as configured."""

    def __init__(self, trainer: PolicyTrainer):
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.moved.clear()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.left and not trainer.moved_too_far():
            control.should_save = False
            control.should_training_stop = state.global_step >= state.max_steps
            return
        if trainer.round >= trainer.config.rounds:  # rounds that ended early leave steps unused
            control.should_training_stop = True
        if trainer.config.max_kl is not None:  # rounds differ in length, and each is logged
            control.should_log = True
        if trainer.config.save_rounds and trainer.round % trainer.config.save_rounds == 0:
            control.should_save = True
