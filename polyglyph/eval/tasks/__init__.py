"""One file per task, named like it: `VERSION`, and `TASK`, a `polyglyph.eval.scoring.Task`.

A changed metric gets a new version, so that two numbers of one name and version are comparable.
"""
