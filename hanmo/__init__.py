"""hanmo 翰墨: Chinese language models end to end, from an original checkpoint to an aligned, measured model."""

__version__ = "0.1.0"


def register() -> None:
    """Register hanmo's models with transformers: its auto classes then load the folders that hanmo writes.

    Imports torch and transformers. Calling it again changes nothing. hanmo's own commands do not need it.
    """
    from hanmo import families

    families.register()
