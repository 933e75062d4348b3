"""What is at a path, and is it healthy: the question behind "it prints garbage".

Without ``deep`` only indexes are read, whatever the size of the model. Faults are reported, not raised.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hanmo import families
from hanmo.checkpoints.files.resumable import verify_index
from hanmo.checkpoints.generation_config import read_generation
from hanmo.checkpoints.hub import local_folder
from hanmo.checkpoints.open import check_vocabulary, dtype_name, family_of_ours, is_transformers_model, open_tokenizer
from hanmo.checkpoints.originals.config_inference import blank_network, expected_shapes, infer_config, input_embedding
from hanmo.checkpoints.originals.locate import Weights, find_weights
from hanmo.checkpoints.originals.recognise import Original, recognise, some
from hanmo.errors import CheckpointError, ConfigError, HanmoError, VocabularyError, quoted
from hanmo.families.base import Family
from hanmo.families.safe_loading import check_adapter, safe_config, safe_tokenizer
from hanmo.families.stops import ids_outside_vocabulary

SMALL = 300_000_000  # bytes of weights that are read in full without being asked to
SAMPLE = "你好,今天天气很好。我们一起去公园吧!"


@dataclass(frozen=True)
class Check:
    """One question about a model. The verdict is "ok", "warning", "fault" or "skipped"."""

    name: str
    verdict: str
    detail: str
    advice: str = ""


@dataclass
class Report:
    """What is known about a model; None where it is not."""

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

    def add(self, name: str, verdict: str, detail: str, advice: str = "") -> None:
        self.checks.append(Check(name, verdict, detail, advice))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy}


def inspect_model(
    path: str | Path,
    *,
    size: str | None = None,
    config: str | Path | None = None,
    vocab: str | Path | None = None,
    deep: bool | None = None,
) -> Report:
    """Look at a model folder or original checkpoint.

    Args:
        size, config, vocab: as in ``open_model``.
        deep: read every weight too; default: if they are small.
    """
    report = Report(str(path))
    try:
        path = local_folder(path)
        weights = find_weights(path)
    except CheckpointError as error:
        report.add("files", "fault", str(error))
        return report
    _describe_files(report, weights)
    total = sum(file["bytes"] for file in report.files)
    report.deep = total <= SMALL if deep is None else deep
    settled: PretrainedConfig | None
    rows: int | None
    if family := family_of_ours(path):
        settled = _look_at_ours(report, weights, family)
        tokenizer, rows, original = _our_tokenizer(report, path, family), settled.vocab_size, None
    else:
        original = _look_at_original(report, weights)
        if original is None:
            if report.family == families.TRANSFORMERS:
                family = families.load(families.TRANSFORMERS)
                theirs = _config_of_transformers(report, path)
                rows = None if theirs is None else getattr(theirs.get_text_config(), "vocab_size", None)
                tokenizer = _our_tokenizer(report, path, family)
                _check_tokens(report, family, rows, tokenizer)
                _check_stops(report, family, theirs, tokenizer, read_generation(path))
            _check_numbers(report, weights, None)
            return report
        family = original.family
        settled = _settle(report, original, size, config)
        tokenizer = _original_tokenizer(report, original, vocab)
        rows = original.shapes.get(input_embedding(family), (None,))[0]
    _check_tokens(report, family, rows, tokenizer)
    _check_stops(report, family, settled, tokenizer, read_generation(path) if original is None else {})
    _check_numbers(report, weights, original)
    if report.deep:
        if original is not None:
            _check_copies(report, original)
        if settled is not None:
            _check_head(report, weights, family, settled, original)
    return report


def _config_of_transformers(report: Report, path: Path) -> PretrainedConfig | None:
    """The configuration of a transformers model; None, and a fault in the report, if it does not open."""
    try:
        check_adapter(path)
        return safe_config(path)
    except HanmoError as error:
        report.add("configuration", "fault", str(error))
        return None


def _describe_files(report: Report, weights: Weights) -> None:
    report.files = [{"name": str(file), "bytes": file.stat().st_size} for file in weights.files]
    report.ranks, report.iteration, report.layout = len(weights.ranks), weights.iteration, weights.container
    for tensor in weights.ranks[0].values():
        name = dtype_name(tensor.dtype)
        report.dtypes[name] = report.dtypes.get(name, 0) + tensor.numel()
    report.add("files", "ok", f"{len(weights.files)} of {len(weights.files)} files can be read")


def _look_at_ours(report: Report, weights: Weights, family: type[Family]) -> PretrainedConfig:
    config = safe_config(weights.path, family.config_class)
    report.family, report.layout, report.config = family.name, "hanmo", _plain(config)
    expected, found = expected_shapes(family, config), {k: tuple(v.shape) for k, v in weights.ranks[0].items()}
    report.parameters = sum(torch.Size(shape).numel() for shape in expected.values())
    missing = [name for name in expected if name not in found]
    wrong = [f"{n} is {found[n]}, expected {s}" for n, s in expected.items() if n in found and found[n] != s]
    _names_verdict(report, len(expected), missing, [name for name in found if name not in expected], wrong)
    return config


def _look_at_original(report: Report, weights: Weights) -> Original | None:
    try:
        original = recognise(weights)
    except CheckpointError as error:
        report.parameters = sum(tensor.numel() for tensor in weights.ranks[0].values())
        if is_transformers_model(weights):
            report.family, report.layout = families.TRANSFORMERS, "transformers"
            report.config = weights.config
            report.add("names", "skipped", "a model of transformers, which knows its own names")
        else:
            report.add("names", "fault", str(error))
        return None
    report.family, report.layout = original.family.name, original.layout.name
    _names_verdict(report, len(weights.names), original.missing, original.unexpected, [])
    report.parameters = sum(torch.Size(shape).numel() for shape in original.shapes.values())
    if original.absent:
        report.add("optional", "ok", f"not in the files, and not needed: {some(original.absent)}")
    return original


def _names_verdict(report: Report, count: int, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    problems = [f"{len(missing)} missing: {some(missing)}"] * bool(missing)
    problems += [f"{len(unexpected)} unexpected: {some(unexpected)}"] * bool(unexpected)
    problems += [f"{len(wrong)} mis-shaped: {some(wrong, 4)}"] * bool(wrong)
    if problems:
        report.add("names", "fault", "; ".join(problems), "the file is incomplete or of another version: get it again")
    else:
        report.add("names", "ok", f"all {count} tensors are there")


def _settle(report: Report, original: Original, size: str | None, config: str | Path | None) -> PretrainedConfig | None:
    if original.missing or original.unexpected:
        return None
    try:
        settled, report.size = infer_config(original, size, config)
    except (CheckpointError, ConfigError) as error:
        given = size is not None or config is not None or original.weights.config is not None
        report.add("configuration", "fault" if given else "warning", str(error))
        return None
    report.config = _plain(settled)
    report.add("configuration", "ok", f"fits all shapes{f' ({report.size})' if report.size else ''}")
    return settled


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}


def _our_tokenizer(report: Report, path: Path, family: type[Family]) -> PreTrainedTokenizerBase | None:
    try:
        return safe_tokenizer(path, family.tokenizer_class)
    except (OSError, ValueError) as error:
        report.add("vocabulary", "fault", f"the tokenizer does not load: {quoted(error)}")
        return None


def _original_tokenizer(report: Report, original: Original, vocab: str | Path | None) -> PreTrainedTokenizerBase | None:
    try:
        return open_tokenizer(original, vocab)
    except VocabularyError as error:
        report.add("vocabulary", "fault" if vocab else "warning", str(error))
        return None


def _check_tokens(
    report: Report, family: type[Family], rows: int | None, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    if tokenizer is None:
        return
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
    if unknown > len(ids) / 2:
        advice = "is this the vocabulary the model was trained with?"
        report.add(
            "tokenizer", "warning", f"{unknown} of {len(ids)} tokens of ordinary Chinese are unknown to it", advice
        )
    else:
        report.add("tokenizer", "ok", f"ordinary Chinese gives {len(ids)} tokens, {unknown} of them unknown")


def _check_stops(
    report: Report,
    family: type[Family],
    config: PretrainedConfig | None,
    tokenizer: PreTrainedTokenizerBase | None,
    generation: dict[str, Any],
) -> None:
    """Report the stop tokens and the files that name them, and special ids outside the vocabulary."""
    if config is None or tokenizer is None:
        return
    model = family(copy.deepcopy(config), tokenizer, generation=generation)
    ignored = list(ids_outside_vocabulary(model.config, generation, tokenizer))
    for stop in model.stops:
        token = str(tokenizer.convert_ids_to_tokens(stop.id))
        report.stops.append({"id": stop.id, "token": token, "from": list(stop.sources)})
    if not report.stops:
        advice = "set eos_token in tokenizer_config.json: without it replies only end at max_new_tokens"
        report.add("stops", "warning", "; ".join(["no token ends a reply", *ignored]), advice)
        return
    said = ", ".join(f"{stop['token']} {stop['id']} ({', '.join(stop['from'])})" for stop in report.stops)
    report.add("stops", "warning" if ignored else "ok", "; ".join([said, *ignored]))


def _check_numbers(report: Report, weights: Weights, original: Original | None) -> None:
    if not report.deep:
        report.add("numbers", "skipped", "the weights were not read", "say --deep to read them all")
        return
    broken, empty = [], []
    for rank, tensors in enumerate(weights.ranks):
        for name, tensor in tensors.items():
            where = f"{name} (rank {rank})" if len(weights.ranks) > 1 else name
            if not tensor.is_floating_point():
                continue
            if bad := int((~tensor.isfinite()).sum()):
                broken.append(f"{where}: {bad} of {tensor.numel()}")
            elif _should_not_be_zero(name, tensor) and not tensor.any():
                empty.append(where)
    if broken:
        advice = "training diverged or the file is damaged; go back to an earlier checkpoint"
        report.add("numbers", "fault", f"not finite: {some(broken)}", advice)
    if empty:
        advice = "normal for what was absent in the source of a conversion, else the file was not written to its end"
        report.add("zeros", "warning", f"nothing but zeros: {some(empty)}", advice)
    if not broken and not empty:
        report.add("numbers", "ok", "all weights are finite, none is blank")
    try:
        if count := verify_index(weights):
            report.add("hashes", "ok", f"{count} tensors are as they were written")
    except CheckpointError as error:
        report.add("hashes", "fault", str(error))
    if original is not None and len(weights.ranks) > 1:
        _check_replicas(report, original)


def _should_not_be_zero(name: str, tensor: Tensor) -> bool:
    """Biases begin as zeros, and buffers may be; weights of norms and projections are never all zero."""
    return name.endswith("weight") and tensor.numel() > 1


def _check_replicas(report: Report, original: Original) -> None:
    """What every rank holds whole must be the same on all; the first rank's counts."""
    differing = []
    for entry, name in original.present():
        first, *others = original.pieces(name)
        if entry.cut is None and not all(torch.equal(first, other) for other in others):
            differing.append(name)
    if differing:
        advice = "the ranks are of different training states; rank 0's is taken"
        report.add("ranks", "warning", f"differ between ranks: {some(differing)}", advice)
    else:
        report.add("ranks", "ok", f"the {len(original.weights.ranks)} ranks agree where they hold the same")


def _check_copies(report: Report, original: Original) -> None:
    try:
        original.check_copies()
    except CheckpointError as error:
        report.add("copies", "fault", str(error), "the file was put together from different models")
        return
    if any(entry.copies for entry in original.entries):
        report.add("copies", "ok", "tensors stored under several names are the same under all of them")


def _check_head(
    report: Report, weights: Weights, family: type[Family], config: PretrainedConfig, original: Original | None
) -> None:
    """A head that should be its own but equals the embedding was tied by mistake: such a model prints garbage."""
    network = blank_network(family, config)
    head = network.get_output_embeddings() or network.lm_head
    if network._tied_weights_keys or config.tie_word_embeddings:
        return
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    embedding, head_name = input_embedding(family), names[id(head.weight)]

    def whole(name: str) -> Tensor:
        return original.tensor(name) if original is not None else weights.ranks[0][name]

    try:
        tied = torch.equal(whole(embedding), whole(head_name))
    except KeyError:  # missing: said above
        return
    if tied:
        advice = "a conversion tied it by mistake (tie_word_embeddings); convert the original again"
        report.add("head", "fault", "the output head equals the embedding, but this family's is separate", advice)
    else:
        report.add("head", "ok", "the output head is its own")
