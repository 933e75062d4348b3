"""Rewards of replies: reward models, functions and shipped verifiers, each with a weight."""

from collections.abc import Callable, Mapping, Sequence

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.training.rl.rewards.functions import function_reward, named
from hanmo.training.rl.rewards.models import model_reward, score_records, score_rows, with_answers
from hanmo.training.rl.rewards.specs import RewardSpec, read_specs
from hanmo.training.rl.rollout import Sample
from hanmo.verify.functions import names_function

__all__ = [
    "Reward", "RewardSpec", "Rewards", "load_reward", "read_specs", "score_records", "score_rows", "with_answers",
]  # fmt: skip

# A number for every reply, or None where the reward does not apply.
Reward = Callable[[Sequence[Sample]], Sequence[float | None]]


class Rewards:
    """The weighted sum of several rewards."""

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]):
        self.rewards, self.weights = rewards, weights

    def __call__(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float | None]]]:
        """The reward of each reply, and what each source gave, without its weight; ConfigError where none applies."""
        given = {name: list(reward(samples)) for name, reward in self.rewards.items()}
        totals = []
        for place, scores in enumerate(zip(*given.values(), strict=True)):
            by_name = zip(given, scores, strict=True)
            counted = [self.weights[name] * score for name, score in by_name if score is not None]
            if not counted:
                problem = f"{', '.join(given)}: None, so that nothing judges {named(samples, place)}"
                raise ConfigError(f"rewards: {problem}; leave such records out, or add a reward for them")
            totals.append(sum(counted))
        return totals, given


def load_reward(
    spec: RewardSpec, policy: OpenedModel, limit: int, response_limit: int | None, batch_size: int,
    seconds: float = 60.0, process: bool = False,
) -> Reward:  # fmt: skip
    """The function, the verifier or the reward model that a spec names; ``seconds``, ``process``: of functions.

    ConfigError if there is no such function, or the model has no value head.
    """
    if names_function(spec.reward):
        return function_reward(spec, seconds, process)
    if spec.options:
        raise ConfigError(f"rewards: {spec.reward}: a reward model takes no {', '.join(spec.options)}")
    return model_reward(spec.reward, policy, limit, response_limit, batch_size)
