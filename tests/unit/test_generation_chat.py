"""Chat sessions and the console: what is remembered, shown, saved, and what the commands do."""

import io
import json
import sys

import pytest
import torch

import hanmo.checkpoints
from hanmo.cli import chat as chat_cli
from hanmo.cli import generate as generate_cli
from hanmo.errors import ConfigError, RecordError, UnsupportedError
from hanmo.generation.chat import ChatSession
from hanmo.generation.decode import GrowingText
from hanmo.generation.defaults import decoding_settings
from hanmo.generation.prompts import read_prompts
from hanmo.generation.settings import Settings
from hanmo.records import Dialogue, PromptResponse, Text, iter_records
from tests.searching import drawing
from tests.unit.decoding_peers import eva
from tests.unit.tiny import tiny

SETTINGS = Settings(max_new_tokens=6, seed=1)


def scripted(ids):
    """Draws these ids."""
    return drawing(lambda step, samples, probs, count: torch.tensor([[ids[step]]]))


@pytest.fixture
def opened(tmp_path):
    return eva(0, tmp_path)


def ids_of(opened, text):
    return [*opened.tokenizer.encode_plain(text), opened.tokenizer.sep_token_id]


def test_history_keeps_the_ids_that_were_said(opened):
    """天 气 said as two tokens stays two, though its text encodes to one."""
    chat = ChatSession(opened, SETTINGS, 64)
    letters = [opened.tokenizer.get_vocab()[letter] for letter in "天气"]
    assert ids_of(opened, "天气")[:-1] != letters
    with scripted([*letters, opened.tokenizer.sep_token_id]):
        reply = chat.reply("今天")
    assert (reply.text, reply.ids, reply.finished) == ("天气", tuple(letters), True)
    sep = opened.tokenizer.sep_token_id
    with scripted([sep]):
        context = chat.reply("好").context
    assert context.full_ids == (*ids_of(opened, "今天"), *letters, sep, *ids_of(opened, "好"))
    assert chat.turns == ["今天", "天气", "好", ""]


def test_clear_and_save(opened, tmp_path):
    chat = ChatSession(opened, SETTINGS, 64, system="你好")
    for text in ("今天", "明天"):
        with scripted(ids_of(opened, "很好")):
            chat.reply(text)
    chat.clear()
    assert chat.turns == []
    chat.clear()
    with scripted(ids_of(opened, "不")):
        reply = chat.reply("好")
    assert reply.context.full_ids == (*ids_of(opened, "你好"), *ids_of(opened, "好"))
    assert chat.save(tmp_path / "talk.jsonl") == 2
    assert list(iter_records(tmp_path / "talk.jsonl")) == [
        Dialogue(("今天", "很好", "明天", "很好"), "你好"),
        Dialogue(("好", "不"), "你好"),
    ]


def test_a_seed_repeats_a_whole_session(opened):
    def replies(seed):
        chat = ChatSession(opened, SETTINGS.change(seed=seed, temperature=2.0), 64)
        return [chat.reply("今天").ids for _ in range(3)]

    assert replies(1) == replies(1) != replies(2)
    chat = ChatSession(opened, SETTINGS.change(seed=9, temperature=2.0), 64)
    chat.reply("今天")
    chat.reseed(1)
    assert chat.turns == []
    assert [chat.reply("今天").ids for _ in range(3)] == replies(1)


def test_replies_within_a_session_draw_anew(opened):
    chat = ChatSession(opened, SETTINGS.change(temperature=3.0), 4)  # the limit hides the history
    assert len({chat.reply("今").ids for _ in range(4)}) > 1


def test_streamed_pieces_are_the_reply(opened):
    chat = ChatSession(opened, SETTINGS, 64)
    pieces: list[str] = []
    with scripted(ids_of(opened, "今天天气很好")):
        reply = chat.reply("今天", pieces.append)
    assert "".join(pieces) == reply.text == "今天天气很好"
    assert len(pieces) > 2
    assert chat.streams and not ChatSession(opened, SETTINGS.change(num_beams=2), 64).streams


def test_ctrl_c_keeps_what_was_said(opened):
    shown: list[str] = []

    def show(text):
        shown.append(text)
        if len(shown) == 1:
            raise KeyboardInterrupt

    chat = ChatSession(opened, SETTINGS, 64)
    with scripted(ids_of(opened, "天气好")):
        reply = chat.reply("今天", show)
    assert reply.text == "天气" and shown == ["天气"] and not reply.finished
    assert chat.turns == ["今天", reply.text]


def test_half_characters_wait_and_rewritten_text_is_told_again():
    texts = {1: "a", 2: "a\ufffd", 3: "a好", 4: "b"}
    pieces: list[str] = []
    growing = GrowingText(lambda ids: texts[len(ids)], pieces.append)
    for token in range(3):
        growing.take(0, token)
    assert pieces == ["a", "好"]
    growing.take(0, 3)
    assert growing.finish([0, 1, 2, 3]) == "b"
    assert pieces == ["a", "好", "\n", "b"]


def console(opened, monkeypatch, capsys, lines, **settings):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, **kwargs: opened)
    chat_cli.chat(rest=["model", "max_new_tokens=4", *(f"{k}={v}" for k, v in settings.items())], seed=1)
    return capsys.readouterr()


def test_console_shows_each_line_once(opened, monkeypatch, capsys):
    shown = console(opened, monkeypatch, capsys, ["今天", "", "明天"]).out.splitlines()
    assert [line[:8] for line in shown] == ["Usr >>> ", "Sys >>> "] * 3
    assert [line[8:] for line in shown[::2]] == ["今天", "", "明天"]


def test_console_with_beams_says_the_same_as_the_session(opened, monkeypatch, capsys):
    beams = {"num_beams": 3, "do_sample": False}
    shown = console(opened, monkeypatch, capsys, ["今天"], **beams).out.splitlines()
    settings = decoding_settings(opened, None, ["max_new_tokens=4"], 1, False).change(**beams)
    assert shown == ["Usr >>> 今天", f"Sys >>> {ChatSession(opened, settings, 128).reply('今天').text}"]


def test_console_commands(opened, monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.jsonl"
    lines = [
        "今天",
        "clear",
        "明天",
        "seed",
        "x",
        "seed",
        "3",
        "/set temperature 0.5",
        "/set temprature 1",
        "/set top_p 7",
    ]
    output = console(
        opened, monkeypatch, capsys, [*lines, "/set", "/help", "/sav", "/save", f"/save {file}", "/quit", "好"]
    )
    assert "did you mean temperature?" in output.err
    assert "top_p=7" in output.err and "between 0 and 1" in output.err
    assert "'x' is not a whole number" in output.err
    assert "did you mean /save" in output.err and "/save needs a file name" in output.err
    assert "temperature = 0.5" in output.out and "seed = 3" in output.out and "/set KEY VALUE" in output.out
    assert [record.turns[0] for record in iter_records(file)] == ["今天", "明天"]
    assert "Usr >>> 好" not in output.out


def test_without_a_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match="hanmo demo"):
        chat_cli.chat()


def test_settings_come_from_preset_model_and_asking(opened):
    plain = decoding_settings(opened, None, None, None, False)
    assert (plain.temperature, plain.num_beams, plain.published) == (0.7, 1, False)
    beam = decoding_settings(opened, "beam", ["temperature=0.5"], 7, True)
    assert (beam.temperature, beam.num_beams, beam.seed, beam.published) == (0.5, 4, 7, True)
    opened.family.config.decoding = {"temperature": 0.3}
    assert decoding_settings(opened, None, None, None, False).temperature == 0.3
    assert decoding_settings(opened, "beam", None, None, False).temperature == 0.9
    with pytest.raises(ConfigError, match="did you mean beam"):
        decoding_settings(opened, "beem", None, None, False)


def test_system_info(opened):
    told = chat_cli.describe(opened, SETTINGS)
    count = sum(parameter.numel() for parameter in opened.network.parameters())
    assert f"{count:,}" in told and "eva" in told and "max_new_tokens=6" in told


def test_generate_files(opened, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, **kwargs: opened)
    prompts, results = tmp_path / "in.txt", tmp_path / "out.jsonl"
    prompts.write_text(
        '今天\n\n{"turns": ["好", "不好", "明天"]}\n{"prompt": "天气", "prefix": "很"}\n', encoding="utf-8"
    )
    sets = ["do_sample=false"]
    generate_cli.generate(
        model="model", input_file=prompts, output=results, rest=[*sets, "max_new_tokens=3"], batch_size=2
    )
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"][:2] for line in lines] == ["今天", '{"', '{"']
    assert all(0 < line["tokens"] <= 3 for line in lines)
    generate_cli.generate(model="model", rest=["今天", *sets, "max_new_tokens=3"])
    assert capsys.readouterr().out == lines[0]["generation"] + "\n"
    generate_cli.generate(model="model", rest=["今天", *sets, "max_new_tokens=3"], as_json=True)
    assert json.loads(capsys.readouterr().out) == pytest.approx(lines[0], abs=1e-4)
    told = [f"{line['prompt']}{line['generation']}\n" for line in lines]
    generate_cli.generate(
        model="model", input_file=prompts, output=tmp_path / "out.txt", rest=[*sets, "max_new_tokens=3"]
    )
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "".join(told)
    monkeypatch.setattr(sys, "stdin", io.StringIO("今天\n\nstop\n明天\n"))
    generate_cli.generate(model="model", rest=[*sets, "max_new_tokens=3"])
    assert capsys.readouterr().out == lines[0]["generation"] + "\n"


def test_generate_with_a_memory(opened, monkeypatch, capsys, tmp_path):
    """A segment and a memory of one token make the past invisible, so only the last words count."""
    with pytest.raises(UnsupportedError, match="--mem-length: eva"):
        generate_cli.use_memory(opened, {"--seq-length": None, "--mem-length": 3})
    remembers = tiny("transformer_xl", tmp_path)
    monkeypatch.setattr(hanmo.checkpoints, "open_model", lambda *args, **kwargs: remembers)

    def said(prompt, **lengths):
        generate_cli.generate(
            model="model", rest=[prompt, "do_sample=false", "max_new_tokens=4"], as_json=True, **lengths
        )
        return json.loads(capsys.readouterr().out)["score"]

    prompts = ("今天天气很好", "明天天气很好")
    assert said(prompts[0]) != pytest.approx(said(prompts[1]), abs=1e-6)
    short = [said(prompt, seq_length=1, mem_length=0) for prompt in prompts]
    assert short[0] == pytest.approx(short[1], abs=1e-6)


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts"
    file.write_text(
        'a\tb\n{"text": "c"}\n{"turns": ["d"], "system": "e"}\n{"prompt": "f", "prefix": "g"}\n', encoding="utf-8"
    )
    records = [record for _, record in read_prompts(file)]
    assert records == [Text("a\tb"), Text("c"), Dialogue(("d",), "e"), PromptResponse("f", "", "g")]
    for bad, problem in (('{"a"', "not JSON"), ('{"x": "y"}', "expected one of"), ('{"prompt": 3}', "must be text")):
        file.write_text(f"a\n{bad}\n", encoding="utf-8")
        with pytest.raises(RecordError, match=f"{file}:2: .*{problem}"):
            list(read_prompts(file))
    with pytest.raises(RecordError, match="no such file"):
        list(read_prompts(tmp_path / "none"))


def test_generate_refuses_what_does_not_go_together(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        generate_cli.generate(model="model", rest=["今天"], input_file=tmp_path)
    with pytest.raises(ConfigError, match="--output"):
        generate_cli.generate(model="model", rest=["今天"], output=tmp_path)
