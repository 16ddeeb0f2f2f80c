"""The engine: a child process of the host that owns a device and runs batches with torch."""
