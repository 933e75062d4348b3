"""CLUE candidates: ours against lm-evaluation-harness's own model class on the same ids, and against one by one.

A GPT-2 of the small size with random weights; both sides get the same context and candidate ids, so that nothing but
the scoring is timed, and scores must agree to 1e-4 per token. Two vocabularies: one of characters, with as many
embedding rows as that of the Chinese GPT-2s, and GLM's pieces, in which most labels are one token. There the harness
reads a context once for all one-token candidates, too, so that little is left to gain: the ceiling is 1.

Both run on one thread. Counting tokens allows: what the harness reads by the fewest tokens that must be read (padding counts on
neither side). The goal is 80 % of that, or by task. More than that is possible: the harness makes logits for every token it reads.
The second part times ours against one by one for a network of every family.

Needs the data in HANMO_DATA, the vocabularies of the recorded cases, and for the first part the package lm-eval.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

from benchmarks.common import DATA, VOCAB, Figure, arguments, finish  # noqa: E402

GOALS = {"iflytek": 15.0, "tnews": 4.0, "ocnli": 2.0}  # label-last templates, labels of several tokens
COUNTING = 0.8  # of what counting tokens allows, for the others
# task -> records; the published templates put the label before the text
RECORDS = {"iflytek": 1, "tnews": 8, "ocnli": 16, "chid": 4, "c3": 2, "iflytek published": 2, "ocnli published": 8}
OFFERED = 8  # candidates of a published template, where no more than the ceiling can be shown
LIMIT = 160  # tokens of a question: the harness reads an IFLYTEK record 119 times
FAMILY_TASKS = ("iflytek", "chid")
TOLERANCE = 1e-4
CHARACTER_ROWS = 21128

Questions = list[list[list[Any]]]
Run = Callable[[Questions], list[list[float]]]


def texts() -> list[str]:
    from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split

    tasks = [task for name, task in all_tasks().items() if name in RECORDS]
    examples = [example for task in tasks for example in read_split(task, DATA / "clue", "dev")]
    templates = [template.text for task in tasks for template in (task.template, task.published.template)]
    return [text for one in examples for text in (*one.fields.values(), *one.options)] + templates


def characters() -> Any:
    """A tokenizer of one token for each character of the tasks."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["[UNK]", "[EOS]", *sorted({character for text in texts() for character in text})]
    model = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate(known)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", eos_token="[EOS]", pad_token="[EOS]")


def gpt2(vocabulary: str, layers: int) -> Any:
    """A GPT-2 of the small size as a model of ours."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hanmo.families.base import OpenedModel
    from hanmo.families.glm.tokenization import GlmTokenizer
    from hanmo.families.huggingface.family import HuggingfaceFamily
    from hanmo.families.huggingface.modeling import adopt

    torch.manual_seed(0)
    if vocabulary == "characters":
        tokenizer, rows = characters(), CHARACTER_ROWS
    else:
        tokenizer, rows = GlmTokenizer(str(VOCAB / "cog-pretrain.model")), 50048
    config = GPT2Config(vocab_size=rows, n_layer=layers, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    network = adopt(GPT2LMHeadModel(config).eval())
    return OpenedModel(network, HuggingfaceFamily(config, tokenizer), "gpt2")


def families(layers: int) -> dict[str, Any]:
    """A network of each family, random weights: 512 wide, and for transformers models a GPT-2 of the small size's width."""
    import tempfile

    import torch

    from hanmo.data.prepare.vocabulary import build
    from hanmo.families import load
    from hanmo.families.base import OpenedModel

    shape: dict[str, Any] = {"hidden_size": 512, "num_layers": layers, "num_attention_heads": 8}
    pieces = VOCAB / "cog-pretrain.model"
    found = {"huggingface": gpt2("pieces", layers)}
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "vocab.txt"
        words.write_text("\n".join(build(texts(), words=20000)), encoding="utf-8")
        for name, vocabulary, rows, more in (
            ("eva", words, None, {"d_kv": 64, "d_ff": 2048}),
            ("pangu", VOCAB / "pangu/vocab.model", 40000, {}),
            ("glm", pieces, 50048, {}),
            ("transformer_xl", pieces, 50048, {}),
        ):
            family = load(name)
            tokenizer = family.tokenizer_class(vocab_file=str(vocabulary))
            torch.manual_seed(0)
            config = family.config_class(vocab_size=rows or len(tokenizer), **shape, **more)
            found[name] = OpenedModel(family.network_class(config).eval(), family(config, tokenizer), name)
    return found


def questions(opened: Any, name: str, count: int) -> Questions:
    from hanmo.evaluation.suites.clue.tasks import all_tasks, read_split
    from hanmo.evaluation.suites.prompting import FewShotPrefix, prepare_questions

    name, _, published = name.partition(" ")
    task = all_tasks()[name]
    examples = read_split(task, DATA / "clue", "dev", count)
    if published:
        task = replace(task, template=task.published.template)
        examples = [replace(one, options=one.options[:OFFERED], gold=0) for one in examples]
    prefixes = [[FewShotPrefix()]] * len(examples)
    return prepare_questions(opened.family, task, examples, prefixes, LIMIT).questions


def ceiling(asked: Questions) -> float:
    """Tokens the harness reads by tokens we read: it reads a context once for all candidates of one token."""
    theirs = ours = 0
    for question in asked:
        context = question[0][0].ids
        endings = {answer.ids[:-1] for _, answer in question}
        theirs += sum(len(context) + len(ids) for ids in endings)
        ours += len(context) + len({ids[:length] for ids in endings for length in range(1, len(ids) + 1)})
    return theirs / ours


def harness(opened: Any) -> Run:
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


def ours(opened: Any) -> Run:
    """The scorer as a long run has it: with few questions it would not ask first whether the network reads trees."""
    from hanmo.evaluation.engine import trees
    from hanmo.evaluation.engine.candidates import score_candidates

    trees.exact(opened, sys.maxsize)
    return lambda asked: [[-score.nll for score in scores] for scores in score_candidates(opened, asked)]


def one_by_one(opened: Any) -> Run:
    from hanmo.evaluation.engine.candidates import score_alone

    return lambda asked: [[-score.nll for score in score_alone(opened, question)] for question in asked]


def timed(run: Run, asked: Questions) -> tuple[float, list[list[float]]]:
    """Processor seconds, which on one thread are what the work takes even where the machine is busy."""
    start = time.process_time()
    found = run(asked)
    return time.process_time() - start, found


def difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], asked: Questions) -> float:
    """The largest difference per token."""
    return max(
        abs(a - b) / len(parts[1].ids)
        for first, second, question in zip(one, other, asked, strict=True)
        for a, b, parts in zip(first, second, question, strict=True)
    )


def against(title: str, ours: Run, peer: Run, asked: Questions, goal: float, rounds: int) -> Figure:
    """Both by turns, the best of each; their scores must agree.

    Raises:
        SystemExit: they do not.
    """
    ours(asked[:1])  # first calls are slower
    seconds = [float("inf"), float("inf")]
    for _ in range(rounds):
        mine, scores = timed(ours, asked)
        theirs, expected = timed(peer, asked)
        seconds = [min(seconds[0], mine), min(seconds[1], theirs)]
    off = difference(scores, expected, asked)
    if off >= TOLERANCE:
        sys.exit(f"{title}: scores differ by {off:.2g} per token")
    count = len(asked)
    figure = Figure.rate(
        f"{title}, off by {off:.0e} a token", count / seconds[0], count / seconds[1], "records/s", goal
    )
    print(f"# {figure.name}: x{figure.ratio}", file=sys.stderr, flush=True)
    return figure


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, help="of each task; default: fewer where candidates are many")
    parser.add_argument("--layers", type=int, default=12, help="of the network; fewer to try the script out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(RECORDS))
    parser.add_argument("--parts", default="characters,pieces,families", help="of the script")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    parts, figures = options.parts.split(","), []
    for vocabulary in ("characters", "pieces"):
        if vocabulary not in parts:
            continue
        if importlib.util.find_spec("lm_eval") is None:
            print("# lm-eval is not installed: only the comparison with one by one")
            break
        opened = gpt2(vocabulary, options.layers)
        peer = harness(opened)
        for name in options.tasks.split(","):
            asked = questions(opened, name, options.records or RECORDS[name])
            most = ceiling(asked)
            goal = GOALS.get(name) if vocabulary == "characters" else None
            title = f"{name} in {vocabulary}, {len(asked[0])} candidates, against lm-eval (counting tokens allows x{most:.2f})"
            figures.append(against(title, ours(opened), peer, asked, goal or round(COUNTING * most, 2), options.rounds))
    if "families" in parts:
        for name, opened in families(max(options.layers // 2, 1)).items():
            for task in FAMILY_TASKS:
                asked = questions(opened, task, options.records or RECORDS[task])
                title = f"{name}: {task}, {len(asked[0])} candidates, against one by one"
                figures.append(against(title, ours(opened), one_by_one(opened), asked, 1.0, options.rounds))
    return finish(figures, options.check)


if __name__ == "__main__":
    sys.exit(main())
