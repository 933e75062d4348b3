"""EVA 1.0 and 2.0 (thu-coai): Chinese open-domain dialogue, an encoder-decoder in the form of T5 v1.1."""
