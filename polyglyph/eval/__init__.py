"""Evaluation: metrics, checkers on reconstructions and generations, tasks, reports."""
