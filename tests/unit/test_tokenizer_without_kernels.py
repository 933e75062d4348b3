"""Where numba is not installed, or cannot keep what it compiles, tokenizers give the same ids."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

import hanmo.tokenizers.base as spreading
from hanmo.families.eva.tokenization import EvaTokenizer
from hanmo.families.glm.tokenization import GlmTokenizer
from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer
from tests import processes

TEXTS = ["今天天气很好", "", "我们去公园散步[MASK]。", "a b c 1 2 3"]
LINES = ["<unk>", "<sep>", "<pad>", "<eod>", "<s_0>", *"今天气很好我们去公园散步。abc123", "今天", "天气", "▂"]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel pays for any text."""
    monkeypatch.setattr(spreading, "_WORTH_A_CALL", 0)
    monkeypatch.setattr(spreading, "_WORTH_A_KERNEL", 0)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name.startswith("hanmo.tokenizers.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it fails
    spreading.compiled.cache_clear()
    yield
    spreading.compiled.cache_clear()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of EVA's form and a sentencepiece model."""
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(folder / "small"),
        model_type="bpe",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder


MAKERS: list[tuple[Callable[[str], Any], str]] = [
    (EvaTokenizer, "vocab.txt"),
    (GlmTokenizer, "small.model"),
    (TransformerXLTokenizer, "small.model"),
]


@pytest.mark.usefixtures("at_once", "without_numba")
@pytest.mark.parametrize(("make", "name"), MAKERS)
def test_without_numba(make: Callable[[str], Any], name: str, files: Path) -> None:
    tokenizer = make(str(files / name))
    assert tokenizer._kernel() is None
    expected = [tokenizer.encode_plain(text) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == expected
    ids, counts = tokenizer.encode_flat(TEXTS)
    assert ids.tolist() == [id_ for text in expected for id_ in text]
    assert counts.tolist() == list(map(len, expected))


@pytest.mark.parametrize(("make", "name"), MAKERS)
def test_a_small_batch_does_not_import_numba(make: Callable[[str], Any], name: str, files: Path) -> None:
    code = (
        f"import sys; from {make.__module__} import {make.__name__} as make\n"
        f"make({str(files / name)!r}).encode_batch(['今天'] * 1000)\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert processes.run([sys.executable, "-c", code]).returncode == 0


def test_what_cannot_be_kept_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba", reason="numba is not installed (hanmo[data])")
    from hanmo.tokenizers.kernels.batch import machine_code

    monkeypatch.setattr(numba.core.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")  # of no folder at all

    def twice(number: int) -> int:
        return 2 * number

    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(twice)
    assert machine_code(twice)(21) == 42
