"""Adapters inside the backbone, many at a time."""
