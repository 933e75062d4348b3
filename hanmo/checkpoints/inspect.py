"""Describes a model and checks its health. Faults are reported, not raised."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hanmo.checkpoints.files.resumable import verify_index
from hanmo.checkpoints.locate import Located, identify, local_folder
from hanmo.checkpoints.open import check_vocabulary, dtype_name, open_tokenizer
from hanmo.checkpoints.originals.config_inference import blank_network, expected_shapes, infer_config, input_embedding
from hanmo.checkpoints.originals.recognise import Original, some
from hanmo.checkpoints.originals.weights import Weights, find_weights
from hanmo.errors import CheckpointError, HanmoError, VocabularyError, quoted
from hanmo.families.base import Family
from hanmo.families.safe_loading import safe_tokenizer
from hanmo.families.stops import ids_outside_vocabulary
from hanmo.files import or_null

SMALL = 300_000_000  # weights of up to this many bytes are read in full by default
SAMPLE = "你好,今天天气很好。我们一起去公园吧!"


@dataclass(frozen=True)
class Check:
    """One check of a model. The verdict is "ok", "warning", "fault" or "skipped"."""

    name: str
    verdict: str
    detail: str
    advice: str = ""


@dataclass
class Report:
    """The facts about a model, None where unknown, and its checks."""

    path: str
    family: str | None = None
    size: str | None = None
    layout: str | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    ranks: int | None = None
    iteration: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None
    vocabulary: dict[str, Any] = field(default_factory=dict)
    stops: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] | None = None
    deep: bool = False
    checks: list[Check] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return all(check.verdict != "fault" for check in self.checks)

    @property
    def lacks(self) -> list[str]:
        """What the model cannot be opened without, and no file has: "configuration", "vocabulary"."""
        needed = ("configuration", "vocabulary")
        return [check.name for check in self.checks if check.name in needed and check.verdict == "warning"]

    def add(self, name: str, verdict: str, detail: str, advice: str = "") -> None:
        self.checks.append(Check(name, verdict, detail, advice))

    def check(self, name: str, problem: str, fine: str, advice: str, verdict: str = "fault") -> None:
        """Add a problem and the advice for it, or an "ok"."""
        self.add(name, verdict if problem else "ok", problem or fine, advice if problem else "")

    def attempt(self, name: str, action: Callable[[], Any], verdict: str = "fault", prefix: str = "") -> Any:
        """The result of an action; if it raises a HanmoError, None, and a check with this verdict is added."""
        try:
            return action()
        except HanmoError as error:
            self.add(name, verdict, f"{prefix}{quoted(error) if prefix else error}")
            return None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "config": or_null(self.config), "healthy": self.healthy, "lacks": self.lacks}


def inspect_model(
    path: str | Path,
    *,
    size: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    deep: bool | None = None,
) -> Report:
    """Inspect a model folder or original checkpoint; ``deep``: read all weights too (default: if they are small)."""
    report = Report(str(path))
    weights = report.attempt("files", lambda: find_weights(local_folder(path)))
    if weights is None:
        return report
    report.files = [{"name": str(file), "bytes": file.stat().st_size} for file in weights.files]
    report.ranks, report.iteration, report.layout = len(weights.ranks), weights.iteration, weights.container
    report.parameters = weights.numbers.total()
    report.dtypes = {dtype_name(dtype): count for dtype, count in weights.numbers.items()}
    report.add("files", "ok", f"{len(weights.files)} of {len(weights.files)} files can be read")
    total = sum(file["bytes"] for file in report.files)
    report.deep = total <= SMALL if deep is None else deep
    located = report.attempt("names", lambda: identify(weights.path, weights))
    if located is None:
        _check_numbers(report, weights)
        return report
    report.family, report.layout = located.family.name, located.layout
    report.attempt("dtypes", lambda: weights.check_dtypes(located.original is None), "warning")
    if located.original is None:
        model_config, tokenizer = _inspect_folder(report, located)
        rows = None if model_config is None else getattr(model_config.get_text_config(), "vocab_size", None)
    else:
        model_config, tokenizer = _inspect_original(report, located.original, size, config, vocab)
        rows = located.original.shapes.get(input_embedding(located.family), (None,))[0]
    if tokenizer is not None:
        _check_tokens(report, located.family, rows, tokenizer)
    if model_config is not None and tokenizer is not None:
        family, config_copy = located.family, copy.deepcopy(model_config)
        report.attempt(
            "stops", lambda: _check_stops(report, family(config_copy, tokenizer, generation=located.generation))
        )
    _check_numbers(report, weights)
    if report.deep and located.original is not None:
        _check_same(report, located.original)
    if report.deep and model_config is not None and located.layout != "transformers":
        _check_head(report, located, model_config)
    return report


def _inspect_folder(report: Report, located: Located) -> tuple[PretrainedConfig | None, PreTrainedTokenizerBase | None]:
    config = report.attempt("configuration", located.config)
    if not located.is_ours:
        report.config = located.weights.config
        report.add("names", "skipped", "a model of transformers, which checks its own names")
    elif config is not None:
        report.config = _changed_settings(config)
        expected = expected_shapes(located.family, config)
        found = {name: tuple(tensor.shape) for name, tensor in located.weights.ranks[0].items()}
        report.parameters = sum(torch.Size(shape).numel() for shape in expected.values())
        missing = [name for name in expected if name not in found]
        unexpected = [name for name in found if name not in expected]
        wrong = [f"{n} is {found[n]}, expected {s}" for n, s in expected.items() if n in found and found[n] != s]
        _check_names(report, len(expected), missing, unexpected, wrong)

    def tokenizer() -> PreTrainedTokenizerBase:
        return safe_tokenizer(located.path, located.family.tokenizer_class, config)

    return config, report.attempt("vocabulary", tokenizer, prefix="the tokenizer does not load: ")


def _inspect_original(
    report: Report, original: Original, size: str | None, config: str | Path | None, vocab: str | Path | None
) -> tuple[PretrainedConfig | None, PreTrainedTokenizerBase | None]:
    _check_names(report, len(original.weights.names), original.missing, original.unexpected, [])
    report.parameters = sum(torch.Size(shape).numel() for shape in original.shapes.values())
    if original.absent:
        report.add("optional", "ok", f"not in the files, and not needed: {some(original.absent)}")
    model_config = None
    if not original.missing and not original.unexpected:
        given = size is not None or config is not None or original.weights.config is not None
        verdict = "fault" if given else "warning"
        if inferred := report.attempt("configuration", lambda: infer_config(original, size, config), verdict):
            model_config, report.size = inferred
            report.config = _changed_settings(model_config)
            report.add("configuration", "ok", f"fits all shapes{f' ({report.size})' if report.size else ''}")
    verdict = "fault" if vocab else "warning"
    return model_config, report.attempt("vocabulary", lambda: open_tokenizer(original, vocab), verdict)


def _changed_settings(config: PretrainedConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}


def _check_names(report: Report, count: int, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    kinds = (("missing", missing, 8), ("unexpected", unexpected, 8), ("mis-shaped", wrong, 4))
    problems = "; ".join(f"{len(names)} {kind}: {some(names, limit)}" for kind, names, limit in kinds if names)
    advice = "the file is incomplete or from another version: download it again"
    report.check("names", problems, f"all {count} tensors are there", advice)


def _check_tokens(report: Report, family: type[Family], rows: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    report.vocabulary = {"tokens": len(tokenizer), "rows": rows}
    if rows is not None:
        try:
            check_vocabulary(family, rows, tokenizer, report.path)
        except VocabularyError as error:
            report.add("vocabulary", "fault", str(error))
            return
        report.add("vocabulary", "ok", f"{len(tokenizer):,} tokens for {rows:,} rows of the embedding")
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    strange = f"{unknown} of {len(ids)} tokens of ordinary Chinese are unknown to it" if unknown > len(ids) / 2 else ""
    known, advice = f"ordinary Chinese gives {len(ids)} tokens", "is this the vocabulary the model was trained with?"
    report.check("tokenizer", strange, f"{known}, {unknown} of them unknown", advice, "warning")


def _check_stops(report: Report, model: Family) -> None:
    ignored = list(ids_outside_vocabulary(model.config, model.generation, model.tokenizer))
    for stop in model.stops:
        token = str(model.tokenizer.convert_ids_to_tokens(stop.id))
        report.stops.append({"id": stop.id, "token": token, "from": list(stop.sources)})
    if not report.stops:
        advice = "set eos_token in tokenizer_config.json: without it replies only end at max_new_tokens"
        report.add("stops", "warning", "; ".join(["no token ends a reply", *ignored]), advice)
        return
    stops = ", ".join(f"{stop['token']} {stop['id']} ({', '.join(stop['from'])})" for stop in report.stops)
    report.add("stops", "warning" if ignored else "ok", "; ".join([stops, *ignored]))


def _check_numbers(report: Report, weights: Weights) -> None:
    if not report.deep:
        report.add("numbers", "skipped", "the weights were not read", "give --deep to read them all")
        return
    broken, empty = [], []
    for rank, tensors in enumerate(weights.ranks):
        for name, tensor in tensors.items():
            where = f"{name} (rank {rank})" if len(weights.ranks) > 1 else name
            if not tensor.is_floating_point() or "float4" in str(tensor.dtype):
                continue
            tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # FP8, of which torch computes nothing
            if bad := int((~tensor.isfinite()).sum()):
                broken.append(f"{where}: {bad} of {tensor.numel()}")
            elif name.endswith("weight") and tensor.numel() > 1 and not tensor.any():  # biases begin as zeros
                empty.append(where)
    if broken:
        advice = "training diverged or the file is damaged; go back to an earlier checkpoint"
        report.add("numbers", "fault", f"not finite: {some(broken)}", advice)
    if empty:
        advice = "normal for tensors that the source of a conversion lacked; else the file was not written to its end"
        report.add("zeros", "warning", f"only zeros: {some(empty)}", advice)
    if not broken and not empty:
        report.add("numbers", "ok", "all weights are finite, none is blank")
    if count := report.attempt("hashes", lambda: verify_index(weights)):
        report.add("hashes", "ok", f"{count} tensors are as they were written")


def _check_same(report: Report, original: Original) -> None:
    """Tensors that every rank holds whole must be equal on all ranks; copies under several names must be equal too."""
    if (ranks := len(original.weights.ranks)) > 1:
        held = [(name, original.pieces(name)) for entry, name in original.present() if entry.cut is None]
        differing = [name for name, (first, *others) in held if not all(torch.equal(first, one) for one in others)]
        problem, fine = f"differ between ranks: {some(differing)}", f"the {ranks} ranks agree where they hold the same"
        advice = "the ranks are of different training states; rank 0's is taken"
        report.check("ranks", problem if differing else "", fine, advice, "warning")
    try:
        original.check_copies()
    except CheckpointError as error:
        report.add("copies", "fault", str(error), "the file was put together from different models")
        return
    if any(entry.copies for entry in original.entries):
        report.add("copies", "ok", "tensors stored under several names are the same under all of them")


def _check_head(report: Report, located: Located, config: PretrainedConfig) -> None:
    """A separate head that equals the embedding was tied by mistake: such a model prints garbage."""
    network = blank_network(located.family, config)
    if network._tied_weights_keys or config.tie_word_embeddings:
        return
    head = network.get_output_embeddings() or network.lm_head
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def read(name: str) -> Tensor:
        return located.weights.ranks[0][name] if located.original is None else located.original.tensor(name)

    try:
        tied = torch.equal(read(input_embedding(located.family)), read(names[id(head.weight)]))
    except KeyError:  # missing, which the check of the names reports
        return
    problem = "the output head equals the embedding, but this family's is separate" if tied else ""
    advice = "a conversion tied it by mistake (tie_word_embeddings); convert the original again"
    report.check("head", problem, "the output head is separate", advice)
