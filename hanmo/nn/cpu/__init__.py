"""Parts of networks made faster where a CPU loses most time."""
