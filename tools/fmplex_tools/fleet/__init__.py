"""A fleet of servers: where artifacts come from, what each node is to serve, and who sees to it."""
