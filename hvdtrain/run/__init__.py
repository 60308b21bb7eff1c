"""One run: its directory, its set-up, its efficiency, what it leaves."""
