"""One address for a fleet: Envoy, with its routes and endpoints in files that it watches.

`xds` writes the files, `which_vfm.lua` tells Envoy which vFM a request is for, `keeper` runs it.
"""
