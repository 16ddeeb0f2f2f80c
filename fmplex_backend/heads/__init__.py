"""The output side of a vFM: ``projections`` make raw outputs, ``kinds`` turn them into answers."""
