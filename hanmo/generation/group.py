"""Replies to prompts that share their settings: what is drawn from the logits of their rows, step by step.

A step: logits (with biases and penalties) / temperature -> (log-softmax for beams) -> logits processor -> top-k, top-p, min-p
-> draw. Shape suffixes: R rows of the group, S samples, V vocabulary, c candidates.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.families.decoding import LogitsProcessor, SearchConventions
from hanmo.generation.beam import DEAD, NOTHING_LEFT, BeamSearch, Generation
from hanmo.generation.draws import Place, placed_sampler
from hanmo.generation.processors import TokenLogitsProcessor, min_p, top_k, top_p
from hanmo.generation.settings import Settings
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import without_suppressed
from hanmo.rows import Context

Best = list[tuple[int, float]]  # the most likely ids of a step with their log-probabilities, best first


@dataclass
class Reply:
    """A reply as far as it has been generated; see ``Generation`` for what its log-probabilities are."""

    ids: list[int] = field(default_factory=list)  # without the stop token
    logprobs: list[float] = field(default_factory=list)  # of each id, and of the stop token that ends the reply
    best: list[Best] = field(default_factory=list)  # of each of ``logprobs``, on request
    finish: Literal["stop", "length"] | None = None  # None: not finished
    stop: int | None = None  # the stop token that ended it, where one was drawn
    score: float = 0.0


class Group(ABC):
    """Replies to contexts under one set of settings.

    Attributes:
        replies: one for each context, in order; of a beam search they are empty until ``done``.
        drawn: (reply, token) pairs of the last step, without stop tokens; of a beam search none.
        next: the rows that go on, by their number before the last step, each with the token that it is fed.
        started: the prompts have been read.
        reused: tokens of the prompt that had been read before, for another group.
        error: why the group ended early, if it did: HanmoError, or that memory ran out.
    """

    def __init__(
        self,
        opened: OpenedModel,
        contexts: Sequence[Context],
        settings: Settings,
        places: Sequence[Place] | None = None,
        best: int = 0,
    ):
        family, network = opened.family, opened.network
        self.contexts, self.settings, self.best = contexts, settings, best
        self.prompts = [family.prompt(context.ids) for context in contexts]
        self.conventions = family.published_conventions if settings.published else SearchConventions()
        self.stop_ids = self.prompts[0].stop_ids
        self.draw = placed_sampler(settings.seed, places or list(map(Place, range(len(contexts)))), network.device)
        read = [prompt.inputs.get("decoder_input_ids", prompt.inputs["input_ids"]) for prompt in self.prompts]
        full_ids = [context.full_ids for context in contexts]
        self.processor: LogitsProcessor | None = family.logits_processor(settings, full_ids)
        if self.processor is None and TokenLogitsProcessor.needed(settings):
            self.processor = TokenLogitsProcessor(settings, [ids_T.tolist() for ids_T in read], self.stop_ids)
        self.prompt_width = max(map(len, read))
        self.replies = [Reply() for _ in contexts]
        self.drawn: list[tuple[int, int]] = []
        self.next: list[tuple[int, int]] = []
        self.started = self.done = False
        self.reused = 0
        self.error: Exception | None = None
        self._unused_ids = range(0) if settings.published else family.unused_ids
        self._network = network
        self._steps = 0

    @property
    def width(self) -> int:
        """The rows of the group at its beginning: those of a context stand side by side."""
        return len(self.contexts) * self.settings.num_beams

    def require_ids(self, vocabulary: int) -> None:
        """ConfigError if the settings name an id that the model has not."""
        settings = self.settings
        for name, ids in (("suppressed_ids", settings.suppressed_ids), ("logit_bias", dict(settings.logit_bias))):
            if beyond := [id_ for id_ in ids if id_ >= vocabulary]:
                raise ConfigError(f"{name}={beyond}: this model's ids go up to {vocabulary - 1}")

    @abstractmethod
    def propose(self, logits_RV: Tensor, scored: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Draw the next token of every row from its logits, fp32: a row of figures for ``accept``, fp32 on the device.

        Ids are among the figures: fp32 holds whole numbers below 2^24.
        ``scored``: the result of ``score_together``.
        """

    def accept(self, figures: list[list[float]]) -> None:
        """Continue with what was drawn, once it is on the host: it decides which rows go on."""
        self.drawn = []
        self.next = self._accept(figures)
        self._steps += 1
        if not self.next or self._steps == self.settings.max_new_tokens:
            self.finish()

    def finish(self, error: Exception | None = None) -> None:
        """End the group with the tokens so far."""
        self.error, self.next, self.done = error, [], True
        for reply in self.replies:
            reply.finish = reply.finish or "length"

    @abstractmethod
    def _accept(self, figures: list[list[float]]) -> list[tuple[int, int]]:
        """The rows that go on, each with its token."""

    def results(self) -> list[Generation]:
        """The replies, or what there is of them; this ends the group."""
        if not self.done:
            self.finish()
        return [
            Generation(tuple(one.ids), tuple(one.logprobs), one.score, one.finish == "stop") for one in self.replies
        ]

    def scores(self, logits_RV: Tensor, generated: Sequence[Sequence[int]], samples: Sequence[int]) -> Tensor:
        """Logits / temperature, as log-probabilities for beams, after the logits processor: (R, V)."""
        settings = self.settings
        scores_RV = self._biased(logits_RV, generated) / settings.temperature
        if settings.num_beams > 1:
            scores_RV = scores_RV.log_softmax(-1)
        if self._unused_ids:
            scores_RV[:, self._unused_ids.start : self._unused_ids.stop] = float("-inf")
        return scores_RV if self.processor is None else self.processor(generated, samples, scores_RV)

    def _biased(self, logits_RV: Tensor, generated: Sequence[Sequence[int]]) -> Tensor:
        """Logits with ``logit_bias``, less the penalties for what has been generated."""
        settings = self.settings
        each, once = settings.frequency_penalty, settings.presence_penalty
        if not (settings.logit_bias or each or once):
            return logits_RV
        changes_RV = torch.zeros_like(logits_RV)
        if settings.logit_bias:
            ids, biases = zip(*settings.logit_bias, strict=True)
            changes_RV[:, list(ids)] = torch.tensor(biases, device=logits_RV.device)
        for row, row_ids in enumerate(generated):
            counts = Counter(row_ids)
            if counts:
                taken = torch.tensor([each * count + once for count in counts.values()], device=logits_RV.device)
                changes_RV[row, list(counts)] -= taken
        return logits_RV + changes_RV

    def filtered(self, scores_RV: Tensor) -> Tensor:
        settings, cut = self.settings, self.conventions.cut
        return min_p(top_p(top_k(scores_RV, settings.top_k, cut), settings.top_p, cut), settings.min_p, cut)


class SampledGroup(Group):
    """Sampling and greedy decoding: one row for each reply that has not finished."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._samples = list(range(len(self.contexts)))
        suppressed = self.settings.suppressed_ids
        self._suppressed_ids = torch.tensor(suppressed, device=self._network.device) if suppressed else None

    @property
    def filters(self) -> tuple[float, ...] | None:
        """What decides the probabilities of given scores; None for greedy decoding, which needs none."""
        one = self.settings
        return (one.top_k, one.top_p, one.min_p, self.conventions.cut) if one.do_sample else None

    def own_scores(self, logits_RV: Tensor) -> Tensor:
        """The scores of the group's rows from their logits."""
        return self.scores(logits_RV, [self.replies[sample].ids for sample in self._samples], self._samples)

    def propose(self, logits_RV: Tensor, scored: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if scored is not None:
            scores_RV, probs_RV = scored
        else:
            scores_RV = self.own_scores(logits_RV)
            probs_RV = self.filtered(scores_RV).softmax(-1) if self.settings.do_sample else scores_RV
        if self.settings.do_sample:
            ids_R1 = self.draw(self._steps, self._samples, probs_RV, 1)
        else:
            ids_R1 = scores_RV.argmax(-1, keepdim=True)
        logits_RV = without_suppressed(logits_RV, self._suppressed_ids)
        totals_R1 = logits_RV.logsumexp(-1, keepdim=True)  # NaN or infinite if any logit is, sampled or not
        chosen_R1 = logits_RV.gather(-1, ids_R1) - totals_R1
        figures = [ids_R1, chosen_R1, scores_RV.gather(-1, ids_R1), totals_R1]
        if self.best:
            values_Rc, ids_Rc = (logits_RV - totals_R1).topk(min(self.best, logits_RV.shape[1]))
            figures += [ids_Rc, values_Rc]
        return torch.cat([one.float() for one in figures], dim=1)

    def _accept(self, figures: list[list[float]]) -> list[tuple[int, int]]:
        going = []
        for row, (sample, (id_, logprob, score, total, *best)) in enumerate(zip(self._samples, figures, strict=True)):
            reply, token = self.replies[sample], int(id_)
            require_finite([total], self._network)
            if score == DEAD:
                raise ConfigError(NOTHING_LEFT)
            reply.logprobs.append(logprob)
            reply.score += logprob
            if best:
                half = len(best) // 2
                reply.best.append(list(zip(map(int, best[:half]), best[half:], strict=True)))
            if token in self.stop_ids:
                reply.finish, reply.stop = "stop", token
                continue
            reply.ids.append(token)
            self.drawn.append((sample, token))
            going.append((row, token))
        self._samples = [self._samples[row] for row, _ in going]
        return going


class BeamGroup(Group):
    """Beam search, sampled or not: ``num_beams`` rows for each context that is not done."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        pad_id = args[0].tokenizer.pad_token_id if self.conventions.keeps_finished else 0
        samples = len(self.contexts)
        self.search = BeamSearch(samples, self.settings, self.conventions, self.stop_ids, self.prompt_width, pad_id)

    def propose(self, logits_RV: Tensor, scored: tuple[Tensor, Tensor] | None = None) -> Tensor:
        search, sampling = self.search, self.settings.do_sample
        samples = [sample for sample in search.live for _ in range(search.beams)]
        scores_RV = self.scores(logits_RV, search.generated, samples)
        totals_R1 = torch.tensor(search.totals, device=logits_RV.device)[:, None]
        if sampling and self.conventions.temperature_again:
            scores_RV = self.filtered((scores_RV + totals_R1) / self.settings.temperature)
        else:
            scores_RV = (self.filtered(scores_RV) if sampling else scores_RV) + totals_R1
        vocabulary = scores_RV.shape[-1]
        joint_SN = scores_RV.view(len(search.live), -1)
        if sampling:
            chosen_Sc = self.draw(self._steps, search.live, joint_SN.softmax(-1), search.width)
            best_Sc, order_Sc = joint_SN.gather(-1, chosen_Sc).sort(dim=-1, descending=True, stable=True)
            chosen_Sc = chosen_Sc.gather(-1, order_Sc)
        else:
            best_Sc, chosen_Sc = joint_SN.topk(search.width)
        # Checked on the logits: rules and filters overwrite NaN with finite scores and -inf.
        peaks_S1 = logits_RV.amax(-1).view(len(search.live), -1).amax(-1, keepdim=True)
        beams_Sc, ids_Sc = chosen_Sc // vocabulary, chosen_Sc % vocabulary
        return torch.cat([peaks_S1, best_Sc, beams_Sc.float(), ids_Sc.float()], dim=1)

    def _accept(self, figures: list[list[float]]) -> list[tuple[int, int]]:
        search = self.search
        require_finite([row[0] for row in figures], self._network)
        width = len(figures[0]) // 3
        totals, beams, ids = ([row[1 + part * width :][:width] for row in figures] for part in range(3))
        parents, tokens = search.advance(
            [list(map(int, one)) for one in beams], [list(map(int, one)) for one in ids], totals
        )
        return [] if search.finished else list(zip(parents, tokens, strict=True))

    def finish(self, error: Exception | None = None) -> None:
        self.found = self.search.results()  # for each context all replies that the search has kept, best first
        for reply, found in zip(self.replies, self.found, strict=True):
            if found:
                reply.ids, reply.score = list(found[0].ids), found[0].score
                reply.finish = "stop" if found[0].finished else "length"
        super().finish(error)


@torch.no_grad()
def score_together(logits: Mapping[Group, Tensor]) -> dict[Group, tuple[Tensor, Tensor]]:
    """Scores and probabilities of groups that draw with the same filters, each (R, V): filters cost most row by row."""
    alike: dict[Any, list[SampledGroup]] = defaultdict(list)
    for group in logits:
        if isinstance(group, SampledGroup) and group.filters is not None:
            alike[group.filters].append(group)
    found: dict[Group, tuple[Tensor, Tensor]] = {}
    for groups in alike.values():
        if len(groups) > 1:
            scores = [group.own_scores(logits[group]) for group in groups]
            probs = groups[0].filtered(torch.cat(scores)).softmax(-1).split([len(one) for one in scores])
            found |= zip(groups, zip(scores, probs, strict=True), strict=True)
    return found


def make_group(opened: OpenedModel, *args: Any, **kwargs: Any) -> Group:
    """A group of the kind that its settings ask for; the arguments are those of ``Group``."""
    settings = args[1]
    return (SampledGroup if settings.num_beams == 1 else BeamGroup)(opened, *args, **kwargs)
