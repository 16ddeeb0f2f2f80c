"""FMplex on Triton: virtual foundation models (vFMs) that share one physical FM.

See ``docs/architecture.md`` for the life of a request and the map of these modules.
"""

__version__ = "0.1.0"
