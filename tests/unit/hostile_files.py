"""Checkpoints that lie: each maker changes an honest folder so that one thing in it is not so."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.unit.checkpoint_files import HUB, original_tensors

WEIGHTS = "pytorch_model.bin"
Members = dict[str, bytes]


def members(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def write_members(file: Path, held: Members, compress: bool = False, force_zip64: bool = False) -> None:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in held.items():
            with archive.open(
                zipfile.ZipInfo(f"archive/{name}") if not compress else f"archive/{name}", "w", force_zip64=force_zip64
            ) as member:
                member.write(content)


def with_pickle(folder: Path, pickled: bytes, compress: bool = False) -> None:
    """A file of weights whose pickle is this."""
    write_members(folder / WEIGHTS, {"data.pkl": pickled, "version": b"3\n"}, compress)


def changed(folder: Path, change: Callable[[Members], None]) -> None:
    held = members(folder / WEIGHTS)
    change(held)
    write_members(folder / WEIGHTS, held)


def shared_tuples(depth: int) -> bytes:
    """{t: None}, where t is a tuple of twice the same tuple of twice the same tuple … : 2^depth in all."""
    return b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(depth)) + b"Ns."


def nested_tuples(depth: int) -> bytes:
    return b"\x80\x02})" + b"\x85" * depth + b"Ns."


def laughing_dicts() -> bytes:
    """Dicts of eight times the same dict of eight times the same dict …, as the state beside weights may be."""
    keys = [b"K%c" % n for n in range(8)]
    levels = b"".join(b"q%c}(" % n + b"".join(key + b"h%c" % n for key in keys) + b"u" for n in range(20))
    return b"\x80\x02}" + levels + b"."


def legacy(file: Path, content: Any, change: Callable[[bytes], bytes] = lambda whole: whole) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.write_bytes(change(file.read_bytes()))


def calls(name: str, number: int) -> bytes:
    """{"a": name(number)} as a pickle."""
    module, _, function = name.rpartition(".")
    argument = b"\x8a\x08" + number.to_bytes(8, "little")
    return b"\x80\x02}X\x01\0\0\0a" + f"c{module}\n{function}\n".encode() + argument + b"\x85Rs."


def _unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def copies(name: str, of: bytes, times: int, more: bytes = b"") -> bytes:
    """A list of so many results of name(the same object): each result is a copy, and takes a few bytes of the file."""
    module, _, function = name.rpartition(".")
    call = f"c{module}\n{function}\n".encode()
    if name == "argparse.Namespace":  # copies what its attributes are set to
        return b"\x80\x02](" + of + b"q\1" + (call + b")\x81h\1b") * times + b"e."
    return b"\x80\x02](" + of + b"q\1" + (call + b"(h\1" + more + b"tR") * times + b"e."


def colliding(keys: int, key: Callable[[int], bytes]) -> bytes:
    """A dict whose keys all have the same hash: a new one is compared with all that are there."""
    return b"\x80\x02}(" + b"".join(key(n) + b"N" for n in range(keys)) + b"u."


def _text_as_number(number: int) -> bytes:
    return b"cbuiltins\nint\n" + _unicode(f"{(5000 + number) * (2**61 - 1):x}") + b"K\x10\x86R"


def colliding_set(numbers: int) -> bytes:
    """As ``colliding``, for a set, by the name that pickles of protocol 2 give it."""
    return b"\x80\x02c__builtin__\nset\n](" + b"".join(_text_as_number(n) for n in range(numbers)) + b"e\x85R."


def _after_what_is_not_followed(folder: Path, odd: bytes) -> None:
    """A call that torch takes and that is unusual, and then the tuples."""
    with_pickle(folder, b"\x80\x02](" + odd + shared_tuples(60)[2:-1] + b"e.")


def of_another_case(folder: Path) -> None:
    """A tensor names its bytes in capitals, which torch finds in a member in small letters, and claims more of them."""
    torch.save({"a": torch.zeros(4)}, folder / WEIGHTS)
    with zipfile.ZipFile(folder / WEIGHTS) as archive:
        held = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    pickled = held["data.pkl"].replace(b"X\x01\0\0\x000", b"X\x01\0\0\0A")
    held["data/a"] = held.pop("data/0")
    write_members(folder / WEIGHTS, {**held, "data.pkl": storage_of(pickled, 4, 8)})


def laid_out_anew(folder: Path) -> None:
    """A parameter of four numbers whose state says that it has a million."""
    torch.save({"a": torch.zeros(4)}, folder / WEIGHTS)
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\4tQ"
    state = b"(" + storage + b"K\0J\x40\x42\x0f\0\x85K\1\x85t"
    parameter = b"ctorch.nn.parameter\nParameter\n)\x81" + state + b"b"
    changed(folder, lambda held: held.update({"data.pkl": b"\x80\x02}X\1\0\0\0a" + parameter + b"s."}))


def _long(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little")


def storage_of(pickled: bytes, numel: int, claim: int) -> bytes:
    """The pickle with the size of the first storage that has ``numel`` numbers changed."""
    said = next(said for said in (b"K%c" % (numel & 255), b"M" + struct.pack("<H", numel & 65535)) if said in pickled)
    place = pickled.index(said, pickled.index(b"storage"))
    return pickled[:place] + _long(claim) + pickled[place + len(said) :]


def same_bytes_twice(folder: Path) -> None:
    """Two tensors of one storage, which one calls half and the other single precision."""
    torch.save({"a": torch.zeros(4), "b": torch.zeros(4).half()}, folder / WEIGHTS)
    changed(
        folder, lambda held: held.update({"data.pkl": held["data.pkl"].replace(b"X\x01\0\0\x001", b"X\x01\0\0\x000")})
    )


def _local_header(file: Path, change: Callable[[bytearray, int], None]) -> None:
    """Change the header before the third member, and not the list of contents."""
    whole = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        change(whole, archive.infolist()[2].header_offset)
    file.write_bytes(whole)


def other_name(folder: Path) -> None:
    _local_header(folder / WEIGHTS, lambda whole, place: whole.__setitem__(place + 38, ord("?")))


def other_offset(folder: Path) -> None:
    """The header says that its extra field is a byte shorter, so that the tensor begins a byte earlier."""

    def change(whole: bytearray, place: int) -> None:
        (length,) = struct.unpack_from("<H", whole, place + 28)
        struct.pack_into("<H", whole, place + 28, length + 40_000)

    _local_header(folder / WEIGHTS, change)


def other_size(folder: Path) -> None:
    def change(whole: bytearray, place: int) -> None:
        struct.pack_into("<2L", whole, place + 18, 64, 64)

    _local_header(folder / WEIGHTS, change)


def twice(folder: Path) -> None:
    file = folder / WEIGHTS
    with zipfile.ZipFile(file, "a") as archive:
        name = next(info.filename for info in archive.infolist() if info.filename.endswith("data/0"))
        archive.writestr(name, b"\0" * 8)


def over_each_other(folder: Path) -> None:
    """The list of contents says of two members that they are the same place."""
    file = folder / WEIGHTS
    with zipfile.ZipFile(file) as archive:
        place, infos = archive.start_dir, archive.infolist()
    whole = bytearray(file.read_bytes())
    for number, info in enumerate(infos):
        if number == len(infos) - 1:
            struct.pack_into("<L", whole, place + 42, infos[-2].header_offset)
        place += 46 + len(info.orig_filename) + len(info.extra)
    file.write_bytes(whole)


def behind_another(folder: Path) -> None:
    file = folder / WEIGHTS
    other = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, other)
    file.write_bytes(other.getvalue() + file.read_bytes())


def with_something_behind(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-2] + struct.pack("<H", 4) + b"more")


def absent_bytes(folder: Path) -> None:
    """A file from before torch 1.6 whose list of storages leaves one out: its numbers would be what lay in memory."""

    # The list that follows the content: the keys of both storages.
    def change(whole: bytes) -> bytes:
        start = whole.rindex(b"\x80\x02]")
        return whole[:start] + b"\x80\x02]q\0." + whole[whole.index(b"e.", start) + 2 :]

    legacy(folder / WEIGHTS, {"a": torch.zeros(3), "b": torch.ones(5)}, change)


def safetensors(folder: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    said = len(text) if length is None else length
    (folder / WEIGHTS).unlink(missing_ok=True)
    (folder / "model.safetensors").write_bytes(said.to_bytes(8, "little") + text + data)


def _facts(begin: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def bomb(folder: Path) -> None:
    """A pickle of a few hundred kilobytes that unpacks to 90 million times None."""
    with_pickle(folder, b"\x80\x02(" + b"N" * 90_000_000 + b"t.", compress=True)


def expanded(rows: int) -> Tensor:
    return torch.zeros(1, 8).expand(rows, 8)


def many_views(folder: Path) -> None:
    """Fifteen hundred views of the same hundred kilobytes."""
    whole = torch.zeros(25_000)
    torch.save({f"t{n}": whole[n % 7 :] for n in range(1_500)}, folder / WEIGHTS)


def with_config(**changes: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return make


def rewritten(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


# Changes of an original EVA as the hub has it: pytorch_model.bin, config.json, vocab.txt.
ORIGINALS: dict[str, Callable[[Path], Any]] = {
    "tuples shared 60 deep": lambda folder: with_pickle(folder, shared_tuples(60)),
    "tuples shared 60 deep, before 1.6": lambda folder: legacy(
        folder / WEIGHTS, {}, lambda whole: whole.replace(pickle.dumps({}, 2), shared_tuples(60), 1)
    ),
    "tuples nested 300,000 deep": lambda folder: with_pickle(folder, nested_tuples(300_000)),
    "dicts shared 20 deep": lambda folder: with_pickle(folder, laughing_dicts()),
    "a pickle that unpacks to much": bomb,
    "rows without bytes": lambda folder: torch.save({"a": expanded(10**9)}, folder / WEIGHTS),
    "rows without bytes, before 1.6": lambda folder: legacy(folder / WEIGHTS, {"a": expanded(10**9)}),
    "many views": many_views,
    "a storage longer than its bytes": lambda folder: (
        torch.save({"a": torch.zeros(4), "b": torch.ones(400)}, folder / WEIGHTS),
        changed(folder, lambda held: held.update({"data.pkl": storage_of(held["data.pkl"], 4, 64)})),
    ),
    "a storage of another kind": lambda folder: (
        torch.save({"a": torch.zeros(4)}, folder / WEIGHTS),
        changed(folder, lambda held: held.update({"data.pkl": held["data.pkl"].replace(b"Float", b"Double")})),
    ),
    "two kinds of the same bytes": same_bytes_twice,
    "a tensor beyond its storage": lambda folder: (
        torch.save({"a": torch.zeros(4, 4)}, folder / WEIGHTS),
        changed(
            folder,
            lambda held: held.update({"data.pkl": held["data.pkl"].replace(b"K\x04K\x04\x86", b"K\x04K\x40\x86")}),
        ),
    ),
    "a storage of 40 GB, before 1.6": lambda folder: legacy(
        folder / WEIGHTS, {"a": torch.zeros(200)}, lambda whole: storage_of(whole, 200, 10**10)
    ),
    "bytes that are not there, before 1.6": absent_bytes,
    "a tensor out of nothing": lambda folder: with_pickle(folder, calls("torch.FloatTensor", 10**8)),
    "a storage out of nothing": lambda folder: with_pickle(folder, calls("torch.storage.UntypedStorage", 10**9)),
    "bytes out of nothing": lambda folder: with_pickle(folder, calls("builtins.bytearray", 10**10)),
    "a text converted again and again": lambda folder: with_pickle(
        folder, copies("_codecs.encode", _unicode("a" * 10**6), 4000, _unicode("latin1"))
    ),
    "a list copied again and again": lambda folder: with_pickle(
        folder, copies("builtins.list", b"](" + b"N" * 10**5 + b"e", 9000)
    ),
    "attributes copied again and again": lambda folder: with_pickle(
        folder,
        copies("argparse.Namespace", b"}(" + b"".join(_unicode(f"k{n}") + b"N" for n in range(20_000)) + b"u", 4000),
    ),
    "numbers as texts that all fall together": lambda folder: with_pickle(folder, colliding(60_000, _text_as_number)),
    "a set of numbers that all fall together": lambda folder: with_pickle(folder, colliding_set(60_000)),
    "tuples after a call with a list": lambda folder: _after_what_is_not_followed(
        folder, b"c_codecs\nencode\n](" + _unicode("a") + _unicode("latin1") + b"eR"
    ),
    "tuples after an empty size": lambda folder: _after_what_is_not_followed(folder, b"ctorch\nSize\n)R"),
    "a tensor laid out anew": laid_out_anew,
    "bytes under a name in another case": of_another_case,
    "a sparse tensor": lambda folder: torch.save({"a": torch.eye(3).to_sparse()}, folder / WEIGHTS),
    "a tensor without numbers": lambda folder: torch.save({"a": torch.empty(3, device="meta")}, folder / WEIGHTS),
    "a member twice": twice,
    "a member under another name": other_name,
    "a member elsewhere": other_offset,
    "a member of another size": other_size,
    "members over each other": over_each_other,
    "an archive behind another": behind_another,
    "something behind the archive": with_something_behind,
    "a byte order that there is not": lambda folder: changed(folder, lambda held: held.update(byteorder=b"middle")),
    "safetensors over each other": lambda folder: safetensors(
        folder, {"a": _facts(0, 16, 4), "b": _facts(8, 24, 4)}, bytes(24)
    ),
    "safetensors beyond the file": lambda folder: safetensors(folder, {"a": _facts(0, 4 << 40, 1 << 40)}, bytes(16)),
    "safetensors of another length": lambda folder: safetensors(folder, {"a": _facts(0, 16, 10**9)}, bytes(16)),
    "a header of exabytes": lambda folder: safetensors(folder, {"a": _facts(0, 16, 4)}, bytes(16), length=1 << 60),
    "a header of brackets": lambda folder: safetensors(folder, b'{"a":' + b"[" * 1_000_000, b""),
    "a billion layers": with_config(num_layers=10**9),
    "layers by the dozen, in floats": with_config(num_layers=1e18),
    "a hundred million labels": with_config(num_labels=10**8),
    "a configuration of brackets": rewritten("config.json", "[" * 200_000),
    "a number of 10,000 digits": rewritten("config.json", '{"num_layers": ' + "9" * 10_000 + "}"),
    "a width of billions": with_config(d_model=10**12),
}


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = folder / "tokenizer.json"
        said = json.loads(file.read_text(encoding="utf-8"))
        change(said)
        file.write_text(json.dumps(said), encoding="utf-8")

    return make


def _doubling(times: int, what: str = "好") -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": what}, "content": what * 2}
    return {"type": "Sequence", "normalizers": [step] * times}


_NESTED = {"type": "Split", "pattern": {"Regex": r"(一*)*(天*)*!"}, "behavior": "Isolated", "invert": False}
_PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}

# Changes of a Qwen3 as transformers saves it: model.safetensors, config.json, tokenizer.json and its settings.
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "rules that double, 45 times": _tokenizer(lambda said: said.update(normalizer=_doubling(45))),
    "rules that double what is rare": _tokenizer(lambda said: said.update(normalizer=_doubling(45, "龘"))),
    "texts filled up to 40 GB": _tokenizer(
        lambda said: said.update(padding={**_PADDING, "strategy": {"Fixed": 10**10}})
    ),
    "a decoder that doubles": _tokenizer(
        lambda said: said.update(decoder={"type": "Sequence", "decoders": _doubling(45)["normalizers"]})
    ),
    "a billion layers": with_config(num_hidden_layers=10**9),
    "a hundred million labels": with_config(num_labels=10**8),
    "a width of a million": with_config(hidden_size=1_048_576, intermediate_size=1_048_576),
    "a billion words": with_config(vocab_size=10**9),
    "settings of brackets": rewritten("tokenizer_config.json", "[" * 200_000),
    "a tokenizer of brackets": rewritten("tokenizer.json", "[" * 200_000),
    "a tokenizer of no known kind": _tokenizer(lambda said: said.update(model={"type": "Nope"})),
    "a rule that is no regular expression": _tokenizer(
        lambda said: said.update(pre_tokenizer={**_NESTED, "pattern": {"Regex": "(一"}})
    ),
    "a tokenizer that is a list": rewritten("tokenizer.json", "[1, 2]"),
}
WIDE = ("a width of a million", "a billion words")
TEMPLATES = {
    "a text of ten billion letters": "{{ 'a' * 10**10 }}",
    "a text that doubles": "{% set n = namespace(x='aa') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a number of billions of digits": "{{ 9 ** (9 ** 9) }}",
    "filled up": "{{ '%4000000000d' % 1 }}",
    "centred": "{{ 'a' | center(4000000000) }}",
    "a filter's sum": "{{ ('a' | list * 9999999999) | join }}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


def deflated(folder: Path) -> None:
    write_members(folder / WEIGHTS, members(folder / WEIGHTS), compress=True)


def _of_the_other_order(folder: Path) -> None:
    """As a machine writes it whose numbers begin with the large end: all of two bytes here."""
    held = members(folder / WEIGHTS)
    for name, content in held.items():
        if name.startswith("data/"):
            held[name] = b"".join(content[n : n + 2][::-1] for n in range(0, len(content), 2))
    write_members(folder / WEIGHTS, {**held, "byteorder": b"big"})


def _odd_strides(folder: Path) -> None:
    """Each tensor as every second column of a larger one, turned, from the middle of its storage."""
    odd = {}
    for name, tensor in original_tensors(HUB).items():
        place = torch.zeros(3 + 2 * tensor.numel(), dtype=tensor.dtype)[3:]
        view = place.as_strided(
            tensor.shape, [2 * s for s in tensor.t().contiguous().t().stride()] if tensor.dim() == 2 else [2]
        )
        view.copy_(tensor)
        odd[name] = view
    torch.save(odd, folder / WEIGHTS)


# Honest originals in unusual forms: the same weights, to the bit.
HONEST: dict[str, Callable[[Path], Any]] = {
    "compressed": deflated,
    "sizes of 64 bits": lambda folder: write_members(folder / WEIGHTS, members(folder / WEIGHTS), force_zip64=True),
    "the other byte order": _of_the_other_order,
    "odd strides": _odd_strides,
    "not aligned": lambda folder: write_members(folder / WEIGHTS, {"x": b"abc", **members(folder / WEIGHTS)}),
    "before 1.6": lambda folder: legacy(folder / WEIGHTS, original_tensors(HUB)),
}
