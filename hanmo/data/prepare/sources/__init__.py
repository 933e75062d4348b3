"""The published data sources and their readers."""

from hanmo.data.prepare.sources import answers, classical, corpora, dialogues, instructions, poetry
from hanmo.data.prepare.sources.corpora import corpus
from hanmo.data.prepare.sources.reader import Reader

SOURCES: dict[str, Reader] = {
    "weibo": answers.weibo,
    "baike": answers.baike,
    "zhidao": answers.zhidao,
    "couplets": classical.couplets,
    "classical": classical.classical,
    "poetry": poetry.poetry,
    "kdconv": dialogues.kdconv,
    "lccc": dialogues.lccc,
    "crosswoz": dialogues.crosswoz,
    "sharegpt": dialogues.chat,
    "alpaca": instructions.alpaca,
    "dpo": instructions.preferences,
    "zhihu": corpus(corpora.zhihu),
    "zhidao-threads": corpus(corpora.zhidao),
    "encyclopedia": corpus(corpora.encyclopedia),
    "wikipedia": corpus(corpora.wikipedia),
    "news": corpus(corpora.news),
    "wudao": corpus(corpora.wudao),
    "wikipedia-sections": corpus(corpora.sections, False),
}
