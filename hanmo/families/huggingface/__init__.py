"""Every causal or sequence-to-sequence model that transformers loads, as one more family."""
