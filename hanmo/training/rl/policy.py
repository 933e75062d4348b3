"""Learning from rewards: the rounds that GRPO and PPO share.

A round: prompts are answered (rollout), the replies get rewards and advantages, and the policy is trained on them for
``epochs`` passes, in minibatches. transformers' Trainer runs the optimizer steps; its data loader is ``Rounds``.
Checkpoints are written between rounds only, so that each holds the whole state of the run.
"""

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import TrainingArguments

from hanmo.data.rows.mixture import mixture_of
from hanmo.errors import ConfigError, DivergedError
from hanmo.families.base import OpenedModel
from hanmo.files import json_text, write_text
from hanmo.generation.draws import Place
from hanmo.losses import RunningMoments, kl_estimates
from hanmo.rows import IGNORE, Row, collate
from hanmo.training.restoring import restoring
from hanmo.training.rl import rollout
from hanmo.training.rl.rewards import Rewards
from hanmo.training.rl.rounds import BetweenRounds, Rounds, passes
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
class Judged:
    """A reply with its rewards in their order, their weighted sum, and the score that is learned from."""

    sample: rollout.Sample
    rewards: tuple[float | None, ...]
    reward: float
    score: float


@dataclass(frozen=True)
class _State:
    """The content of ``STATE``."""

    round: NonNegativeInt
    beta: FiniteFloat
    moments: RunningMoments
    redrawn: NonNegativeInt = 0
    undecided_rounds: NonNegativeInt = 0


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
        # Without a penalty nothing asks the reference, which would cost a copy of what is trained.
        self.reference = rollout.Reference(model, config.reference) if config.beta else None
        self.round, self.beta, self.moments = 0, config.beta, RunningMoments()
        self.redrawn = 0  # prompts that were asked besides the first ones of each round
        self.undecided_rounds = 0  # in a row
        self.left = 0  # batches of this round that are still to come
        self.seconds = {"rollout": 0.0, "round": 0.0}  # seconds for replies, and for everything before a round's steps
        self.moved: list[tuple[Tensor, int]] = []  # for each batch of this step: nats a token, and the number of tokens

    # For stages to override

    @abstractmethod
    def weigh(self, batch: list[Experience], scores: Tensor) -> dict[str, float]:
        """Set the advantages (and returns) of a round's replies; returns figures to log."""

    @abstractmethod
    def token_losses(self, output: Any, logprob_N: Tensor, tokens: dict[str, Tensor], scored_N: Tensor) -> Tensor:
        """The loss of each token, (N,), of the replies of a minibatch end to end; ``scored_N``: the ``scored_places``."""

    def decided(self, numbers: Sequence[int], judged: list[Judged]) -> list[Judged]:
        """The replies of a round to learn from, in the order of ``numbers``, the places of this process's prompts."""
        return judged

    def token_weights(self, one: Experience) -> float:
        """The weight of each token of a reply."""
        return 1.0

    # Rounds

    def get_train_dataloader(self) -> Any:
        return Rounds(self)

    def collect(self) -> list[Experience]:
        """This process's share of a round's replies, ready to learn from."""
        start = time.perf_counter()
        wanted = self.config.samples // self.group
        numbers = range(self.args.process_index, wanted, self.args.world_size)
        judged = self.decided(list(numbers), self.judged(numbers, self.round * wanted + self.redrawn, wanted))
        batch = self._experience([one.sample for one in judged], torch.tensor([one.score for one in judged]))
        figures = self.weigh(batch, torch.tensor([one.score for one in judged]))
        self.seconds["round"] += time.perf_counter() - start
        self._describe(batch, judged, figures)
        return batch

    def judged(self, numbers: Sequence[int], start: int, wanted: int, seen: int = 0) -> list[Judged]:
        """Replies to this process's share of ``wanted`` prompts from position ``start`` of their order, with rewards.

        ``numbers``: the places of the share among them; ``seen``: how many prompts the round has asked before.
        """
        samples = self._replies(numbers, start, wanted, seen) if numbers else []
        totals, by_source = self.rewards(samples) if samples else ([], {})
        raw = torch.tensor(totals)
        finished = torch.tensor([float(sample.generation.finished) for sample in samples])
        scores = raw - self.config.unfinished_penalty * (1 - finished)
        if not torch.isfinite(scores).all():
            raise DivergedError(self._diverged(f"a reward is not finite: {raw.tolist()}"))
        columns = zip(samples, zip(*by_source.values(), strict=True), raw.tolist(), scores.tolist(), strict=True)
        return [Judged(*one) for one in columns]

    def _replies(self, numbers: Sequence[int], start: int, wanted: int, seen: int) -> list[rollout.Sample]:
        begun, seed = time.perf_counter(), self.args.seed
        mixture = mixture_of(self.questions)
        order = rollout.prompt_order(mixture.total, wanted, start, seed, mixture)
        questions = [self.questions[order[number]] for number in numbers for _ in range(self.group)]
        places = [Place(seen + number, choice) for number in numbers for choice in range(self.group)]
        drawn = replace(self.settings, seed=seed * 1_000_003 + self.round)
        with self.accelerator.autocast():
            replies = self.engine([one.context for one in questions], drawn, places)
        self.seconds["rollout"] += time.perf_counter() - begun
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
        if self.reference is not None:
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
        tokens["weights"] = torch.cat([torch.full_like(one.old, self.token_weights(one)) for one in batch])
        return {**collate([one.row for one in batch], self.opened.family.padding), "tokens": tokens}

    # Steps

    def weights_of(self, batch: dict[str, Any]) -> Tensor:
        return batch["tokens"]["weights"]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        tokens = inputs.pop("tokens")
        output = model(**inputs, suppressed_ids=self.suppressed_ids)
        logprob_N = output.logprob.flatten()[inputs["scored"]]
        losses_N = self.token_losses(output, logprob_N, tokens, inputs["scored"])
        # A step in which no reply counts has the loss 0.
        return (losses_N * tokens["weights"]).sum() / num_items_in_batch.clamp_min(1) * self.args.world_size

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

    def _describe(self, batch: list[Experience], judged: list[Judged], figures: dict[str, float]) -> None:
        own = [
            (one.old.cpu(), one.reference.cpu(), reply.reward, float(reply.sample.generation.finished), reply.rewards)
            for one, reply in zip(batch, judged, strict=True)
        ]
        replies = gather_object(own)
        old, references, rewards, ended, by_source = zip(*replies, strict=True)
        logprob, reference, reward = torch.cat(old), torch.cat(references), torch.tensor(rewards)
        applied = {
            name: [score for score in scores if score is not None]
            for name, scores in zip(self.rewards.rewards, zip(*by_source, strict=True), strict=True)
        }
        means = {name: fmean(scores) for name, scores in applied.items() if scores}
        every = gather_object([{**figures, "rollout_share": self.seconds["rollout"] / self.seconds["round"]}])
        distances = {f"kl_{kind}": kl_estimates(logprob, reference, kind).mean().item() for kind in ("k1", "k2", "k3")}
        distances["kl_reply"] = (logprob - reference).sum().item() / len(replies)
        self._other_figures = {
            "round": float(self.round),
            "reward": reward.mean().item(),
            "reward_std": reward.std().item(),
            **{f"reward/{name}": mean for name, mean in means.items() if len(applied) > 1},
            **(distances if self.reference is not None else {}),
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

    def kept_bytes(self) -> dict[str, int]:
        return {} if self.reference is None else {"reference": self.reference.bytes}

    def measured_batch(self) -> dict[str, Any]:
        """The longest prompts, each with a reply of the greatest length, as a minibatch."""
        longest = max(self.questions, key=lambda one: len(one.context.ids))
        reply = rollout.Generation(longest.context.ids[-1:] * self.settings.max_new_tokens, (), 0.0, False)
        sample = rollout.Sample(**vars(longest), generation=reply, reply="")
        row = self.opened.family.row(sample.parts, stop=False)
        nothing = torch.zeros(int((row.labels != IGNORE).sum()))
        one = Experience(sample, row, 0.0, *[nothing] * 5)
        return self.minibatch([one] * self.args.per_device_train_batch_size)

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
            state = _State(self.round, self.beta, self.moments, self.redrawn, self.undecided_rounds)
            write_text(Path(output_dir) / STATE, json_text(asdict(state)))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            with restoring(file := Path(checkpoint) / STATE):
                state = TypeAdapter(_State).validate_json(file.read_bytes(), strict=True)
            self.round, self.beta, self.moments = state.round, state.beta, state.moments
            self.redrawn, self.undecided_rounds = state.redrawn, state.undecided_rounds
