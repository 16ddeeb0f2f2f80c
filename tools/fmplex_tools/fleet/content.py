"""What the devices of a fleet are to hold: physical FMs and vFMs by their files' texts and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from google.protobuf import text_format
from pydantic import BaseModel, ConfigDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_backend.repository.config import CONFIG_FILE, VfmConfig, is_physical, parameters_of, read_config, vfm_config
from fmplex_backend.repository.layout import model_dirs, versions
from fmplex_tools.fleet.artifacts import push
from fmplex_tools.planner.fleet_file import Fleet


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FMContent(_Part):
    """A physical FM."""

    config: str
    """Text of its ``config.pbtxt``."""


class VfmContent(_Part):
    """A vFM, or a bundle."""

    fm: str
    config: str
    versions: dict[str, str]
    """Version → its hash in the store; none of a bundle."""

    @property
    def is_bundle(self) -> bool:
        """Whether it is an ensemble over several vFMs, with nothing of its own."""
        return not self.versions

    @property
    def version(self) -> str:
        """The one that is to be served, by Triton's rule."""
        return _pinned(self.config) or max(self.versions, key=int, default="1")


class Contents(_Part):
    """All that a fleet serves, or a device holds."""

    fms: dict[str, FMContent] = {}
    vfms: dict[str, VfmContent] = {}

    def part(self, vfms: set[str], replicas: Mapping[str, int], cuda: int | None = None) -> Contents:
        """What a device with these ``vfms`` holds.

        A vFM's weight is spread over its ``replicas``; ``cuda``: the GPU that engines compute on.
        """
        chosen = {name: self.vfms[name] for name in sorted(vfms & self.vfms.keys())}
        fms = {vfm.fm: self.fms[vfm.fm] for vfm in chosen.values()}
        if cuda is not None:
            fms = {name: FMContent(config=_with(fm.config, engines=f"cuda:{cuda}")) for name, fm in fms.items()}
        return Contents(
            fms=dict(sorted(fms.items())),
            vfms={name: _spread(vfm, replicas.get(name, 1)) for name, vfm in chosen.items()},
        )

    @property
    def digest(self) -> str:
        """Of all of it."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()


def read_contents(fleet: Fleet, repository: Path, store: str, tell: Callable[[str], None]) -> Contents:
    """The fleet's physical FMs and vFMs as they are in ``repository``, their versions put into ``store``.

    ``tell`` is given the name of each vFM before it is stored. Raises `NotFound`, `InvalidInput`, `Refused` and
    `Unavailable`.
    """
    folders = model_dirs(repository)
    fms = {}
    for name in fleet.fms:
        if (folder := folders.get(name)) is None or not is_physical(read_config(folder / CONFIG_FILE)):
            raise NotFound(f"{repository} has no physical FM {name!r}, which the fleet file names")
        fms[name] = FMContent(config=(folder / CONFIG_FILE).read_text("utf-8"))
    made, on_port = {}, dict[tuple[str, int], str]()
    for name, own in fleet.names():
        folder, known = _ensemble(name, own.fm, fleet, folders, repository)
        if known.is_bundle:
            raise InvalidInput(f"{name!r} is a bundle: name it with its vFMs under 'bundles', not under 'vfms'")
        on_port[own.fm, known.ports[0]] = name
        tell(name)
        numbers = versions(folder)
        if not numbers:
            raise NotFound(f"vFM {name!r} has no version in {folder}")
        text = (folder / CONFIG_FILE).read_text("utf-8")
        if "weight" in own.model_fields_set:
            text = _with(text, weight=f"{own.weight:g}")
        hashes = {str(number): push(folder / str(number), store) for number in numbers}
        made[name] = VfmContent(fm=own.fm, config=text, versions=hashes)
    for name, members in fleet.bundles.items():
        fm = fleet.vfms[members[0]].fm
        folder, known = _ensemble(name, fm, fleet, folders, repository)
        asked = {on_port.get((fm, port), f"port {port}, which is no vFM of the fleet file") for port in known.ports}
        if asked != set(members):
            raise InvalidInput(
                f"bundle {name!r}: the fleet file says {', '.join(sorted(set(members)))}; its configuration in "
                f"{repository} asks {', '.join(sorted(asked))}"
            )
        made[name] = VfmContent(fm=fm, config=(folder / CONFIG_FILE).read_text("utf-8"), versions={})
    return Contents(fms=fms, vfms=made)


def _ensemble(
    name: str, fm: str, fleet: Fleet, folders: Mapping[str, Path], repository: Path
) -> tuple[Path, VfmConfig]:
    """The folder of a vFM or bundle of ``fm``, and what its configuration says."""
    if (folder := folders.get(name)) is None:
        raise NotFound(f"{repository} has no vFM {name!r}, which the fleet file names")
    known = vfm_config(name, read_config(folder / CONFIG_FILE), set(fleet.fms))
    if known is None or known.fm != fm:
        raise InvalidInput(f"vFM {name!r}: in {repository} it is not on the physical FM {fm!r}")
    return folder, known


def _spread(vfm: VfmContent, replicas: int) -> VfmContent:
    """With its part of the weight: all replicas together have what the vFM has. One without a place has none."""
    if replicas <= 1 or vfm.is_bundle:
        return vfm
    weight = float(parameters_of(_parsed(vfm.config)).get("weight", "1"))
    return vfm.model_copy(update={"config": _with(vfm.config, weight=f"{weight / replicas:g}")})


@lru_cache(maxsize=1 << 16)
def _pinned(text: str) -> str | None:
    specific = list(_parsed(text).version_policy.specific.versions)
    return str(specific[0]) if specific else None


def _with(text: str, **parameters: str) -> str:
    config = _parsed(text)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return str(text_format.MessageToString(config))


def _parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())
