"""hanmo 翰墨: Chinese language models end to end, from an original checkpoint to an aligned, measured model."""

__version__ = "0.1.0"


def register() -> None:
    """Register hanmo's models with transformers, whose auto classes then load hanmo's folders; may be called again."""
    from hanmo import families

    families.register()
