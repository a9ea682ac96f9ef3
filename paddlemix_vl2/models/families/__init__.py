"""One file per model family: its parts put together."""
