"""A fleet of several Ray nodes on this machine, measured: killed, moved, and against one machine without a door."""
