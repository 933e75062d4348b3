"""CLUE candidates: ours against lm-evaluation-harness's own model class on the same ids, and against one by one.

A GPT-2 of the small size with random weights reads a Chinese vocabulary's ids; both sides get the same context and
candidate ids, so that nothing but the scoring is timed. Scores must agree to 1e-4 per token. Besides, the ratio that
counting tokens allows: tokens read when every candidate is read with its context, by those read when contexts are shared.

Needs the package lm-eval (and the data in HANMO_DATA); without lm-eval, only the second comparison runs.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

from benchmarks.common import DATA, VOCAB, Figure, arguments, finish  # noqa: E402

GOALS = {
    "iflytek": 15.0,
    "tnews": 4.0,
    "ocnli": 2.0,
}  # label-last templates; for the others 80 % of what counting allows
TASKS = ("iflytek", "tnews", "ocnli", "chid", "c3")
TOLERANCE = 1e-4

Questions = list[list[list[Any]]]


def gpt2(layers: int) -> Any:
    """A GPT-2 of the small size over GLM's ids, as a model of ours."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hanmo.families.base import OpenedModel
    from hanmo.families.glm.tokenization import GlmTokenizer
    from hanmo.families.huggingface.family import HuggingfaceFamily
    from hanmo.families.huggingface.modeling import adopt

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50048, n_layer=layers, bos_token_id=50002, eos_token_id=50000)
    network = adopt(GPT2LMHeadModel(config).eval())
    return OpenedModel(network, HuggingfaceFamily(config, GlmTokenizer(str(VOCAB / "cog-pretrain.model"))), "gpt2")


def questions(opened: Any, name: str, count: int) -> Questions:
    from hanmo.evaluation.clue.corrected import plan
    from hanmo.evaluation.clue.reading import read_split
    from hanmo.evaluation.clue.tasks import all_tasks

    task = all_tasks()[name]
    examples = read_split(task, DATA / "clue", "dev", count)
    return plan(opened.family, task, examples, "", 512).questions


def ceiling(asked: Questions) -> float:
    """Tokens read one by one / tokens read with shared contexts; the last token of a candidate is never read."""
    alone = sum(len(context.ids) + len(answer.ids) - 1 for question in asked for context, answer in question)
    shared = sum(len(question[0][0].ids) + sum(len(answer.ids) - 1 for _, answer in question) for question in asked)
    return alone / shared


def harness(opened: Any) -> Callable[[Questions], list[list[float]]]:
    """lm-evaluation-harness's model class around the same network, with its own batching and its own caching."""
    from lm_eval.models.huggingface import HFLM
    from transformers import GPT2LMHeadModel

    plain = GPT2LMHeadModel(opened.network.config).eval()
    plain.load_state_dict(opened.network.state_dict())
    peer = HFLM(pretrained=plain, tokenizer=opened.tokenizer, batch_size=8, max_length=1024)

    def run(asked: Questions) -> list[list[float]]:
        requests = [
            (("", ""), list(context.ids), list(answer.ids)) for question in asked for context, answer in question
        ]
        found = iter(peer._loglikelihood_tokens(requests, disable_tqdm=True))
        return [[next(found)[0] for _ in question] for question in asked]

    return run


def ours(opened: Any, asked: Questions) -> list[list[float]]:
    from hanmo.evaluation.candidates import score_candidates

    return [[-score.nll for score in scores] for scores in score_candidates(opened, asked)]


def one_by_one(opened: Any, asked: Questions) -> list[list[float]]:
    from hanmo.evaluation.candidates import score_alone

    return [[-score.nll for score in score_alone(opened, question)] for question in asked]


def timed(work: Callable[[], list[list[float]]]) -> tuple[float, list[list[float]]]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], asked: Questions) -> float:
    """The largest difference per token."""
    return max(
        abs(a - b) / len(parts[1].ids)
        for first, second, question in zip(one, other, asked, strict=True)
        for a, b, parts in zip(first, second, question, strict=True)
    )


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=4, help="of each task")
    parser.add_argument("--layers", type=int, default=12, help="of the network; fewer to try the script out")
    parser.add_argument("--tasks", default=",".join(TASKS))
    options = parser.parse_args()
    opened = gpt2(options.layers)
    peers = {"one by one": lambda asked: one_by_one(opened, asked)}
    if importlib.util.find_spec("lm_eval"):
        peers = {"lm-eval": harness(opened), **peers}
    else:
        print("# lm-eval is not installed: only the comparison with one by one")
    figures = []
    for name in options.tasks.split(","):
        asked = questions(opened, name, options.records)
        most = ceiling(asked)
        ours(opened, asked[:1])  # first calls are slower
        for peer, run in peers.items():
            seconds, scores = timed(lambda asked=asked: ours(opened, asked))
            theirs, expected = timed(lambda asked=asked, run=run: run(asked))
            off = difference(scores, expected, asked)
            assert off < TOLERANCE, f"{name}: {off:.2g} per token between ours and {peer}"
            goal = GOALS.get(name, 0.8 * most) if peer == "lm-eval" else 1.0
            title = f"{name}, {len(asked[0])} candidates, against {peer} (counting tokens allows x{most:.2f}, off by {off:.1g})"
            figures.append(Figure.rate(title, len(asked) / seconds, len(asked) / theirs, "records/s", goal))
    return finish(figures, options.check)


if __name__ == "__main__":
    sys.exit(main())
