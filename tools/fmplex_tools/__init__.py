"""The ``fmplex`` command and what it is made of: serving, checking, making tasks, measuring."""
