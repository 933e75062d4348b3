"""Every family learns from real text and real dialogues: a small network of its own, a few hundred steps on a CPU.

Vocabularies are made of the data, so that the networks stay small. One table is printed (``-s`` shows it).
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from hanmo.checkpoints import open_model, save_model
from hanmo.data.prepare.vocabulary import build
from hanmo.evaluation.perplexity import evaluate
from hanmo.families import load
from hanmo.families.base import OpenedModel
from hanmo.records import iter_records
from hanmo.training.stages.pretrain import PretrainConfig, pretrain
from hanmo.training.stages.sft import SftConfig, sft
from tests.places import DATA, needs_data
from tests.unit.tiny import NAMES, PANGU_PIECES

pytestmark = [pytest.mark.slow, needs_data]

STEPS, PIECES, VALID = 200, 2000, 24
SHAPES: dict[str, dict[str, Any]] = {
    "eva": {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_heads": 4, "num_layers": 2},
    "transformer_xl": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "segment_length": 64, "memory_length": 64},
    "pangu": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128},
    "glm": {"hidden_size": 128, "num_layers": 2, "num_attention_heads": 4, "max_sequence_length": 128},
}
# At random a token costs about 7.6; what a token costs when it is drawn by its frequency alone is near 6.5.
FALL = 0.8


def texts() -> list[str]:
    """Starts of documents from every file of running text, by turns."""
    paths = sorted((DATA / "pretrain").glob("*.jsonl.gz"))
    files = [gzip.decompress(path.read_bytes()).decode("utf-8").rstrip("\n").split("\n") for path in paths]
    found = [json.loads(line)["text"][:400] for lines in zip(*files, strict=False) for line in lines]
    return [text for text in found if text.strip()][:1000]


def dialogues() -> list[str]:
    with gzip.open(DATA / "dialogue" / "lccc_base" / "dialogs.txt.gz", "rt", encoding="utf-8") as lines:
        return [line.strip() for line, _ in zip(lines, range(2500), strict=False) if line.count("\t") >= 1]


def pieces(path: Path, lines: list[str], pangu: bool) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=PIECES, character_coverage=0.98,
        user_defined_symbols=PANGU_PIECES if pangu else ["<n>"], minloglevel=2, num_threads=1,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def new_model(name: str, folder: Path, lines: list[str]) -> None:
    """A small network of random weights, saved."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    if name == "huggingface":
        _qwen(folder, lines)
        return
    family = load(name)
    vocab = folder / family.tokenizer_class.vocab_files_names["vocab_file"]
    if name == "eva":
        vocab.write_text("\n".join(build(lines, words=600)), encoding="utf-8")
    else:
        pieces(vocab, lines, name == "pangu")
    tokenizer = family.tokenizer_class(vocab_file=str(vocab))
    rows = -(-len(tokenizer) // 128) * 128 if family.vocab_padded_to > 1 else len(tokenizer)
    made = family(family.config_class(vocab_size=rows, **SHAPES[name]), tokenizer)
    save_model(OpenedModel(family.network_class(made.config), made, f"a small {name}"), folder / "model")


def _qwen(folder: Path, lines: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["<unk>", "<end>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    config = Qwen3Config(
        vocab_size=len(fast), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text/, talk/ and pairs/ with training and validation files, and a model of each family."""
    place = tmp_path_factory.mktemp("real")
    written, talks = texts(), dialogues()
    pairs = [talk.split("\t") for talk in talks]
    kinds = {
        "text/{}.jsonl": [json.dumps({"text": text}, ensure_ascii=False) for text in written],
        "talk/{}.txt": talks,
        "pairs/{}.jsonl": [json.dumps({"prompt": pair[0], "response": pair[1]}, ensure_ascii=False) for pair in pairs],
    }
    for pattern, lines in kinds.items():
        for split, kept in (("valid", lines[:VALID]), ("train", lines[VALID:])):
            path = place / pattern.format(split)
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    for name in NAMES:
        new_model(name, place / "models" / name, [*written[:300], *talks])
    return place


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[Any, ...]]]:
    rows: list[tuple[Any, ...]] = []
    yield rows
    print(
        "\n| family | stage | steps | validation loss before | after | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for row in rows:
        print("| {} | {} | {} | {:.3f} | {:.3f} | {:.0f} |".format(*row))


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("name", NAMES)
def test_the_validation_loss_falls(name: str, stage: str, places: Path, tmp_path: Path, table: list[Any]) -> None:
    data = "pairs" if stage == "sft" else "talk" if name == "eva" else "text"
    settings: dict[str, Any] = {
        "model": str(places / "models" / name / "model"),
        "data": str(places / data),
        "out": str(tmp_path / "run"),
        "limit": 64,
        "skip_bad": True,
        "trainer": {
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "learning_rate": 2e-3,
            "warmup_steps": 20,
            "max_steps": STEPS,
            "eval_strategy": "steps",
            "eval_steps": STEPS // 4,
            "save_strategy": "no",
            "use_cpu": True,
        },
    }
    if stage == "pretrain":
        outcome = pretrain(PretrainConfig(**settings, plain="dialogue" if name == "eva" else "text"))
    else:
        outcome = sft(SftConfig(**settings))
    assert outcome.eval_loss is not None and outcome.eval_loss_before is not None
    table.append((name, stage, outcome.steps, outcome.eval_loss_before, outcome.eval_loss, outcome.seconds))
    assert outcome.steps == STEPS
    assert outcome.eval_loss < outcome.eval_loss_before - FALL
    assert outcome.kept_step is not None and outcome.kept_step > STEPS // 2  # it was still learning
    held_out = list(iter_records(next((places / data).glob("valid.*"))))
    whole, eight = (
        evaluate(open_model(str(outcome.model), device="cpu", dtype=dtype), held_out, 64).perplexity
        for dtype in ("fp32", "int8")
    )
    print(f"perplexity {name} {stage}: fp32 {whole:.4f}, int8 {eight / whole - 1:+.3%}")
    assert 0 < abs(eight / whole - 1) < 0.01
