"""``fmplex serve``: the real tritonserver over a model repository, until Ctrl-C."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated, Literal

import typer
from rich.markup import escape
from rich.panel import Panel

from fmplex_backend.backbones.source import cache_dir
from fmplex_backend.errors import EngineFailure, FMplexError, InvalidInput
from fmplex_backend.host.log import LOG_FORMAT, event_of
from fmplex_backend.repository.layout import physical_fms
from fmplex_tools.console import DEFAULT_REPOSITORY, err, fail, out
from fmplex_tools.fetching import fetch_backbones
from fmplex_tools.server.health_port import HealthPort
from fmplex_tools.server.log_lines import host_message, json_line
from fmplex_tools.server.process import ServerOptions, TritonServer
from fmplex_tools.server.secure import ADMIN_HEADER, RESTRICTED, Secure
from fmplex_tools.server.supervisor import Supervisor
from fmplex_tools.server.told_to_stop import told_to_stop
from fmplex_tools.server.warm import warm_python
from fmplex_tools.serving import fetch_status, refusals, unreadable, vfm_table


def serve(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository.")] = DEFAULT_REPOSITORY,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    health_port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="For load balancers: GET /v2/health/ready, by real inferences; 0: none"),
    ] = 0,
    mode: Annotated[
        Literal["poll", "explicit"],
        typer.Option(help="poll: follow the repository. explicit: endpoints change only by Triton's load API."),
    ] = "poll",
    log_level: Annotated[Literal["error", "warning", "info", "verbose"], typer.Option()] = "info",
    log_format: Annotated[
        Literal["text", "json"], typer.Option(envvar=LOG_FORMAT, help="json: an object a line, Triton's own lines too.")
    ] = "text",
    log_file: Annotated[Path | None, typer.Option(help="Where tritonserver's own output goes.")] = None,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Build the demo vFMs where they are missing.")] = False,
    startup_timeout: Annotated[float, typer.Option(help="Seconds until everything must be ready.")] = 300,
    secure: Annotated[
        bool, typer.Option("--secure", help="gRPC with TLS, HTTP on the loopback address only, an admin key.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="With --secure: the server's certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="With --secure: its private key, PEM.")] = None,
    restart: Annotated[
        bool, typer.Option(help="Start another server where this one ends by itself or answers nothing any more.")
    ] = True,
) -> None:
    """Serve a model repository until Ctrl-C.

    Waits until every physical FM is ready, shows what is served and what was refused and why, and then follows the
    repository: add, edit or remove a vFM's folder and the change is live within 2 s. Looks at the server every second
    by a real inference through every physical FM, and starts another one where it has ended or hangs.

    Examples:

      fmplex serve --demo

      fmplex serve -r /srv/models --http-port 9000 --grpc-port 9001 --metrics-port 9002

      fmplex serve -r /models --host 0.0.0.0 --log-level warning

      fmplex serve --secure --tls-cert server.crt --tls-key server.key --host 0.0.0.0
    """
    secured = _secure(secure, tls_cert, tls_key)
    if demo:
        from fmplex_tools.demo import ensure_demo

        ensure_demo(repository, out)
    fetch_backbones(repository, out)
    ports, as_json = (http_port, grpc_port, metrics_port), log_format == "json"
    options = ServerOptions(repository.resolve(), *ports, host, mode, log_level, secure=secured, log_format=log_format)
    admin_key = _admin_key_file(options)
    log_file = log_file or cache_dir() / "log" / f"tritonserver-{http_port}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    stop, ready = told_to_stop(), threading.Event()
    if secured is not None:
        secured.keep(admin_key)
    with log_file.open("w", buffering=1) as log, warm_python(options.repository) as warm:
        options = replace(options, warm=warm)
        supervisor = Supervisor(
            lambda: TritonServer(options, on_line=lambda line: _on_line(line, as_json, log, ready)),
            _say,
            startup_timeout,
        )
        health = HealthPort(host, health_port, lambda: supervisor.wrong) if health_port else nullcontext()
        try:
            with health:
                _run(supervisor, log_file, stop, ready, restart)
        finally:
            with out.status("stopping: answering what is in flight"):
                supervisor.stop()
            if secured is not None:
                admin_key.unlink(missing_ok=True)
            out.print("stopped; no process is left")


def _admin_key_file(options: ServerOptions) -> Path:
    return cache_dir() / "run" / f"admin-key-{options.grpc_port}"


def _secure(wanted: bool, certificate: Path | None, key: Path | None) -> Secure | None:
    """Raises `InvalidInput` where something is missing or wrong."""
    if not wanted:
        if certificate or key:
            raise InvalidInput("--tls-cert and --tls-key go with --secure")
        return None
    if certificate is None or key is None:
        raise InvalidInput("--secure needs --tls-cert and --tls-key: the server's certificate and private key, PEM")
    made = Secure(certificate.resolve(), key.resolve())
    made.check()
    return made


def _run(supervisor: Supervisor, log_file: Path, stop: threading.Event, ready: threading.Event, restart: bool) -> None:
    start = time.monotonic()
    first = supervisor.server
    out.print(f"tritonserver: {first.install.origin}; its log is {escape(str(log_file))}", soft_wrap=True)
    with out.status("starting: one engine a physical FM takes some seconds to load torch and the backbone"):
        supervisor.start(stop)
    if stop.is_set():
        return
    _show(first.options, time.monotonic() - start)
    ready.set()
    if restart:
        supervisor.watch(stop)
    while not stop.wait(0.5):
        if first.exit_code is not None:
            raise EngineFailure(f"tritonserver ended by itself with code {first.exit_code}; see {log_file}")


def _say(message: str, style: str = "red") -> None:
    out.print(f"[{style}]{time.strftime('%H:%M:%S')} {escape(message)}[/]", soft_wrap=True)


def _on_line(line: str, as_json: bool, log: IO[str], ready: threading.Event) -> None:
    """Everything goes to the log; what the host says once the first table stands is for the screen too."""
    log.write((json_line(line) if as_json else line) + "\n")
    if ready.is_set() and (message := host_message(line)) is not None:
        _say(message, "dim" if event_of(message) == "note" else "red")


def _show(options: ServerOptions, seconds: float) -> None:
    first: str | None = None  # of text, for an example that fits a line
    problems = unreadable(options.repository)
    for fm in physical_fms(options.repository):
        try:
            status = fetch_status(options.http, fm)
        except FMplexError as error:
            fail(f"physical FM {fm!r} did not load; {error}")
            continue
        out.print(vfm_table(status))
        cost = status["cost_model"]
        out.print(f"[dim]a batch on {escape(cost['device'])} costs {escape(cost['fit'])}[/]\n", soft_wrap=True)
        problems += refusals(status)
        serving = [vfm["name"] for vfm in status["vfms"] if vfm["state"] == "serving" and not vfm["bundle"]]
        if status["modality"] == "text":
            first = first or next(iter(serving), None)
    for problem in dict.fromkeys(problems):
        err.print(f"[red]refused:[/] {escape(problem)}", soft_wrap=True)
    lines = [
        f"HTTP     http://{options.http}",
        f"gRPC     {options.grpc}" + (", TLS" if options.secure else ""),
        f"metrics  http://{options.metrics}/metrics",
    ]
    if options.secure:
        lines += [
            "",
            f"{', '.join(RESTRICTED)}: only with the admin key of {_admin_key_file(options)}",
            f"  (header {ADMIN_HEADER}; every user of this machine sees it in the process list)",
            "HTTP and metrics have no TLS and listen on this machine alone; vFMs without tokens answer to anybody",
        ]
    if first:
        body = '{"inputs":[{"name":"text","datatype":"BYTES","shape":[1,1],"data":["I love it"]}]}'
        lines += ["", "Try it:", f'  fmplex infer {first} "I love it" --url {options.http}', ""]
        lines += [f"  curl -s http://{options.http}/v2/models/{first}/infer -d '{body}'"]
    out.print(Panel("\n".join(lines), title=f"ready in {seconds:.1f} s · Ctrl-C stops", title_align="left"))
