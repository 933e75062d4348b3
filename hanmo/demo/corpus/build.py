"""The built-in corpus: Chinese dialogues for the demo and for trials.

Exchanges are composed by templates; a part of the combinations is held out, so that a right answer to them is composed,
not remembered. The Chinese dialogues of the package chatterbot-corpus (BSD licence), written by people, are added.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from hanmo.demo.corpus.template import HELD_OUT, TEMPLATES, Exchange, Template, without_marks
from hanmo.errors import UnsupportedError
from hanmo.records import Dialogue

LONGEST = 9  # turns: a chat sees 8, and the reply is the ninth
_WEIGHTS = list(accumulate(template.weight for template in TEMPLATES))


@dataclass(frozen=True)
class Corpus:
    train: list[Dialogue]
    held_out: dict[str, list[Dialogue]]  # by topic
    collected: list[Dialogue]  # those of chatterbot-corpus


def build(size: int, seed: int = 0, per_topic: int = 24, repeats: int = 4) -> Corpus:
    """The corpus: ``size`` composed dialogues, every collected one ``repeats`` times, and ``per_topic`` held-out ones.

    ``seed`` decides what is drawn and in which order; never which combinations are held out.
    """
    rng = Random(f"train {seed}")
    held_out = _held_out(Random(f"held out {seed}"), per_topic)
    apart = {_last_exchange(dialogue) for dialogues in held_out.values() for dialogue in dialogues}
    collected = [dialogue for dialogue in collected_dialogues() if _last_exchange(dialogue) not in apart]
    train = [Dialogue(one.turns) for one in conversations(size, rng)] + collected * repeats
    rng.shuffle(train)
    return Corpus(train, held_out, collected)


def conversations(size: int, rng: Random) -> list[Exchange]:
    """Composed dialogues of the training part, each with the topic of its last exchange."""
    return [_in_conversation(rng) for _ in range(size)]


def _last_exchange(dialogue: Dialogue) -> str:
    return without_marks("|".join(dialogue.turns[-2:]))


def _training_exchange(rng: Random) -> Exchange:
    while True:
        exchange = rng.choices(TEMPLATES, cum_weights=_WEIGHTS)[0].draw(rng)
        if not exchange.held_out:
            return exchange


def _in_conversation(rng: Random) -> Exchange:
    """An exchange as people write it: others may precede it, and end marks may be missing."""
    last = _training_exchange(rng)
    turns = list(last.turns)
    if len(turns) > 2 and rng.random() < 0.4:
        del turns[rng.randrange(2, len(turns), 2) :]  # the earlier replies are learned as well
    for _ in range(rng.choices(range(5), (68, 15, 8, 5, 4))[0]):
        turns[:0] = _training_exchange(rng).turns
    for place in range(0, len(turns), 2):  # users often leave out the end mark
        if turns[place][-1] in "。？！" and rng.random() < 0.4:
            turns[place] = turns[place][:-1]
    return Exchange(last.topic, tuple(turns[-LONGEST:]), last.held_out)


def _held_out(rng: Random, per_topic: int) -> dict[str, list[Dialogue]]:
    topics = dict.fromkeys(template.topic for template in TEMPLATES)
    by_topic = {topic: [template for template in TEMPLATES if template.topic == topic] for topic in topics}
    return {topic: _distinct(found, rng, per_topic) for topic, found in by_topic.items()}


def _distinct(templates: Sequence[Template], rng: Random, count: int) -> list[Dialogue]:
    """Up to ``count`` different held-out dialogues, the templates of the topic in turn."""
    found: dict[tuple[str, ...], Dialogue] = {}
    for attempt in range(count * HELD_OUT * 8):
        exchange = templates[attempt % len(templates)].draw(rng)
        if exchange.held_out:
            found.setdefault(exchange.turns, Dialogue(exchange.turns))
        if len(found) == count:
            break
    return list(found.values())


def collected_dialogues(longest: int = 40) -> list[Dialogue]:
    """The dialogues of chatterbot-corpus, one record per reply, their turns of at most ``longest`` characters."""
    records = []
    for where, turns in _collected_conversations():
        for end in range(2, len(turns) + 1):
            window = turns[max(0, end - 4) : end] if end % 2 == 0 else turns[max(0, end - 3) : end]
            if all(0 < len(turn) <= longest for turn in window):
                records.append(Dialogue(tuple(window), where=where))
    return list(dict.fromkeys(records))


def _collected_conversations() -> Iterator[tuple[str, list[str]]]:
    import yaml

    try:
        files = importlib.metadata.files("chatterbot-corpus") or []
    except importlib.metadata.PackageNotFoundError:
        raise UnsupportedError(
            "the demo's collected dialogues are in the package chatterbot-corpus, which is not installed; "
            "install it with: pip install 'hanmo[demo]'"
        ) from None
    for file in sorted(map(str, files)):
        if "/chinese/" in file and file.endswith(".yml"):
            path = next(entry for entry in files if str(entry) == file).locate()
            content = yaml.safe_load(path.read_text(encoding="utf-8"))  # type: ignore[attr-defined]
            for number, turns in enumerate(content["conversations"], 1):
                yield f"{path.name}#{number}", [" ".join(str(turn).split()) for turn in turns]  # type: ignore[attr-defined]
