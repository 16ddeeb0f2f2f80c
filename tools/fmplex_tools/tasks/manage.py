"""Looking after the vFMs of a repository: list, show, set, remove, bundle. No torch in here, so it answers at once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Refused
from fmplex_backend.host.access import token_hash
from fmplex_backend.repository.artifact import HEAD_FILE, Artifact
from fmplex_backend.repository.config import (
    CONFIG_FILE,
    Policy,
    VfmConfig,
    ensemble_config,
    parameters_of,
    read_config,
    vfm_config,
)
from fmplex_backend.repository.layout import (
    model_dirs,
    physical_fms,
    ports_in_use,
    socket_dims,
    version_to_serve,
    versions,
)
from fmplex_backend.repository.packed import read_artifact
from fmplex_tools.tasks import publish

LATEST = "latest"
TOKENS = "access_tokens"
TOKEN_BYTES = 32
BUNDLED = {
    "classification": ("label", "probabilities"),
    "multi_label": ("labels", "probabilities"),
    "regression": ("values",),
    "embedding": ("embedding",),
    "token_classification": ("token_labels", "token_scores"),
}
"""Per kind, the outputs of a vFM that a bundle of it shows, besides ``info``."""


@dataclass(frozen=True)
class TaskInfo:
    """One vFM or bundle, as its files tell it."""

    name: str
    fm: str | None
    ports: tuple[int, ...]
    policy: Policy | None
    versions: tuple[int, ...]
    version: int | None
    """The one that is served: the pinned one, else the highest."""
    pinned: bool
    artifact: Artifact | None
    """None for a bundle, and where ``problem`` says why it cannot be read."""
    bundle: bool
    outputs: dict[str, tuple[int, str]]
    """Ensemble output → (port, socket)."""
    width: int | None
    """Outputs of its head, as its ensemble declares them."""
    bytes_on_disk: int
    problem: str | None = None


def list_tasks(repository: Path) -> list[TaskInfo]:
    """Every vFM and bundle in name order, broken ones included with their `TaskInfo.problem`."""
    physical = set(physical_fms(repository))
    found = []
    for name in model_dirs(repository):
        if name not in physical:
            info = _read(repository, name, physical)
            if info is not None:
                found.append(info)
    return found


def show_task(repository: Path, name: str) -> TaskInfo:
    """One vFM or bundle. Raises `NotFound` with the names that there are."""
    physical = set(physical_fms(repository))
    info = _read(repository, name, physical) if name in model_dirs(repository) and name not in physical else None
    if info is None:
        known = ", ".join(task.name for task in list_tasks(repository)) or "none"
        raise NotFound(f"no vFM {name!r} in {repository}; there is {known}")
    return info


def _read(repository: Path, name: str, physical: set[str]) -> TaskInfo | None:
    folder = repository / name
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    numbers = tuple(versions(folder))
    try:
        config = vfm_config(name, read_config(folder / CONFIG_FILE), physical)
    except FMplexError as error:
        return TaskInfo(name, None, (), None, numbers, None, False, None, False, {}, None, size, str(error))
    if config is None:
        return None
    served = version_to_serve(config, folder)
    artifact, problem = None, None
    if not config.is_bundle:
        artifact, problem = _artifact(folder, served)
    return TaskInfo(
        name=name,
        fm=config.fm,
        ports=config.ports,
        policy=config.policy,
        versions=numbers,
        version=served,
        pinned=config.pinned_version is not None,
        artifact=artifact,
        bundle=config.is_bundle,
        outputs=config.outputs,
        width=_width(config, folder, served),
        bytes_on_disk=size,
        problem=problem,
    )


def _artifact(folder: Path, version: int | None) -> tuple[Artifact | None, str | None]:
    if version is None:
        return None, f"vFM {folder.name!r}: it has no version folder (1/, 2/ …) with a vfm.json"
    try:
        return read_artifact(folder / str(version), folder), None
    except FMplexError as error:
        return None, f"vFM {folder.name!r}: version {version}: {error}"


def _width(config: VfmConfig, folder: Path, version: int | None) -> int | None:
    for tensor, (_, socket) in config.outputs.items():
        dims = config.output_dims.get(tensor)
        if socket in ("vector", "matrix") and dims and dims[-1] > 0:
            return dims[-1]
    try:
        with safe_open(folder / str(version) / HEAD_FILE, framework="numpy") as tensors:
            return int(tensors.get_slice("weight").get_shape()[0])
    except (OSError, SafetensorError):
        return None


def set_task(repository: Path, name: str, values: dict[str, str], version: str | None = None) -> TaskInfo:
    """Change parameters of the policy, or the version that is served (a number, or ``latest``).

    Everything is checked before anything is written, then ``config.pbtxt`` is replaced at once; a running server acts
    on it within 2 s. Raises `Refused` for a parameter that is not known or a value that is not allowed.
    """
    info = show_task(repository, name)
    if not values and version is None:
        raise InvalidInput(f"nothing to set; parameters are {', '.join(Policy.model_fields)}, and --version")
    if values and info.bundle:
        raise InvalidInput(f"bundle {name!r} has no policy of its own; its rows count for its vFMs, so set it on them")
    config = read_config(repository / name / CONFIG_FILE)
    merged = parameters_of(config) | values
    Policy.parse(merged, f"vFM {name!r}")
    for key, value in values.items():
        config.parameters[key].string_value = value
    if version is not None:
        _pin(config, info, version)
    publish.replace_config(repository, name, config)
    return show_task(repository, name)


def add_token(repository: Path, name: str) -> str:
    """A new token for a vFM, of which its ``config.pbtxt`` gets the hash: from now on it answers only to its tokens."""
    known = _tokens(repository, name)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    set_task(repository, name, {TOKENS: ",".join([*known, token_hash(token)])})
    return token


def revoke_tokens(repository: Path, name: str) -> int:
    """Take every token from a vFM, so that anybody may ask it; how many it had."""
    known = _tokens(repository, name)
    set_task(repository, name, {TOKENS: ""})
    return len(known)


def _tokens(repository: Path, name: str) -> list[str]:
    info = show_task(repository, name)
    if info.bundle:
        raise InvalidInput(f"bundle {name!r} has no tokens of its own: it asks for those of its vFMs")
    value = parameters_of(read_config(repository / name / CONFIG_FILE)).get(TOKENS, "")
    return [known for known in value.split(",") if known]


def release_task(repository: Path, name: str) -> TaskInfo:
    """Write a vFM's ``config.pbtxt`` as it is: a running server takes it out of quarantine within 2 s."""
    info = show_task(repository, name)
    if info.bundle:
        raise InvalidInput(f"bundle {name!r} is never in quarantine, but its vFMs may be; release those")
    publish.replace_config(repository, name, read_config(repository / name / CONFIG_FILE))
    return info


def _pin(config: ModelConfig, info: TaskInfo, version: str) -> None:
    if info.bundle:
        raise InvalidInput(f"bundle {info.name!r} has no versions of its own; set those of its vFMs")
    config.ClearField("version_policy")
    if version == LATEST:
        return
    if not version.isdigit() or int(version) not in info.versions:
        known = ", ".join(str(number) for number in info.versions) or "none"
        raise InvalidInput(f"vFM {info.name!r} has no version {version!r}; it has {known}, or use {LATEST!r}")
    config.version_policy.specific.versions.append(int(version))


def remove_task(repository: Path, name: str, *, force: bool = False) -> None:
    """Take a vFM or bundle out of the repository and delete it.

    Raises `InvalidInput` where a bundle uses its port, unless ``force``: that bundle would then be refused.
    """
    publish.check_name(name)
    if name in physical_fms(repository):
        raise InvalidInput(f"{name!r} is a physical FM, which vFMs share; only vFMs and bundles are removed here")
    if not (repository / name).is_dir():
        show_task(repository, name)  # raises, naming those that there are
    if not force and (users := bundles_with(repository, name)):
        raise InvalidInput(f"vFM {name!r} is part of bundle {', '.join(users)}; remove that first, or pass --force")
    publish.take_out(repository, name)


def bundles_with(repository: Path, name: str) -> list[str]:
    """Bundles that map a port of the vFM ``name``."""
    tasks = {task.name: task for task in list_tasks(repository)}
    own = tasks.get(name)
    if own is None or own.bundle or own.fm is None:
        return []
    used = ports_in_use(repository, own.fm)
    sharing = {user for port in own.ports for user in used.get(port, [])} - {name}
    return sorted(user for user in sharing if tasks[user].bundle)


def create_bundle(repository: Path, name: str, members: Sequence[str]) -> TaskInfo:
    """An ensemble over several vFMs of one physical FM: one input, every member's answer as ``<vfm>_<output>``.

    Members need the same inputs and the same physical FM; they go on answering under their own names too. A bundle
    has no policy: its rows count for its members.
    """
    publish.check_name(name)
    publish.check_free(repository, name)
    if len(set(members)) < 2:
        raise InvalidInput(f"bundle {name!r}: name at least 2 different vFMs")
    infos = [show_task(repository, member) for member in dict.fromkeys(members)]
    config = _bundle_config(name, infos, repository)
    publish.publish_bundle(repository, name, config, f"Bundle {name}: {', '.join(info.name for info in infos)}.")
    return show_task(repository, name)


def _bundle_config(name: str, infos: list[TaskInfo], repository: Path) -> ModelConfig:
    sockets: dict[str, tuple[int, str]] = {}
    dims: dict[str, list[int]] = {}
    for info in infos:
        if info.artifact is None or info.fm is None or info.width is None or info.bundle:
            raise Refused(f"bundle {name!r}: {info.problem or f'{info.name!r} is a bundle itself'}")
        wanted = (*BUNDLED[info.artifact.kind], "info")
        shapes = socket_dims(info.artifact.kind, info.artifact.pooling, info.width)
        for output, (port, socket) in info.outputs.items():
            if output in wanted:
                sockets[f"{info.name}_{output}"] = (port, socket)
                dims[f"{info.name}_{output}"] = shapes[socket]
    fms = {info.fm for info in infos if info.fm is not None}
    if len(fms) > 1:
        raise InvalidInput(f"bundle {name!r}: its vFMs are of different physical FMs: {', '.join(sorted(fms))}")
    reads = {info.artifact.encoder.tensors for info in infos if info.artifact is not None}
    if len(reads) > 1:
        told = " and ".join(sorted("+".join(names) for names in reads))
        raise InvalidInput(f"bundle {name!r}: its vFMs read different inputs, {told}")
    batch = min(int(read_config(repository / model / CONFIG_FILE).max_batch_size) for model in [i.name for i in infos])
    (inputs,) = reads
    return ensemble_config(fms.pop(), sockets, dims, inputs=inputs, max_batch_size=batch)
