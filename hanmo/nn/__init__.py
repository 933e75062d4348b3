"""Building blocks of the networks, which know no family."""
