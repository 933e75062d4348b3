"""Questions with scored answers: Weibo news comments, encyclopaedia questions, Zhidao threads."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from hanmo.data.prepare.sources.reader import SourceReader, SourceRecord, json_source, matching_files, text_of
from hanmo.records import ScoredAnswers


@json_source
def weibo(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """``{"article", "abstract", "comments": [[text, likes], …]}``, words separated by spaces; likes are the scores."""
    article, abstract = (text_of(value, key).replace(" ", "") for key in ("article", "abstract"))
    comments = sorted(_comments(value.get("comments")), key=lambda c: (c[1], len(c[0])), reverse=True)
    if not comments and not reader.published:
        reader.drop("a post without comments")
        return
    prompt = reader.prompt(f"新闻内容：{article}", f"摘要：{abstract}", opening="评论：")
    answers = tuple((text.replace(" ", ""), float(likes)) for text, likes in comments)
    yield SourceRecord(ScoredAnswers(prompt, answers, "" if reader.sep else "评论：", where=where), article)


def _comments(value: object) -> list[tuple[str, int]]:
    if not isinstance(value, list):
        raise ValueError("'comments' must be a list of [text, likes]")
    comments = []
    for number, comment in enumerate(value, 1):
        if not isinstance(comment, list) or len(comment) != 2 or not isinstance(comment[0], str):
            raise ValueError(f"comment {number}: expected [text, likes], found {comment!r}")
        try:
            comments.append((comment[0], int(comment[1])))
        except (TypeError, ValueError):
            raise ValueError(f"comment {number}: the likes are {comment[1]!r}, expected a whole number") from None
    return comments


@json_source
def baike(value: Any, where: str, reader: SourceReader) -> Iterator[SourceRecord]:
    """``{"title", "desc", "answer"}``: the question is the title or the description, whichever is longer."""
    title, description, answer = (text_of(value, key) for key in ("title", "desc", "answer"))
    longer = title if len(title) > len(description) else description
    question, answer = (text.replace("\r", "").replace("\n", "") for text in (longer, answer))
    if not reader.published and not (question.strip() and answer.strip()):
        reader.drop("no question" if not question.strip() else "no answer")
        return
    prompt, prefix = reader.prompt(question, opening="回答："), "" if reader.sep else "答："
    yield SourceRecord(ScoredAnswers(prompt, ((answer, 1.0),), prefix, where=where), question)


def zhidao(place: Path, reader: SourceReader) -> Iterator[SourceRecord]:
    """CSV of title, question, reply, is_best: one record a title, its best reply first; each file is held in memory.

    Where the replies of a title come with different questions, that of the last one counts, as in the original. As
    published, only the last thread of each file has a prefix.
    """
    for path in matching_files(place, "*.csv*"):
        replies = []
        for line, row in reader.csv_rows(path, "title", "question", "reply", "is_best"):
            if row["is_best"] not in ("0", "1"):
                reader.bad(path, line, f"is_best is {row['is_best']!r}, expected 0 or 1")
            elif not row["title"].strip() or not row["reply"].strip():
                reader.drop("a reply without text" if row["title"].strip() else "a reply without a title")
            else:
                replies.append((row["title"], int(row["is_best"]), row["question"], row["reply"], line))
        replies.sort(key=lambda reply: reply[:2], reverse=True)
        threads = [(title, list(thread)) for title, thread in groupby(replies, key=lambda reply: reply[0])]
        for number, (title, thread) in enumerate(threads, 1):
            question, line = thread[-1][2], thread[0][4]
            detail = f"内容：{question}" if question and question != title else ""
            prompt = reader.prompt(f"问题：{title}", detail, opening="回答：")
            lost = reader.published and number < len(threads)
            prefix = "" if reader.sep or lost else "答："
            answers = tuple((reply[3], float(reply[1])) for reply in thread)
            yield SourceRecord(ScoredAnswers(prompt, answers, prefix, where=f"{path}:{line}"), title)
