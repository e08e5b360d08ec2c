"""Training: two plain loops (codecs, models) over shared optimizer, run-folder and config files."""
