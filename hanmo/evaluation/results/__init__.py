"""Results of evaluations: files, tables, pages and statistics."""
