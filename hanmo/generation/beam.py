"""The bookkeeping of beam search, in plain Python; decode.py runs the network and computes the scores."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from hanmo.errors import ConfigError
from hanmo.families.decoding import SearchConventions
from hanmo.generation.settings import Settings

NOTHING_LEFT = (
    "every token is suppressed, so that nothing can be generated: suppressed_ids, no_repeat_ngram_size and "
    "min_new_tokens leave none; loosen one of them"
)
_Row = tuple[int, int, float, list[int]]  # of the next batch: the row it continues, its token, running score and ids
DEAD = float("-inf")  # running score of a beam that waits for the first step or cannot continue


@dataclass(frozen=True)
class Generation:
    """The reply to one context."""

    ids: tuple[int, ...]  # without the stop token
    # log p of each id, and of the stop token if ``finished``, under the model as it is: temperature 1, no processor, no
    # filter, but without ``settings.suppressed_ids``; empty for beam search
    logprobs: tuple[float, ...]
    score: float  # sum of ``logprobs``; for beam search the beam's score by length
    finished: bool  # the model has generated the stop token


@dataclass
class Hypotheses:
    """The best ``size`` replies of one search so far, worst first; of equal scores the older one first."""

    size: int
    length_penalty: float
    early_stopping: bool
    tie: float = 0.0
    kept: list[Generation] = field(default_factory=list)

    def add(self, ids: Sequence[int], total: float, length: int, finished: bool = True) -> None:
        """Offer a reply with the sum of its log-probabilities ``total`` and the length that its score counts."""
        score = total / length**self.length_penalty
        if len(self.kept) == self.size and score <= self.kept[0].score:
            return
        self.kept.append(Generation(tuple(ids), (), score, finished))
        self.kept = sorted(self.kept, key=lambda hypothesis: hypothesis.score)[-self.size :]

    def is_done(self, best_total: float, length: int) -> bool:
        """Whether no open beam can be expected to enter any more; ``best_total`` is the best one's running score."""
        if len(self.kept) < self.size:
            return False
        if self.early_stopping:
            return True
        worst, possible = self.kept[0].score, best_total / length**self.length_penalty
        return worst >= possible - self.tie * abs(possible)


class BeamSearch:
    """Beam searches for several samples side by side; the batch has ``beams`` consecutive rows for each one in ``live``.

    ConfigError if lengths could be zero.
    """

    def __init__(
        self,
        samples: int,
        settings: Settings,
        conventions: SearchConventions,
        stop_ids: Collection[int],
        prompt_width: int = 0,  # columns of the prompts, for lengths that count the prompt
        pad_id: int = 0,  # fills finished searches that stay in the batch
    ):
        if conventions.length == "without_stop" and not settings.min_new_tokens:
            raise ConfigError("min_new_tokens=0: the published beam search divides by the length; set it to 1 or more")
        self.beams = settings.num_beams
        self.width = max(2, 1 + len(stop_ids)) * self.beams  # candidates that ``advance`` needs for each sample
        self.live = list(range(samples))  # in the batch; finished ones leave it, unless the conventions keep them
        self.done = [False] * samples
        self.generated: list[list[int]] = [[] for _ in range(samples * self.beams)]  # ids by row of the batch
        waiting = DEAD if conventions.first_beam_only else 0.0
        self.totals = [0.0, *[waiting] * (self.beams - 1)] * samples  # running scores by row of the batch
        self._conventions = conventions
        self._stop_ids = frozenset(stop_ids)
        self._offset = prompt_width if conventions.length == "with_prompt" else 0
        self._pad_id = pad_id
        self._steps = 0
        limits = self.beams, settings.length_penalty, settings.early_stopping, conventions.tie
        self._found = [Hypotheses(*limits) for _ in range(samples)]

    @property
    def finished(self) -> bool:
        return all(self.done)

    def advance(
        self, beams: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], totals: Sequence[Sequence[float]]
    ) -> tuple[list[int], list[int]]:
        """One step: for each row of the next batch, the row that it continues and the token that it is fed.

        The arguments: each live sample's ``width`` candidates, best first: the beam (0 … beams − 1), token, score.
        """
        rows: list[_Row] = []
        still = []
        for place, sample in enumerate(self.live):
            first = place * self.beams
            if self.done[sample]:
                # The original writes its first row's ids into finished searches, and the shared suppression reads them.
                ids = [*self.generated[0], self._pad_id]
                rows += [(first + beam, self._pad_id, 0.0, ids) for beam in range(self.beams)]
                still.append(sample)
                continue
            candidates = list(zip(beams[place], tokens[place], totals[place], strict=True))
            going = self._advance_sample(sample, first, candidates)
            if not self.done[sample] or self._conventions.keeps_finished:
                rows += going
                still.append(sample)
        self._steps += 1
        self.live = still
        self.totals = [total for _, _, total, _ in rows]
        self.generated = [ids for _, _, _, ids in rows]
        return [parent for parent, _, _, _ in rows], [token for _, token, _, _ in rows]

    def _advance_sample(self, sample: int, first: int, candidates: list[tuple[int, int, float]]) -> list[_Row]:
        """Store the candidates that stop, return the rows that continue, and note whether the sample is done."""
        conventions, found = self._conventions, self._found[sample]
        going: list[_Row] = []
        for rank, (beam, token, total) in enumerate(candidates):
            if total == DEAD:
                continue
            ids = self.generated[first + beam]
            if token not in self._stop_ids:
                if len(going) < self.beams:
                    going.append((first + beam, token, total, [*ids, token]))
            elif rank < self.beams:
                found.add(ids, total, self._length(len(ids), stopped=True))
        if not going and not found.kept:
            raise ConfigError(NOTHING_LEFT)
        open_totals = [one[2] for one in (candidates if conventions.stop_is_open else going)]
        length = self._offset + self._steps + conventions.lookahead
        self.done[sample] = not going or found.is_done(max(open_totals), length)
        for _ in range(len(going), self.beams if going else 0):
            parent, token, _, ids = going[0]
            going.append((parent, token, DEAD, ids))
        return going

    def _length(self, count: int, stopped: bool) -> int:
        return self._offset + count + (self._conventions.length == "with_stop" and stopped)

    def results(self) -> list[list[Generation]]:
        """For each sample its replies, best first; beams that are still open count as they are."""
        for place, sample in enumerate(self.live):
            if self.done[sample]:
                continue
            for row in range(place * self.beams, (place + 1) * self.beams):
                if self.totals[row] > DEAD and self.generated[row]:
                    length = self._length(len(self.generated[row]), stopped=False)
                    self._found[sample].add(self.generated[row], self.totals[row], length, finished=False)
        return [found.kept[::-1] for found in self._found]
