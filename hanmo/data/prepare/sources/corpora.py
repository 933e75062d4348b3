"""The prompt formats of the corpus that 文汇 was pretrained on (Zhihu, Zhidao, encyclopaedias, news), and WuDaoCorpora."""

import html
import re
from collections.abc import Callable, Iterator
from typing import Any

from hanmo.data.prepare.sources.reader import Reader, SourceReader, SourceRecord, json_source, object_of, text_of
from hanmo.records import PromptResponse, Text

Sample = tuple[str, str]  # prompt and text
LONG = 100  # characters: descriptions are cut to this, and only longer texts are worth learning
SHORT = 10  # the best answer of a thread need only be longer than this
LIKED = 1000  # up-votes that let a short answer pass


def corpus(samples: Callable[[Any], list[Sample]], titled: bool = True) -> Reader:
    """A source whose entries give prompts and texts.

    The samples of an entry share a split: by the first prompt, or by the first text where prompts are no titles.
    """

    @json_source
    def records(entry: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
        found = samples(entry)
        if not found:
            reader.drop("an entry without a text worth learning")
            return
        prompt, text = found[0]
        key = (titled and prompt) or text
        for prompt, text in found:
            yield SourceRecord(PromptResponse(prompt, text, where=where) if prompt else Text(text, where), key)

    return records


def zhihu(entry: Any) -> list[Sample]:
    """``{"q_title", "q-content", "user-signature", "ans-content", "ans-up-num"}``: one answer."""
    keys = ("q_title", "q-content", "user-signature", "ans-content")
    title, described, author, answer = (text_of(entry, key) for key in keys)
    votes = str(entry.get("ans-up-num") or 0)
    if not votes.isdigit():
        raise ValueError(f"'ans-up-num' is {votes!r}, expected a whole number")
    if not answer or (len(answer) <= LONG and int(votes) <= LIKED):
        return []
    return [(f"问题：{title}问题描述：{_cut(described)}回答用户：{author} 回答：", answer)]


def zhidao(entry: Any) -> list[Sample]:
    """``{"title", "content", "best_answer": {"content"}, "other_answers": [{"content"}, …]}``: a thread."""
    title = text_of(entry, "title")
    if not title:
        return []
    prompt = f"问题：{title}问题描述：{_cut(text_of(entry, 'content'))}回答："
    best = text_of(entry.get("best_answer") or {}, "content")
    answers = entry.get("other_answers") or []
    if not isinstance(answers, list):
        raise ValueError(f"'other_answers' is {type(answers).__name__}; expected a list of objects")
    others = [text_of(answer, "content") for answer in answers]
    worthy = [best] * (len(best) > SHORT) + [answer for answer in others if len(answer) > LONG]
    return [(prompt, answer) for answer in worthy]


def running(*keys: str) -> Callable[[Any], list[Sample]]:
    def samples(entry: Any) -> list[Sample]:
        text = "".join(text_of(entry, key) for key in keys)
        return [("", text)] if text else []

    return samples


encyclopedia, wikipedia = running("title", "abstract", "content"), running("text")


def wudao(entry: Any) -> list[Sample]:
    """``{"title", "content", "dataType", …}`` of WuDaoCorpora 2.0, in arrays: a document with its title as first line."""
    title, content = (text_of(entry, key).strip() for key in ("title", "content"))
    return [("", "\n".join(filter(None, (title, content))))] if content else []


def sections(entry: Any) -> list[Sample]:
    """``{"key": [heading, …], "content": [text, …]}``: the text after each heading, and the headings as a summary."""
    # The original joins the sections by a token that the released model does not have.
    headings, texts = (_texts(object_of(entry), key) for key in ("key", "content"))
    if len(headings) != len(texts):
        raise ValueError(f"{len(headings)} headings in 'key', but {len(texts)} texts in 'content'")
    return [*zip(headings, texts, strict=True), ("Summary:", " ".join(headings))] if headings else []


def news(entry: Any) -> list[Sample]:
    """``[title, content]`` with HTML tags: the content after its title, and alone if the title has several characters."""
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise ValueError("expected a list of a title and a content")
    title, content = map(_untagged, entry)
    if len(content) <= LONG:
        return []
    samples = [(f"标题：{title} 内容：", content)]
    return [*samples, ("内容：", content)] if len(title) > 1 else samples


def _texts(fields: dict[str, Any], key: str) -> list[str]:
    found = fields.get(key)
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{key!r} is {found!r}, expected a list of texts")
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG] + "......"


def _untagged(text: str) -> str:
    return html.unescape(re.sub(r"<[^<>]+>", "", text)).replace("\u3000", " ").strip()
