"""Decoding speed: EVA against transformers' T5, PanGu-α and GLM against GPT-2 and against recomputing, Transformer-XL, llama.cpp.

    [HANMO_LLAMA=FOLDER] python -m benchmarks.decode [--quick] [--only PART] [--check]

Random weights in the released sizes; two threads. EVA runs with every rule on, the peer without any: the same network as T5
in transformers' own generate. Figures of the originals were recorded once on a machine of this kind and are orientation only.
With llama.cpp in FOLDER (benchmarks/llama.py says how it gets there), a Qwen3 of 146 million weights is decoded by both, and
PanGu-α and GLM of that size against its GPT-2.
"""

import gc
import resource
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5ForConditionalGeneration

from benchmarks import common, llama
from benchmarks.common import Figure
from hanmo.checkpoints import save_model
from hanmo.checkpoints.convert import convert
from hanmo.data.prepare.vocabulary import build
from hanmo.families import load, presets
from hanmo.families.base import OpenedModel
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.nn.cpu.int8 import to_int8
from hanmo.records import Dialogue
from hanmo.rows import Context

CONTEXT, NEW = 66, 32  # tokens read and written, as in the recording of the original EVA
RECORDED = {"eva beam": 7.0, "eva no beam": 14.2, "transformer_xl": 9.5}  # tokens/s of the originals


class AnyIds:
    """In place of the tokenizer of random weights: every id is a token; GLM's command tokens are where the original has them."""

    commands: ClassVar[dict[str, int]] = {
        "<|endoftext|>": 50000, "[MASK]": 50003, "<|startofpiece|>": 50006, "<|endofpiece|>": 50007, "[sMASK]": 50008,
        "[gMASK]": 50009,
    }  # fmt: skip

    def __init__(self, size: int, eos_token_id: int | None = None):
        self.size, self.eos_token_id = size, eos_token_id

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.commands[token]

    def __len__(self) -> int:
        return self.size


def fill(network: Any) -> Any:
    """Weights that are far from zero, so that beams differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.03)
    return network.eval()


def eva(folder: Path) -> tuple[OpenedModel, T5ForConditionalGeneration, Context]:
    """EVA 2.0-base with 30,000 words and antonym rules; the same as T5; a conversation."""
    family = load("eva")
    texts = common.real_texts(400_000)
    words = build(texts, words=29_000)
    words = (words[:-190] + [f"无{i}" for i in range(30_000)])[: 30_000 - 190] + words[-190:]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = family.tokenizer_class(vocab_file=str(folder / "vocab.txt"))
    plain = [word for word in words[200:] if len(word) > 1][:2000]
    rules = folder / "antonym.txt"
    pairs = zip(plain[::2], plain[1::2], strict=True)
    rules.write_text("".join(f"({one!r}, {other!r})\n" for one, other in pairs), encoding="utf-8")
    config = family.config_class(**{**family.original_format.SIZES["eva2.0-base"].config, "vocab_size": len(tokenizer)})
    network = fill(family.network_class(config))
    opened = OpenedModel(network, family(config, tokenizer, {"antonyms": str(rules)}), "eva2.0-base")
    save_model(opened, folder / "ours")
    convert(folder / "ours", folder / "t5", to="hf")
    peer = T5ForConditionalGeneration.from_pretrained(folder / "t5").eval()
    turns = ["你好，今天天气真不错，我们去哪里玩", "去公园怎么样？听说那里的花开了", "好啊，几点出发？带点吃的吧"]
    ids = opened.family.context(Dialogue(tuple(turns)), 128).ids
    ids = (ids * CONTEXT)[: CONTEXT - 1]
    return opened, peer, Context(ids, ids)


def measure_eva(quick: bool) -> list[Figure]:
    with TemporaryDirectory() as folder:  # the rules are read from it when they are first needed
        return _eva_figures(*eva(Path(folder)), quick)


def _eva_figures(opened: OpenedModel, peer: T5ForConditionalGeneration, context: Context, quick: bool) -> list[Figure]:
    figures = []
    beam = Settings(**presets("eva")["generation"]["beam"]).change(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    unruled = OpenedModel(opened.network, type(opened.family)(opened.family.config, opened.tokenizer), "without rules")
    plain = beam.change(repetition_penalty=1.0, no_repeat_ngram_size=0)
    ids = opened.family.prompt(context.ids).inputs["input_ids"][None]
    half = OpenedModel(deepcopy(opened.network).to(torch.bfloat16), opened.family, "bf16")
    unruled_half = OpenedModel(half.network, unruled.family, "without rules")
    rounds = 2 if quick else 5

    def theirs(network: T5ForConditionalGeneration) -> None:
        network.generate(
            input_ids=ids, num_beams=4, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, length_penalty=1.6
        )

    for name, ruled, free, other in (
        ("fp32", opened, unruled, peer),
        ("bf16", half, unruled_half, deepcopy(peer).to(torch.bfloat16)),
    ):
        ours, peers = common.alternate(partial(generate, ruled, [context], beam), partial(theirs, other), rounds)
        figures.append(
            Figure.rate(f"EVA 2.0-base, beam 4 with every rule, {name}", NEW / ours, NEW / peers, "tokens/s", 1.0)
        )
        with_rules, without = common.alternate(
            partial(generate, ruled, [context], beam), partial(generate, free, [context], plain), rounds
        )
        # The rules' share of a step: 1.25 = 1 / (1 - 20 %).
        figures.append(
            Figure.cost(f"EVA 2.0-base, a step with rules against one without, {name}", with_rules, without, "s", 0.8)
        )
    eight = OpenedModel(deepcopy(opened.network), opened.family, "int8")
    to_int8(eight.network)
    for name, narrow, goal in (("bf16", half, 1.0), ("int8", eight, 2.0)):
        fast, slow = common.alternate(
            partial(generate, narrow, [context], beam), partial(generate, opened, [context], beam), rounds
        )
        figures.append(
            Figure.rate(f"EVA 2.0-base, beam 4, {name} against our fp32", NEW / fast, NEW / slow, "tokens/s", goal)
        )
    figures.append(
        Figure.rate(
            "EVA 2.0-base, beam 4, fp32 against the original as recorded",
            NEW / slow,
            RECORDED["eva beam"],
            "tokens/s",
            1.0,
        )
    )
    return figures


def measure_decoder(name: str, size: str, quick: bool) -> list[Figure]:
    """A decoder-only family in a released size: against GPT-2 of that size, and against recomputing the whole sequence."""
    family_class = load(name)
    config = family_class.config_class(**family_class.original_format.SIZES[size].config)
    network = fill(family_class.network_class(config))
    family = family_class(config, AnyIds(config.vocab_size))
    opened = OpenedModel(network, family, size)
    ids = tuple(torch.randint(100, 30_000, (63,)).tolist())
    if name == "glm":
        ids = (*ids[:40], config.mask_token_ids[0], *ids[41:])
    context, greedy = Context(ids, ids), Settings(do_sample=False, max_new_tokens=NEW)
    layers, width, heads = config.num_layers, config.hidden_size, config.num_attention_heads
    gpt2 = fill(GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, n_embd=width, n_layer=layers, n_head=heads)))
    prompt = torch.tensor([ids])

    def theirs() -> None:
        gpt2.generate(prompt, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)

    def recomputing() -> None:
        inputs = family.prompt(ids).inputs
        whole = {key: inputs[key][None] for key in ("input_ids",)}
        with torch.no_grad():
            for _ in range(NEW):
                best = network(**whole).logits[:, -1:].argmax(-1)
                whole["input_ids"] = torch.cat([whole["input_ids"], best], 1)

    rounds = 1 if quick else 3
    ours, other = common.alternate(lambda: generate(opened, [context], greedy), theirs, rounds)
    again, whole = common.alternate(lambda: generate(opened, [context], greedy), recomputing, rounds)
    return [
        Figure.rate(
            f"{size}, greedy, against GPT-2 of that size in transformers", NEW / ours, NEW / other, "tokens/s", 1.0
        ),
        Figure.rate(
            f"{size}, greedy, against recomputing the sequence as the original does",
            NEW / again,
            NEW / whole,
            "tokens/s",
            2.0,
        ),
    ]


def measure_transformer_xl(quick: bool) -> list[Figure]:
    """12 layers x 768, 64 + 64 tokens, as the original was recorded."""
    family_class = load("transformer_xl")
    config = family_class.config_class(hidden_size=768, num_layers=12, num_heads=12, vocab_size=50_048)
    family = family_class(config, AnyIds(config.vocab_size, 50_000))
    opened = OpenedModel(fill(family_class.network_class(config)), family, "transformer_xl")
    ids = tuple(torch.randint(100, 30_000, (64,)).tolist())
    settings = Settings(do_sample=False, max_new_tokens=64)
    figures = []
    for name in ("fp32", "int8"):
        if name == "int8":
            to_int8(opened.network)
        best = float("inf")
        for _ in range(1 if quick else 3):
            start = time.perf_counter()
            generate(opened, [Context(ids, ids)], settings)
            best = min(best, time.perf_counter() - start)
        what = f"Transformer-XL 12 x 768, greedy, {name} against the original as recorded"
        figures.append(Figure.rate(what, 64 / best, RECORDED["transformer_xl"], "tokens/s", 4.0))
    return figures


def measure_llama(quick: bool) -> list[Figure]:
    """Ours against llama.cpp, where that is at hand."""
    if not llama.available():
        print(f"# {llama.PEER} names no folder with llama.cpp", file=sys.stderr)
        return []
    figures = llama.measure("qwen3", llama.qwen3(), quick)
    for name in ("pangu", "glm"):
        family_class = load(name)
        config = family_class.config_class(**llama.SHAPES[name])
        network = fill(family_class.network_class(config))
        figures += llama.measure(
            name, OpenedModel(network, family_class(config, AnyIds(config.vocab_size)), name), quick
        )
    return figures


def main() -> int:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parts: dict[str, Callable[[bool], list[Figure]]] = {
        "eva": measure_eva,
        "transformer_xl": measure_transformer_xl,
        "pangu": partial(measure_decoder, "pangu", "pangu-350m"),
        "glm": partial(measure_decoder, "glm", "glm-335m-chinese"),
        "llama": measure_llama,
    }
    parser.add_argument("--only", choices=parts, help="one part alone")
    options = parser.parse_args()
    torch.set_num_threads(2)
    figures: list[Figure] = []
    for name, measure in parts.items():
        if options.only in (None, name):
            print(f"# {name} …", file=sys.stderr, flush=True)
            figures += measure(options.quick)
            gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"# peak memory of the whole run, peers included: {peak:.0f} MB")
    return common.finish(figures, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
