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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
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
from fmplex_backend.host.access import TOKEN
from fmplex_tools.bench.engine.fleet import FleetBase, make_fleet
from fmplex_tools.bench.engine.fleet_server import workplace
from fmplex_tools.bench.fair.arena import START_SECONDS
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.server.secure import ADMIN_HEADER, Secure
from fmplex_tools.serving import fetch_status
from fmplex_tools.tasks import add_token

OPEN, GUARDED = "open", "guarded"
SHOWN = 140
"""Characters of an answer."""
CONNECT_SECONDS = 3.0
NO_CONNECTION = "no connection"
RESTRICTED, NEEDS_TOKEN = "is restricted", "answers only to its tokens"
"""How Triton and the host refuse."""
NO_WAY = "–"
"""Of what needs no server."""


@dataclass(frozen=True)
class Attempt:
    """Something that somebody tries."""

    who: str
    what: str
    way: str
    """gRPC or HTTP, or `NO_WAY`."""
    refusal: str | None
    """What its refusal must say: another error would hide that it is not refused. None: it must be answered."""
    call: Callable[[], object]
    """Raises where it is refused."""


@dataclass(frozen=True)
class Tried:
    """How an attempt ended."""

    who: str
    what: str
    way: str
    refusal: str | None
    """See `Attempt`."""
    error: str | None
    """None where it was answered."""

    @property
    def right(self) -> bool:
        """Whether who may was answered, and who may not was told that he may not."""
        if self.refusal is None or self.error is None:
            return self.refusal == self.error
        return self.refusal in self.error


@dataclass(frozen=True)
class Server:
    """A secure server, and all its secrets."""

    options: ServerOptions
    secure: Secure
    fm: str
    token: str

    def grpc(self) -> Any:
        """A client that trusts the server's certificate."""
        root = str(self.secure.certificate)
        return grpc.InferenceServerClient(self.options.grpc, ssl=True, root_certificates=root)

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
        "another certificate's key": (replace(secure, key=other.key), "the key is not the certificate's"),
        "certificate and key exchanged": (
            replace(secure, certificate=secure.key, key=secure.certificate),
            "no such pair in PEM format",
        ),
        "no such certificate": (replace(secure, certificate=secure.key.with_name("none.pem")), "cannot be read"),
        "a key with a password": (replace(secure, key=encrypted), "the private key is encrypted"),
    }
    for what, (pair, says) in wrong.items():
        tried = _try(Attempt("the operator", f"start with {what}", NO_WAY, says, pair.check))
        yield replace(tried, error=tried.error and tried.error.replace(f"{secure.key.parent.parent}/", ""))


# ---- attempts ----


def _attempts(server: Server, other_root: Path) -> Iterator[Attempt]:
    forged = server.token[:-1] + ("a" if server.token[-1] != "a" else "b")
    what = f"ask vFM `{GUARDED}`, which has a token"
    callers: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
        ("anybody", f"{NEEDS_TOKEN}, and the request has none", {}),
        ("with a wrong token", f"{NEEDS_TOKEN}, and its token is not one", {"headers": {TOKEN: forged}}),
        ("with the vFM's token", None, {"headers": {TOKEN: server.token}}),
        ("with the vFM's token, as a parameter", None, {"parameters": {TOKEN: server.token}}),
    )
    with server.grpc() as by_grpc, server.http() as by_http:
        for way, client in (("gRPC", by_grpc), ("HTTP", by_http)):
            yield Attempt("anybody", f"ask vFM `{OPEN}`", way, None, _asking(client, OPEN))
            for who, refusal, given in callers:
                yield Attempt(who, what, way, refusal, _asking(client, GUARDED, **given))
            past = _asking(client, server.fm, outputs=["port1.vector"])
            yield Attempt("anybody", f"ask `{GUARDED}` past it, by the physical FM's port", way, NEEDS_TOKEN, past)
            yield from _administration(server, way, client)
    yield from _connections(server, other_root)


def _administration(server: Server, way: str, client: Any) -> Iterator[Attempt]:
    header = ADMIN_HEADER if way == "HTTP" else f"triton-grpc-protocol-{ADMIN_HEADER}"
    callers: tuple[tuple[str, dict[str, str]], ...] = (("anybody", {}), ("with a wrong admin key", {header: "wrong"}))
    looks: dict[str, Callable[..., object]] = {
        "list the models": client.get_model_repository_index,
        "see shared memory": client.get_system_shared_memory_status,
        "see the settings of tracing": client.get_trace_settings,
        "see the settings of logging": client.get_log_settings,
    }
    deeds: dict[str, Callable[..., object]] = {
        "load a model": partial(client.load_model, OPEN),
        "unload a model": partial(client.unload_model, OPEN),
        "register shared memory": partial(client.register_system_shared_memory, "region", "/region", 64),
        "change tracing": partial(client.update_trace_settings, OPEN, {"trace_level": ["OFF"]}),
        "change logging": partial(client.update_log_settings, {"log_verbose_level": 0}),
    }
    for what, call in {**looks, **deeds}.items():
        for who, headers in callers:
            yield Attempt(who, what, way, RESTRICTED, partial(call, headers=headers))
    for what, call in looks.items():
        keyed = partial(call, headers={header: server.secure.admin_key})
        yield Attempt("with the admin key", what, way, None, keyed)


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

    ours = server.secure.certificate
    yield Attempt("trusting the server's certificate", "connect", "gRPC", None, partial(connect, ours))
    yield Attempt("without TLS", "connect", "gRPC", NO_CONNECTION, partial(connect, None))
    yield Attempt("trusting another certificate", "connect", "gRPC", NO_CONNECTION, partial(connect, other_root))
    metrics = partial(_read, f"http://{server.options.metrics}/metrics")
    yield Attempt("on this machine", "read metrics", "HTTP", None, metrics)
    ports = {"HTTP": server.options.http_port, "metrics": server.options.metrics_port}
    for address in _outer_addresses():
        for what, port in ports.items():
            reach = partial(_reach, (address, port))
            yield Attempt("by an address that others reach", f"connect to {what}", "HTTP", NO_CONNECTION, reach)


def _reach(address: tuple[str, int]) -> None:
    socket.create_connection(address, CONNECT_SECONDS).close()


def _read(url: str) -> None:
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer:
        answer.read()


def _outer_addresses() -> list[str]:
    """IPv4 addresses of this machine that are not its loopback's."""
    found = (one.address for many in psutil.net_if_addrs().values() for one in many if one.family == socket.AF_INET)
    return sorted({address for address in found if not ipaddress.ip_address(address).is_loopback})[:1]


def _try(attempt: Attempt) -> Tried:
    error = None
    try:
        attempt.call()
    except InferenceServerException as refused:
        error = " ".join(str(refused.message()).split()).removeprefix(f"in ensemble {GUARDED!r}, ")
    except FMplexError as refused:
        error = str(refused)
    except (ConnectionRefusedError, TimeoutError, grpc_core.FutureTimeoutError):
        error = NO_CONNECTION
    return Tried(attempt.who, attempt.what, attempt.way, attempt.refusal, error)


def _outcome(tried: list[Tried], starts: list[Tried]) -> Outcome:
    must = [one for one in tried if one.refusal is not None]
    may = [one for one in tried if one.refusal is None]
    figures = [
        *_figures("a secure server", "attempts that must be refused", "… that were answered, or told so wrongly", must),
        *_figures("a secure server", "attempts that must be answered", "… that were refused", may),
        *_figures("its start", "wrong certificates and keys", "… that were taken, or told so wrongly", starts),
    ]
    details = [vars(one) | {"right": one.right} for one in (*tried, *starts)]
    return Outcome(figures, {"tried": details})


def _figures(part: str, what: str, wrong: str, tried: list[Tried]) -> list[Figure]:
    count = sum(not one.right for one in tried)
    return [Figure(part, what, len(tried)), Figure(part, wrong, count, "", "0", count == 0)]


def as_markdown(outcome: Outcome) -> str:
    """A table of who, what and the answers; what has the same ones over both protocols is in one line."""
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for one in outcome.details["tried"]:
        answer = "yes" if one["error"] is None else f"no: {_short(one['error'])}"
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
