"""Finding a tritonserver: the one on PATH first, the embedded one otherwise."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_backend.host.engine_environment import LIBRARY_PATH
from fmplex_tools.server.install import TritonInstall, find_triton
from fmplex_tools.server.process import ServerOptions, check_port_free


def make_install(root: Path, *, backend: bool = True) -> Path:
    """A tree like /opt/tritonserver with an executable that is never run."""
    binary = root / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    if backend:
        folder = root / "backends" / "python"
        folder.mkdir(parents=True)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"):
            (folder / name).write_text(name)
    return binary


def test_the_one_on_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = make_install(tmp_path / "triton")
    monkeypatch.setenv("PATH", f"{binary.parent}{os.pathsep}{os.environ['PATH']}")
    install = find_triton()
    assert install.binary == binary
    assert install.library_path == ()
    backends = install.lay_out(tmp_path / "run")
    assert (backends / "fmplex" / "model.py").read_text().startswith('"""The edge to Triton')
    assert os.access(backends / "python" / "triton_python_backend_stub", os.X_OK)
    assert not any(path.is_symlink() for path in backends.rglob("*")), "the server refuses links that lead out"


def test_one_without_a_python_backend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = make_install(tmp_path / "triton", backend=False)
    monkeypatch.setenv("PATH", str(binary.parent))
    with pytest.raises(NotFound, match="has no Python backend"):
        find_triton()


def test_the_embedded_one_is_found_whole() -> None:
    install = find_triton()
    if install.stub is None:
        pytest.skip("a tritonserver is on PATH here")
    assert install.binary.exists()
    assert install.stub.exists()
    assert all(path.is_dir() for path in install.library_path)


def test_engines_get_the_library_path_that_the_server_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/own")
    install = TritonInstall(Path("/x/tritonserver"), Path("/x"), None, (Path("/server/libs"),), "test")
    env = install.environment()
    assert env["LD_LIBRARY_PATH"] == "/server/libs:/opt/own"
    assert env[LIBRARY_PATH] == "/opt/own"


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {port} on 127.0.0.1 cannot be used"):
            check_port_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("poll", "--repository-poll-secs=1"), ("explicit", "--load-model=*")],
)
def test_arguments(mode: str, expected: str) -> None:
    options = ServerOptions(Path("/models"), mode=mode, log_level="verbose")  # type: ignore[arg-type]
    assert expected in options.arguments()
    assert "--log-verbose=1" in options.arguments()
