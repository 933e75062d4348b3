"""Any transformers model as a family: rows, losses, decoding, templates, saving."""

import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, GPT2LMHeadModel, Qwen3Config

from hanmo.checkpoints import open_model, save_model
from hanmo.data.rows.dataset import make_rows
from hanmo.data.rows.documents import Pieces
from hanmo.errors import ConfigError, UnsupportedError
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface import probes
from hanmo.families.huggingface.modeling import adopt
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, Text
from hanmo.rows import IGNORE, Part, collate
from tests.unit.transformers_models import CONFIGS, write_model

PAIR = PromptResponse("今天天气怎么样?", "天气真不错。")


def opened(name: str, folder: Path, chat: bool = True) -> OpenedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_model(write_model(name, folder, chat), dtype="fp32", device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_the_models_own_logits(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    rows = [
        model.family.row(parts)
        for record in (PAIR, PromptResponse("你好", "你好呀,谢谢你。"))
        for parts in model.family.parts(record, 64)
    ]
    batch = collate(rows, model.family.padding)
    labels = batch["labels"]
    own = {key: value for key, value in batch.items() if key not in ("labels", "weights")}
    auto = AutoModelForSeq2SeqLM if model.family.config.is_encoder_decoder else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model.network(**batch, entropy=True)
        logprobs = plain(**own).logits.log_softmax(-1)
    scored = labels != IGNORE
    expected = logprobs.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    assert (output.logprob - expected)[scored].abs().max() < 1e-5
    assert output.logprob[~scored].abs().max() == 0
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    assert (output.entropy - entropies)[scored].abs().max() < 1e-5
    assert output.loss.item() == pytest.approx(-expected[scored].mean().item(), abs=1e-5)


def test_capped_logits_are_found_by_the_probe(tmp_path: Path) -> None:
    write_model("gemma2", tmp_path)
    with pytest.warns(UserWarning, match="changes its logits after the output head"):
        model = open_model(tmp_path, dtype="fp32", device="cpu")
    assert not model.network.head_is_exact


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    contexts = [model.family.context(record, 64) for record in (PAIR, PromptResponse("你好", ""))]
    settings = Settings(do_sample=False, max_new_tokens=12)
    beams = settings.change(num_beams=3)
    auto = AutoModelForSeq2SeqLM if model.family.config.is_encoder_decoder else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path, dtype=torch.float32).eval()
    together = generate(model, contexts, settings)
    for context, reply in zip(contexts, together, strict=True):
        ids = torch.tensor([context.ids])
        start = 1 if model.family.config.is_encoder_decoder else len(context.ids)
        stops = list(model.family.stop_ids)
        theirs = plain.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=stops, pad_token_id=1)[0, start:]
        said = [token for token in theirs.tolist() if token not in stops]
        assert list(reply.ids) == said
        found = generate(model, [context], beams)[0]
        theirs = plain.generate(
            ids, do_sample=False, max_new_tokens=12, num_beams=3, eos_token_id=stops, pad_token_id=1
        )[0, start:]
        assert list(found.ids) == [token for token in theirs.tolist() if token not in (*stops, 1)]


def test_chat_template_and_what_is_scored(tmp_path: Path) -> None:
    family = opened("qwen3", tmp_path).family
    tokens = family.tokenizer
    assert family.stop_ids[0] == tokens.convert_tokens_to_ids("<|im_end|>")
    talk = Dialogue(("你好", "好呀", "去哪里?", "火锅"), system="谢谢")
    (parts,) = family.parts(talk, 200)
    assert [part.scored for part in parts] == [False, True]
    assert tokens.decode(parts[0].ids, skip_special_tokens=False).replace(" ", "") == (
        "<|im_start|>system\n谢谢<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n好呀<|im_end|>\n"
        "<|im_start|>user\n去哪里?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokens.decode(parts[1].ids).replace(" ", "") == "火锅"
    assert family.context(Dialogue(talk.turns[:3], talk.system), 200).ids == parts[0].ids
    # Too long: the oldest exchange goes, the system message stays.
    short = family.parts(talk, len(parts[0].ids) + 2)[0][0].ids
    assert "你好" not in tokens.decode(short) and "谢谢" in tokens.decode(short).replace(" ", "")


def test_a_last_turn_that_does_not_fit_makes_no_row_and_no_reply(tmp_path: Path) -> None:
    """Neither is an answer learned after nothing, nor is a reply made to nothing."""
    family = opened("qwen3", tmp_path).family
    assert family.parts(Dialogue(("你好" * 40, "再见")), 64) == []
    with pytest.raises(UnsupportedError, match="last turn alone is more than the 64 tokens"):
        family.context(Dialogue(("你好", "再见", "你好" * 40)), 64)
    with pytest.raises(UnsupportedError, match="without --to hf"):
        family.as_transformers()


def test_rows_stop_and_close(tmp_path: Path) -> None:
    family = opened("llama", tmp_path, chat=False).family
    stop = family.stop_ids[0]
    parts = [Part((10, 11), False), Part((12, 13), True)]
    assert family.row(parts).labels.tolist() == [IGNORE, 12, 13, stop]
    assert family.row(parts, stop=False).labels.tolist() == [IGNORE, 12, 13, IGNORE]
    closed = family.row(parts, feed_stop=True)
    assert closed.inputs["input_ids"].tolist() == [10, 11, 12, 13, stop]
    assert closed.end == 4 and closed.labels.tolist() == [IGNORE, 12, 13, stop, IGNORE]


def test_running_text_scores_all_but_the_first_token(tmp_path: Path) -> None:
    family = opened("llama", tmp_path, chat=False).family
    (parts,) = family.parts(Text("今天天气真不错"), 64)
    row = family.row(parts)
    assert int((row.labels != IGNORE).sum()) == 7  # six of the text, as nothing comes before it, and the end


@pytest.mark.parametrize("name", ["qwen3", "mt5"])
@pytest.mark.parametrize("record", [PAIR, Text("今天天气真不错")], ids=["pair", "text"])
def test_no_stop_is_learned_where_a_text_is_cut(name: str, record: Record, tmp_path: Path) -> None:
    family = opened(name, tmp_path, chat=False).family
    (whole,), (cut,) = (
        family.parts(record, limit, 4 if limit < 64 else None) for limit in (64, 12 if record is PAIR else 4)
    )
    ends = [family.row(parts).labels[-1].item() for parts in (whole, cut)]
    assert ends == [family.stop_ids[0], IGNORE]
    assert sum(len(part.ids) for part in cut) < sum(len(part.ids) for part in whole)


@pytest.mark.parametrize("name", ["qwen3", "mt5"])
def test_saved_folders_open_in_plain_transformers(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path / "first")
    save_model(model, tmp_path / "second")
    again = open_model(tmp_path / "second", dtype="fp32", device="cpu")
    for (key, one), other in zip(model.network.state_dict().items(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    auto = AutoModelForSeq2SeqLM if model.family.config.is_encoder_decoder else AutoModelForCausalLM
    assert type(auto.from_pretrained(tmp_path / "second")).__name__ == type(model.network).__name__


def test_options_of_originals_are_refused(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    with pytest.raises(ConfigError, match="complete in itself: leave out --size"):
        open_model(tmp_path, size="eva2.0-base")


def test_positions_beyond_learned_ones_are_one_message() -> None:
    model = adopt(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval())
    assert model(input_ids=torch.ones(1, 16, dtype=torch.long)).logits.shape == (1, 16, 64)
    with pytest.raises(UnsupportedError, match="17 tokens in a row, but this model has 16 positions"):
        model(input_ids=torch.ones(1, 17, dtype=torch.long))


def test_what_a_tokenizer_puts_around_a_text_is_put_around_every_one(tmp_path: Path) -> None:
    """An encoder reads it all; a decoder goes on from the text, so that nothing stands behind it."""
    around, text = "<bos> $A <eos>", [9, 10]  # 你好
    for name, expected in (("mt5", [3, *text, 2]), ("llama", [3, *text])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder = write_model(name, tmp_path / name, chat=False, around=around)
            family = open_model(folder, dtype="fp32", device="cpu").family
        assert list(family.context(Text("你好"), 64).ids) == expected


@pytest.mark.parametrize("name", ["mt5", "llama"])
def test_without_a_template_the_prefix_stands_on_a_line_of_its_own(name: str, tmp_path: Path) -> None:
    family = opened(name, tmp_path, chat=False).family
    ids = family.tokenizer.encode("你好\n我", add_special_tokens=False)
    assert len(ids) == 4
    assert list(family.context(PromptResponse("你好", "", prefix="我"), 64).ids) == ids
    assert list(family.context(PromptResponse("你好", ""), 64).ids) == ids[:3]
    ((given, said),) = family.parts(PromptResponse("你好", "再见", prefix="我"), 64)
    assert list(given.ids) == ids
    assert list(said.ids) == family.tokenizer.encode("再见", add_special_tokens=False)


def test_an_encoder_decoder_learns_to_go_on_from_any_place(tmp_path: Path) -> None:
    """The encoder has what stands before the place, the decoder the rest and the end, which a cut text does not have."""
    family, ids = opened("mt5", tmp_path).family, (9, 10, 11, 12)
    places = set()
    for seed in range(30):
        row = family.pretrain([Part(ids, True)], Random(seed))
        given, labels = row.inputs["input_ids"].tolist(), row.labels.tolist()
        assert [*given, *labels] == [*ids, family.stop_id]
        assert row.inputs["decoder_input_ids"].tolist() == [1, *labels[:-1]]  # decoder_start_token_id
        places.add(len(given))
        cut = family.pretrain([Part(ids, True), Part((), False)], Random(seed))
        assert cut.inputs["input_ids"].tolist() == given
        assert cut.labels.tolist() == [*labels[:-1], IGNORE]
    assert places == {1, 2, 3}
    single = family.pretrain([Part((9,), True)], Random(0))
    assert single.inputs["input_ids"].tolist() == [family.stop_id]  # an encoder must be given something
    assert single.labels.tolist() == [9, family.stop_id]


def test_an_answer_fits_where_it_and_its_stop_do(tmp_path: Path) -> None:
    family = opened("llama", tmp_path).family
    ((prompt, answer),) = family.parts(PAIR, 64)
    whole = len(prompt.ids) + len(answer.ids) + 1  # the stop
    assert family.parts(PAIR, whole) == [[prompt, answer]]
    cut = Part(answer.ids[:-1], True)
    assert family.parts(PAIR, whole - 1) == [[prompt, cut, Part((), False)]]


def test_encoder_decoders_read_the_text_before_a_gap_and_score_what_fills_it(tmp_path: Path) -> None:
    model = opened("mt5", tmp_path)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    read = tuple(model.tokenizer("今天天气")["input_ids"])
    filled = model.family.cloze("今天天气", ("真好", "不好"), "。")
    assert filled == [[Part(read, False), Part(ids("真好。"), True)], [Part(read, False), Part(ids("不好。"), True)]]


def test_encoder_decoders_draw_anew_where_a_text_is_cut(tmp_path: Path) -> None:
    model = opened("mt5", tmp_path)
    family = model.family
    pieces = Pieces(
        make_rows([Text("今天天气怎么样我们去吃火锅吧")], family, 64, None, Rejects()), family, 64, family.objectives
    )
    assert pieces.drawn
    cuts = {len(pieces.row(epoch).labels) for epoch in range(8)}
    assert len(cuts) > 1


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                  RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=lambda e: type(e).__name__)  # fmt: skip
@pytest.mark.parametrize("probe", ["find_batching", "packing_is_exact", "batches", "head"])
def test_too_little_memory_says_nothing_about_a_network(probe: str, full: Exception, tmp_path: Path) -> None:
    """Read as "not exact", it made a network slow for good, or refused as one that cannot be decoded."""
    network = opened("qwen3", tmp_path).network

    def refuse(module: Any, given: Any, settings: dict[str, Any]) -> None:
        if probe != "batches" or len(settings["input_ids"]) > 1:  # one text alone still fits
            raise full

    def no_room(*given: Any, **settings: Any) -> Any:
        raise full

    if probe == "head":
        with pytest.raises(type(full)):
            probes.head_is_exact(network, no_room)
        return
    handle = network.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(type(full)):
        getattr(probes, "find_batching" if probe == "batches" else probe)(network)
    handle.remove()
    assert probes.find_batching(network).batch == "any" and probes.packing_is_exact(network)


@pytest.mark.parametrize(
    ("parameters", "alone"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, False),
        ({"rope_type": "yarn", "factor": 4.0}, False),
        ({"rope_type": "dynamic", "factor": 2.0}, True),
        ({"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}, True),
    ],
)
def test_positions_that_depend_on_the_longest_row_are_decoded_alone(parameters: dict[str, Any], alone: bool) -> None:
    """transformers picks the frequencies of dynamic and longrope positions from the largest position of a batch."""
    config = Qwen3Config()
    config.rope_parameters = parameters
    assert probes.rope_by_length(config) is alone
