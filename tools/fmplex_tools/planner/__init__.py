"""Which physical FM runs on which device, and which vFM sits on it.

What people write is `fleet_file`; `problem` makes numbers of it, with the estimate of latencies; `packing` is the
placement that grows item by item, `fast` and `exact` fill it, `replan` changes one as little as it can; `verify` checks
it in the simulator; `alternatives` is the same fleet without sharing; `report` and `picture` show it all.
"""
