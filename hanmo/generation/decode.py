"""The one decode loop: sampling, greedy decoding and beam search for every family.

A step: logits / temperature -> (log-softmax for beams) -> logits processor -> top-k, top-p -> draw.
Shape suffixes: R rows of the batch, S samples, P position dimensions, V vocabulary, c candidates.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hanmo.errors import ConfigError
from hanmo.families.base import OpenedModel
from hanmo.families.decoding import LogitsProcessor, SearchConventions
from hanmo.generation.beam import DEAD, NOTHING_LEFT, BeamSearch, Generation
from hanmo.generation.draws import Place, placed_sampler
from hanmo.generation.processors import TokenLogitsProcessor, top_k, top_p
from hanmo.generation.settings import Settings
from hanmo.nn.batching import batch_groups
from hanmo.nn.finite import require_finite
from hanmo.nn.row_model import evaluating, without_suppressed
from hanmo.rows import Context

OnToken = Callable[[int, int], None]  # index of the context, token
OnText = Callable[[str], None]
HALF_A_CHARACTER = "\ufffd"  # the text that an incomplete byte sequence decodes to


def generate(
    opened: OpenedModel,
    contexts: Sequence[Context],
    settings: Settings,
    on_token: OnToken | None = None,
    keep_on_interrupt: bool = False,
    places: Sequence[Place] | None = None,
) -> list[Generation]:
    """The replies to all contexts, in order, decoded as one batch.

    Args:
        on_token: called with each token as it is drawn (not in beam search, where nothing is certain before the end).
        keep_on_interrupt: Ctrl-C ends decoding and returns the tokens so far, instead of being raised.
        places: identity of each reply, on which its random draws depend; default: its index in ``contexts``.
    """
    if not contexts:
        return []
    places = places or [Place(number) for number in range(len(contexts))]
    found = [Generation((), (), 0.0, False)] * len(contexts)
    with evaluating(opened.network):
        try:
            for chosen in batch_groups(opened.network, [len(context.ids) for context in contexts]):
                given = [contexts[number] for number in chosen]
                own_places = [places[number] for number in chosen]
                kind = _Rows if settings.num_beams == 1 else _Beams
                batch = kind(opened, given, settings, own_places)
                try:
                    for drawn in batch.run():
                        if on_token is not None:
                            for index, token in drawn:
                                on_token(chosen[index], token)
                finally:
                    for number, reply in zip(chosen, batch.results(), strict=True):
                        found[number] = reply
        except KeyboardInterrupt:
            if not keep_on_interrupt:
                raise
    return found


def fill(
    opened: OpenedModel, contexts: Sequence[Context], settings: Settings, first: int = 0
) -> list[list[Generation]]:
    """One generation for every blank of each context, from left to right; each sees the answers before it.

    A context without blanks has one generation. ``first``: index of the first context among all prompts, for the draws.
    """
    answers: list[list[Generation]] = [[] for _ in contexts]
    waiting = dict(enumerate(contexts))
    while waiting:
        places = [Place(first + index, blank=len(answers[index])) for index in waiting]
        replies = generate(opened, list(waiting.values()), settings, places=places)
        for index, reply in zip(list(waiting), replies, strict=True):
            answers[index].append(reply)
            following = next_context(opened, waiting.pop(index), reply)
            if following is not None:
                waiting[index] = following
    return answers


def next_context(opened: OpenedModel, context: Context, reply: Generation) -> Context | None:
    """The context for the next blank after a reply; None if that was the last."""
    ids = opened.family.next_blank(context.ids, reply.ids)
    return None if ids is None else Context(ids, ids)


class GrowingText:
    """The text of a reply, made by ``decode``; ``on_text``, if given, is called with each piece once it is certain."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: OnText | None):
        self._decode = decode
        self._on_text = on_text
        self._ids: list[int] = []
        self._shown = ""

    def take(self, index: int, token: int) -> None:
        """The next token; ``index``, of the reply in its batch, is not used."""
        self._ids.append(token)
        if self._on_text is not None:
            self._show(self._decode(self._ids), certain=False)

    def finish(self, ids: Sequence[int]) -> str:
        """Pass on the rest of the text of all ids, and return the whole text."""
        text = self._decode(ids)
        self._show(text, certain=True)
        return text

    def _show(self, text: str, certain: bool) -> None:
        changed = not text.startswith(self._shown)  # earlier text has changed: show it all again, once it is certain
        if self._on_text is None or (not certain and (changed or text.endswith(HALF_A_CHARACTER))):
            return
        if changed:
            self._on_text("\n")
            self._shown = ""
        piece, self._shown = text[len(self._shown) :], text
        if piece:
            self._on_text(piece)


class _Batch:
    """Rows that each continue a context, and the network's state. ``logits_RV``: fp32, of the last column."""

    @torch.no_grad()
    def __init__(self, opened: OpenedModel, contexts: Sequence[Context], settings: Settings, places: Sequence[Place]):
        family, network = opened.family, opened.network
        prompts = [family.prompt(context.ids) for context in contexts]
        self.settings = settings
        self.conventions = family.published_conventions if settings.published else SearchConventions()
        self.stop_ids = prompts[0].stop_ids
        self.device = network.device
        self.draw = placed_sampler(settings.seed, places, self.device)
        decoder_ids = [prompt.inputs.get("decoder_input_ids", prompt.inputs["input_ids"]) for prompt in prompts]
        full_ids = [context.full_ids for context in contexts]
        self.processor: LogitsProcessor | None = family.logits_processor(settings, full_ids)
        if self.processor is None and TokenLogitsProcessor.needed(settings):
            self.processor = TokenLogitsProcessor(settings, [ids_T.tolist() for ids_T in decoder_ids], self.stop_ids)
        self._unused_ids = range(0) if settings.published else family.unused_ids
        self.prompt_width = max(map(len, decoder_ids))
        self._network = network
        self._start_RP = torch.stack([prompt.start for prompt in prompts]).to(self.device)
        self._step_RP = torch.stack([prompt.step for prompt in prompts]).to(self.device)
        self._fed = 0
        inputs = family.stack_prompts(prompts)
        logits_R1V, self._state = network.prefill(**{name: value.to(self.device) for name, value in inputs.items()})
        self.logits_RV = logits_R1V[:, -1].float()
        if beyond := [id_ for id_ in settings.suppressed_ids if id_ >= self.logits_RV.shape[1]]:
            raise ConfigError(f"suppressed_ids={beyond}: this model's ids go up to {self.logits_RV.shape[1] - 1}")

    def scores(self, generated: Sequence[Sequence[int]], samples: Sequence[int]) -> Tensor:
        """Logits / temperature, as log-probabilities for beams, after the logits processor: (R, V)."""
        scores_RV = self.logits_RV / self.settings.temperature
        if self.settings.num_beams > 1:
            scores_RV = scores_RV.log_softmax(-1)
        if self._unused_ids:
            scores_RV[:, self._unused_ids.start : self._unused_ids.stop] = float("-inf")
        return scores_RV if self.processor is None else self.processor(generated, samples, scores_RV)

    def filtered(self, scores_RV: Tensor) -> Tensor:
        kept_RV = top_k(scores_RV, self.settings.top_k, self.conventions.cut)
        return top_p(kept_RV, self.settings.top_p, self.conventions.cut)

    def take(self, rows: Sequence[int]) -> None:
        """Continue with these rows; a row may be taken more than once."""
        if list(rows) == list(range(len(self.logits_RV))):
            return
        index = torch.tensor(rows, device=self.device)
        self._state = self._state.take(index)
        self.logits_RV = self.logits_RV[index]
        self._start_RP, self._step_RP = self._start_RP[index], self._step_RP[index]

    def feed(self, ids: Sequence[int]) -> None:
        ids_R1 = torch.tensor(ids, device=self.device)[:, None]
        positions_RP1 = (self._start_RP + self._fed * self._step_RP)[:, :, None]
        self.logits_RV = self._network.step(ids_R1, positions_RP1, self._state)[:, -1].float()
        self._fed += 1


class _Rows(_Batch):
    """Sampling and greedy decoding: one row for each context that has not finished."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._samples = list(range(len(self.logits_RV)))
        self._generated: list[list[int]] = [[] for _ in self._samples]  # with the stop token
        self._logprobs: list[list[float]] = [[] for _ in self._samples]
        suppressed = self.settings.suppressed_ids
        self._suppressed_ids = torch.tensor(suppressed, device=self.device) if suppressed else None

    def run(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the drawn (sample, token) pairs of every step, without stop tokens."""
        for step in range(self.settings.max_new_tokens):
            drawn = self._draw(step)
            yield drawn
            if not drawn:
                return
            if step + 1 < self.settings.max_new_tokens:
                self._feed_drawn()

    @torch.no_grad()
    def _draw(self, step: int) -> list[tuple[int, int]]:
        scores_RV = self.scores([self._generated[sample] for sample in self._samples], self._samples)
        if self.settings.do_sample:
            probs_RV = self.filtered(scores_RV).softmax(-1)
            ids_R1 = self.draw(step, self._samples, probs_RV, 1)
        else:
            ids_R1 = scores_RV.argmax(-1, keepdim=True)
        logits_RV = without_suppressed(self.logits_RV, self._suppressed_ids)
        totals_R1 = logits_RV.logsumexp(-1, keepdim=True)  # NaN or infinite if any logit is, sampled or not
        logprobs_R1 = logits_RV.gather(-1, ids_R1) - totals_R1
        figures_R3 = torch.cat([logprobs_R1, scores_RV.gather(-1, ids_R1), totals_R1], dim=1)
        drawn = []
        figures = zip(self._samples, ids_R1[:, 0].tolist(), figures_R3.tolist(), strict=True)
        for sample, token, (logprob, score, total) in figures:
            if self._stopped(sample):
                continue
            require_finite([total], self._network)
            if score == DEAD:
                raise ConfigError(NOTHING_LEFT)
            self._generated[sample].append(token)
            self._logprobs[sample].append(logprob)
            if token not in self.stop_ids:
                drawn.append((sample, token))
        return drawn

    def _stopped(self, sample: int) -> bool:
        return bool(self._generated[sample]) and self._generated[sample][-1] in self.stop_ids

    @torch.no_grad()
    def _feed_drawn(self) -> None:
        live = [row for row, sample in enumerate(self._samples) if not self._stopped(sample)]
        # Removing finished rows copies the state of the others; that pays off from a quarter of the batch.
        if 4 * (len(self._samples) - len(live)) >= len(self._samples):
            self.take(live)
            self._samples = [self._samples[row] for row in live]
        self.feed([self._generated[sample][-1] for sample in self._samples])

    def results(self) -> list[Generation]:
        replies = []
        for sample, (ids, logprobs) in enumerate(zip(self._generated, self._logprobs, strict=True)):
            finished = self._stopped(sample)
            kept = tuple(ids[:-1] if finished else ids)
            replies.append(Generation(kept, tuple(logprobs), sum(logprobs), finished))
        return replies


class _Beams(_Batch):
    """Beam search, sampled or not: ``num_beams`` rows for each context that is not done."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        beams = self.settings.num_beams
        samples = len(self.logits_RV)
        pad_id = args[0].tokenizer.pad_token_id if self.conventions.keeps_finished else 0
        self.search = BeamSearch(samples, self.settings, self.conventions, self.stop_ids, self.prompt_width, pad_id)
        with torch.no_grad():
            self.take([sample for sample in range(samples) for _ in range(beams)])

    def run(self) -> Iterator[list[tuple[int, int]]]:
        """Yield an empty list after every step: no token is certain before the end."""
        for step in range(self.settings.max_new_tokens):
            parents, ids = self._advance(step)
            yield []
            if self.search.finished or step + 1 == self.settings.max_new_tokens:
                return
            with torch.no_grad():
                self.take(parents)
                self.feed(ids)

    @torch.no_grad()
    def _advance(self, step: int) -> tuple[list[int], list[int]]:
        search, sampling = self.search, self.settings.do_sample
        samples = [sample for sample in search.live for _ in range(search.beams)]
        scores_RV = self.scores(search.generated, samples)
        totals_R1 = torch.tensor(search.totals, device=self.device)[:, None]
        if sampling and self.conventions.temperature_again:
            scores_RV = self.filtered((scores_RV + totals_R1) / self.settings.temperature)
        else:
            scores_RV = (self.filtered(scores_RV) if sampling else scores_RV) + totals_R1
        vocabulary = scores_RV.shape[-1]
        joint_SN = scores_RV.view(len(search.live), -1)
        if sampling:
            chosen_Sc = self.draw(step, search.live, joint_SN.softmax(-1), search.width)
            best_Sc, order_Sc = joint_SN.gather(-1, chosen_Sc).sort(dim=-1, descending=True, stable=True)
            chosen_Sc = chosen_Sc.gather(-1, order_Sc)
        else:
            best_Sc, chosen_Sc = joint_SN.topk(search.width)
        # Checked on the logits: rules and filters overwrite NaN with finite scores and -inf.
        peaks_S1 = self.logits_RV.amax(-1).view(len(search.live), -1).amax(-1, keepdim=True)
        peaks, *totals = torch.cat([peaks_S1, best_Sc], dim=1).T.tolist()
        require_finite(peaks, self._network)
        beams_Sc, ids_Sc = chosen_Sc // vocabulary, chosen_Sc % vocabulary
        return search.advance(beams_Sc.tolist(), ids_Sc.tolist(), list(zip(*totals, strict=True)))

    def results(self) -> list[Generation]:
        nothing = [Generation((), (), 0.0, False)]
        return [(found or nothing)[0] for found in self.search.results()]
