"""The readers of the pretraining corpus against the recorded prompts, texts and ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from hanmo.data.prepare.sources import SOURCES
from hanmo.data.prepare.sources.reader import SourceReader
from hanmo.records import Text, iter_records
from tests.places import PARITY, VOCAB, load, needs_parity

pytestmark = needs_parity("transformer_xl")
RECORDED = load(PARITY / "transformer_xl" / "tokenizer" / "corpus_readers.json", {})
NAMES = {
    "zhihu": "zhihu",
    "zhidao": "zhidao-threads",
    "baike": "encyclopedia",
    "wikipedia": "wikipedia",
    "xinhua": "news",
}
CASES = [
    pytest.param(NAMES[reader], case, id=f"{reader}-{number}")
    for reader in RECORDED
    if reader in NAMES
    for number, case in enumerate(RECORDED[reader])
]


@pytest.mark.parametrize(("source", "case"), CASES)
def test_prompts_and_texts(source: str, case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text(json.dumps(case["input"], ensure_ascii=False) + "\n", encoding="utf-8")
    reader = SourceReader()
    records = [item.record for item in SOURCES[source](path, reader)]
    found = [("", r.text) if isinstance(r, Text) else (r.prompt, r.response) for r in records]
    assert found == list(zip(case["prompts"], case["texts"], strict=True))
    assert reader.dropped.total() == (not found)


@pytest.mark.parametrize("case", RECORDED.get("wikipedia-key", []))
def test_sections_and_their_summary(case: dict[str, Any], tmp_path: Path) -> None:
    """Ids and what is learned of them. The original's token after each section is the stop that is predicted there."""
    tokenizer = _tokenizer()
    path = tmp_path / "raw.jsonl"
    path.write_text(json.dumps(case["input"], ensure_ascii=False) + "\n", encoding="utf-8")
    items = list(SOURCES["wikipedia-sections"](path, SourceReader()))
    assert len({item.key for item in items}) == 1  # one split
    *sections, summary = (tokenizer.encode_batch([item.record.prompt, item.record.response]) for item in items)
    end_of_piece = len(tokenizer)
    ids = [token for prompt, text in sections for token in (*prompt, *text, end_of_piece)]
    runs = [length for prompt, text in sections for length in (len(prompt), len(text) + 1)]
    assert (ids, runs) == (case["text_ids"], case["text_mask_runs"])
    assert [*summary[0], *summary[1]] == case["summary_ids"]
    assert list(map(len, summary)) == case["summary_mask_runs"]


@pytest.mark.parametrize("case", RECORDED.get("finetune", []))
def test_finetuning_records_are_read_as_they_are(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text(json.dumps(case["input"], ensure_ascii=False) + "\n", encoding="utf-8")
    (record,) = iter_records(path)
    assert ([record.prompt], [record.response]) == (case["prompts"], case["texts"])


@pytest.mark.parametrize(("source", "case"), CASES)
def test_ids(source: str, case: dict[str, Any]) -> None:
    tokenizer = _tokenizer()
    assert tokenizer.encode_batch(case["prompts"]) == case["prompt_ids"]
    assert tokenizer.encode_batch(case["texts"]) == case["text_ids"]


def _tokenizer() -> Any:
    from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer

    vocabulary = VOCAB / "cog-pretrain.model"
    if not vocabulary.is_file():
        pytest.skip("no vocabulary")
    return TransformerXLTokenizer(str(vocabulary))
