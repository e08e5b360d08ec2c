"""Rows of `bench codecs`: each file's `rows(quick, say)` yields its results one by one."""
