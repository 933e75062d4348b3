"""Layers of settings, and what a mistake in them says."""

import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanmo.config import dump, load, named_function, settings_of
from hanmo.errors import ConfigError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Trainer:
    learning_rate: float = 5e-5
    max_steps: int = -1
    output_dir: str | None = None
    optim_args: dict[str, Any] | str | None = None
    colours: list[Colour] | str | None = None


@dataclass(frozen=True)
class Stage:
    model: str
    limit: int = 128
    lora_rank: int | None = None
    rate: float = 0.5
    fast: bool = False
    schedule: Literal["noam", "linear"] = "noam"
    files: tuple[str, ...] = ()
    folder: Path = Path("runs")
    colour: Colour | str = Colour.BLUE
    pairs: dict[int, float] = field(default_factory=dict)
    trainer: dict[str, Any] = field(
        default_factory=dict, metadata=settings_of(f"{__name__}.Trainer", output_dir="use out")
    )


def test_later_layers_win_and_mappings_merge(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("model: b\nrate: 1e-3\ntrainer:\n  max_steps: 7\n")
    preset = {"model": "a", "limit": 64, "trainer": {"learning_rate": 1e-4, "max_steps": 3}}
    config = load(Stage, preset, file, ["limit=32", "trainer.learning_rate=2e-4", "files=[x, y]", "folder=out"])
    assert config == Stage(
        "b", 32, rate=1e-3, files=("x", "y"), folder=Path("out"), trainer={"learning_rate": 2e-4, "max_steps": 7}
    )
    assert preset["trainer"] == {"learning_rate": 1e-4, "max_steps": 3}  # not changed by the merge


@pytest.mark.parametrize(
    "override, message",
    [
        ("limt=3", "unknown setting 'limt': did you mean limit?"),
        ("trainer.learning_rat=3", "unknown setting of trainer 'learning_rat': did you mean learning_rate?"),
        ("trainer.output_dir=x", "trainer.output_dir cannot be set: use out"),
        ("trainer=5", "trainer=5: expected a mapping, found a whole number"),
        ("trainer.max_steps=many", "trainer.max_steps='many': expected a whole number, found text"),
        ("limit=1.5", "limit=1.5: expected a whole number, found a number"),
        ("limit=true", "limit=True: expected a whole number, found true/false"),
        ("lora_rank=x", "lora_rank='x': expected a whole number or null, found text"),
        ("fast=1", "fast=1: expected true or false, found a whole number"),
        ("schedule=step", "schedule='step': expected noam or linear, found text"),
        ("files=x", "files='x': expected a list of text, found text"),
        ("limit='3'", "limit='3': expected a whole number, found text"),
        ("rate=true", "rate=True: expected a number, found true/false"),
        ("rate=.nan", "rate=nan: expected a number, found NaN"),
        ("colour=green", "colour='green': expected red or blue, found text"),
        ("pairs={1: x}", "pairs.1='x': expected a number, found text"),
        ("files=[1]", "files[0]=1: expected text, found a whole number"),
        ("limit", "expected key=value"),
        ("limit=[", "not YAML"),
        ("limit=2024-13-01", "not YAML: month must be in 1..12"),
        ("limit=" + "9" * 5000, "not YAML"),
        ("limit=" + "[" * 2_000, "not YAML"),
        ("trainer={max_steps:3}", "YAML needs a space after a colon; or use trainer.max_steps=3"),
    ],
)
def test_a_mistake_says_what_was_expected(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Stage, {"model": "a"}, overrides=[override])
    assert message in str(error.value)
    assert override in str(error.value)


@pytest.mark.parametrize(
    "override, setting, expected",
    [
        ("rate=1e-4", "rate", 1e-4),  # text to YAML, which wants 1.0e-4
        ("rate=1", "rate", 1.0),
        ("limit=64.0", "limit", 64),
        ("lora_rank=null", "lora_rank", None),
        ("files=[]", "files", ()),
        ("model='7'", "model", "7"),
        ("colour=red", "colour", Colour.RED),
        ("pairs={1: 2e-3}", "pairs", {1: 2e-3}),
        ("trainer.optim_args={a: [1]}", "trainer", {"optim_args": {"a": [1]}}),
        ("trainer.colours=[red]", "trainer", {"colours": [Colour.RED]}),
    ],
)
def test_a_value_is_read_as_its_type(override: str, setting: str, expected: Any) -> None:
    value = getattr(load(Stage, {"model": "a"}, overrides=[override]), setting)
    assert value == expected and type(value) is type(expected)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    for text, message in (("limits: 3", "did you mean limit?"), ("- a", "expected a mapping"), ("a: [", "not YAML"),
                          ("a: 2024-13-01", "not YAML"), ("a: " + "[" * 2_000, "not YAML")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"sft\.yaml") as error:
            load(Stage, {"model": "a"}, file)
        assert message in str(error.value)
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(Stage, {"model": "a"}, tmp_path / "none.yaml")


def test_a_required_setting_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="model: not given"):
        load(Stage)


@given(
    st.builds(
        Stage,
        model=st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1),
        limit=st.integers(),
        lora_rank=st.none() | st.integers(),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        fast=st.booleans(),
        schedule=st.sampled_from(["noam", "linear"]),
        files=st.lists(st.text("文件 a:-#'\"")).map(tuple),
        folder=st.sampled_from([Path("runs/一"), Path("/x y")]),
        trainer=st.fixed_dictionaries({"learning_rate": st.floats(0, 1), "max_steps": st.integers()}),
    )
)
def test_a_dump_loads_back_to_an_equal_configuration(tmp_path_factory: pytest.TempPathFactory, config: Stage) -> None:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert load(Stage, None, file) == config


def test_trainer_settings_are_those_of_transformers() -> None:
    @dataclass(frozen=True)
    class Real:
        trainer: dict[str, Any] = field(
            default_factory=dict, metadata=settings_of("transformers.TrainingArguments", output_dir="use out")
        )

    config = load(Real, overrides=["trainer.learning_rate=1e-4", "trainer.optim=sgd", "trainer.eval_strategy=steps"])
    assert config.trainer["learning_rate"] == 1e-4
    assert load(Real, overrides=["trainer.save_strategy=no"]).trainer["save_strategy"] == "no"  # false to YAML
    with pytest.raises(ConfigError, match=r"did you mean .*per_device_train_batch_size"):
        load(Real, overrides=["trainer.per_device_batch_size=1"])
    with pytest.raises(ConfigError, match="expected no or steps or epoch"):
        load(Real, overrides=["trainer.eval_strategy=sometimes"])


def test_a_named_function_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed command has no current folder on its path; a file there must not pass for a library either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(Path.cwd()))])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    before = list(sys.path)
    Path("my_lengths.py").write_text("def long(prompts, replies):\n    return [len(reply) for reply in replies]\n")
    Path("my_rewards.py").write_text("import my_lengths\nlong = my_lengths.long\nword = 3\n")
    Path("colorsys.py").write_text(
        "def long(): ...\n"
    )  # of the standard library, too, and not loaded by any other test
    Path("my_mistake.py").write_text("1 = 2\n")
    assert named_function("my_rewards:long", "rewards")([""], ["长长"]) == [2]
    assert callable(named_function("json:dumps", "rewards"))
    for name, problem in {
        "my_rewards:lnog": r"no function 'lnog' in .*my_rewards\.py",
        "my_rewards:word": r"no function 'word' in .*my_rewards\.py",
        "my_reward:long": "ModuleNotFoundError: No module named 'my_reward'",
        "my_mistake:long": r"SyntaxError: .*my_mistake\.py, line 1",
        "colorsys:long": r"no function 'long' in .*lib.*colorsys\.py",
        "my_rewards": "no function ''",
        ":long": "ValueError: Empty module name",
    }.items():
        with pytest.raises(
            ConfigError, match=f"^rewards: {name}: {problem}.*; expected module:function, .*{tmp_path.name}"
        ):
            named_function(name, "rewards")
    assert sys.path == before
