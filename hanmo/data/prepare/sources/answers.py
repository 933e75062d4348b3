"""Questions with scored answers as they come: Weibo news comments, encyclopaedia questions, Zhidao threads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from hanmo.data.prepare.sources.reading import Item, Reading, files, objects, rows, text_of
from hanmo.records import ScoredAnswers


def weibo(place: Path, reading: Reading) -> Iterator[Item]:
    """``{"article", "abstract", "comments": [[text, likes], …]}``, words separated by spaces.

    The score of a comment is its likes; as published, of equal ones the longest comes first.
    """
    for path in files(place, "*.json*"):
        for line, post in objects(path, reading):
            try:
                article, abstract = (text_of(post, key).replace(" ", "") for key in ("article", "abstract"))
                comments = sorted(_comments(post.get("comments")), key=lambda c: (c[1], len(c[0])), reverse=True)
            except ValueError as error:
                reading.bad(path, line, str(error))
                continue
            if not comments and not reading.published:
                reading.drop("a post without comments")
                continue
            prompt = reading.prompt(f"新闻内容：{article}", f"摘要：{abstract}", opening="评论：")
            answers = tuple((text.replace(" ", ""), float(likes)) for text, likes in comments)
            prefix = "" if reading.sep else "评论："
            yield Item(ScoredAnswers(prompt, answers, prefix, where=f"{path}:{line}"), article)


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


def baike(place: Path, reading: Reading) -> Iterator[Item]:
    """``{"title", "desc", "answer"}``: the question is the title or the description, whichever is longer."""
    for path in files(place, "*.json*"):
        for line, entry in objects(path, reading):
            try:
                title, description, answer = (text_of(entry, key) for key in ("title", "desc", "answer"))
            except ValueError as error:
                reading.bad(path, line, str(error))
                continue
            question = _one_line(title if len(title) > len(description) else description)
            answer = _one_line(answer)
            if not reading.published and not (question.strip() and answer.strip()):
                reading.drop("no question" if not question.strip() else "no answer")
                continue
            prompt = reading.prompt(question, opening="回答：")
            prefix = "" if reading.sep else "答："
            yield Item(ScoredAnswers(prompt, ((answer, 1.0),), prefix, where=f"{path}:{line}"), question)


def _one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "")


def zhidao(place: Path, reading: Reading) -> Iterator[Item]:
    """CSV of title, question, reply, is_best: one record a title, its best reply first.

    A file's threads are sorted by title, so a file is held in memory. Where the replies of a title come with different
    questions, that of the last one counts, as in the original. As published, only the last thread of each file has what
    opens the answer.
    """
    for path in files(place, "*.csv*"):
        replies = []
        for line, row in rows(path, reading, "title", "question", "reply", "is_best"):
            if row["is_best"] not in ("0", "1"):
                reading.bad(path, line, f"is_best is {row['is_best']!r}, expected 0 or 1")
            elif not row["title"].strip() or not row["reply"].strip():
                reading.drop("a reply without text" if row["title"].strip() else "a reply without a title")
            else:
                replies.append((row["title"], int(row["is_best"]), row["question"], row["reply"], line))
        replies.sort(key=lambda reply: reply[:2], reverse=True)
        threads = [(title, list(thread)) for title, thread in groupby(replies, key=lambda reply: reply[0])]
        for number, (title, thread) in enumerate(threads, 1):
            question, line = thread[-1][2], thread[0][4]
            detail = f"内容：{question}" if question and question != title else ""
            prompt = reading.prompt(f"问题：{title}", detail, opening="回答：")
            lost = reading.published and number < len(threads)
            prefix = "" if reading.sep or lost else "答："
            answers = tuple((reply[3], float(reply[1])) for reply in thread)
            yield Item(ScoredAnswers(prompt, answers, prefix, where=f"{path}:{line}"), title)
