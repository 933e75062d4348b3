"""The ids of an answer are those it has behind its prompt, what is trained is what is asked, and turns stay apart."""

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MT5Config, PreTrainedTokenizerFast

from hanmo.checkpoints import open_model
from hanmo.data.rows.dataset import make_rows
from hanmo.errors import UnsupportedError
from hanmo.evaluation.suites.exam.suite import LETTERS, all_exams, exam_suite
from hanmo.evaluation.suites.runner import evaluate
from hanmo.evaluation.suites.suite import Options
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.records import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, Text
from tests.unit.exam_files import exam_folder
from tests.unit.tokenizer_kinds import KINDS, TEMPLATES, tokenizer, write_model

WORDS = {(kind, template): tokenizer(kind, template) for kind in KINDS for template in ("", *TEMPLATES)}
DECODERS = [kind for kind in KINDS if kind != "t5"]
TURNS = ("你好", "你好呀", "去哪里玩", "AB 火锅")


def family(kind: str, template: str = "") -> HuggingfaceFamily:
    words = WORDS[kind, template]
    config = MT5Config if kind == "t5" else LlamaConfig
    ids = {"vocab_size": len(words), "eos_token_id": 2, "pad_token_id": 1}
    return HuggingfaceFamily(config(**ids, **({"decoder_start_token_id": 1} if kind == "t5" else {})), words)


def rendered(words: PreTrainedTokenizerFast, turns: tuple[str, ...], ask: bool = False) -> str:
    messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    return str(words.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))


def parts_of(made: HuggingfaceFamily, record: Record) -> tuple[list[int], list[int]]:
    (parts,) = made.parts(record, 400)
    assert [part.scored for part in parts] == [False, True]
    return list(parts[0].ids), list(parts[1].ids)


def within(words: PreTrainedTokenizerFast, text: str, first: int, end: int) -> list[int]:
    """The ids of text[first:end] within the whole text, by the tokenizer's own account of where its tokens lie."""
    whole = words(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(whole["input_ids"], whole["offset_mapping"], strict=True)
    return [id_ for id_, (start, stop) in spans if start < end and stop > first]


@pytest.mark.parametrize("template", ["chatml", "llama2", "gemma"])
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("answer", ["A", "AB 火锅", "今天天气真不错"])
def test_an_answer_has_the_ids_it_has_in_the_whole_conversation(kind: str, template: str, answer: str) -> None:
    words, turns = WORDS[kind, template], (*TURNS[:3], answer)
    given, said = parts_of(family(kind, template), Dialogue(turns))
    asked, whole = rendered(words, turns[:3], ask=True), rendered(words, turns)
    assert given == words.encode(asked, add_special_tokens=False)
    assert said == within(words, whole, len(asked), whole.rindex(answer) + len(answer))  # Llama 2's space is learned
    ids = words.encode(whole, add_special_tokens=False)
    assert ids[: len(given) + len(said)] == given + said


def test_sentencepiece_learns_the_letter_and_not_the_letter_behind_a_space() -> None:
    words = WORDS["sentencepiece", "chatml"]
    _, said = parts_of(family("sentencepiece", "chatml"), PromptResponse("你好", "A"))
    assert words.convert_ids_to_tokens(said) == ["A"]
    _, said = parts_of(family("sentencepiece", "llama2"), PromptResponse("你好", "A"))  # the template's own space
    assert words.convert_ids_to_tokens(said) == ["▁A"]
    _, said = parts_of(family("sentencepiece"), PromptResponse("你好", "A"))
    assert words.convert_ids_to_tokens(said) == ["A"]


def test_what_a_template_writes_before_an_answer_without_being_asked_is_not_learned() -> None:
    words = WORDS["sentencepiece", "thinks"]
    given, said = parts_of(family("sentencepiece", "thinks"), PromptResponse("你好", "A"))
    assert words.decode(given).endswith("assistant\n") and words.convert_ids_to_tokens(said) == ["A"]


TEXTS = st.text(st.sampled_from("你好AB ab:\n答。"), max_size=6)


@pytest.mark.parametrize("template", ["", *TEMPLATES])
@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXTS, prefix=TEXTS, answer=TEXTS, other=TEXTS)
def test_what_is_trained_is_what_is_asked(
    kind: str, template: str, prompt: str, prefix: str, answer: str, other: str
) -> None:
    """Whatever the answer, the ids before it are those that the model is given; both together spell the whole."""
    made = family(kind, template)
    records = [PromptResponse(prompt, text, prefix) for text in (answer, other)]
    (asked,) = {made.context(record, 400).ids for record in records}
    for record in records:
        for parts in made.parts(record, 400):
            assert parts[0].ids == asked
            if kind in ("sentencepiece", "byte_level"):
                whole = made.tokenizer.decode([*parts[0].ids, *parts[1].ids])
                assert whole.endswith(record.response.strip() if template in ("llama2", "gemma") else record.response)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
def test_a_token_across_the_boundary_is_left_to_neither_side(kind: str) -> None:
    """Two line breaks are one token of the whole; the prompt keeps its own and the answer says the other."""
    made = family(kind)
    given, said = parts_of(made, PromptResponse("答：A", "\n\n答：B"))
    alone, whole = (made.tokenizer.encode(f"答：A{text}", add_special_tokens=False) for text in ("\n", "\n\n\n答：B"))
    assert whole[: len(alone)] != alone  # the boundary lies within a token
    assert given == alone
    assert made.tokenizer.decode(said) == "\n\n答：B" and made.tokenizer.decode(given + said) == "答：A\n\n\n答：B"


@pytest.mark.parametrize("kind", KINDS)
def test_turns_cut_in_other_places_have_other_ids(kind: str) -> None:
    made = family(kind)
    cuts = [("你好", "我很好", "再见"), ("你", "好我很", "好再见"), ("你好我很好", "再见"), ("你 好我很好", "再见")]
    cuts = cuts[:3] if kind == "bert" else cuts  # which takes no notice of spaces
    assert len({tuple(map(tuple, parts_of(made, Dialogue(turns)))) for turns in cuts}) == len(cuts)
    assert len({made.context(Dialogue(turns), 400).ids for turns in cuts}) == len(cuts)
    scored = [ScoredAnswers(turns[-2], ((turns[-1], 1.0),), history=turns[:-2]) for turns in cuts]
    assert [parts_of(made, record) for record in scored] == [parts_of(made, Dialogue(turns)) for turns in cuts]
    systems = [PromptResponse("好我很好", "再见", system="你"), PromptResponse("我很好", "再见", system="你好")]
    assert len({tuple(map(tuple, parts_of(made, record))) for record in systems}) == 2


@pytest.mark.parametrize("kind", DECODERS)
def test_nothing_goes_on_from_an_end_of_text(kind: str) -> None:
    made = family(kind)
    ids = made.context(Text("你好"), 400).ids
    assert ids[-1] == made.tokenizer.encode("你好", add_special_tokens=False)[-1]
    options = made.cloze("答：A", ["你好", "我"], "吗")
    assert [made.tokenizer.decode(parts[1].ids).replace(" ", "") for parts in options] == ["你好吗", "我吗"]


def opened(kind: str, folder: Path, template: str = "") -> OpenedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_model(write_model(kind, folder, template), dtype="fp32", device="cpu")


@pytest.mark.parametrize("template", ["chatml", "llama2", "gemma"])
def test_an_exam_in_chat_form_scores_letters_as_transformers_does(template: str, tmp_path: Path) -> None:
    """log p of each letter by plain transformers, on the ids of the template's own text."""
    model = opened("sentencepiece", tmp_path / "model", template)
    exam = all_exams()["cmmlu"]
    subject = next(iter(exam.subjects))
    data = exam_folder(exam, tmp_path / "data", ",Question,A,B,C,D,Answer", [subject])
    suite = exam_suite("cmmlu", data, [subject])
    result = evaluate(model, suite, Options(chat=True), tmp_path / "cache", lambda what: lambda done, total: None)
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    task = suite.tasks[0]
    for number, item in enumerate(result.tasks[0].items):
        question = task.template.fill(
            {"question": f"{subject} test {number}, which?", "A": "None", "B": "N/A", "C": "1", "D": str(number)}, ""
        )
        asked = rendered(words, (f"{task.instruction}\n\n{question.rstrip()}",), ask=True)
        for letter, score in zip(LETTERS, item.scores["sum"], strict=True):
            whole = rendered(words, (f"{task.instruction}\n\n{question.rstrip()}", letter))
            said = within(words, whole, len(asked), whole.rindex(letter) + 1)
            given = words.encode(asked, add_special_tokens=False)
            with torch.no_grad():
                logprobs = plain(torch.tensor([[*given, *said]])).logits[0].log_softmax(-1)
            expected = sum(logprobs[len(given) - 1 + place, id_].item() for place, id_ in enumerate(said))
            assert score == pytest.approx(expected, abs=1e-4)


def test_rows_for_training_label_the_ids_of_the_whole() -> None:
    made = family("sentencepiece", "chatml")
    rows = make_rows([PromptResponse("你好", "A"), Dialogue((*TURNS[:3], "A"))], made, 400, None, Rejects())
    labels = [[int(label) for label in rows.row(place).labels if label >= 0] for place in range(2)]
    assert [made.tokenizer.convert_ids_to_tokens(ids) for ids in labels] == [["A", "<|im_end|>"]] * 2


def test_a_system_text_without_a_role_of_its_own_stands_before_the_first_user_turn() -> None:
    made = family("byte_level", "gemma")
    with pytest.warns(UserWarning, match="no system role") as told:
        given, _ = parts_of(made, Dialogue(TURNS, system="系统"))
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert made.context(Dialogue(TURNS[:3], system="系统"), 400).ids == tuple(given)
        shortened = made.context(Dialogue(TURNS[:3], system="系统"), len(given) - 1).ids
    text = made.tokenizer.decode(given)
    assert text.count("系统") == 1 and "<|im_start|>user\n系统\n\n你好<|im_end|>" in text
    assert "<|im_start|>user\n系统\n\n去哪里玩<|im_end|>" in made.tokenizer.decode(shortened)  # the first that is left
    llama, _ = parts_of(family("byte_level", "llama2"), Dialogue(TURNS, system="系统"))
    assert "[INST] <<SYS>>\n系统" in made.tokenizer.decode(llama)


def test_what_a_template_refuses_is_one_message() -> None:
    made = family("byte_level", "chatml")
    words = tokenizer("byte_level", "chatml")
    words.chat_template = "{{ raise_exception('not today') }}"
    made = HuggingfaceFamily(made.config, words)
    with pytest.raises(UnsupportedError, match="does not take this conversation: not today"):
        made.context(Dialogue(("你好",)), 64)
