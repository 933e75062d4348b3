"""Tokenizers: ours in batches against the straightforward implementation, ids compared.

The straightforward ones: jieba and a Python loop (EVA), jieba and sentencepiece (PanGu), sentencepiece text by text
(GLM, 文汇). Dictionaries are loaded before the clock starts, on both sides, and so are compiled kernels where numba is
installed; a comment says how long that took. Ours starts each run without a table.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

# This file is named like a package that transformers imports: the folder of scripts must not come first.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

from benchmarks.common import PARITY, VOCAB, Figure, arguments, finish, real_texts  # noqa: E402
from hanmo.families.eva.tokenization import EvaTokenizer  # noqa: E402
from hanmo.families.glm.tokenization import GlmTokenizer  # noqa: E402
from hanmo.families.pangu.tokenization import PanguTokenizer  # noqa: E402
from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer  # noqa: E402

Encode = Callable[[str], list[int]]


def eva_straightforward(vocabulary: Path) -> Encode:
    """jieba's words and the longest match, written down as one would."""
    import jieba

    cut = jieba.Tokenizer()
    cut.initialize()
    with vocabulary.open(encoding="utf-8") as lines:
        ids = {line.strip(): number for number, line in enumerate(lines)}
    wide = "！？＂〝〞“”‟＃＄％＆＇‘’‛（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～…"
    narrow = [*'!?""""""#$%&\'\'\'\'()*+,-/:;<=>@[\\]^_`{|}~', "..."]
    fold = str.maketrans(dict(zip(wide, narrow, strict=True)))

    def encode(text: str) -> list[int]:
        encoded = []
        for word in cut.cut(text.translate(fold)):
            word = word.replace(" ", "\u2582").replace("\n", "\u2583")
            if len(word) > 200:
                encoded.append(0)
                continue
            start = 0
            while start < len(word):
                end = len(word)
                while end > start and word[start:end] not in ids:
                    end -= 1
                encoded.append(ids[word[start:end]] if end > start else 0)
                start = max(end, start + 1)
        return encoded

    return encode


def pangu_straightforward(vocabulary: Path) -> Encode:
    """jieba, patched as the pipeline's instructions say (here only while it runs), and sentencepiece."""
    import jieba
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    cut = jieba.Tokenizer()
    for word in ("<s>", "</s>", "<eot>", "<unk>", "<sep>", "<pad>"):
        cut.add_word(word)
    block = re.compile("([\u4e00-\u9fd5a-zA-Z0-9+#&._%\\-<>]+)")
    specials = {token: pieces.piece_to_id(token) for token in ("<s>", "<eot>", "<unk>", "<sep>", "<pad>")}

    def encode(text: str) -> list[int]:
        with patch.object(jieba, "re_han_default", block):
            words = [word.replace(" ", "\u2582").replace("\n", "\u2583") for word in cut.cut(text)]
        if specials.keys().isdisjoint(words):
            return pieces.encode(" ".join(words))
        encoded: list[int] = []
        run: list[str] = []
        for word in [*words, None]:
            if word is not None and word not in specials:
                run.append(word)
                continue
            encoded += pieces.encode(" ".join(run))
            run = []
            if word is not None:
                encoded.append(specials[word])
        return encoded

    return encode


def sentencepiece_straightforward(vocabulary: Path) -> Encode:
    """sentencepiece, one text after the other."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    return lambda text: pieces.encode(text)


def measure(
    name: str,
    make: Callable[[], EvaTokenizer | PanguTokenizer | GlmTokenizer | TransformerXLTokenizer],
    straightforward: Encode,
    texts: Sequence[str],
    workers: int,
    goal: float,
) -> Figure:
    """Ours over all texts, the peer over half of them, ours again, the peer over the other half; ids must agree."""
    start = time.perf_counter()
    warm = make()
    warm.encode_batch(["你好"])
    kernel = warm._kernel()
    if kernel is not None:
        kernel.encode(["你好"])
    print(f"# {name}: {'kernel' if kernel else 'no kernel'}, loaded in {time.perf_counter() - start:.1f} s", flush=True)
    straightforward("你好")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours, peer = [], 0.0
    expected: list[list[int]] = []
    middle = len(texts) // 2
    for part in (texts[:middle], texts[middle:]):
        tokenizer = make()
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(texts, workers)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected += [straightforward(text) for text in part]
        peer += time.perf_counter() - start
    different = [text for text, left, right in zip(texts, encoded, expected, strict=True) if left != right]
    if different:
        raise SystemExit(f"{name}: ids differ in {len(different)} of {len(texts)} texts, first: {different[0][:200]!r}")
    print(f"# {name}: {len(texts)} texts, {megabytes:.1f} MB, {sum(map(len, encoded))} ids, all identical", flush=True)
    return Figure.rate(name, megabytes / min(ours), megabytes / peer, "MB/s", goal)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, help="a UTF-8 file, one text a line, instead of the real texts at hand")
    parser.add_argument("--size", type=float, default=20.0, help="MB of text (default: 20)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="default: 2")
    parser.add_argument("--only", help="one family: eva, pangu, glm or transformer_xl")
    options = parser.parse_args()
    limit = int(options.size * 1e6)
    texts = options.data.read_text(encoding="utf-8").split("\n") if options.data else real_texts(limit)
    own = {"eva": PARITY / "eva" / "vocab.txt", "pangu": VOCAB / "pangu" / "vocab.model"}
    shared = VOCAB / "cog-pretrain.model"
    cases = {
        "eva": (own["eva"], EvaTokenizer, eva_straightforward, 10.0),
        "pangu": (own["pangu"], PanguTokenizer, pangu_straightforward, 5.0),
        "glm": (shared, GlmTokenizer, sentencepiece_straightforward, 5.0),
        "transformer_xl": (shared, TransformerXLTokenizer, sentencepiece_straightforward, 5.0),
    }
    figures = []
    for family, (vocabulary, make, straightforward, goal) in cases.items():
        if options.only not in (None, family):
            continue
        if not vocabulary.is_file():
            print(f"# {family}: no vocabulary at {vocabulary}; set HANMO_PARITY", file=sys.stderr)
            continue
        figures.append(
            measure(
                f"tokenizer {family}",
                lambda make=make, vocabulary=vocabulary: make(str(vocabulary)),  # type: ignore[misc]
                straightforward(vocabulary),
                texts,
                options.workers,
                goal,
            )
        )
    return finish(figures, options.check)


if __name__ == "__main__":
    sys.exit(main())
