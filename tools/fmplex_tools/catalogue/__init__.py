"""The catalogue: real tasks of every modality, each built from data that a package carries.

`specs` lists them, a module a modality reads their data, `build` makes the vFMs.
"""
