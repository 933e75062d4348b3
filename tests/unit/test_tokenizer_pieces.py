"""The sentencepiece tokenizers on a model trained here: options, special tokens, decoding, saving."""

import copy
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hanmo.families.glm.tokenization import GlmTokenizer
from hanmo.families.pangu.tokenization import PanguTokenizer
from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from tests.parity.transformer_xl_tokens import published_text

SENTENCES = ["今天天气很好我们去公园散步", "你好世界", "问题回答", "a b c 1 2 3", "天气预报说明天下雨"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "small"),
        model_type="bpe",
        vocab_size=80,
        user_defined_symbols=["▃", "▂", "<sep>", "<pad>", "<eot>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(folder / "small.model")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (PanguTokenizer, {"jieba_mode": "stock"}),
        (PanguTokenizer, {"jieba_mode": "patched"}),
        (GlmTokenizer, {}),
        (GlmTokenizer, {"flavour": "original", "fix_command_token": False}),
        (TransformerXLTokenizer, {"add_eop": True}),
    ],
)
def test_it_saves_and_loads_with_its_options(
    make: type, options: dict[str, object], model: str, tmp_path: Path
) -> None:
    tokenizer = make(model, **options)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / make.vocab_files_names["vocab_file"]).read_bytes() == Path(model).read_bytes()
    text = "今天<sep>天气[gMASK]很好<|endoftext|>"
    for other in (make.from_pretrained(tmp_path), copy.deepcopy(tokenizer)):
        assert other.encode(text) == tokenizer.encode(text)
        assert len(other) == len(tokenizer)
        assert other.all_special_ids == tokenizer.all_special_ids
        for name, value in options.items():
            assert other.init_kwargs[name] == value


def test_pangu_finds_typed_specials_only_when_patched(model: str) -> None:
    stock, patched = (PanguTokenizer(model, jieba_mode=mode) for mode in ("stock", "patched"))
    assert stock.sep_token_id not in stock.encode_plain("你好<sep>世界")
    ids = patched.encode_plain("你好<sep>世界<sep>")
    assert [index for index in ids if index == patched.sep_token_id] == [patched.sep_token_id] * 2
    assert ids[-1] == patched.sep_token_id
    assert patched.decode(ids, skip_special_tokens=True) == "你好世界"
    assert patched.decode(patched.encode_plain("第一\n二 行")).count("\n") == 1


def test_unknown_options_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match="stock"):
        PanguTokenizer(model, jieba_mode="fast")
    with pytest.raises(ValueError, match="port, original"):
        GlmTokenizer(model, flavour="megatron")
    with pytest.raises(ValueError, match="original"):
        GlmTokenizer(model, fix_command_token=False)


def test_glm_command_tokens_follow_the_pieces(model: str) -> None:
    port = GlmTokenizer(model)
    assert [port.eos_token_id, port.mask_token_id, port.convert_tokens_to_ids("[gMASK]")] == [
        port.vocab_size,
        port.vocab_size + 3,
        port.vocab_size + 9,
    ]
    original = GlmTokenizer(model, flavour="original", fix_command_token=False)
    assert original.convert_tokens_to_ids("[gMASK]") == original.convert_tokens_to_ids("<|endofpiece|>")
    assert original.decode(original.encode_plain("你好 [MASK] 世界")) == "你好[MASK]世界"
    assert port.decode(port.encode_plain("你好[MASK]世界")) == "你好 [MASK] 世界"


def test_txl_corrected_and_published_decoding(model: str) -> None:
    tokenizer = TransformerXLTokenizer(model)
    word, eos, unused = tokenizer.encode("天气"), tokenizer.eos_token_id, len(tokenizer) + 3
    assert tokenizer.decode([*word, eos, *word, unused]) == "天气<|endoftext|>天气"
    assert tokenizer.decode([*word, eos, *word, unused], skip_special_tokens=True) == "天气天气"
    rest = " <|endoftext|>" * (len(word) + 2)
    assert published_text(tokenizer, [*word, eos, *word, unused]) == "天气" + rest
    with pytest.raises(IndexError):
        published_text(tokenizer, [unused])


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_batches(model: str, workers: int | None) -> None:
    texts = ["今天天气", "", "你好[MASK]世界", "a b"]
    for make in (PanguTokenizer, GlmTokenizer, TransformerXLTokenizer):
        tokenizer = make(model)
        assert tokenizer.encode_batch(texts, workers) == [tokenizer.encode_plain(text) for text in texts]


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose pieces of two digits are all equally probable, so that rounding decides how a number is cut."""
    folder = tmp_path_factory.mktemp("unigram")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, *(f"{number % 100:02}" for number in range(400))] * 20),
        model_prefix=str(folder / "small"),
        model_type="unigram",
        vocab_size=150,
        user_defined_symbols=["▃", "▂", "<sep>", "<pad>", "<eot>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(folder / "small.model")


@settings(max_examples=60)
@example(["1001 111 2222 " * 300, "今天天气 999"])
@example(["未知①…ﾞ\u3000\u0301 a\u2581b \u200b", "", "😀😀好"])
@given(
    st.lists(
        st.lists(
            st.sampled_from(
                [
                    "今天",
                    "天气",
                    "100111",
                    "2223",
                    "①",
                    "…",
                    "\u3000",
                    "\u0301",
                    "\u2581",
                    " ",
                    "\n",
                    "é",
                    "<sep>",
                    "😀",
                    "a",
                ]
            )
        ).map("".join),
        max_size=4,
    )
)
def test_pangus_batches_are_what_sentencepiece_makes_of_whole_texts(unigram: str, texts: list[str]) -> None:
    tokenizer = PanguTokenizer(unigram)
    assert tokenizer.encode_batch(texts, 1) == [tokenizer.encode_plain(text) for text in texts]
