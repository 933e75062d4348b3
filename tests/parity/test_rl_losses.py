"""Recorded numbers of the published PPO, reward and DPO code; where a form is corrected, the corrected numbers too."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hanmo import losses
from tests.places import PARITY, load, needs_parity

pytestmark = needs_parity("clue")
RL: dict[str, Any] = load(PARITY / "clue" / "rl" / "rl.json", {})


# Kinds that are no list; "cases" adds the others. The last one stops the original, so that there is no number to compare.
known = {"trlx_make_experience", "glm_reward_quirk", "trlx_trainer_loss_quirk"}


def cases(name: str) -> list[Any]:
    known.add(name)
    return RL.get(name, [])


def test_every_recorded_kind_is_judged() -> None:
    """A kind of a new name, or one without cases, would otherwise be passed over in silence."""
    assert set(RL) <= known
    assert [name for name, recorded in RL.items() if not recorded] == []


def tensor(values: Any) -> Tensor:
    return torch.tensor(values)


def close(ours: Any, recorded: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float32),
        torch.as_tensor(recorded, dtype=torch.float32),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("case", cases("trlx_gae"))
def test_gae_published(case: dict[str, Any]) -> None:
    values, rewards = tensor(case["values"]), tensor(case["rewards"])
    advantages, returns = losses.gae(rewards, values, torch.ones_like(values), case["gamma"], case["lam"])
    close(advantages, case["advantages_raw"])
    close(returns, case["returns"])
    close(losses.whiten(advantages), case["advantages_whitened"])


@pytest.mark.parametrize("case", cases("trlx_loss"))
def test_ppo_loss_published(case: dict[str, Any]) -> None:
    names = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "mask")
    logprob, old, advantages, values, old_values, returns, mask = (tensor(case[name]) for name in names)
    clip, clip_value, stats, count = case["cliprange"], case["cliprange_value"], case["stats"], mask.sum()
    policy = losses.clipped_policy_loss(logprob, old, advantages, mask, clip).sum() / count
    value = losses.clipped_value_loss(values, old_values, returns, mask, clip_value).sum() / count
    close(policy, stats["losses/policy_loss"])
    close(value, stats["losses/value_loss"])
    close(policy + case["vf_coef"] * value, case["loss"])
    moved = losses.policy_statistics(logprob, old, advantages, mask, clip)
    close(moved["approx_kl"] / mask.numel(), stats["policy/approx_kl"])  # published: over padding as well
    close(moved["clip_fraction"] / count, stats["policy/clipfrac"])
    close(moved["ratio"] / count, stats["ratio"])
    clipped = losses.value_clip_count(values, old_values, returns, mask, clip_value)
    close(clipped / count, stats["values/clipfrac"])
    close(losses.masked_moments(returns, mask)[0], stats["returns/mean"])


@pytest.mark.parametrize("case", cases("trlx_adaptive_kl"))
def test_adaptive_kl(case: dict[str, Any]) -> None:
    beta = case["init_kl_coef"]
    for update in case["updates"]:
        beta = losses.adapted_beta(beta, update["current_kl"], case["target"], case["horizon"], case["n_steps"])
        assert beta == pytest.approx(update["value_after"], rel=1e-12)


@pytest.mark.parametrize("updates", cases("running_moments"))
def test_running_moments(updates: list[dict[str, Any]]) -> None:
    moments = losses.RunningMoments()
    for update in updates:
        mean, std = moments.update(tensor(update["batch"]))
        close(
            (mean, std, moments.mean, moments.std, moments.var, moments.count),
            [update[name] for name in ("batch_mean", "batch_std_unbiased", "running_mean", "running_std")]
            + [update["running_var"], update["count"]],
        )


@pytest.mark.parametrize("case", cases("whiten"))
def test_whiten(case: dict[str, Any]) -> None:
    close(losses.whiten(tensor(case["x"])), case["whiten"])
    close(losses.whiten(tensor(case["x"]), keep_mean=True), case["whiten_keep_mean"])


@pytest.mark.parametrize("case", RL.get("trlx_make_experience", {}).get("experiences", []))
def test_experience_published(case: dict[str, Any]) -> None:
    """The published window starts a token early and ends on the prediction of padding, where the score lands."""
    setup = RL["trlx_make_experience"]["setup"]
    logprobs, references = tensor(case["logprobs_all"]), tensor(case["ref_logprobs_all"])
    window = slice(case["start"], case["start"] + len(case["stored_logprobs"]))
    logprob, reference = logprobs[None, window], references[None, window]
    close(logprob[0], case["stored_logprobs"], 0)
    score = tensor([case["raw_score"]]).clamp(-setup["cliprange_reward"], setup["cliprange_reward"])
    rewards = losses.token_rewards(logprob, reference, torch.ones_like(logprob), score, case["kl_coef"])
    close(rewards[0], case["stored_rewards"])
    places = case["seq_len"] - 1  # the mean is over all places, of which padding contributes 0
    close(losses.kl_estimates(logprobs, references, "published").sum() / places, case["mean_kl"])


@pytest.mark.parametrize("case", cases("deepspeed_ppo"))
def test_second_system(case: dict[str, Any]) -> None:
    names = ("logprobs", "ref_logprobs", "values", "new_logprobs", "new_values", "action_mask")
    logprob, reference, values, new, new_values, answer = (tensor(case[name]) for name in names)
    scores = tensor(case["reward_score"]).clamp(-case["clip_reward_value"], case["clip_reward_value"])
    rewards = losses.token_rewards(logprob, reference, answer, scores, case["kl_coef"], published=True)
    close(rewards, case["rewards"])

    starts = tensor(case["starts"])[:, None]
    whole = (torch.arange(values.shape[1]) >= starts).float()  # to the end of the padding
    advantages, returns = losses.gae(rewards, values, whole, case["gamma"], case["lam"])
    close(advantages, case["advantages"])
    recorded = tensor(case["returns"])
    close(returns * whole, recorded * whole)
    count = answer.sum()
    policy = losses.clipped_policy_loss(new, logprob, advantages, answer.float(), case["cliprange"])
    value = losses.clipped_value_loss(new_values, values, recorded, answer.float(), case["cliprange_value"])
    close(policy.sum() / count, case["actor_loss"])
    close(value.sum() / count, case["critic_loss"])

    corrected, corrected_returns = losses.gae(rewards, values, answer, case["gamma"], case["lam"])
    close(corrected, case["corrected_advantages_no_padding"])
    close(corrected_returns, case["corrected_returns_no_padding"])


def pair_places(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of both texts, as the first padding, and where they part."""
    chosen, rejected = tensor(case["chosen_ids"]), tensor(case["rejected_ids"])
    ends = []
    for ids in (chosen, rejected):
        padding = ids == case["pad_id"]
        ends.append(torch.where(padding.any(1), padding.float().argmax(1), ids.shape[1]))
    return ends[0], ends[1], (chosen != rejected).float().argmax(1)


@pytest.mark.parametrize("case", cases("reward_model"))
def test_reward_loss(case: dict[str, Any]) -> None:
    chosen, rejected = tensor(case["chosen_values"]), tensor(case["rejected_values"])
    chosen_end, rejected_end, start = pair_places(case)
    published = losses.tokenwise_loss(chosen, rejected, start, torch.maximum(chosen_end, rejected_end))
    close(published.mean(), case["loss"])
    scores = chosen.gather(1, chosen_end[:, None] - 1)[:, 0], rejected.gather(1, rejected_end[:, None] - 1)[:, 0]
    close(scores[0], case["chosen_reward"], 0)
    close(scores[1], case["reject_reward"], 0)
    assert (scores[0] > scores[1]).float().mean() == case["accuracy"]
    early = case["early_version"]  # means over all places, padding included
    close(chosen.mean(1), early["chosen_reward_mean"])
    close(losses.pairwise_loss(chosen.mean(1), rejected.mean(1)).mean(), early["pairwise_loss"])


@pytest.mark.parametrize("case", cases("pairwise_loss"))
def test_pairwise_loss(case: dict[str, Any]) -> None:
    ours = losses.pairwise_loss(tensor(case["chosen_reward"]), tensor(case["reject_reward"])).mean()
    if case["loss"] in ("inf", float("inf")):  # published: overflows; ours stays finite
        assert torch.isfinite(ours)
    else:
        close(ours, case["loss"])


@pytest.mark.skipif(not RL, reason="no recorded cases")
def test_empty_range_of_the_second_family() -> None:
    """Padding that also stands inside the prompt leaves no place to compare: published NaN, ours 0 and no gradient."""
    case = RL["glm_reward_quirk"]
    values = tensor(case["chosen_values"])
    start, end = tensor([case["divergence_index"]]), tensor([case["first_pad_index"]])
    assert case["loss"] == "nan"
    assert losses.tokenwise_loss(values, values, start, end).tolist() == [0.0]
    assert values[0, case["first_pad_index"] - 1].item() == pytest.approx(case["chosen_reward"][0])


@pytest.mark.parametrize("case", cases("dpo_loss"))
def test_dpo_loss(case: dict[str, Any]) -> None:
    policy = [tensor(case[f"policy_{side}_logps"]) for side in ("chosen", "rejected")]
    reference = [tensor(case[f"reference_{side}_logps"]) for side in ("chosen", "rejected")]
    if case["reference_free"]:
        found = losses.preference_loss(*policy, *(torch.zeros_like(one) for one in reference), case["beta"])
    else:
        found = losses.preference_loss(*policy, *reference, case["beta"])
        close(found.chosen_rewards, case["chosen_rewards"])
        close(found.rejected_rewards, case["rejected_rewards"])
    close(found.losses, case["losses"])
    close(found.losses.mean(), case["loss_mean"])


@pytest.mark.parametrize("case", cases("dpo_logps"))
def test_response_logprobs(case: dict[str, Any]) -> None:
    logits, labels = tensor(case["logits"])[:, :-1], tensor(case["labels"])[:, 1:]
    scored = labels != case["label_pad_token_id"]
    found = losses.token_logprobs(logits.flatten(0, 1), labels.flatten()).view(labels.shape) * scored
    close(found.sum(1), case["sum"])
    close(found.sum(1) / scored.sum(1), case["mean"])
