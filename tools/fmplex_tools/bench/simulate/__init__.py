"""The real queues in virtual time: loads (`trace`), the event loop (`run`), figures of it, tables and plots."""
