"""Converts logs to a feature table, in Ray tasks."""
