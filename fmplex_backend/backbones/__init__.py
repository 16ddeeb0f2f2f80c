"""Backbone plug-ins: one file a family, and `load` to pick one. ``facts`` and ``source`` need no torch."""
