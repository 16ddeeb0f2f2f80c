"""Finds a tritonserver and lays out the backend directory that it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import fmplex_backend
from fmplex_backend.errors import NotFound
from fmplex_backend.host.engine_environment import LIBRARY_PATH


@dataclass(frozen=True)
class TritonInstall:
    """Where a tritonserver's parts are."""

    binary: Path
    python_backend: Path
    """Folder with ``libtriton_python.so`` and ``triton_python_backend_utils.py``."""
    stub: Path | None
    """The Python stub for this version of Python; None where the one in ``python_backend`` is right."""
    library_path: tuple[Path, ...]
    """What the server needs on ``LD_LIBRARY_PATH``."""
    origin: str
    """For people: ``tritonserver on PATH`` or ``embedded (nvidia-pytriton)``."""

    def lay_out(self, folder: Path) -> Path:
        """Make a backend directory under ``folder`` with the Python backend and fmplex; returns it."""
        backends = folder / "backends"
        python, fmplex = backends / "python", backends / "fmplex"
        python.mkdir(parents=True)
        fmplex.mkdir()
        # Copies, not links: the server refuses a backend whose files lead out of its directory.
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copyfile(self.python_backend / name, python / name)
        stub = self.stub or self.python_backend / "triton_python_backend_stub"
        shutil.copyfile(stub, python / "triton_python_backend_stub")
        (python / "triton_python_backend_stub").chmod(0o755)  # the wheel does not mark it executable
        shutil.copyfile(Path(fmplex_backend.__file__).with_name("model.py"), fmplex / "model.py")
        return backends

    def environment(self) -> dict[str, str]:
        """Environment for the server: its libraries, and this Python's own folder first on ``PATH``."""
        env = dict(os.environ)
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        if self.library_path:
            env[LIBRARY_PATH] = env.get("LD_LIBRARY_PATH", "")
            extra = [env["LD_LIBRARY_PATH"]] if env.get("LD_LIBRARY_PATH") else []
            env["LD_LIBRARY_PATH"] = os.pathsep.join([*map(str, self.library_path), *extra])
        return env


def find_triton() -> TritonInstall:
    """The tritonserver on ``PATH`` (as in NVIDIA's container), else the embedded one. Raises `NotFound`."""
    if found := shutil.which("tritonserver"):
        binary = Path(found).resolve()
        for root in (binary.parent.parent, Path("/opt/tritonserver")):
            backend = root / "backends" / "python"
            if (backend / "libtriton_python.so").exists():
                return TritonInstall(binary, backend, None, (), f"tritonserver on PATH ({binary})")
        raise NotFound(f"{binary} has no Python backend in {binary.parent.parent}/backends/python")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise NotFound("no tritonserver on PATH, and nvidia-pytriton is not installed (pip install '.[embedded]')")
    root = Path(spec.origin).parent / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise NotFound(f"the embedded tritonserver has no stub for Python {version}; use Python 3.10 to 3.12")
    libraries = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    return TritonInstall(
        root / "bin" / "tritonserver",
        root / "backends" / "python",
        stub,
        (find_libpython(), libraries),
        "embedded (nvidia-pytriton)",
    )


def find_libpython() -> Path:
    """Folder of this Python's shared library, which the stub links to. Raises `NotFound` saying how to get it."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    for folder in folders:
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    listing = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        if line.strip().startswith(name):
            return Path(line.rpartition("=> ")[2]).parent
    raise NotFound(
        f"this Python was built without a shared library, and {name} is nowhere else; on Debian install "
        f"libpython{sys.version_info.major}.{sys.version_info.minor}"
    )
