"""The records that hanmo reads and writes: the content of a line of data, whatever file it came from."""

from hanmo.records.reading import (
    Plain,
    iter_records,
    json_array,
    json_lines,
    json_members,
    not_utf8,
    opened_text,
    text_lines,
)  # fmt: skip
from hanmo.records.schemas import ROLES, TURNS, json_record, text_at
from hanmo.records.types import Dialogue, PromptResponse, Record, Rejects, ScoredAnswers, Text, unanswered, unasked
from hanmo.records.writing import record_writer, write_records

__all__ = [
    "ROLES", "TURNS", "Dialogue", "Plain", "PromptResponse", "Record", "Rejects", "ScoredAnswers", "Text",
    "iter_records", "json_array", "json_lines", "json_members", "json_record", "not_utf8", "opened_text",
    "record_writer", "text_at", "text_lines", "unanswered", "unasked", "write_records",
]  # fmt: skip
