"""PanGu-α: a decoder whose last block, the query layer, takes its queries from positions alone."""
