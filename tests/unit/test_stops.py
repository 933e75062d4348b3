"""What ends a reply: found in one place, checked against the vocabulary, shown, and stated in every folder that is saved."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from hanmo.checkpoints import open_model, save_model
from hanmo.checkpoints.convert import convert
from hanmo.checkpoints.inspect import Report, inspect_model
from hanmo.cli import app
from hanmo.errors import UnsupportedError
from hanmo.evaluation.engine.candidates import score_candidates
from hanmo.evaluation.engine.row_scores import score_rows
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.generation.decode import generate
from hanmo.generation.defaults import decoding_settings
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse, Text
from hanmo.rows import IGNORE, Part, collate
from hanmo.training.stages.sft import SftConfig, sft
from tests.unit.tiny import NAMES, TEXT, tiny
from tests.unit.transformers_models import TEMPLATE, tokenizer, write_model

ASK = "{% if add_generation_prompt %}"
LLAMA_3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}" + ASK + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    + ASK
    + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + ASK + "<start_of_turn>model\n{% endif %}"
)
GLM_4 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}" + ASK + "<|assistant|>\n{% endif %}"
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# At most one exchange, as templates for single questions have it; words between turns, and no token.
ONE_EXCHANGE = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + PHI_3
PLAIN_WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + ASK + "assistant: {% endif %}"
# name -> template, its special tokens, what ends an assistant's turn
TEMPLATES: dict[str, tuple[str, list[str], str]] = {
    "chatml": (TEMPLATE, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama 3": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "phi 3": (PHI_3, ["<|user|>", "<|assistant|>", "<|end|>"], "<|end|>"),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "glm 4": (GLM_4, ["<|user|>", "<|assistant|>"], "<|user|>"),
    "mistral": (MISTRAL, ["[INST]", "[/INST]"], "<eos>"),
    "one exchange": (ONE_EXCHANGE, ["<|user|>", "<|assistant|>", "<|end|>"], "<|end|>"),
    "plain words": (PLAIN_WORDS, [], "<eos>"),
}


def talker(folder: Path, name: str, generation: dict[str, Any] | None = None) -> Path:
    """A model with one of the chat templates, as a hub would hold it; its config.json knows only the token that ends texts."""
    template, specials, _ = TEMPLATES[name]
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": specials})
    words.chat_template = template
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=1, eos_token_id=2, bos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def chinese_gpt2(folder: Path) -> Path:
    """GPT-2 with BERT's tokenizer; config.json has the ids of the English one, as those on the hub do."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(TEXT), "，", "。", "hello", "world", "##s"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    words = BertTokenizer.from_pretrained(folder)
    config = GPT2Config(vocab_size=len(tokens), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    assert (config.eos_token_id, config.bos_token_id) == (50256, 50256)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def bart(folder: Path) -> Path:
    words = tokenizer(chat=False, around="<bos> $A <eos>")
    config = BartConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
        pad_token_id=1, eos_token_id=2, bos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def opened(folder: Path) -> OpenedModel:
    return open_model(folder, dtype="fp32", device="cpu")


class Forced(LogitsProcessor):
    """Lets a model say certain tokens, one after the other."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens, self.said = list(tokens), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.tokens[self.said]] = 0.0
        self.said += 1
        return forced


def said_by_transformers(folder: Path, stop: int, auto: Any) -> int:
    """How much plain transformers generates of a word, a stop and more words."""
    model = auto.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    word = words.encode("好", add_special_tokens=False)[-1]
    forced = Forced([word, stop, word, word, word])
    model.generate(torch.tensor([[word, word]]), max_new_tokens=5, logits_processor=LogitsProcessorList([forced]))
    return forced.said


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reply_stops_where_an_assistants_turn_ends(name: str, tmp_path: Path) -> None:
    """Rows predict that token, ours and plain transformers' decoding stop at it, and so do they at the end of a text."""
    model = opened(talker(tmp_path / "start", name))
    family, words = model.family, model.tokenizer
    expected, end = words.convert_tokens_to_ids(TEMPLATES[name][2]), words.eos_token_id
    assert family.stop_ids == tuple(dict.fromkeys([expected, end]))
    [parts] = family.parts(PromptResponse("你好", "我很好"), 64)
    labels = family.row(parts).labels
    talk = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "我很好"}]
    asked = words.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    said = words.apply_chat_template(talk, tokenize=False).removeprefix(asked).partition("我很好")
    answer = words.encode("".join(said[:2]), add_special_tokens=False)  # Mistral's template writes a space before it
    assert labels[labels != IGNORE].tolist() == [*answer, expected]
    assert family.prompt([9, 9]).stop_ids == family.stop_ids
    save_model(model, tmp_path / "saved")
    convert(tmp_path / "start", tmp_path / "converted")
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        stated = GenerationConfig.from_pretrained(folder).eos_token_id
        assert stated == (expected if expected == end else [expected, end])
        for stop in family.stop_ids:
            assert said_by_transformers(folder, stop, AutoModelForCausalLM) == 2
        assert opened(folder).family.stop_ids == family.stop_ids
    sources = {stop["token"]: stop["from"] for stop in inspect_model(tmp_path / "saved").stops}
    assert "generation_config.json" in sources["<eos>"] and "config.json" in sources["<eos>"]
    assert ("chat template" in sources[TEMPLATES[name][2]]) is (name != "plain words")


def test_a_stop_that_fine_tuning_taught_is_in_the_folder(tmp_path: Path) -> None:
    start = talker(tmp_path / "start", "phi 3")
    (tmp_path / "train.jsonl").write_text('{"prompt": "你好", "response": "谢谢"}\n', encoding="utf-8")
    trainer = {
        "use_cpu": True,
        "max_steps": 30,
        "learning_rate": 0.05,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
    }
    sft(SftConfig(str(start), str(tmp_path / "train.jsonl"), str(tmp_path / "run"), limit=32, trainer=trainer))
    saved = tmp_path / "run" / "model"
    words = AutoTokenizer.from_pretrained(saved)
    asked = words.apply_chat_template([{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([words.encode(asked, add_special_tokens=False)])
    said = AutoModelForCausalLM.from_pretrained(saved).generate(ids, max_new_tokens=12, do_sample=False)[0]
    assert words.decode(said[ids.shape[1] :]).replace(" ", "") == "谢谢<|end|>"


def test_stops_of_generation_config_are_honoured(tmp_path: Path) -> None:
    """A list there adds to the others; ids outside of the vocabulary are ignored, with a remark."""
    words = tokenizer()
    extra = int(words.convert_tokens_to_ids("<bos>"))
    model = opened(talker(tmp_path / "start", "chatml", {"eos_token_id": [2, extra, 9999], "pad_token_id": 7777}))
    assert model.family.stop_ids == (words.convert_tokens_to_ids("<|im_end|>"), 2, extra)
    save_model(model, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert said["eos_token_id"] == [*model.family.stop_ids] and said["pad_token_id"] == 1
    report = inspect_model(tmp_path / "start")
    check = verdict(report, "stops")
    assert check.verdict == "warning" and report.healthy
    assert "generation_config.json: eos_token_id=9999 is none of the" in check.detail
    assert "generation_config.json: pad_token_id=7777 is none of the" in check.detail


def verdict(report: Report, name: str) -> Any:
    return next(check for check in report.checks if check.name == name)


def test_a_gpt2_with_berts_tokenizer(tmp_path: Path) -> None:
    """The ids of the English GPT-2 are none of its vocabulary: [SEP] ends a text."""
    model = opened(chinese_gpt2(tmp_path / "start"))
    family, words = model.family, model.tokenizer
    separator = words.sep_token_id
    assert family.stop_ids == (separator,)
    check = verdict(inspect_model(tmp_path / "start"), "stops")
    assert check.verdict == "warning" and "[SEP] 3 (tokenizer's sep_token)" in check.detail
    assert "config.json: eos_token_id=50256 is none of the" in check.detail
    assert "config.json: bos_token_id=50256 is none of the" in check.detail
    # What is gone on from is a text that has not ended.
    assert family.context(Text("你好"), 64).ids == (words.cls_token_id, *words.convert_tokens_to_ids(["你", "好"]))
    # Turns are kept apart by it, as BERT's tokenizers drop line breaks.
    assert family.context(Dialogue(("你好",)), 64).ids == (
        words.cls_token_id,
        *words.convert_tokens_to_ids(["你", "好"]),
        separator,
    )
    rows = [
        family.row(parts)
        for record in (Text("今天天气"), PromptResponse("你好", "我很好"))
        for parts in family.parts(record, 64)
    ]
    assert [row.labels[-1].item() for row in rows] == [separator, separator]
    assert model.network(**collate(rows, family.padding)).loss.isfinite()
    save_model(model, tmp_path / "saved")
    assert said_by_transformers(tmp_path / "saved", separator, AutoModelForCausalLM) == 2
    said = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert said["eos_token_id"] == separator and "bos_token_id" not in said and said["pad_token_id"] == 0


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["你", "好", "，", "今", "天", "。"], "你好，今天。"),
        (["hello", "world", "##s"], "hello worlds"),
        (["你", "好", "hello", "world", "好"], "你好hello world好"),
        (["你", "[SEP]"], "你"),
    ],
)
def test_chinese_of_word_pieces_has_no_blanks(pieces: list[str], text: str, tmp_path: Path) -> None:
    words = BertTokenizer.from_pretrained(chinese_gpt2(tmp_path / "start"))
    family = HuggingfaceFamily(GPT2Config(vocab_size=len(words)), words)
    assert family.decode(words.convert_tokens_to_ids(pieces)) == text


def test_blanks_of_other_tokenizers_stay(tmp_path: Path) -> None:
    """A tokenizer that keeps blanks itself: those that a text has are the text's own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(
        models.BPE(vocab={c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=inner)
    family = HuggingfaceFamily(GPT2Config(vocab_size=len(words)), words)
    assert family.decode(words.encode("你 好 world")) == "你 好 world"


@pytest.mark.parametrize("name", ["mt5", "bart"])
def test_encoder_decoders_stop_and_start(name: str, tmp_path: Path) -> None:
    around = {"around": "$A <eos>", "tie_word_embeddings": False}
    model = opened(bart(tmp_path / "start") if name == "bart" else write_model("mt5", tmp_path / "start", **around))
    assert model.family.stop_ids == (2,)
    (tmp_path / "start" / "generation_config.json").unlink()
    convert(tmp_path / "start", tmp_path / "converted")
    save_model(opened(tmp_path / "start"), tmp_path / "saved")
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        said = GenerationConfig.from_pretrained(folder)
        assert (said.eos_token_id, said.pad_token_id) == (2, 1)
        assert said.decoder_start_token_id == (2 if name == "bart" else 1)
        assert said_by_transformers(folder, 2, AutoModelForSeq2SeqLM) == 2
    config = json.loads((tmp_path / "start" / "config.json").read_text(encoding="utf-8"))
    config["decoder_start_token_id"], config["bos_token_id"] = 5000, None
    (tmp_path / "start" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lost = opened(tmp_path / "start")
    with pytest.raises(
        UnsupportedError, match=r"decoder_start_token_id in config\.json must have a row of the embedding"
    ):
        lost.family.prompt(lost.family.context(Text("你好"), 32).ids)
    assert "decoder_start_token_id=5000" in verdict(inspect_model(tmp_path / "start"), "stops").detail


def test_a_model_that_names_no_stop_says_so(tmp_path: Path) -> None:
    talker(tmp_path / "start", "plain words")
    words = AutoTokenizer.from_pretrained(tmp_path / "start")
    words.eos_token = None
    words.save_pretrained(tmp_path / "start")
    config = json.loads((tmp_path / "start" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "start" / "config.json").write_text(json.dumps({**config, "eos_token_id": None}), encoding="utf-8")
    model = opened(tmp_path / "start")
    assert model.family.stop_ids == ()
    with pytest.raises(UnsupportedError, match="no token ends a text"):
        model.family.row(model.family.parts(PromptResponse("你好", "我很好"), 64)[0])
    candidates = [[Part((9, 10), False), Part((11,), True)], [Part((9, 10), False), Part((12, 13), True)]]
    with pytest.raises(UnsupportedError, match="no token ends a text"):
        score_rows(model, [model.family.row(parts) for parts in candidates])
    [without] = score_candidates(model, [candidates])
    assert [len(score.logprobs) for score in without] == [1, 2]
    [reply] = generate(model, [model.family.context(Dialogue(("你好",)), 64)], Settings(max_new_tokens=3, seed=1))
    assert len(reply.ids) == 3 and not reply.finished
    assert verdict(inspect_model(tmp_path / "start"), "stops").verdict == "warning"


OURS = {
    "eva": ["<sep>"],
    "transformer_xl": ["<|endoftext|>"],
    "pangu": ["<eot>"],
    "glm": ["<|endofpiece|>", "<|endoftext|>"],
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "huggingface"])
def test_folders_of_our_families_state_their_stops(name: str, tmp_path: Path) -> None:
    model = tiny(name, tmp_path / "vocabulary")
    save_model(model, tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "converted")
    for folder in (tmp_path / "saved", tmp_path / "converted"):
        said = GenerationConfig.from_pretrained(folder).eos_token_id
        ids = said if isinstance(said, list) else [said]
        assert tuple(ids) == model.family.stop_ids
        assert [model.tokenizer.convert_ids_to_tokens(id_) for id_ in ids] == OURS[name]
        report = inspect_model(folder)
        assert [stop["token"] for stop in report.stops] == OURS[name]
        assert verdict(report, "stops").verdict == "ok"
    if name == "eva":
        convert(tmp_path / "saved", tmp_path / "t5", to="hf")
        plain = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
        forced = Forced([9, *model.family.stop_ids, 9, 9])
        plain.generate(torch.tensor([[9, 9]]), max_new_tokens=4, logits_processor=LogitsProcessorList([forced]))
        assert forced.said == 2


SAMPLING = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


def test_sampling_settings_of_the_folder_are_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are said, and what is asked for wins; they travel with the model."""
    start = talker(tmp_path / "start", "chatml", {"do_sample": True, **SAMPLING, "max_new_tokens": 7})
    model = opened(start)
    settings = decoding_settings(model, None, ["top_k=3"], 1, False)
    assert settings == Settings(**{**SAMPLING, "top_k": 3}, seed=1)
    assert "temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05; key=value" in capsys.readouterr().err
    save_model(model, tmp_path / "saved")
    assert decoding_settings(opened(tmp_path / "saved"), None, None, None, False) == Settings(**SAMPLING)
    model.family.config.decoding = {"temperature": 0.3}  # our own way of saying it
    assert decoding_settings(model, None, None, None, False) == Settings(temperature=0.3)
    shown = CliRunner().invoke(app, ["generate", str(start), "你好", "--json", "max_new_tokens=2"])
    assert shown.exit_code == 0 and json.loads(shown.stdout)["tokens"] <= 2
    assert "decoding settings of the model's generation_config.json: do_sample=True" in shown.stderr


@pytest.mark.parametrize(
    ("said", "expected", "remark"),
    [
        ({"temperature": 0, "top_k": None}, Settings(do_sample=False), ""),
        ({"do_sample": False, "temperature": 0.7}, Settings(do_sample=False, temperature=0.7), ""),
        ({"temperature": -1.0, "top_p": "all", "top_k": 5}, Settings(top_k=5), "temperature=-1.0, top_p='all'"),
        ({}, Settings(), ""),
    ],
)
def test_values_that_are_none_are_ignored_with_a_remark(
    said: dict[str, Any], expected: Settings, remark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = opened(write_model("llama", tmp_path / "start"))
    model.family.generation = said
    assert decoding_settings(model, None, None, None, False) == expected
    assert remark in capsys.readouterr().err
