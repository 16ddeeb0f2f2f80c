"""Who may do what on a secure server: everything is tried by everybody, over both protocols, and the answers are noted.

Two vFMs are served with ``--secure`` and a certificate made for the occasion: ``open`` answers to anybody, ``guarded``
to its tokens. Before that the server is started with certificates and keys that are wrong, and must say so.
"""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc as grpc_core  # type: ignore[import-untyped]
import numpy as np
import psutil
import tritonclient.grpc as grpc
import tritonclient.http as http
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from rich.progress import Progress
from tritonclient.utils import InferenceServerException

from fmplex_backend.errors import EngineFailure, FMplexError
from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.server.secure import ADMIN_HEADER, Secure
from fmplex_tools.serving import fetch_status
from fmplex_tools.tasks import add_token

START_SECONDS = 240.0
OPEN, GUARDED = "open", "guarded"
TOKEN = "x-fmplex-token"
GRPC_PREFIX = "triton-grpc-protocol-"
SHOWN = 140
"""Characters of an answer."""
CONNECT_SECONDS = 3.0
NO_WAY = "–"
"""Of what needs no server."""


@dataclass(frozen=True)
class Attempt:
    """Something that somebody tries."""

    who: str
    what: str
    way: str
    """gRPC or HTTP, or `NO_WAY`."""
    may: bool
    call: Callable[[], object]
    """Raises where it is refused."""


@dataclass(frozen=True)
class Tried:
    """How an attempt ended."""

    who: str
    what: str
    way: str
    may: bool
    did: bool
    answer: str

    @property
    def right(self) -> bool:
        """Whether who may was answered, and who may not was not."""
        return self.may == self.did


@dataclass(frozen=True)
class Server:
    """A secure server, and all its secrets."""

    options: ServerOptions
    secure: Secure
    fm: str
    token: str

    def grpc(self, root: Path | None) -> Any:
        """A client that trusts ``root``; without one it does not use TLS."""
        if root is None:
            return grpc.InferenceServerClient(self.options.grpc)
        return grpc.InferenceServerClient(self.options.grpc, ssl=True, root_certificates=str(root))

    def http(self) -> Any:
        """A client."""
        return http.InferenceServerClient(self.options.http)


def access(plan: FleetBase, progress: Progress, noted: dict[str, Any]) -> Outcome:
    """Try it; ``details`` has every attempt."""
    with workplace() as place:
        line = progress.add_task("wrong certificates and keys", total=None)
        secure, other = (Secure(*make_certificate(place / name)) for name in ("ours", "other"))
        starts = list(_wrong_starts(secure, other))
        progress.update(line, description="starting the server")
        repository = place / "fleet"
        token = _publish(repository, plan)
        by_http, by_grpc, metrics = free_ports(3)
        options = ServerOptions(
            repository, by_http, by_grpc, metrics, host="localhost", log_level="warning", secure=secure
        )
        with TritonServer(options) as triton:
            triton.wait_ready(START_SECONDS)
            server = Server(options, secure, plan.fm, token)
            noted["machine"] = _wait_served(server, triton)
            progress.update(line, description="asking")
            tried = [_try(attempt) for attempt in _attempts(server, other.certificate)]
        progress.remove_task(line)
    return _outcome(tried, starts)


def _publish(repository: Path, plan: FleetBase) -> str:
    """Two vFMs; the token of the one that has one."""
    names = make_fleet(repository, plan.source, plan.fm, 2, rank=plan.rank, seed=plan.seed)
    for old, new in zip(names, (OPEN, GUARDED), strict=True):
        shutil.move(repository / old, repository / new)
    return add_token(repository, GUARDED)


def _wait_served(server: Server, triton: TritonServer) -> str:
    """Until both vFMs are served; the device."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        triton.check()
        status = fetch_status(server.options.http, server.fm, timeout=30)
        if {vfm["name"] for vfm in status["vfms"] if vfm["state"] == "serving"} == {OPEN, GUARDED}:
            with server.http() as client:
                if all(client.is_model_ready(name) for name in (OPEN, GUARDED)):
                    return str(status["cost_model"]["device"])
        time.sleep(0.1)
    raise EngineFailure(f"{OPEN!r} and {GUARDED!r} are not served; the server's last words:\n{triton.tail}")


# ---- certificates ----


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that has signed itself, and its key, as PEM files in ``folder``."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files


def _wrong_starts(secure: Secure, other: Secure) -> Iterator[Tried]:
    encrypted = secure.key.with_name("encrypted.pem")
    key = serialization.load_pem_private_key(secure.key.read_bytes(), None)
    cipher = serialization.BestAvailableEncryption(b"password")
    encrypted.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher))
    wrong = {
        "another certificate's key": replace(secure, key=other.key),
        "certificate and key exchanged": replace(secure, certificate=secure.key, key=secure.certificate),
        "no such certificate": replace(secure, certificate=secure.certificate.with_name("none.pem")),
        "a key with a password": replace(secure, key=encrypted),
    }
    for what, pair in wrong.items():
        tried = _try(Attempt("the operator", f"start with {what}", NO_WAY, False, pair.check))
        yield replace(tried, answer=tried.answer.replace(f"{secure.key.parent.parent}/", ""))


# ---- attempts ----


def _attempts(server: Server, other_root: Path) -> Iterator[Attempt]:
    root = server.secure.certificate
    forged = server.token[:-1] + ("a" if server.token[-1] != "a" else "b")
    callers: tuple[tuple[str, dict[str, str]], ...] = (
        ("anybody", {}),
        ("with a wrong token", {TOKEN: forged}),
        ("with the vFM's token", {TOKEN: server.token}),
    )
    with server.grpc(root) as by_grpc, server.http() as by_http:
        for way, client in (("gRPC", by_grpc), ("HTTP", by_http)):
            yield Attempt("anybody", f"ask vFM `{OPEN}`", way, True, _asking(client, OPEN))
            for who, headers in callers:
                knows = headers.get(TOKEN) == server.token
                what = f"ask vFM `{GUARDED}`, which has a token"
                yield Attempt(who, what, way, knows, _asking(client, GUARDED, headers=headers))
            with_token = _asking(client, GUARDED, parameters={TOKEN: server.token})
            yield Attempt("with the vFM's token, as a parameter", what, way, True, with_token)
            past = _asking(client, server.fm, outputs=["port1.vector"])
            yield Attempt("anybody", f"ask `{GUARDED}` past it, by the physical FM's port", way, False, past)
            yield from _administration(server, way, client)
    yield from _connections(server, other_root)


def _administration(server: Server, way: str, client: Any) -> Iterator[Attempt]:
    header = ADMIN_HEADER if way == "HTTP" else GRPC_PREFIX + ADMIN_HEADER
    callers: tuple[tuple[str, dict[str, str]], ...] = (("anybody", {}), ("with a wrong admin key", {header: "wrong"}))
    keyed = {header: server.secure.admin_key}
    looks: Mapping[str, Callable[..., object]] = {
        "list the models": client.get_model_repository_index,
        "see shared memory": client.get_system_shared_memory_status,
        "see the settings of tracing": client.get_trace_settings,
        "see the settings of logging": client.get_log_settings,
    }
    deeds: Mapping[str, Callable[..., object]] = {
        "load a model": lambda headers: client.load_model(OPEN, headers=headers),
        "unload a model": lambda headers: client.unload_model(OPEN, headers=headers),
        "register shared memory": lambda headers: client.register_system_shared_memory(
            "region", "/region", 64, headers=headers
        ),
        "change tracing": lambda headers: client.update_trace_settings(OPEN, {"trace_level": ["OFF"]}, headers=headers),
        "change logging": lambda headers: client.update_log_settings({"log_verbose_level": 0}, headers=headers),
    }
    for what, call in {**looks, **deeds}.items():
        for who, headers in callers:
            yield Attempt(who, what, way, False, lambda call=call, headers=headers: call(headers=headers))  # type: ignore[misc]
    for what, call in looks.items():
        yield Attempt("with the admin key", what, way, True, lambda call=call: call(headers=keyed))  # type: ignore[misc]


def _asking(client: Any, model: str, *, outputs: list[str] | None = None, **named: Any) -> Callable[[], object]:
    module = grpc if isinstance(client, grpc.InferenceServerClient) else http

    def ask() -> object:
        text = module.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"hello"]], dtype=object))
        wanted = None if outputs is None else [module.InferRequestedOutput(name) for name in outputs]
        return client.infer(model, [text], outputs=wanted, **named)

    return ask


def _connections(server: Server, other_root: Path) -> Iterator[Attempt]:
    def connect(root: Path | None) -> None:
        if root is None:
            channel = grpc_core.insecure_channel(server.options.grpc)
        else:
            channel = grpc_core.secure_channel(
                server.options.grpc, grpc_core.ssl_channel_credentials(root.read_bytes())
            )
        with channel:
            grpc_core.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)

    yield Attempt(
        "trusting the server's certificate", "connect", "gRPC", True, lambda: connect(server.secure.certificate)
    )
    yield Attempt("without TLS", "connect", "gRPC", False, lambda: connect(None))
    yield Attempt("trusting another certificate", "connect", "gRPC", False, lambda: connect(other_root))
    ports = {"HTTP": server.options.http_port, "metrics": server.options.metrics_port}
    yield Attempt(
        "on this machine", "read metrics", "HTTP", True, lambda: _read(f"http://{server.options.metrics}/metrics")
    )
    for address in _outer_addresses():
        for what, port in ports.items():
            elsewhere = (address, port)
            reach = lambda to=elsewhere: socket.create_connection(to, CONNECT_SECONDS).close()  # noqa: E731
            yield Attempt("by an address that others reach", f"connect to {what}", "HTTP", False, reach)


def _read(url: str) -> None:
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer:
        answer.read()


def _outer_addresses() -> list[str]:
    """IPv4 addresses of this machine that are not its loopback's."""
    found = (one.address for many in psutil.net_if_addrs().values() for one in many if one.family == socket.AF_INET)
    return sorted({address for address in found if not ipaddress.ip_address(address).is_loopback})[:1]


def _try(attempt: Attempt) -> Tried:
    did, answer = True, "answered"
    try:
        attempt.call()
    except (InferenceServerException, FMplexError, OSError, grpc_core.FutureTimeoutError) as error:
        told = error.message() if isinstance(error, InferenceServerException) else str(error)
        did, answer = False, " ".join(str(told or "no connection").split()).removeprefix(f"in ensemble {GUARDED!r}, ")
    return Tried(attempt.who, attempt.what, attempt.way, attempt.may, did, answer)


def _outcome(tried: list[Tried], starts: list[Tried]) -> Outcome:
    must, may = ([one for one in tried if one.may is wanted] for wanted in (False, True))
    answered, refused = sum(one.did for one in must), sum(not one.did for one in may)
    started = sum(one.did for one in starts)
    figures = [
        Figure("a secure server", "attempts that must be refused", len(must)),
        Figure("a secure server", "… that were answered", answered, "", "0", answered == 0),
        Figure("a secure server", "attempts that must be answered", len(may)),
        Figure("a secure server", "… that were refused", refused, "", "0", refused == 0),
        Figure("its start", "wrong certificates and keys", len(starts)),
        Figure("its start", "… that were taken", started, "", "0", started == 0),
    ]
    return Outcome(figures, {"tried": [vars(one) for one in (*tried, *starts)]})


def as_markdown(outcome: Outcome) -> str:
    """A table of who, what and the answers; what has the same ones over both protocols is in one line."""
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for one in outcome.details["tried"]:
        answer = "yes" if one["did"] else f"no: {_short(one['answer'])}"
        answers.setdefault((one["who"], one["what"]), {})[one["way"]] = answer
    lines: dict[tuple[str, ...], list[str]] = {}
    for (who, what), by_way in answers.items():
        told = [by_way.get(way, NO_WAY) for way in ("gRPC", "HTTP")]
        lines.setdefault((who, by_way.get(NO_WAY, told[0]), told[1]), []).append(what)
    rows = [
        f"| {who} | {'; '.join(whats)} | {by_grpc} | {by_http} |" for (who, by_grpc, by_http), whats in lines.items()
    ]
    return "\n".join(("| who | what | over gRPC | over HTTP |", "|---|---|---|---|", *rows)) + "\n"


def _short(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if len(text) <= SHOWN else text[: SHOWN - 1].rstrip() + "…"
