"""llama.cpp as a peer: models of random weights as GGUF files, and greedy decoding by its own library.

It lives in a folder of its own, built from source in about four minutes:
pip install --no-deps --target FOLDER --no-binary llama-cpp-python llama-cpp-python==0.3.36 gguf diskcache
"""

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.common import Figure, alternate
from hanmo.families.base import OpenedModel
from hanmo.families.huggingface.family import HuggingfaceFamily
from hanmo.families.huggingface.modeling import adopt
from hanmo.generation.decode import generate
from hanmo.generation.settings import Settings
from hanmo.nn.cpu.int8 import to_int8
from hanmo.rows import Context

PEER = "HANMO_LLAMA"
LAYERS, WIDTH, HEADS, POSITIONS = 16, 768, 12, 512
PROMPT = REPLY = 64  # tokens
SHAPES = {
    "pangu": {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "max_position_embeddings": POSITIONS},
    "glm": {"hidden_size": WIDTH, "num_layers": LAYERS, "num_attention_heads": HEADS, "max_sequence_length": POSITIONS},
}
GOALS = {"fp32": 0.6, "int8": 0.85}
QWEN3 = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def available() -> bool:
    """Whether the peer's folder is named; it then comes last of the places where modules are found."""
    if (folder := os.environ.get(PEER)) and folder not in sys.path:
        sys.path.append(folder)
    return bool(folder)


class Plain:
    """In place of the tokenizer of random weights: every id is a token."""

    chat_template = eos_token = eos_token_id = bos_token_id = pad_token_id = sep_token_id = None

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


def qwen3() -> OpenedModel:
    """A Qwen3 of 146 million weights."""
    config = Qwen3Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=64,
        intermediate_size=3 * WIDTH, vocab_size=30_000, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    network = adopt(Qwen3ForCausalLM(config).eval())
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.03)
    return OpenedModel(network, HuggingfaceFamily(config, Plain(config.vocab_size)), "qwen3")


def write_qwen3(network: Any, path: Path, eight: bool) -> None:
    config = network.config
    writer = _writer(path, "qwen3", config.vocab_size, config.intermediate_size)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _finish(writer, ((_qwen3_name(name), value.numpy()) for name, value in network.state_dict().items()
                     if name != "lm_head.weight"), eight)  # fmt: skip


def _qwen3_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in WHOLE:
        return f"{WHOLE[module]}.weight"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{QWEN3[inner]}.weight"


def write_gpt2(vocabulary: int, path: Path, eight: bool) -> None:
    """A GPT-2 of random weights, the nearest to PanGu-α and GLM that llama.cpp knows."""
    writer = _writer(path, "gpt2", vocabulary, 4 * WIDTH)
    writer.add_layer_norm_eps(1e-5)
    _finish(writer, _gpt2_weights(vocabulary), eight)


def _gpt2_weights(vocabulary: int) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.03).astype(np.float32)

    yield "token_embd.weight", drawn(vocabulary, WIDTH)
    yield "position_embd.weight", drawn(POSITIONS, WIDTH)
    layers = {"attn_qkv": (3, 1), "attn_output": (1, 1), "ffn_up": (4, 1), "ffn_down": (1, 4)}
    for norm in ("output_norm", *(f"blk.{layer}.{name}_norm" for layer in range(LAYERS) for name in ("attn", "ffn"))):
        yield f"{norm}.weight", drawn(WIDTH)
        yield f"{norm}.bias", drawn(WIDTH)
    for layer in range(LAYERS):
        for name, (out, into) in layers.items():
            yield f"blk.{layer}.{name}.weight", drawn(out * WIDTH, into * WIDTH)
            yield f"blk.{layer}.{name}.bias", drawn(out * WIDTH)


def _writer(path: Path, architecture: str, vocabulary: int, inner: int) -> Any:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    return writer


def _finish(writer: Any, weights: Iterator[tuple[str, np.ndarray]], eight: bool) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    for name, value in weights:
        if eight and value.ndim == 2 and name != "position_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Peer:
    """A GGUF file opened by llama.cpp, with as many threads as torch has.

    ``use_extra_bufts``: weights in the layout of AMX end the process on a virtual machine that names the unit and has it not.
    """

    def __init__(self, path: Path, vocabulary: int):
        import llama_cpp

        self._library, self._vocabulary = llama_cpp, vocabulary
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, None)
        self._kept = quiet
        llama_cpp.llama_backend_init()
        how = llama_cpp.llama_model_default_params()
        how.use_extra_bufts = False
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
        inner = llama_cpp.llama_context_default_params()
        inner.n_ctx = inner.n_batch = POSITIONS
        inner.n_threads = inner.n_threads_batch = torch.get_num_threads()
        self._context = llama_cpp.llama_init_from_model(self._model, inner)

    def reply(self, ids: Sequence[int], count: int) -> list[int]:
        library, found, given = self._library, list[int](), list(ids)
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        for _ in range(count):
            tokens = (library.llama_token * len(given))(*given)
            if library.llama_decode(self._context, library.llama_batch_get_one(tokens, len(given))):
                raise RuntimeError("llama.cpp failed")
            logits_V = np.ctypeslib.as_array(library.llama_get_logits_ith(self._context, -1), (self._vocabulary,))
            given = [int(logits_V.argmax())]
            found += given
        return found

    def close(self) -> None:
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)


def measure(name: str, opened: OpenedModel, quick: bool) -> list[Figure]:
    """Tokens/s of greedy decoding and of reading the prompt, in fp32 against F32 and in int8 against Q8_0."""
    with TemporaryDirectory() as folder:
        return _measure(name, opened, Path(folder), quick)


def _measure(name: str, opened: OpenedModel, folder: Path, quick: bool) -> list[Figure]:
    vocabulary = opened.network.config.vocab_size
    torch.manual_seed(1)
    ids = torch.randint(100, 30_000, (PROMPT,)).tolist()
    if name == "glm":
        ids[-1] = opened.network.config.mask_token_ids[0]
    context = Context(tuple(ids), tuple(ids))
    files = {}
    for dtype in GOALS:
        files[dtype] = folder / f"{name}-{dtype}.gguf"
        if name == "qwen3":
            write_qwen3(opened.network, files[dtype], dtype == "int8")
        else:
            write_gpt2(vocabulary, files[dtype], dtype == "int8")
    figures, said = [], {}
    for dtype, goal in GOALS.items():
        if dtype == "int8":
            to_int8(opened.network)
        peer = Peer(files[dtype], vocabulary)
        first, whole = (_times(opened, context, peer, count, 2 if quick else 5) for count in (1, REPLY))
        ours, theirs = (end - start for start, end in zip(first, whole, strict=True))
        against = f"{name} of 12 x 64 heads and {LAYERS} layers, {dtype} against llama.cpp's {'F32' if dtype == 'fp32' else 'Q8_0'}"
        figures += [
            Figure.rate(f"{against}, greedy", (REPLY - 1) / ours, (REPLY - 1) / theirs, "tokens/s", goal),
            Figure.rate(f"{against}, reading {PROMPT}", PROMPT / first[0], PROMPT / first[1], "tokens/s", goal),
        ]
        said[dtype] = list(_reply(opened, context, REPLY)), peer.reply(ids, REPLY)
        peer.close()
    if name == "qwen3":
        _compare(said)
    return figures


def _times(opened: OpenedModel, context: Context, peer: Peer, count: int, rounds: int) -> tuple[float, float]:
    return alternate(partial(_reply, opened, context, count), partial(peer.reply, context.ids, count), rounds)


def _reply(opened: OpenedModel, context: Context, count: int) -> tuple[int, ...]:
    return generate(opened, [context], Settings(do_sample=False, max_new_tokens=count))[0].ids


def _compare(said: dict[str, tuple[list[int], list[int]]]) -> None:
    """The same weights: in fp32 both write the same ids; how long each stays with them in eight bits is printed."""
    (ours, theirs), (ours_8, theirs_8) = said["fp32"], said["int8"]

    def equal(one: list[int], other: list[int]) -> int:
        return next((place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))

    if equal(ours, theirs) < REPLY // 2:
        raise RuntimeError(f"llama.cpp writes other ids in F32 from token {equal(ours, theirs)} on")
    print(
        f"# equal ids of {REPLY}: F32 {equal(ours, theirs)}; int8 and fp32 {equal(ours_8, ours)}; Q8_0 and F32 {equal(theirs_8, theirs)}"
    )
