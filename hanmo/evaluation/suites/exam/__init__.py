"""Examinations of four choices in many subjects: C-Eval, CMMLU, MMLU."""
