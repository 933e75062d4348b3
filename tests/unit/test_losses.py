"""Losses on numbers worked out by hand, and what must hold for any numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hanmo import losses


@pytest.mark.parametrize("piece", [1, 10, 1000])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_token_logprobs_in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int, piece: int) -> None:
    """However few logits are widened at a time, values and gradients are those of log_softmax."""
    monkeypatch.setattr(losses, "PIECE", piece)
    torch.manual_seed(0)
    logits, labels, wanted = torch.randn(rows, 5, requires_grad=True), torch.randint(0, 5, (rows,)), torch.randn(rows)
    found = losses.token_logprobs(logits, labels)
    expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, logits, wanted)[0] for one in (found, expected)))


def test_pairwise_loss_with_margin_does_not_overflow() -> None:
    found = losses.pairwise_loss(torch.tensor([2.0, -200.0]), torch.tensor([1.0, 200.0]), torch.tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([math.log(2), 400.0])


def test_tokenwise_loss_counts_its_range_alone() -> None:
    chosen, rejected = torch.tensor([[9.0, 1.0, 1.0, 9.0]]), torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    found = losses.tokenwise_loss(chosen, rejected, torch.tensor([1]), torch.tensor([3]))
    assert found.item() == pytest.approx(math.log(2))


def test_dpo_label_smoothing_and_ipo() -> None:
    one, zero = torch.tensor([3.0]), torch.tensor([0.0])
    plain = losses.preference_loss(one, zero, zero, zero, beta=0.5)
    assert plain.losses.item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert (plain.chosen_rewards.item(), plain.rejected_rewards.item()) == (1.5, 0.0)
    smooth = losses.preference_loss(one, zero, zero, zero, beta=0.5, label_smoothing=0.25)
    turned = math.log1p(math.exp(1.5))
    assert smooth.losses.item() == pytest.approx(0.75 * plain.losses.item() + 0.25 * turned)
    ipo = losses.preference_loss(one, zero, zero, one, beta=0.5, kind="ipo")  # margin 3 - (0 - 3) = 6
    assert ipo.losses.item() == pytest.approx((6 - 1) ** 2)


def test_hinge_robust_and_simpo() -> None:
    """A margin of 3, or -1 the other way round, times beta 0.5."""
    one, zero = torch.tensor([3.0, -1.0]), torch.zeros(2)
    right, reversed_ = ([math.log1p(math.exp(sign * x)) for x in (1.5, -0.5)] for sign in (-1, 1))
    hinge = losses.preference_loss(one, zero, zero, zero, beta=0.5, kind="hinge")
    assert hinge.losses.tolist() == [0.0, 1.5]
    robust = losses.preference_loss(one, zero, zero, zero, beta=0.5, kind="robust", label_smoothing=0.1)
    by_hand = [(0.9 * good - 0.1 * bad) / 0.8 for good, bad in zip(right, reversed_, strict=True)]
    assert robust.losses.tolist() == pytest.approx(by_hand)
    simpo = losses.preference_loss(one, zero, zero, zero, beta=0.5, kind="simpo", target=0.4)
    assert simpo.losses.tolist() == pytest.approx([math.log1p(math.exp(0.4 - x)) for x in (1.5, -0.5)])
    assert simpo.chosen_rewards.tolist() == [1.5, -0.5]


def test_the_robust_loss_of_noisy_labels_is_that_of_right_ones() -> None:
    """Of labels of which a share is reversed, its mean is DPO's loss of the right ones."""
    chosen, zero = torch.tensor([2.0]), torch.zeros(1)
    common = {"beta": 0.7, "kind": "robust", "label_smoothing": 0.2}
    kept, reversed_ = (
        losses.preference_loss(*pair, zero, zero, **common).losses for pair in ((chosen, zero), (zero, chosen))
    )  # type: ignore[arg-type]
    assert (0.8 * kept + 0.2 * reversed_).item() == pytest.approx(math.log1p(math.exp(-1.4)))


def test_thumbs_by_hand() -> None:
    """Log-ratios 2 and -1, reference point 0.5, beta 0.4: each thumb with its weight, the steepest at the reference point."""
    ratio = torch.tensor([2.0, -1.0, 0.5], requires_grad=True)
    up = torch.tensor([True, False, True])
    found = losses.thumb_loss(ratio, up, 0.5, 0.4, 1.5, 2.0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert found.tolist() == pytest.approx([1.5 * (1 - sigmoid(0.6)), 2.0 * (1 - sigmoid(0.6)), 0.75])
    found.sum().backward()
    slope = sigmoid(0.6) * (1 - sigmoid(0.6)) * 0.4
    assert ratio.grad is not None
    assert ratio.grad.tolist() == pytest.approx([-1.5 * slope, 2.0 * slope, -1.5 * 0.25 * 0.4])


def test_the_reference_point_is_not_below_zero_and_has_no_gradient() -> None:
    total = torch.tensor(6.0, requires_grad=True)
    assert losses.reference_point(total, 4).item() == 1.5 and not losses.reference_point(total, 4).requires_grad
    assert losses.reference_point(-total, torch.tensor(4.0)).item() == 0
    assert losses.reference_point(torch.tensor(0.0), 0).item() == 0


def test_kl_estimates() -> None:
    logprob, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    found = {kind: losses.kl_estimates(logprob, reference, kind).tolist() for kind in ("k1", "k2", "k3", "published")}  # type: ignore[arg-type]
    assert found["k1"] == [1.0, -1.0]
    assert found["k2"] == [0.5, 0.5]
    assert found["k3"] == pytest.approx([math.exp(-1), math.e - 2])
    assert found["published"] == pytest.approx([math.e - 2, math.exp(-1)])


def test_estimators_agree_with_the_divergence_they_estimate() -> None:
    """Averaged over the policy's own distribution, k1 and k3 give KL(policy || reference) and "published" does not."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    exact = (policy * (policy / reference).log()).sum().item()
    means = {
        kind: (policy * losses.kl_estimates(policy.log(), reference.log(), kind)).sum().item()  # type: ignore[arg-type]
        for kind in ("k1", "k3", "published")
    }
    assert means["k1"] == pytest.approx(exact, rel=1e-5)
    assert means["k3"] == pytest.approx(exact, rel=1e-5)
    assert abs(means["published"] - exact) > 0.3


def test_group_advantages() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert losses.group_advantages(rewards, scale=False).tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert losses.group_advantages(rewards)[0].tolist() == pytest.approx([-1, 0, 1], rel=1e-3)
    assert losses.group_advantages(rewards)[1].tolist() == [0.0, 0.0, 0.0]


def test_leave_one_out_advantages() -> None:
    """Each reward less the mean of the two others."""
    rewards = torch.tensor([[0.0, 1.0, 5.0], [5.0, 5.0, 5.0]])
    found = losses.group_advantages(rewards, scale=False, leave_one_out=True)
    assert found.tolist() == [[0 - 3, 1 - 2.5, 5 - 0.5], [0.0, 0.0, 0.0]]
    scaled = losses.group_advantages(rewards, leave_one_out=True)[0]
    assert scaled.tolist() == pytest.approx([x / 7**0.5 for x in (-3, -1.5, 4.5)], rel=1e-3)  # 7: 4 + 1 + 9 over 2


def test_the_bound_above_may_be_another() -> None:
    """At a ratio of 1.5 a gain stops at 1.4 instead of 1.2; at 0.5 a loss stops at 0.8 in any case."""
    old, new = torch.zeros(1, 2), torch.tensor([1.5, 0.5]).log()[None]
    advantages, mask = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2)
    for high, expected, clipped in ((None, -1.2, 2), (0.4, -1.4, 2), (0.6, -1.5, 1)):
        found = losses.clipped_policy_loss(new, old, advantages, mask, 0.2, high)
        assert found[0].tolist() == pytest.approx([expected, 0.8])
        assert losses.policy_statistics(new, old, advantages, mask, 0.2, high)["clip_fraction"] == clipped


def test_means_of_replies_at_their_tokens() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 4.0], requires_grad=True)
    found = losses.reply_means(values, torch.tensor([0, 2, 2, 0]), 3)
    assert found.tolist() == [2.5, 4.0, 4.0, 2.5]
    found[1].backward()
    assert values.grad is not None and values.grad.tolist() == [0.0, 0.5, 0.5, 0.0]


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]])
    advantages, returns = losses.gae(rewards, values, torch.ones(1, 2), gamma=0.9, lam=0.5)
    last = 2.0 - 1.5
    first = 1.0 + 0.9 * 1.5 - 0.5 + 0.9 * 0.5 * last
    assert advantages[0].tolist() == pytest.approx([first, last])
    assert returns[0].tolist() == pytest.approx([first + 0.5, 2.0])


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 10_000))
def test_padding_changes_nothing(length: int, before: int, after: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 1, length, generator=generator)
    alone = losses.gae(rewards, values, torch.ones(1, length))
    wide = [torch.nn.functional.pad(x, (before, after), value=value) for x, value in ((rewards, 7.0), (values, -3.0))]
    mask = torch.nn.functional.pad(torch.ones(1, length), (before, after))
    padded = losses.gae(*wide, mask)
    for short, long in zip(alone, padded, strict=True):
        torch.testing.assert_close(long[:, before : before + length], short)
        assert long[mask == 0].abs().sum() == 0
    torch.testing.assert_close(
        losses.whiten(wide[0], mask)[:, before : before + length], losses.whiten(rewards), rtol=1e-4, atol=1e-4
    )


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=8), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_rewards(batches: list[list[float]]) -> None:
    moments = losses.RunningMoments()
    for batch in batches:
        moments.update(torch.tensor(batch))
    everything = torch.tensor([x for batch in batches for x in batch]).double()
    assert moments.mean == pytest.approx(everything.mean().item(), abs=1e-6)
    assert moments.std == pytest.approx(everything.std().item(), abs=1e-6)
    assert moments.var == pytest.approx(everything.var(unbiased=False).item(), abs=1e-6)
    assert moments.count == len(everything)


def test_moments_of_a_batch_are_its_own() -> None:
    moments = losses.RunningMoments()
    assert (moments.mean, moments.std) == (0, 1)
    moments.update(torch.tensor([10.0, 20.0]))
    assert moments.update(torch.tensor([1.0, 2.0, 3.0, 6.0])) == pytest.approx((3, (14 / 3) ** 0.5))


def test_the_first_update_has_the_gradient_of_the_advantage() -> None:
    """At ratio 1 PPO's loss has the policy gradient; beyond the clip range a token that gained already has none."""
    old = torch.tensor([[-1.0, -1.0, -1.0]])
    new = torch.tensor([[-1.0, -0.5, -1.0]], requires_grad=True)
    advantages, mask = torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    losses.clipped_policy_loss(new, old, advantages, mask, clip=0.2).sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[-2.0, 0.0, 0.0]]


def test_clipped_value_loss_by_hand() -> None:
    """The larger error counts: of the value, or of the value held within 0.5 of what it was; and only what errs more moves."""
    values = torch.tensor([[1.0, 1.0, -1.0, 0.2, 0.2, 7.0]], requires_grad=True)
    old, returns = torch.zeros(1, 6), torch.tensor([[2.0, 0.0, -2.0, 1.0, -1.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    found = losses.clipped_value_loss(values, old, returns, mask, clip=0.5)
    clipped_at_half = 0.5 * 1.5**2  # 0.5 against 2, and -0.5 against -2
    expected = [clipped_at_half, 0.5 * 1.0**2, clipped_at_half, 0.5 * 0.8**2, 0.5 * 1.2**2, 0.0]
    assert found[0].tolist() == pytest.approx(expected)
    found.sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, 1.0, 0.0, -0.8, 1.2, 0.0])
    assert losses.value_clip_count(values, old, returns, mask, clip=0.5).item() == 2
    moved = losses.clipped_value_loss(values.detach() + 3, old + 3, returns + 3, mask, clip=0.5)
    assert moved[0].tolist() == pytest.approx(expected, abs=1e-5)  # what counts is the distance to the old value


def test_policy_statistics_by_hand() -> None:
    old, new = torch.zeros(1, 4), torch.tensor([1.5, 1.5, 0.5, 1.0]).log()[None]
    advantages, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    found = losses.policy_statistics(new, old, advantages, mask, clip=0.2)
    assert found["clip_fraction"].item() == 2  # a gain beyond 1.2, a loss below 0.8
    assert found["ratio"].item() == pytest.approx(3.5)
    assert found["approx_kl"].item() == pytest.approx(3.5 - 3 - math.log(1.5 * 1.5 * 0.5))
    losses_of = losses.clipped_policy_loss(new, old, advantages, mask, clip=0.2)
    assert losses_of[0].tolist() == pytest.approx([-1.2, 1.5, 0.8, 0.0])


def test_explained_variance_by_hand() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert losses.explained_variance(returns, returns, mask).item() == 1
    assert losses.explained_variance(torch.zeros(1, 4), returns, mask).item() == pytest.approx(0)
    assert losses.explained_variance(-returns, returns, mask).item() == pytest.approx(1 - 4)
