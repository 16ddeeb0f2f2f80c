"""The real tritonserver with the fmplex backend: finding it, laying it out, starting and stopping it."""
