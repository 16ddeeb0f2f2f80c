"""Backbones out of packages that carry their weights in another form than transformers reads.

`known` lists them; `build` makes the folder of one, once, in FMplex's cache, where a physical FM finds it by
``built:NAME``. Nothing of a package is imported or run: its weights are read as data.
"""
