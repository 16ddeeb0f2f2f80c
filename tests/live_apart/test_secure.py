"""``fmplex serve --secure``, tokens and signatures: who asks for what, by which way, and what may answer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc as grpc_core
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
import trustme
from support.live import ask, wait_for
from support.recipes import RECIPES, publish, stage, write_vfm
from support.served import Served, make_small_repository, run, serving
from tritonclient.utils import InferenceServerException

from fmplex_backend.repository.config import CONFIG_FILE, read_config, write_config
from fmplex_client import Client, InvalidRequest
from fmplex_tools.serving import fetch_status
from fmplex_tools.tasks import load_key, make_key, sign_task

pytestmark = pytest.mark.live

ADMIN = "x-fmplex-admin"
TOKEN = "x-fmplex-token"


@dataclass(frozen=True)
class Secured:
    """A secure server with the vFM ``good``, which has a token and is signed, and its certificates."""

    served: Served
    repository: Path
    token: str
    admin_key: str
    root: Path
    signing_key: Path

    def grpc(self) -> Any:
        """A client that trusts the server's root."""
        return grpc.InferenceServerClient(
            f"localhost:{self.served.ports[1]}", ssl=True, root_certificates=str(self.root)
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``root.pem``, ``server.pem`` and its ``server.key``, and ``other.key``."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "root.pem")
    server, other = (authority.issue_cert("localhost", "127.0.0.1") for _ in range(2))
    for pem in server.cert_chain_pems:
        pem.write_to_path(folder / "server.pem", append=True)
    server.private_key_pem.write_to_path(folder / "server.key")
    other.private_key_pem.write_to_path(folder / "other.key")
    return folder


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, certificates: Path) -> Iterator[Secured]:
    repository = make_small_repository(tmp_path_factory.mktemp("secure"), tiny_backbone)
    made = run("task", "token", "good", "-r", str(repository))
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    signing_key = repository.parent / "release.pem"
    config = read_config(repository / "tiny" / CONFIG_FILE)
    config.parameters["trusted_keys"].string_value = make_key(signing_key)
    write_config(repository / "tiny" / CONFIG_FILE, config)
    sign_task(repository, "good", load_key(signing_key))
    options = [
        "--secure",
        "--tls-cert",
        str(certificates / "server.pem"),
        "--tls-key",
        str(certificates / "server.key"),
    ]
    with serving(repository, *options) as served:
        served.wait_ready()
        [line] = (line for line in served.printed.splitlines() if "only with the admin key of" in line)
        key_file = Path(line.rpartition(" of ")[2].strip(" │"))
        assert key_file.stat().st_mode & 0o777 == 0o600
        admin_key = key_file.read_text().strip()
        yield Secured(served, repository, token, admin_key, certificates / "root.pem", signing_key)
    assert not key_file.exists()


def answer_of(call: Any, *arguments: Any, **named: Any) -> str:
    """``answered``, or how it was refused."""
    try:
        call(*arguments, **named)
    except InferenceServerException as error:
        return str(error.message())
    return "answered"


def test_who_may_do_what(secured: Secured) -> None:
    served = secured.served
    given: dict[str, Any] = {"parameters": {TOKEN: secured.token}}
    admin_http, admin_grpc = {ADMIN: secured.admin_key}, {f"triton-grpc-protocol-{ADMIN}": secured.admin_key}
    with secured.grpc() as g, http.InferenceServerClient(served.http) as h:
        for client in (g, h):
            # vFMs
            unknown = answer_of(ask, client, "good", ["hello"], request_id="who am I")
            assert "answers only to its tokens, and the request has none" in unknown
            wrong = answer_of(ask, client, "good", ["hello"], parameters={TOKEN: secured.token[:-1] + "?"})
            assert "its token is not one of them" in wrong
            assert answer_of(ask, client, "good", ["hello"], **given) == "answered"
            assert answer_of(ask, client, "good", ["hello"], headers={TOKEN: secured.token}) == "answered"
        # the way through the physical FM's ports
        output = [grpc.InferRequestedOutput("port0.vector")]
        text = grpc.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"hello"]], dtype=object))
        assert "answers only to its tokens" in answer_of(g.infer, "tiny", [text], outputs=output)
        # the server
        for client, headers in ((g, admin_grpc), (h, admin_http)):
            for call, arguments in (
                (client.get_model_repository_index, ()),
                (client.load_model, ("good",)),
                (client.unload_model, ("good",)),
                (client.register_system_shared_memory, ("region", "/region", 64)),
                (client.get_system_shared_memory_status, ()),
                (client.get_trace_settings, ()),
                (client.update_trace_settings, ("good", {"trace_level": ["OFF"]})),
                (client.get_log_settings, ()),
                (client.update_log_settings, ({"log_verbose_level": 1},)),
            ):
                told = answer_of(call, *arguments)
                assert "restricted" in told or "403" in told, (call, told)
                forged = answer_of(call, *arguments, headers=dict.fromkeys(headers, "wrong"))
                assert "restricted" in forged or "403" in forged, (call, forged)
            assert answer_of(client.get_log_settings, headers=headers) == "answered"
            assert answer_of(client.get_model_repository_index, headers=headers) == "answered"
    assert "denied: request 'who am I' of vFM 'good' version 1: vFM 'good' answers only to its tokens" in served.printed
    assert secured.token not in served.printed
    assert secured.admin_key not in served.printed


def test_our_client_and_plain_ones(secured: Secured) -> None:
    served = secured.served
    with Client(served.http, token=secured.token) as client:
        assert client.predict("good", ["hello"])
        assert "access_tokens" not in json.dumps(client.status("tiny"))
    with Client(served.http) as client, pytest.raises(InvalidRequest, match="answers only to its tokens"):
        client.predict("good", ["hello"])
    secure_grpc = f"localhost:{served.ports[1]}"
    with Client(secure_grpc, "grpc", token=secured.token, tls_ca=str(secured.root)) as client:
        assert client.predict("good", ["hello"])
    asked = ["health", "good", "--protocol", "grpc", "--url", secure_grpc, "--tls-ca", str(secured.root)]
    assert run(*asked, "--token", secured.token).returncode == 0
    refused = run(*asked)
    assert (refused.returncode, "answers only to its tokens" in refused.stdout) == (1, True), refused
    # no TLS, no answer
    with grpc.InferenceServerClient(f"localhost:{served.ports[1]}") as plain:
        assert answer_of(plain.is_server_live) != "answered"
    # another root, no answer
    authority = trustme.CA()
    channel = grpc_core.secure_channel(
        f"localhost:{served.ports[1]}", grpc_core.ssl_channel_credentials(authority.cert_pem.bytes())
    )
    with channel, pytest.raises(grpc_core.FutureTimeoutError):
        grpc_core.channel_ready_future(channel).result(timeout=3)


def test_only_what_is_signed_is_served(secured: Secured, tiny_backbone: Path) -> None:
    """Refused while nobody has signed it, then served, and still served when a version comes that is not as signed."""
    repository, name = secured.repository, "sealed"
    folder = write_vfm(repository, name, 2, RECIPES["bare_two"], tiny_backbone, fm="tiny")

    def record() -> dict[str, Any]:
        found = (vfm for vfm in fetch_status(secured.served.http, "tiny")["vfms"] if vfm["name"] == name)
        return next(found, {"state": None, "reason": None})

    def version() -> int | None:
        try:
            with secured.grpc() as client:
                answered: int = ask(client, name, ["hello"])["info"][0]["version"]
                return answered
        except InferenceServerException:
            return None

    assert "version 1: it is not signed" in wait_for(lambda: record()["reason"], "it is refused")
    assert version() is None
    signed = run("task", "sign", name, "--key", str(secured.signing_key), "-r", str(repository))
    assert signed.returncode == 0, signed.stderr
    wait_for(lambda: version() == 1, "it is served")
    assert record()["signed_by"] in signed.stdout

    second = shutil.copytree(folder / "1", stage(repository, name) / "2")
    with (second / "head.safetensors").open("r+b") as head:
        head.seek(-1, os.SEEK_END)
        head.write(b"\x00")
    publish(second, folder / "2")
    told = wait_for(lambda: record()["reason"], "it is refused")
    assert told.startswith("vFM 'sealed': version 2: it is not what ed25519:")
    assert told.endswith("has signed: head.safetensors was changed")
    assert (record()["state"], version()) == ("serving", 1)
    (folder / "1").rename(folder / "3")  # a way back
    wait_for(lambda: version() == 3, "version 1 is served as version 3")


def test_tokens_come_and_go_while_it_serves(secured: Secured) -> None:
    """The last one: it takes the tokens away."""
    served, repository = secured.served, str(secured.repository)
    second = run("task", "token", "good", "-r", repository).stdout.strip()

    def good(token: str) -> bool:
        with Client(served.http, token=token) as client:
            try:
                return bool(client.predict("good", ["hello"]))
            except InvalidRequest:
                return False

    wait_for(lambda: good(second), "the second token")
    assert good(secured.token)
    assert run("task", "token", "good", "--revoke", "-r", repository).returncode == 0
    wait_for(lambda: good(""), "anybody may ask")
    [record] = [vfm for vfm in fetch_status(served.http, "tiny")["vfms"] if vfm["name"] == "good"]
    assert record["access"] == "anybody"


@pytest.mark.parametrize(
    ("certificate", "key", "says"),
    [
        ("server.pem", "other.key", "the key is not the certificate's"),
        ("server.key", "server.pem", "no such pair in PEM format"),
        ("none.pem", "server.key", "none.pem': cannot be read (No such file or directory)"),
        ("server.pem", None, "--secure needs --tls-cert and --tls-key"),
    ],
)
def test_bad_certificates(
    small_repository: Path, certificates: Path, certificate: str, key: str | None, says: str
) -> None:
    options = ["--secure", "--tls-cert", str(certificates / certificate)]
    options += [] if key is None else ["--tls-key", str(certificates / key)]
    ended = run("serve", "-r", str(small_repository), *options)
    assert ended.returncode == 1
    assert says in " ".join(ended.stderr.split())


def test_tls_without_secure_is_refused(small_repository: Path, certificates: Path) -> None:
    ended = run("serve", "-r", str(small_repository), "--tls-cert", str(certificates / "server.pem"))
    assert ended.returncode == 1
    assert "--tls-cert and --tls-key go with --secure" in ended.stderr
