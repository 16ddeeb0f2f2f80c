"""The ``fmplex`` command and what it is made of: serving, checking, making tasks, measuring."""

import os

# Before anything loads torch: OpenMP threads that spin on a shared CPU stall training and checking for seconds.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
