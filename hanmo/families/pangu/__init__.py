"""PanGu-α: a decoder whose last block is a query layer that asks by position alone."""
