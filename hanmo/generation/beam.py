"""The bookkeeping of beam search: which beams go on, which replies are finished, when a search is done.

Pure Python on the few candidates of a step; the network and the scores are decode.py's business. The conventions
by which implementations differ are a ``families.base.SearchConventions``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hanmo.errors import ConfigError
from hanmo.families.base import SearchConventions
from hanmo.generation.settings import Settings

NOTHING_LEFT = (
    "every token is ruled out, so that nothing can be said: banned_ids, no_repeat_ngram_size and min_new_tokens leave none; "
    "loosen one of them"
)
DEAD = float("-inf")  # running score of a beam that waits for the first step or cannot go on


@dataclass(frozen=True)
class Hypothesis:
    """A reply that a beam search offers: ids without the stop token, score by length, whether it has stopped."""

    ids: tuple[int, ...]
    score: float
    finished: bool


class Hypotheses:
    """The best ``size`` replies of one search so far, worst first; of equal scores the older one first."""

    def __init__(self, size: int, length_penalty: float, early_stopping: bool, tie: float = 0.0):
        self.kept: list[Hypothesis] = []
        self._size = size
        self._penalty = length_penalty
        self._early = early_stopping
        self._tie = tie

    def add(self, ids: Sequence[int], total: float, length: int, finished: bool = True) -> None:
        """Offer a reply with the sum of its log-probabilities ``total`` and the length that its score counts."""
        score = total / length**self._penalty
        if len(self.kept) == self._size and score <= self.kept[0].score:
            return
        self.kept.append(Hypothesis(tuple(ids), score, finished))
        self.kept = sorted(self.kept, key=lambda hypothesis: hypothesis.score)[-self._size :]

    def is_done(self, best_total: float, length: int) -> bool:
        """Whether no open beam, the best of which has this running score, is expected to get in any more."""
        if len(self.kept) < self._size:
            return False
        if self._early:
            return True
        worst, possible = self.kept[0].score, best_total / length**self._penalty
        return worst >= possible - self._tie * abs(possible)


class BeamSearch:
    """Beam searches for several samples side by side.

    The batch holds ``beams`` consecutive rows for each sample in ``live``; every step is: the caller scores the
    candidates of each live sample, ``advance`` says which rows go on with which tokens.

    Attributes:
        live: samples in the batch, by index; finished ones leave it (unless the form keeps them).
        done: for each sample, whether its search has ended.
        said: ids generated so far, by row of the batch.
        totals: running scores, by row of the batch.
        width: candidates to bring for each sample.
    """

    def __init__(
        self,
        samples: int,
        settings: Settings,
        form: SearchConventions,
        stop_ids: Collection[int],
        prompt_width: int = 0,
        pad_id: int = 0,
    ):
        """Args: ``prompt_width``, columns of the prompts, where lengths count the prompt; ``pad_id``, where
        finished searches stay in the batch.

        Raises:
            ConfigError: lengths that leave the stop token out could be zero.
        """
        if form.length == "words" and not settings.min_new_tokens:
            raise ConfigError("min_new_tokens=0: the published beam search divides by the length; set it to 1 or more")
        self.beams = settings.num_beams
        self.width = max(2, 1 + len(stop_ids)) * self.beams
        self.live = list(range(samples))
        self.done = [False] * samples
        self.said: list[list[int]] = [[] for _ in range(samples * self.beams)]
        waiting = DEAD if form.first_beam_only else 0.0
        self.totals = [0.0 if row % self.beams == 0 else waiting for row in range(samples * self.beams)]
        self._form = form
        self._stop_ids = frozenset(stop_ids)
        self._offset = prompt_width if form.length == "whole" else 0
        self._pad_id = pad_id
        self._steps = 0
        self._found = [
            Hypotheses(self.beams, settings.length_penalty, settings.early_stopping, form.tie) for _ in range(samples)
        ]

    @property
    def finished(self) -> bool:
        """Whether every search is done."""
        return all(self.done)

    def advance(
        self, beams: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], totals: Sequence[Sequence[float]]
    ) -> tuple[list[int], list[int]]:
        """One step.

        Args:
            beams, tokens, totals: for each live sample its ``width`` candidates, best first: the beam each one goes
                on from (0 … beams − 1), its token, its running score.

        Returns:
            The row that each row of the next batch continues, and the token it is fed.
        """
        rows: list[tuple[int, int, float, list[int]]] = []  # parent, token, total, said
        still = []
        for place, sample in enumerate(self.live):
            first = place * self.beams
            if self.done[sample]:
                # The original writes its first row's ids into them, where the shared bans find them.
                rows += [(first + beam, self._pad_id, 0.0, [*self.said[0], self._pad_id]) for beam in range(self.beams)]
                still.append(sample)
                continue
            going = self._sort_out(sample, first, list(zip(beams[place], tokens[place], totals[place], strict=True)))
            if not self.done[sample] or self._form.keeps_finished:
                rows += going
                still.append(sample)
        self._steps += 1
        self.live = still
        self.totals = [total for _, _, total, _ in rows]
        self.said = [said for _, _, _, said in rows]
        return [parent for parent, _, _, _ in rows], [token for _, token, _, _ in rows]

    def _sort_out(
        self, sample: int, first: int, candidates: list[tuple[int, int, float]]
    ) -> list[tuple[int, int, float, list[int]]]:
        """Store the candidates that stop, return the rows that go on; notes whether the sample is done."""
        form, found = self._form, self._found[sample]
        going: list[tuple[int, int, float, list[int]]] = []
        for rank, (beam, token, total) in enumerate(candidates):
            if total == DEAD:
                continue
            said = self.said[first + beam]
            if token not in self._stop_ids:
                if len(going) < self.beams:
                    going.append((first + beam, token, total, [*said, token]))
            elif rank < self.beams:
                found.add(said, total, self._length(len(said), stopped=True))
        if not going and not found.kept:
            raise ConfigError(NOTHING_LEFT)
        open_totals = [total for _, _, total, _ in going]
        if form.stop_is_open:
            open_totals = [total for _, _, total in candidates]
        length = self._offset + self._steps + form.lookahead
        self.done[sample] = not going or found.is_done(max(open_totals), length)
        for _ in range(len(going), self.beams if going else 0):
            parent, token, _, said = going[0]
            going.append((parent, token, DEAD, said))
        return going

    def _length(self, words: int, stopped: bool) -> int:
        return self._offset + words + (self._form.length == "said" and stopped)

    def results(self) -> list[list[Hypothesis]]:
        """For each sample its replies, best first; the beams that are still open are offered as they are."""
        for place, sample in enumerate(self.live):
            if self.done[sample]:
                continue
            for row in range(place * self.beams, (place + 1) * self.beams):
                if self.totals[row] > DEAD and self.said[row]:
                    length = self._length(len(self.said[row]), stopped=False)
                    self._found[sample].add(self.said[row], self.totals[row], length, finished=False)
        return [found.kept[::-1] for found in self._found]
