"""Studies: encoders trained with one thing changed each, judged side by side."""
