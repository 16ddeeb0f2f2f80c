"""A fleet that runs: a controller that keeps a plan true, an agent on every node, one door for all clients.

`content` says what a device is to hold, `reconcile` what is to be done next, `bind` which node has which device; these
are pure. `device` and `agent` do it on a node, `controller` decides, `actors` is where Ray comes in. `artifacts` and
`claims` are what the fleet keeps in its store.
"""
