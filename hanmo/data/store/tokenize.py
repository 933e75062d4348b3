"""Tokenises records into a store of token ids, in blocks and several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hanmo import families
from hanmo.data.parallel.blocks import block_job, record_blocks, run_blocks
from hanmo.data.store.token_store import ABOUT, FILES, FORMAT, KINDS, About, encode_flat, vocabulary_hash, write_about
from hanmo.errors import ConfigError, VocabularyError, quoted
from hanmo.files import replacing
from hanmo.records import Dialogue, Plain, Record, Rejects, ScoredAnswers, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 1000  # documents of one unit of work


@dataclass(frozen=True)
class TokenizerPlace:
    """The place of a tokenizer: a model's folder, or a vocabulary file and its family."""

    path: str
    family: str = ""

    @cache  # noqa: B019 (a process opens few tokenizers, and keeps them)
    def open(self) -> PreTrainedTokenizerBase:
        """The tokenizer, opened once in each process; VocabularyError if there is none."""
        from hanmo.checkpoints.locate import (  # they load torch, which worker processes do without
            local_folder,
            tokenizer_family,
        )
        from hanmo.families.safe_loading import safe_tokenizer

        path = local_folder(self.path)
        family = families.load(self.family) if self.family else tokenizer_family(path)
        if family is None:
            advice = "for a vocabulary file say whose it is with --family"
            raise VocabularyError(f"{path}: no model or tokenizer in it; {advice}")
        if path.is_dir():
            return safe_tokenizer(path, family.tokenizer_class)
        try:
            return family.tokenizer_class(vocab_file=str(path))
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise VocabularyError(f"{path}: no tokenizer of {family.name}: {quoted(error)}") from error


class _Block(NamedTuple):
    """Texts of records as plain lists, which reach another process many times faster than records."""

    texts: list[str]
    documents: list[int]  # how many texts each record has
    kinds: list[int]


def _tokenize_block(tokenizer: PreTrainedTokenizerBase, block: _Block, path: Path) -> None:
    """Tokenise a block into one .npz file, in this process alone: the blocks are spread over processes."""
    ids, parts = encode_flat(tokenizer, block.texts)
    documents, kinds = np.array(block.documents, np.int64), np.array(block.kinds, np.uint8)
    with path.open("wb") as file:
        np.savez(file, ids=ids.astype(np.uint32), parts=parts, documents=documents, kinds=kinds)


def _block(records: list[Record]) -> _Block:
    kinds, documents = zip(*map(_texts, records), strict=True)
    return _Block([text for texts in documents for text in texts], [len(texts) for texts in documents], list(kinds))


def _texts(record: Record) -> tuple[int, list[str]]:
    if isinstance(record, Text):
        return KINDS.index("text"), [record.text]
    if isinstance(record, Dialogue):
        return KINDS.index("dialogue"), [record.system, *record.turns] if record.system else list(record.turns)
    best = record.best() if isinstance(record, ScoredAnswers) else record
    prompt = f"{best.system}\n{best.prompt}" if best.system else best.prompt
    return KINDS.index("pair"), [prompt, best.prefix + best.response]


def tokenize(
    tokenizer: TokenizerPlace,
    paths: Sequence[Path],
    out: Path,
    plain: Plain = "text",
    workers: int = 1,
    bad: Rejects | None = None,
    progress: Callable[[int], None] | None = None,
    share: tuple[int, int] | None = None,
) -> About | None:
    """Write the store of some files, or compute a ``share``, (rank, world), for a later call without it, and return None.

    ``bad`` takes lines that are no records; without it the first one stops the work. ConfigError if ``out`` holds
    something else, InUseError if another run writes it, VocabularyError if there is no tokenizer.
    """
    opened = tokenizer.open()
    vocabulary = vocabulary_hash(opened)
    with block_job(out, {"vocabulary": vocabulary, "plain": plain, "block": BLOCK}, paths, share) as folder:
        if share is None:
            _clear(out)
        blocks = map(_block, record_blocks(paths, BLOCK, plain, bad))
        work = partial(_tokenize_block, opened)  # pickled whole: opening it there would import its family, and torch
        results = run_blocks(blocks, work, folder, workers, progress, share, BLOCK)
        if share is not None:
            return None
        dtype = "uint16" if len(opened) <= 1 << 16 else "uint32"
        counts = _merge(results, out, dtype)
        name = f"{tokenizer.family or 'the tokenizer'} of {Path(tokenizer.path).name}"
        about = About(FORMAT, *counts, dtype, vocabulary, name, [path.name for path in paths])
        write_about(out, about)
    return about


def _clear(out: Path) -> None:
    """Remove the files that a killed run left in the store's folder; ConfigError if it holds others."""
    names = (*FILES, ABOUT)
    others = [path for path in out.iterdir() if path.name not in names] if out.is_dir() else []
    drafts = tuple(f".{name}." for name in names)
    left = [path for path in others if path.name.startswith(drafts) and path.suffix == ".tmp"]
    if foreign := sorted(path.name for path in others if path not in left):
        raise ConfigError(f"{out}: holds {', '.join(foreign[:3])}; a store needs a folder of its own")
    for path in left:
        path.unlink()


def _merge(results: Sequence[Path], out: Path, dtype: str) -> tuple[int, int, int]:
    """Concatenate the blocks; returns the numbers of documents, parts and tokens."""
    documents = parts = tokens = 0
    with ExitStack() as stack:
        places = [stack.enter_context(replacing(out / name)) for name in FILES]
        files = [stack.enter_context(place.open("wb")) for place in places]
        for path in results:
            with np.load(path) as block:
                ids = block["ids"]
                if len(ids) and int(ids.max()) > np.iinfo(dtype).max:
                    raise VocabularyError(f"token id {int(ids.max())} does not fit into {dtype}")
                part_ends, document_ends = tokens + np.cumsum(block["parts"]), parts + np.cumsum(block["documents"])
                arrays = ids.astype(dtype), part_ends, document_ends, block["kinds"]
                for file, array in zip(files, arrays, strict=True):
                    file.write(array.tobytes())
            documents, parts, tokens = documents + len(document_ends), parts + len(part_ends), tokens + len(ids)
        (out / ABOUT).unlink(missing_ok=True)  # until all files have been renamed the store is unfinished
    return documents, parts, tokens
