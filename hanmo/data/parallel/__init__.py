"""Work on large inputs in several processes or on several machines."""
