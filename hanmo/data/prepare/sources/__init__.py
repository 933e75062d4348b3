"""The published data sources: an entry in a table, and a function that reads it."""

from dataclasses import dataclass

from hanmo.data.prepare.sources import answers, classical, corpora, dialogues, instructions, poetry
from hanmo.data.prepare.sources.corpora import corpus
from hanmo.data.prepare.sources.reader import Reader


@dataclass(frozen=True)
class Source:
    """A source: its name, what its files look like, what it becomes, and who reads it."""

    name: str
    files: str
    becomes: str
    read: Reader


SCORED, TURNS, LEARNED = "prompts with scored answers", "dialogues", "prompts and texts for pretraining"
ZHIHU = "JSON: q_title, q-content, user-signature, ans-content, ans-up-num"
SOURCES = {
    source.name: source
    for source in (
        Source("weibo", "JSON lines: article, abstract, comments with likes", SCORED, answers.weibo),
        Source("baike", "JSON lines: title, desc, answer", SCORED, answers.baike),
        Source("zhidao", "CSV: title, question, reply, is_best", SCORED, answers.zhidao),
        Source("couplets", "a couplet a line, or in.txt and out.txt", SCORED, classical.couplets),
        Source("classical", "古文： and 现代文： lines by turns", SCORED, classical.classical),
        Source("poetry", "the JSON files of chinese-poetry", SCORED, poetry.poetry),
        Source("kdconv", "JSON: name, messages", TURNS, dialogues.kdconv),
        Source("lccc", "JSON: lists of turns, characters separated", TURNS, dialogues.lccc),
        Source("crosswoz", "JSON (.zip): id to messages", TURNS, dialogues.crosswoz),
        Source("sharegpt", "JSON: conversations, messages, dialog … with roles", TURNS, dialogues.chat),
        Source("alpaca", "JSON: instruction, input, output, history", "prompts and responses", instructions.alpaca),
        Source("dpo", "JSON: a prompt, chosen and rejected (or ranked)", SCORED, instructions.preferences),
        Source("zhihu", ZHIHU, LEARNED, corpus(corpora.zhihu)),
        Source("zhidao-threads", "JSON: title, content, best_answer, other_answers", LEARNED, corpus(corpora.zhidao)),
        Source("encyclopedia", "JSON: title, abstract, content", LEARNED, corpus(corpora.encyclopedia)),
        Source("wikipedia", "JSON: text", LEARNED, corpus(corpora.wikipedia)),
        Source("news", "JSON: [title, content] with HTML tags", LEARNED, corpus(corpora.news)),
        Source("wikipedia-sections", "JSON: key (headings), content (texts)", LEARNED, corpus(corpora.sections, False)),
    )
}
