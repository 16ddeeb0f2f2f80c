"""Scheduling: which rows of which vFMs run together next. Pure decisions behind `interface.Queue`."""
