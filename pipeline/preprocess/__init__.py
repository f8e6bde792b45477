"""Logs in, feature table out: the only stage that imports ray.data."""
