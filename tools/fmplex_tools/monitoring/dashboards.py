"""The dashboards: fleet, physical FM, vFM. What is put together of FMplex's metrics is in `rules.yml`, not here."""

from __future__ import annotations

from fmplex_tools.monitoring.grafana import Dashboard, Panel, Query, Variable

FLEET = '{fleet=~"$fleet"}'
FM = '{fleet=~"$fleet",fm=~"$fm"}'
VFM = '{fleet=~"$fleet",fm=~"$fm",vfm=~"$vfm"}'
AT_DOOR = '{fleet=~"$fleet",vfm=~"$vfm"}'
BY_VFM = "{{vfm}}"
BY_DEVICE = "{{fm}} on {{device}}"
VFM_ON_DEVICE = "{{vfm}} on {{device}}"

_fleet = Variable("fleet", "fleet:fmplex_servers:count")
_fm = Variable("fm", f"fm:fmplex_snapshot_age:seconds{FLEET}")
_vfm = Variable("vfm", f"vfm:fmplex_replicas:count{FM}")


def _figure(title: str, expr: str, unit: str = "short", legend: str = "{{fleet}}") -> Panel:
    return Panel(title, (Query(expr, legend),), unit, "stat", width=4, height=4)


def _one(title: str, expr: str, legend: str, unit: str = "short", help: str = "", *, stacked: bool = False) -> Panel:
    return Panel(title, (Query(expr, legend),), unit, help=help, stacked=stacked)


FLEET_PAGE = Dashboard(
    "fmplex-fleet",
    "FMplex: fleet",
    (_fleet,),
    {
        "Now": [
            _figure("Servers", f"fleet:fmplex_servers:count{FLEET}"),
            _figure("Servers that answer", f"fleet:fmplex_servers_up:sum{FLEET}"),
            _figure("vFMs", f"fleet:fmplex_vfms:count{FLEET}"),
            _figure("Requests", f"sum by (fleet) (fleet:fmplex_requests:rate1m{FLEET})", "reqps"),
            _figure("p99 of requests", f"fleet:fmplex_request_seconds:p99_1m{FLEET}", "s"),
            _figure("Engines that died", f"increase(fleet:fmplex_engine_deaths:total{FLEET}[1h])"),
            Panel("Alerts", (Query('ALERTS{alertname=~"FMplex.+",fleet=~"$fleet"}', ""),), kind="table", width=24,
                  height=6, help="What fires, and what is about to; docs/operations.md says what to do."),
        ],
        "Work": [
            _one("Requests by how they ended", f"fleet:fmplex_requests:rate1m{FLEET}", "{{outcome}}", "reqps",
                 stacked=True),
            _one("Rows by how they ended", f"fleet:fmplex_rows:rate1m{FLEET}", "{{outcome}}", "ops", stacked=True),
            _one("Rows that wait", f"fleet:fmplex_queue_rows:sum{FLEET}", "{{fleet}}"),
            Panel("Engines busy", (
                Query(f"fleet:fmplex_engine_busy:avg1m{FLEET}", "{{fleet}}, mean"),
                Query(f"fm:fmplex_engine_busy:ratio1m{FLEET}", BY_DEVICE)), "percentunit"),
            _one("Most requests", f"topk(10, sum by (fleet, vfm) (vfm:fmplex_requests:rate1m{FLEET}))",
                 BY_VFM, "reqps"),
            _one("Slowest p99", f"topk(10, vfm:fmplex_request_seconds:p99_1m{FLEET})", BY_VFM, "s"),
        ],
        "Door": [
            _one("Answers by class", f"door:fmplex_requests:rate1m{FLEET}", "{{envoy_response_code_class}}xx", "reqps",
                 "Errors over gRPC are 2xx here: their code comes after the answer.", stacked=True),
            _one("p99 for clients", f"door:fmplex_request_seconds:p99_1m{FLEET}", "{{fleet}}", "s"),
            _one("Requests sent again", f"topk(10, door:fmplex_vfm_retries:rate1m{FLEET} > 0)", BY_VFM, "reqps"),
            _one("Healthy part of the servers",
                 f"door:fmplex_servers_healthy:sum{FLEET} / door:fmplex_servers:sum{FLEET}", "{{servers}}",
                 "percentunit", "A server's name, 'all', or a set of servers that some vFMs are on."),
        ],
    },
)  # fmt: skip

FM_PAGE = Dashboard(
    "fmplex-fm",
    "FMplex: physical FM",
    (_fleet, _fm),
    {
        "Engines": [
            _one("Engines busy", f"fm:fmplex_engine_busy:ratio1m{FM}", BY_DEVICE, "percentunit"),
            _one("Engines that died, of 10 minutes", f"increase(fm:fmplex_engine_deaths:total{FM}[10m])", BY_DEVICE),
            _one("Age of what is told", f"fm:fmplex_snapshot_age:seconds{FM}", BY_DEVICE, "s",
                 "Seconds since the host read its values; up to 7 with a thousand busy vFMs."),
        ],
        "Batches": [
            Panel("Rows in a batch, at most",
                  (Query(f"sum by (le) (fm:fmplex_batch_rows_bucket:rate1m{FM})", "{{le}}"),), kind="heatmap"),
            _one("Rows in a batch, mean", f"fm:fmplex_batch_rows:mean1m{FM}", BY_DEVICE),
            _one("vFMs in a batch, mean", f"fm:fmplex_batch_vfms:mean1m{FM}", BY_DEVICE),
            _one("Batches", f"fm:fmplex_batches:rate1m{FM}", BY_DEVICE, "ops"),
            _one("Padding", f"fm:fmplex_padding:ratio1m{FM}", BY_DEVICE, "percentunit",
                 "Part of all tokens; the fair queue bounds it to one launch a batch."),
            Panel("Time of a batch", (
                Query(f"fm:fmplex_batch_seconds:mean1m{FM}", f"{BY_DEVICE}, measured"),
                Query(f"fm:fmplex_batch_predicted_seconds:mean1m{FM}", f"{BY_DEVICE}, predicted")), "s"),
        ],
        "Queue": [
            _one("Device time by vFM", f"topk(10, vfm:fmplex_device_seconds:rate1m{FM})", BY_VFM, stacked=True,
                 help="Seconds of device time in a second."),
            _one("Rows that wait", f"topk(10, vfm:fmplex_queue_rows:sum{FM})", BY_VFM),
            _one("Deciding on a batch, mean", f"fm:fmplex_decision_seconds:mean1m{FM}", BY_DEVICE, "s"),
        ],
    },
)  # fmt: skip

VFM_PAGE = Dashboard(
    "fmplex-vfm",
    "FMplex: vFM",
    (_fleet, _fm, _vfm),
    {
        "Requests": [
            _one("Requests by how they ended", f"sum by (outcome) (vfm:fmplex_requests:rate1m{VFM})", "{{outcome}}",
                 "reqps", stacked=True),
            Panel("Latency", (
                Query(f"vfm:fmplex_request_seconds:p50_1m{VFM}", "{{vfm}} p50"),
                Query(f"vfm:fmplex_request_seconds:p99_1m{VFM}", "{{vfm}} p99"),
                Query(f"vfm:fmplex_slo_seconds:min{VFM}", "{{vfm}} objective")), "s"),
            _one("Errors", f"vfm:fmplex_errors:ratio1m{VFM}", BY_VFM, "percentunit",
                 "Part of its requests that were rejected, expired or failed; invalid ones do not count."),
            _one("Within the objective", f"vfm:fmplex_slo_met:ratio5m{VFM}", BY_VFM, "percentunit"),
            _one("Rejected", f"vfm:fmplex_rejections:rate1m{VFM}", "{{vfm}}: {{reason}}", "reqps"),
            _one("Expired", f"vfm:fmplex_expiries:rate1m{VFM}", "{{vfm}}: {{reason}}", "ops"),
        ],
        "Share of the device": [
            Panel("Share", (
                Query(f"replica:fmplex_share:avg1m{VFM}", f"{VFM_ON_DEVICE}, has"),
                Query(f"replica:fmplex_entitled_share:avg1m{VFM}", f"{VFM_ON_DEVICE}, entitled to")), "percentunit",
                  help="One that asks for less than it is entitled to has less."),
            _one("Share over entitlement", f"replica:fmplex_share_over_entitled:ratio1m{VFM}", VFM_ON_DEVICE,
                 "percentunit", "100 % while all have a backlog; more where others leave some."),
            _one("Replicas", f"vfm:fmplex_replicas:count{VFM}", BY_VFM),
        ],
        "Queue": [
            Panel("Rows", (
                Query(f"vfm:fmplex_queue_rows:sum{VFM}", "{{vfm}} waiting"),
                Query(f"vfm:fmplex_running_rows:sum{VFM}", "{{vfm}} running"))),
            Panel("Time of a row, mean", (
                Query(f"vfm:fmplex_row_queue_seconds:mean1m{VFM}", "{{vfm}} in the queue"),
                Query(f"vfm:fmplex_row_compute_seconds:mean1m{VFM}", "{{vfm}} computing")), "s"),
            _one("Quarantined", f"max by (vfm, device) (fmplex_quarantined{VFM})", VFM_ON_DEVICE),
        ],
        "At the door": [
            _one("Requests", f"door:fmplex_vfm_requests:rate1m{AT_DOOR}", BY_VFM, "reqps"),
            _one("p99 from the door on", f"door:fmplex_vfm_seconds:p99_1m{AT_DOOR}", BY_VFM, "s"),
            _one("Sent again", f"door:fmplex_vfm_retries:rate1m{AT_DOOR}", BY_VFM, "reqps"),
        ],
    },
)  # fmt: skip

DASHBOARDS = (FLEET_PAGE, FM_PAGE, VFM_PAGE)
