"""From published sources and raw text to clean records."""
