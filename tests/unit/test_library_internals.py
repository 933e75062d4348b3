"""What hanmo uses of the inside of its libraries: all of it is listed here, and fails here when a library changes."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import pytest
import torch
from accelerate import Accelerator, ParallelismConfig
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizer,
    Trainer,
    TrainingArguments,
)
from transformers.utils import chat_template_utils

import hanmo
from tests.unit.tiny import tiny

# Private methods and attributes of the libraries' classes that ours override, and the parameters of the methods.
OVERRIDDEN: dict[type, dict[str, list[str] | None]] = {
    Trainer: {
        "_get_eval_sampler": ["eval_dataset"],
        "_get_grad_norm": ["model", "grad_norm"],
        "_get_num_items_in_batch": ["batch_samples", "device"],
        "_get_output_dir": ["trial"],
        "_get_train_sampler": ["train_dataset"],
        "_issue_warnings_after_load": ["load_result"],
        "_load_best_model": [],
        "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
        "_load_optimizer_and_scheduler": ["checkpoint"],
        "_load_rng_state": ["checkpoint"],
        "_move_model_to_device": ["model", "device"],
        "_run_epoch": None,  # its parameters are passed on as they are
        "_save": ["output_dir", "state_dict"],
        "_save_checkpoint": ["model", "trial"],
        "_save_optimizer_and_scheduler": ["output_dir"],
        "_save_rng_state": ["output_dir"],
    },
    ParallelismConfig: {"_validate_accelerator": ["accelerator"]},
    PreTrainedTokenizer: {
        "_convert_id_to_token": ["index"],
        "_convert_token_to_id": ["token"],
        "_convert_token_to_id_with_added_voc": ["token"],
        "_decode": ["token_ids", "skip_special_tokens", "clean_up_tokenization_spaces", "kwargs"],
        "_tokenize": ["text", "kwargs"],
        "_update_total_vocab_size": [],
    },
    PreTrainedModel: {
        "_init_weights": ["module"],
        "_input_embed_layer": None,
        "_keep_in_fp32_modules_strict": None,
        "_no_split_modules": None,
        "_supports_sdpa": None,
        "_tied_weights_keys": None,
        "_tp_plan": None,
    },
    nn.Module: {"_apply": ["fn", "recurse"], "_save_to_state_dict": ["destination", "prefix", "keep_vars"]},
}


def network() -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))


def parameters(method: Callable[..., object]) -> list[str]:
    return list(inspect.signature(method).parameters)[1:]


def added_tokens(tmp_path: Path) -> bool:
    tokenizer = tiny("eva", tmp_path).tokenizer
    tokenizer.add_tokens(["<新>"])
    return tokenizer._added_tokens_encoder["<新>"] == tokenizer.convert_tokens_to_ids("<新>")


def checkpointing(_: Path) -> bool:
    """Each layer keeps what it was switched on with."""
    model = network()
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": int})
    functions = [
        one._gradient_checkpointing_func for one in model.modules() if getattr(one, "gradient_checkpointing", 0)
    ]
    return bool(functions) and all(isinstance(one, partial) and one.keywords["context_fn"] is int for one in functions)


def rebuilt_tensor(_: Path) -> bool:
    wanted = ["storage", "storage_offset", "size", "stride", "requires_grad", "backward_hooks", "metadata"]
    return list(inspect.signature(torch._utils._rebuild_tensor_v2).parameters) == wanted


def old_names(_: Path) -> bool:
    """The names of Python 2 that pickles may use."""
    return IMPORT_MAPPING["__builtin__"] == "builtins" and NAME_MAPPING["__builtin__", "unicode"] == ("builtins", "str")


def attention(_: Path) -> bool:
    kinds = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    return all(hasattr(torch.ops.aten, f"_scaled_dot_product_{kind}") for kind in kinds)


def by_shape(_: Path) -> bool:
    """Tensors that have shapes alone, and a mode that sees every operation."""
    seen: list[str] = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    fake = FakeTensorMode(allow_non_fake_inputs=True).from_tensor(torch.ones(2, 3))
    with Seeing():
        product = fake @ torch.ones(3, 4)
    return product.shape == (2, 4) and isinstance(product, FakeTensor) and "mm" in seen


def consolidated(_: Path) -> bool:
    engine = pytest.importorskip("deepspeed", reason="deepspeed is not installed").DeepSpeedEngine
    return parameters(engine._zero3_consolidated_16bit_state_dict) == ["exclude_frozen_parameters"]


CHECKS: dict[str, Callable[[Path], bool]] = {
    "_added_tokens_encoder": added_tokens,
    "_compile_jinja_template": lambda _: (
        "raise_exception" in chat_template_utils._compile_jinja_template("").environment.globals
    ),
    "_gradient_checkpointing_func": checkpointing,
    "_n_gpu": lambda _: "_n_gpu" in inspect.getsource(TrainingArguments),  # set by us, to keep DataParallel away
    "_name_or_path": lambda _: LlamaConfig(name_or_path="here")._name_or_path == "here",
    "_original_forward": lambda _: (
        "model._original_forward = model.forward" in inspect.getsource(Accelerator.prepare_model)
    ),
    "_prepare_inputs": lambda _: parameters(Trainer._prepare_inputs) == ["inputs"],
    "_python_dispatch": by_shape,
    "_rebuild_tensor_v2": rebuilt_tensor,
    "_scaled_dot_product_cudnn_attention": attention,
    "_scaled_dot_product_efficient_attention": attention,
    "_scaled_dot_product_flash_attention": attention,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_subclasses": by_shape,
    "_utils": old_names,
    "_zero3_consolidated_16bit_state_dict": consolidated,
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_used_of_a_librarys_inside_is_there(name: str, tmp_path: Path) -> None:
    assert CHECKS[name](tmp_path)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in OVERRIDDEN.items() for name in names])
def test_what_is_overridden_is_there(kind: type, name: str) -> None:
    wanted = OVERRIDDEN[kind][name]
    assert hasattr(kind, name) and (wanted is None or parameters(getattr(kind, name)) == wanted)


def test_trainer_defaults_are_those_that_a_policy_leaves_out() -> None:
    assert TrainingArguments.per_device_train_batch_size == TrainingArguments.per_device_eval_batch_size == 8
    assert TrainingArguments.gradient_accumulation_steps == 1


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_nothing_else_is_overridden() -> None:
    modules = [one.name for one in pkgutil.walk_packages(hanmo.__path__, "hanmo.") if not one.name.endswith("__main__")]
    kinds = {
        kind for name in modules for kind in vars(importlib.import_module(name)).values() if isinstance(kind, type)
    }
    found = {
        (base, name)
        for kind in kinds
        if kind.__module__.startswith("hanmo.") and Protocol not in kind.__bases__
        for name in filter(is_private, vars(kind))
        for base in OVERRIDDEN
        if issubclass(kind, base) and hasattr(base, name)
    }
    assert {name for _, name in found} == {name for names in OVERRIDDEN.values() for name in names}


def own_names(tree: ast.Module) -> Iterator[str]:
    """What a file defines, in classes and by assigning to ``self``."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def reached_into(tree: ast.Module) -> Iterator[str]:
    """Private attributes, imports from private modules, and private names that ``get`` asks for."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name):
                yield name
            case ast.ImportFrom(module=str(module)) if not module.startswith("hanmo"):
                yield from filter(is_private, module.split("."))
            case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_]) if is_private(name):
                yield name


def test_nothing_else_is_used() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(hanmo.__path__[0]).rglob("*.py")]
    ours = {name for tree in trees for name in own_names(tree)} | {"_exit"}  # os._exit is documented
    assert {name for tree in trees for name in reached_into(tree)} - ours == set(CHECKS)


@pytest.mark.parametrize("name", ["transformers", "accelerate", "peft"])
def test_libraries_of_which_private_parts_are_used_have_an_upper_bound(name: str) -> None:
    """The minor version after the one that these tests run with: what is listed here may be gone there."""
    project = (Path(hanmo.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    [needed] = re.findall(rf'"({name}\W[^"]*)"', project)
    allowed, installed = Requirement(needed).specifier, Version(version(name))
    assert installed in allowed and Version(f"{installed.major}.{installed.minor + 1}.0") not in allowed
