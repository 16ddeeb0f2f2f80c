"""What Envoy reads: a bootstrap file once, and listeners, clusters, endpoints and routes whenever they are replaced.

1. One listener takes HTTP/1, HTTP/2 and gRPC on one port; `which_vfm.lua` puts the vFM's name into a header.
2. Routes are looked up by that header in a hash table, so that a hundred thousand vFMs cost what one does. Each counts
   for itself: ``vhost.fmplex.route.NAME.upstream_rq_*``.
3. vFMs that are on the same servers share a pair of clusters, one to their HTTP and one to their gRPC ports.
4. A server is asked for its health at its `fmplex serve`'s health port, which answers by real inferences; the more
   sets it is in, the less often for each.
5. What is for a vFM that is on no server at the moment waits (`fmplex_tools.door.waiting`).
6. Files are replaced by renaming, the only thing that Envoy sees; clusters before the routes that lead to them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex_tools.files import write_whole

Json = dict[str, Any]
HEADER = "x-fmplex-vfm"
LUA = Path(__file__).with_name("which_vfm.lua")
BOOTSTRAP, LISTENERS, CLUSTERS, ROUTES = "envoy.json", "listeners.json", "clusters.json", "routes.json"
_TYPES = "type.googleapis.com/envoy."
_OVER = "OVERWRITE_IF_EXISTS_OR_ADD"
NOT_FOUND, UNAVAILABLE = 5, 14
"""gRPC's codes."""
_WAITING = "waiting"
"""Name of the cluster."""
MOST_CHECKS = 16
"""Questions a second for one server's health, of all clusters together; requests that fail are noticed anyway."""
MOST_BODY = 64 << 20
"""Bytes of a request that the door holds: gRPC's unary calls are read whole, and what may be sent again is kept."""


@dataclass(frozen=True)
class Server:
    """One tritonserver."""

    name: str
    host: str
    http: int
    grpc: int
    health: int
    """Port where its `fmplex serve` tells its health; 0: Triton's own is asked."""


@dataclass(frozen=True)
class Door:
    """How the door is set up; what does not change while it runs."""

    host: str
    port: int
    admin: int
    certificate: Path | None = None
    key: Path | None = None
    waiting: int = 0
    """Loopback port of `fmplex_tools.door.waiting`; 0: a vFM that is on no server is answered "later"."""
    retries: int = 2
    retry_budget: float = 20.0
    """Requests that are sent again, in percent of those under way."""


def write_bootstrap(folder: Path, door: Door) -> Path:
    """The files that stay: Envoy's own and its listener's."""
    _put(folder / LISTENERS, _response("config.listener.v3.Listener", [_listener(door, folder)]))
    bootstrap = {
        "node": {"id": "door", "cluster": "fmplex"},
        "admin": {"address": _address("127.0.0.1", door.admin)},
        "dynamic_resources": {
            "lds_config": _watched(folder / LISTENERS),
            "cds_config": _watched(folder / CLUSTERS),
        },
    }
    _put(folder / BOOTSTRAP, bootstrap)
    return folder / BOOTSTRAP


def write_clusters(
    folder: Path, door: Door, servers: Iterable[Server], on: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The first step: all clusters that the routes of ``on`` need; their names.

    ``on``: vFM → names of the ``servers`` that have it. Clusters that are not led to any more stay until the next time.
    """
    known = {server.name: server for server in servers}
    wanted = {_set_name(names): names for names in _sets(known, on).values() if names}
    wanted["all"] = tuple(sorted(known))
    before = _cluster_sets(folder)
    every = _check_seconds({**before, **wanted}.values())
    clusters = [
        _cluster(kind, name, [known[server] for server in names if server in known], door, every)
        for name, names in sorted({**before, **wanted}.items())
        for kind in ("http", "grpc")
    ]
    if door.waiting:
        clusters.append(_waiting_cluster(door))
    _put(folder / CLUSTERS, _response("config.cluster.v3.Cluster", clusters, {"sets": dict(sorted(wanted.items()))}))
    own = {_WAITING} if door.waiting else set()
    return frozenset({f"{kind}/{name}" for name in wanted for kind in ("http", "grpc")} | own)


def write_routes(
    folder: Path,
    door: Door,
    servers: Iterable[Server],
    on: Mapping[str, Sequence[str]],
    index: Mapping[str, str] = {},
) -> None:
    """The second, once Envoy knows the clusters. A vFM that is on none of ``servers`` is answered "later".

    ``index``: name → version of all there is, which no server knows by itself; for those who ask for it by HTTP.
    """
    routes = {
        vfm: _set_name(names) if names else None
        for vfm, names in _sets({server.name: server for server in servers}, on).items()
    }
    _put(folder / ROUTES, _response("config.route.v3.RouteConfiguration", [_routes(routes, door, index)]))


def _sets(known: Mapping[str, Server], on: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {vfm: tuple(sorted(name for name in names if name in known)) for vfm, names in on.items()}


# ---- parts ----


def _listener(door: Door, folder: Path) -> Json:
    manager = {
        "@type": f"{_TYPES}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "door",
        "codec_type": "AUTO",
        "rds": {"route_config_name": "fmplex", "config_source": _watched(folder / ROUTES)},
        "stream_idle_timeout": "0s",  # a stream may rest
        "http2_protocol_options": {"max_concurrent_streams": 4096},
        "http_filters": [
            _filter("lua", "lua.v3.Lua", {"default_source_code": {"inline_string": LUA.read_text("utf-8")}}),
            _filter("router", "router.v3.Router", {}),
        ],
    }
    chain: Json = {"filters": [{"name": "http", "typed_config": manager}]}
    if door.certificate is not None and door.key is not None:
        pair = {"certificate_chain": {"filename": str(door.certificate)}, "private_key": {"filename": str(door.key)}}
        context = {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]}
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{_TYPES}extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": context,
            },
        }
    return {
        "@type": f"{_TYPES}config.listener.v3.Listener",
        "name": "door",
        "address": _address(door.host, door.port),
        "per_connection_buffer_limit_bytes": MOST_BODY,
        "filter_chains": [chain],
    }


def _filter(name: str, kind: str, config: Json) -> Json:
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": {"@type": f"{_TYPES}extensions.filters.http.{kind}", **config},
    }


def _routes(sets: Mapping[str, str | None], door: Door, index: Mapping[str, str]) -> Json:
    """vFM → the name of the set of servers that it is on, as a table that is looked up."""
    table = {
        vfm: {"action": _by_protocol(vfm, name, door) if name is not None else _nowhere(vfm, door)}
        for vfm, name in sorted(sets.items())
    }
    any_server = _by_protocol("-", "all", door)
    body = json.dumps([{"name": name, "version": index[name], "state": "READY"} for name in sorted(index)])
    listed = {"match": {"path": "/v2/repository/index"}, **_json_told(200, body)}
    any_server["typed_config"]["routes"].insert(0, listed)
    table["-"] = {"action": any_server}
    host = {
        "name": "fmplex",
        "domains": ["*"],
        "matcher": {
            "matcher_tree": {
                "input": _input(HEADER),
                "exact_match_map": {"map": table},
            },
            "on_no_match": {"action": _told(404, NOT_FOUND, "no such vFM at this door")},
        },
    }
    return {
        "@type": f"{_TYPES}config.route.v3.RouteConfiguration",
        "name": "fmplex",
        "virtual_hosts": [host],
        "max_direct_response_body_size_bytes": max(4096, len(body.encode())),
    }


def _by_protocol(vfm: str, servers: str, door: Door) -> Json:
    """gRPC to the one port, all else to the other."""
    return _list(_route(vfm, f"grpc/{servers}", door), _route(vfm, f"http/{servers}", door))


def _nowhere(vfm: str, door: Door) -> Json:
    """Of a vFM that is wanted and on no server: wait, where the door can."""
    if door.waiting:
        return _list(_waits(vfm), _waits(vfm))
    return _told(503, UNAVAILABLE, f"vFM {vfm!r} is on no server at the moment; retry in 1 s")


def _told(status: int, code: int, message: str) -> Json:
    """An answer of the door's own, as Triton words its errors."""
    told = [{"header": {"key": "grpc-status", "value": str(code)}, "append_action": _OVER}]
    grpc = {"direct_response": {"status": status, "body": {"inline_string": message}}, "response_headers_to_add": told}
    return _list(grpc, _json_told(status, json.dumps({"error": message})))


def _json_told(status: int, body: str) -> Json:
    kind = [{"header": {"key": "content-type", "value": "application/json"}, "append_action": _OVER}]
    return {"direct_response": {"status": status, "body": {"inline_string": body}}, "response_headers_to_add": kind}


def _list(grpc: Json, http: Json) -> Json:
    routes = [{"match": {"prefix": "/", "grpc": {}}, **grpc}, {"match": {"prefix": "/"}, **http}]
    return {"name": "routes", "typed_config": {"@type": f"{_TYPES}config.route.v3.RouteList", "routes": routes}}


def _route(vfm: str, cluster: str, door: Door) -> Json:
    again = "connect-failure,refused-stream,reset-before-request,reset,unavailable,retriable-status-codes"
    return {
        "stat_prefix": vfm,
        "route": {
            "cluster": cluster,
            "timeout": "0s",  # the client's own deadline holds
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
            "retry_policy": {
                "retry_on": again,
                "retriable_status_codes": [503],
                "num_retries": door.retries,
                "retry_host_predicate": [
                    {
                        "name": "elsewhere",
                        "typed_config": {
                            "@type": f"{_TYPES}extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                        },
                    }
                ],
                "host_selection_retry_max_attempts": 3,
            },
        },
    }


def _waits(vfm: str) -> Json:
    """Until it is told to look again where the vFM is."""
    return {
        "stat_prefix": vfm,
        "route": {
            "cluster": _WAITING,
            "timeout": "0s",
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
            "internal_redirect_policy": {
                "max_internal_redirects": 20,
                "redirect_response_codes": [307],
                "allow_cross_scheme_redirect": True,
            },
            # Who holds it may be started anew meanwhile.
            "retry_policy": {
                "retry_on": "connect-failure,reset",
                "num_retries": 30,
                "retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"},
            },
        },
    }


def _waiting_cluster(door: Door) -> Json:
    limits = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096, "max_retries": 4096}
    return {
        "@type": f"{_TYPES}config.cluster.v3.Cluster",
        "name": _WAITING,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": MOST_BODY,
        "load_assignment": {
            "cluster_name": _WAITING,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", door.waiting)}}]}],
        },
        "circuit_breakers": {"thresholds": [limits]},
    }


def _input(header: str) -> Json:
    return {
        "name": "vfm",
        "typed_config": {"@type": f"{_TYPES}type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": header},
    }


def _check_seconds(sets: Iterable[Sequence[str]]) -> int:
    """Between two questions for a server's health by one cluster, so that all of them ask it `MOST_CHECKS` a second.

    A power of two: clusters that change are made anew, their connections too.
    """
    of_server = Counter(name for names in sets for name in names)
    asked = 2 * max(of_server.values(), default=1)
    return 1 << max(0, math.ceil(math.log2(asked / MOST_CHECKS)))


def _cluster(kind: str, name: str, servers: Sequence[Server], door: Door, every: int) -> Json:
    """Of these servers, at their HTTP or gRPC ports; asked for their health every so many seconds."""
    versions: Json = {"http2_protocol_options": {}} if kind == "grpc" else {"http_protocol_options": {}}
    endpoints = [_endpoint(server, kind) for server in servers]
    checks = {
        "timeout": "2s",
        "interval": f"{every}s",
        "no_traffic_interval": f"{every}s",
        "unhealthy_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/v2/health/ready"},
    }
    return {
        "@type": f"{_TYPES}config.cluster.v3.Cluster",
        "name": f"{kind}/{name}",
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": MOST_BODY,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "ignore_health_on_host_removal": True,
        "load_assignment": {"cluster_name": f"{kind}/{name}", "endpoints": [{"lb_endpoints": endpoints}]},
        "health_checks": [checks],
        "outlier_detection": {
            "consecutive_5xx": 0,
            "consecutive_gateway_failure": 3,
            "consecutive_local_origin_failure": 3,
            "split_external_local_origin_errors": True,
            "interval": "1s",
            "base_ejection_time": "2s",
            "max_ejection_percent": 50,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 65536,
                    "max_pending_requests": 65536,
                    "max_requests": 65536,
                    "retry_budget": {"budget_percent": {"value": door.retry_budget}, "min_retry_concurrency": 16},
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPES}extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": versions,
            }
        },
    }


def _endpoint(server: Server, kind: str) -> Json:
    port = server.grpc if kind == "grpc" else server.http
    return {
        "endpoint": {
            "address": _address(server.host, port),
            "hostname": server.name,
            "health_check_config": {"port_value": server.health or server.http},
        }
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _watched(path: Path) -> Json:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


# ---- files ----


def _set_name(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else hashlib.blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def _cluster_sets(folder: Path) -> dict[str, tuple[str, ...]]:
    """The sets of servers that the clusters written last are of."""
    try:
        found = json.loads((folder / CLUSTERS).read_text("utf-8"))["control_plane"]["identifier"]
    except (FileNotFoundError, KeyError):
        return {}
    return {name: tuple(servers) for name, servers in json.loads(found)["sets"].items()}


def _response(kind: str, resources: Sequence[Json], note: Json | None = None) -> Json:
    """As a management server would answer; its version is a digest, so that what is the same changes nothing."""
    full = f"{_TYPES}{kind}"
    typed = [{"@type": full, **resource} for resource in resources]
    version = hashlib.blake2b(json.dumps(typed, sort_keys=True).encode(), digest_size=8).hexdigest()
    made: Json = {"version_info": version, "type_url": full, "resources": typed}
    if note is not None:
        made["control_plane"] = {"identifier": json.dumps(note)}
    return made


def _put(path: Path, content: Json) -> None:
    """By renaming; nothing where it is the same already."""
    text = json.dumps(content, indent=1)
    if path.is_file() and path.read_text("utf-8") == text:
        return
    write_whole(path, text)
