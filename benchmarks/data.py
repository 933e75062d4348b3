"""Data preparation: near-duplicates at growing sizes, cleaning, and the store against tokenising one by one.

The tokenizers themselves are measured in tokenizers.py. MinHash is timed on synthetic documents, a tenth of them near
copies; the time a document takes must not grow with their number. Its peer is the size before.

    python benchmarks/data.py --sizes 10000 100000 1000000
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from random import Random

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(place for place in sys.path if Path(place).resolve() != _HERE)]

from benchmarks.common import VOCAB, Figure, alternate, arguments, finish, real_texts  # noqa: E402
from hanmo.data.prepare.cleaning.clean import clean  # noqa: E402
from hanmo.data.prepare.cleaning.recipe import load  # noqa: E402
from hanmo.data.prepare.dedup import LshIndex, signature  # noqa: E402
from hanmo.records import Text, write_records  # noqa: E402

COPIES = 10  # every tenth document is a near copy of the one before it


def documents(count: int, seed: int = 0):
    """Synthetic documents of 40 to 120 characters, the most frequent characters first, as in language."""
    rng = Random(seed)
    last = ""
    for number in range(count):
        if number % COPIES == COPIES - 1:
            place = rng.randrange(len(last))
            yield last[:place] + last[place + 1 :]
        else:
            last = "".join(chr(0x4E00 + int(rng.paretovariate(0.7)) % 5000) for _ in range(rng.randrange(40, 120)))
            yield last


def minhash(count: int) -> tuple[float, float, float]:
    """Documents a second, peak memory in MB, and the share of planted copies that is found."""
    index = LshIndex()
    start = time.perf_counter()
    spent = 0.0
    for text in documents(count):
        begun = time.perf_counter()
        index.add(signature(text))
        spent += time.perf_counter() - begun
    begun = time.perf_counter()
    firsts = index.first_similar(0.8)
    spent += time.perf_counter() - begun
    found = int((firsts[COPIES - 1 :: COPIES] != range(COPIES - 1, count, COPIES)).sum())
    print(f"# MinHash {count:,}: {spent:.1f} s of {time.perf_counter() - start:.1f} s", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    return count / spent, memory, found / (count // COPIES)


def minhash_figures(sizes: list[int]) -> list[Figure]:
    figures = []
    before: float | None = None
    for size in sorted(sizes):
        rate, memory, found = minhash(size)
        print(
            f"# MinHash {size:,}: {rate:,.0f} docs/s, peak {memory:,.0f} MB, {found:.1%} of planted copies", flush=True
        )
        # Linear cost: the rate holds when there is ten times as much; a tenth less is noise and the sort's logarithm.
        figures.append(Figure.rate(f"MinHash docs/s at {size:,}", rate, before or rate, "docs/s", 0.8))
        before = rate
    return figures


def store_figure(megabytes: float) -> Figure:
    """The store, with reading and writing, against encoding text by text into lists; one process each."""
    # Here, because processes that clean import this file and have no use for torch.
    from hanmo.data.store.token_store import Store
    from hanmo.data.store.tokenize import TokenizerPlace, tokenize

    texts = real_texts(int(megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    place = TokenizerPlace(str(VOCAB / "cog-pretrain.model"), "transformer_xl")
    tokenizer = place.open()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "store"
        write_records(source, map(Text, texts))
        expected: list[list[int]] = []

        def one_by_one() -> None:
            expected[:] = [tokenizer.encode_plain(text) for text in texts]

        ours, peer = alternate(lambda: tokenize(place, [source], out), one_by_one, rounds=2)
        store = Store(out, tokenizer)
        assert all(store.parts(number)[0].tolist() == ids for number, ids in enumerate(expected)), "ids differ"
    return Figure.rate("store of 文汇's tokens, with reading and writing", size / ours, size / peer, "MB/s", 0.8)


def clean_figure(records: int) -> Figure:
    """Cleaning with the recipe for text: two processes against one."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        write_records(source, map(Text, documents(records)))
        two, one = alternate(
            lambda: clean(load("text"), [source], out, workers=2), lambda: clean(load("text"), [source], out), rounds=1
        )
    return Figure.rate("cleaning by the recipe text, 2 workers against 1", records / two, records / one, "docs/s", 1.0)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="of MinHash")
    parser.add_argument("--megabytes", type=float, default=20.0, help="of real text for the store")
    parser.add_argument("--records", type=int, default=20_000, help="to clean")
    options = parser.parse_args()
    figures = minhash_figures(options.sizes)
    figures.append(clean_figure(options.records))
    if (VOCAB / "cog-pretrain.model").is_file():
        figures.append(store_figure(options.megabytes))
    return finish(figures, options.check)


if __name__ == "__main__":
    sys.exit(main())
