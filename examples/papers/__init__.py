"""Published experiments, run again; see `python -m examples.papers --help`."""
