"""What the original of 文汇's tokenizer does otherwise than ours."""

from hanmo.families.transformer_xl.tokenization import TransformerXLTokenizer

EOS = "<|endoftext|>"
TYPES = ("<str0>", "<str1>")  # names of segment types, which shadow the first ids when the original looks ids up


def published_text(tokenizer: TransformerXLTokenizer, ids: list[int]) -> str:
    """Every id from the first ``<|endoftext|>`` on, whatever it is, becomes one ``<|endoftext|>``.

    Raises:
        IndexError: an id outside the vocabulary before that.
    """
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    return " ".join([tokenizer._pieces.decode(ids[:end]), *[EOS] * (len(ids) - end)])


def published_token(tokenizer: TransformerXLTokenizer, id_: int) -> str:
    return TYPES[id_] if 0 <= id_ < len(TYPES) else tokenizer.convert_ids_to_tokens(id_)


def published_id(tokenizer: TransformerXLTokenizer, token: str) -> int:
    """The original does not know its special tokens by name."""
    return tokenizer._pieces.piece_to_id(token)


def padded_vocab_size(tokenizer: TransformerXLTokenizer, model_parallel: int = 1) -> int:
    """Rows of the embedding: the number of tokens rounded up to a multiple of 128 per model-parallel rank."""
    multiple = 128 * model_parallel
    return -(-len(tokenizer) // multiple) * multiple
