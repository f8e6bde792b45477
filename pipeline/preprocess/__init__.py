"""Logs in, feature table out: in tasks of Ray."""
