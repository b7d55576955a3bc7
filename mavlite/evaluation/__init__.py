"""Measuring what the cascade makes, with networks that share nothing with those that generate."""
