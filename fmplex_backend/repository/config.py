"""``config.pbtxt``: the settings of a physical FM, and the port and policy of a vFM or bundle.

Read and written with protobuf's own text format, never by hand. Every parameter is known and checked; one that is not
known is an error, so that a misspelt ``wieght`` cannot pass for the default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from google.protobuf import text_format
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from fmplex_backend.errors import Refused
from fmplex_backend.repository.modalities import SPECS, TENSORS
from fmplex_backend.repository.sockets import SOCKETS, output_name, parse_output_name
from fmplex_backend.scheduling.policies import PolicyName

CONFIG_FILE = "config.pbtxt"
TOKEN_PREFIX = "sha256:"
TOKENS_PATTERN = r"^(sha256:[0-9a-f]{64}(,sha256:[0-9a-f]{64})*)?$"
KEY_PREFIX = "ed25519:"
KEY_PATTERN = r"ed25519:[0-9a-f]{64}"
"""A public key: its 32 bytes in hexadecimal."""
BACKEND = "fmplex"

_MOST_ERRORS = 100
_Settings = TypeVar("_Settings", bound="_Parameters")


class _Parameters(BaseModel):
    """A set of ``parameters { key … value { string_value … } }``; Triton keeps every value as text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls: type[_Settings], values: dict[str, str], owner: str) -> _Settings:
        """Check ``values``; ``owner`` (e.g. ``vFM 'spam'``) opens the message of the `Refused` it raises."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise Refused(f"{owner}: {explain(error, cls, 'parameter')}") from None


class FMSettings(_Parameters):
    """Parameters of a physical FM (``backend: "fmplex"``)."""

    backbone: Annotated[str, Field(min_length=1)]
    """A folder (``./…`` is inside the physical FM's own), ``package:NAME==VERSION/FOLDER``, or a hub name."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    ports: Annotated[int, Field(ge=1, le=16384)] = 1024
    max_batch_rows: Annotated[int, Field(ge=1, le=4096)] = 64
    """Most rows in one batch of the engine."""
    max_waiting_rows: Annotated[int, Field(ge=1, le=1 << 24)] = 16384
    """Rows of all vFMs that may wait; beyond it, only vFMs with less than their even part of it may queue more."""
    adapter_slots: Annotated[int, Field(ge=1, le=4096)] = 64
    """Adapters on an engine's device at a time, and so in one batch; those used least recently make room."""
    adapter_memory_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """Host memory of an engine for adapters; what does not fit is read from disk when it is needed."""
    max_adapter_rank: Annotated[int, Field(ge=1, le=1024)] = 64
    engines: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*$")] = "cpu"
    """Devices, comma-separated, one engine process each."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Compute threads of a CPU engine; 0 is its part of the cores: all, or with several engines as many each."""
    batches_ahead: Annotated[int, Field(ge=-1, le=1)] = -1
    """Batches that an engine gets while another one runs, 0 or 1; -1 is 1 on a GPU, which must not wait for the next
    decision, and 0 on a CPU."""
    hang_seconds: Annotated[float, Field(ge=0.5, le=3600)] = 3.0
    """An engine that takes longer for a batch, and 20 times as long as predicted, is ended and started anew."""
    packed_weights: bool = True
    """Whether a CPU engine in fp32 also keeps linear layers as MKL packs them: small batches take up to a fifth less,
    and the weights of these layers twice their memory."""
    cuda_graphs: bool = True
    """Whether a GPU's forward passes are captured as graphs, one for each shape, that serve every mix of adapters."""
    policy: PolicyName = "fair"
    """Scheduling policy: weighted fair shares; the others are for comparison (see `fmplex_backend.scheduling`)."""
    trusted_keys: Annotated[str, Field(pattern=f"^({KEY_PATTERN}(,{KEY_PATTERN})*)?$")] = ""
    """Public keys, ``ed25519:HEX``, comma-separated (`fmplex task keygen`): versions that none of them has signed are
    refused; empty: signed or not, all are served."""

    @property
    def trusted(self) -> frozenset[str]:
        """The ``trusted_keys``, each."""
        return frozenset(self.trusted_keys.split(",")) - {""}

    @property
    def ahead(self) -> bool:
        """Whether engines get a batch while another one runs."""
        return self.batches_ahead == 1 or (self.batches_ahead == -1 and "cuda" in self.engines)

    def compute_threads(self, cores: int) -> int:
        """Of each CPU engine, where the process may use so many ``cores``."""
        return self.threads or max(1, cores // max(1, self.engines.split(",").count("cpu")))

    def located(self, folder: Path) -> FMSettings:
        """These settings with a backbone that lies inside the physical FM's ``folder`` made absolute."""
        if not self.backbone.startswith("./"):
            return self
        return self.model_copy(update={"backbone": str((folder / self.backbone).resolve())})


class Policy(_Parameters):
    """Parameters of a vFM: what its operator edits while it runs."""

    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Share of the device relative to the other vFMs of the same physical FM."""
    max_queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Rows that may wait; a request beyond it is answered UNAVAILABLE."""
    timeout_ms: Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)] = 0
    """Rows that waited longer are answered with an error instead of being run; 0 is no limit."""
    latency_slo_ms: Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)] = 0
    """Latency that its rows should have: they go first, within the vFM's share, and batches are kept short while it is
    active; 0 is no objective."""
    max_rows_in_flight: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Rows that may run at a time; 0 is no limit."""
    rate_limit_rows_per_second: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0
    """Rows that may be asked for, on average; a request beyond it is answered UNAVAILABLE; 0 is no limit."""
    rate_limit_burst_rows: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Rows that may be asked for at once after a pause; 0 is what the rate allows in a second, at least 1."""
    access_tokens: Annotated[str, Field(pattern=TOKENS_PATTERN, exclude=True, repr=False)] = ""
    """SHA-256 of the tokens that may ask it, ``sha256:HEX``, comma-separated (`fmplex task token`); empty: anybody."""
    pin_adapter: bool = False
    """Whether its adapter keeps a slot, however seldom it is used; half of a physical FM's slots may be given so."""


class VfmConfig(BaseModel):
    """What an ensemble's ``config.pbtxt`` says about a vFM, or about a bundle (several ports, no artifact)."""

    model_config = ConfigDict(frozen=True)

    name: str
    fm: str
    """The physical FM that its step names."""
    outputs: dict[str, tuple[int, str]]
    """Ensemble output → (port, socket)."""
    output_dims: dict[str, tuple[int, ...]]
    """Ensemble output → its declared dims; -1 is any."""
    inputs: frozenset[str]
    """Tensors of the physical FM that the step feeds."""
    max_batch_size: int
    policy: Policy
    pinned_version: int | None = None
    """From ``version_policy { specific { versions: … } }``; None serves the highest version."""

    @property
    def ports(self) -> tuple[int, ...]:
        """The distinct ports it asks, ascending."""
        return tuple(sorted({port for port, _ in self.outputs.values()}))

    @property
    def is_bundle(self) -> bool:
        """Whether it is an ensemble over several ports."""
        return len(self.ports) > 1


def explain(error: ValidationError, model: type[BaseModel], noun: str) -> str:
    """A pydantic error in one line: the key, the value, and what would be right."""
    if error.error_count() > _MOST_ERRORS:  # to list a million takes seconds and gigabytes
        return f"{error.error_count()} things are wrong with it"
    parts = []
    for item in error.errors():
        key = ".".join(str(step) for place, step in enumerate(item["loc"]) if not _is_tag(item["loc"], place))
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown {noun} '{key}'; known are {', '.join(model.model_fields)}")
        elif item["type"] == "missing":
            parts.append(f"{noun} '{key}' is missing")
        elif not key:
            parts.append(item["msg"].removeprefix("Value error, "))
        else:
            parts.append(f"{noun} '{key}' is {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


def _is_tag(steps: tuple[int | str, ...], place: int) -> bool:
    """Whether this step is no key of the file, but the encoder that pydantic chose by the file's ``modality``."""
    return place > 0 and steps[place - 1] == "encoder" and steps[place] in SPECS


def read_config(path: Path) -> ModelConfig:
    """Parse one ``config.pbtxt``. Raises `Refused` with line and column where it is not valid protobuf text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path.parent.name!r}: cannot read {path.name}: {error}") from None
    try:
        config = text_format.Parse(text, ModelConfig())
    except (text_format.ParseError, ValueError) as error:  # the latter for a number of thousands of digits
        raise Refused(f"{path.parent.name!r}: {path.name} is not a valid model configuration: {error}") from None
    if config.name and config.name != path.parent.name:
        raise Refused(f"{path.parent.name!r}: {path.name} says name {config.name!r}; leave it out or use the folder's")
    return config


def parameters_of(config: ModelConfig) -> dict[str, str]:
    """The ``parameters`` map as plain text values."""
    return {key: value.string_value for key, value in sorted(config.parameters.items())}


def is_physical(config: ModelConfig) -> bool:
    """Whether this is the configuration of a physical FM."""
    return bool(config.backend == BACKEND)


def fm_settings(folder: Path) -> FMSettings:
    """Settings of the physical FM in ``folder``, its backbone located. Raises `Refused`."""
    config = read_config(folder / CONFIG_FILE)
    return FMSettings.parse(parameters_of(config), f"physical FM {folder.name!r}").located(folder)


def step_of(config: ModelConfig, physical: set[str]) -> Any | None:
    """The one ensemble step that goes to a physical FM, or None where there is no such step.

    Raises `Refused` for several: one vFM belongs to one physical FM.
    """
    steps = [step for step in config.ensemble_scheduling.step if step.model_name in physical]
    if len(steps) > 1:
        raise Refused("has several steps to physical FMs; one vFM or bundle has one")
    return steps[0] if steps else None


def vfm_config(name: str, config: ModelConfig, physical: set[str]) -> VfmConfig | None:
    """What ``config`` says of the vFM or bundle ``name``; None where it is an ensemble that uses no physical FM.

    Raises `Refused` where a mapped output is no socket, the same socket is mapped twice, a parameter is wrong, or the
    version policy would serve more than one version (all versions of an ensemble share its port).
    """
    owner = f"vFM {name!r}"
    try:
        step = step_of(config, physical)
    except Refused as error:
        raise Refused(f"{owner}: {error}") from None
    if step is None:
        return None
    outputs: dict[str, tuple[int, str]] = {}
    for key, tensor in sorted(step.output_map.items(), key=lambda item: item[1]):  # a protobuf map has no order
        socket = parse_output_name(key)
        if socket is None:
            raise Refused(
                f"{owner}: output_map key {key!r} is no socket; use port<N>.<socket>, sockets are {', '.join(SOCKETS)}"
            )
        outputs[tensor] = socket
    if not outputs:
        raise Refused(f"{owner}: its step maps no output, so it has no port")
    _check_bundle_policy(name, config, outputs)
    declared = {output.name: tuple(output.dims) for output in config.output}
    _check_tensors(owner, config, outputs)
    policy = Policy.parse(parameters_of(config), owner)
    return VfmConfig(
        name=name,
        fm=step.model_name,
        outputs=outputs,
        output_dims={tensor: declared[tensor] for tensor in outputs if tensor in declared},
        inputs=frozenset(step.input_map),
        max_batch_size=config.max_batch_size,
        policy=policy,
        pinned_version=_pinned_version(owner, config),
    )


def _check_bundle_policy(name: str, config: ModelConfig, outputs: dict[str, tuple[int, str]]) -> None:
    if len({port for port, _ in outputs.values()}) > 1 and config.parameters:
        raise Refused(
            f"bundle {name!r}: parameter {min(config.parameters)!r} would have no effect, since a bundle's rows count "
            "for its vFMs; set it on them"
        )


def _check_tensors(owner: str, config: ModelConfig, outputs: dict[str, tuple[int, str]]) -> None:
    """What Triton would refuse at load, or worse, pass on: types, names and the batch dimension."""
    if config.max_batch_size < 1:
        raise Refused(f"{owner}: max_batch_size is {config.max_batch_size}; it is at least 1")
    for output in config.output:
        if output.name not in outputs:
            continue
        wanted = SOCKETS[outputs[output.name][1]].data_type
        if output.data_type != DataType.Value(wanted):
            actual = DataType.DESCRIPTOR.values_by_number.get(output.data_type)
            told = actual.name if actual is not None else f"data_type {output.data_type}"
            raise Refused(f"{owner}: output {output.name!r} is {told}, its socket gives {wanted}")


def _pinned_version(owner: str, config: ModelConfig) -> int | None:
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "specific" and len(config.version_policy.specific.versions) == 1:
        return int(config.version_policy.specific.versions[0])
    if choice is None or (choice == "latest" and config.version_policy.latest.num_versions <= 1):
        return None
    raise Refused(
        f"{owner}: version_policy serves several versions, but a vFM has one port and so one version at a time; "
        "use latest { num_versions: 1 } or specific { versions: [ N ] }"
    )


def write_config(path: Path, config: ModelConfig, comment: str = "") -> None:
    """Write ``config`` as protobuf text, with ``comment`` as leading ``#`` lines."""
    lead = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(lead + text_format.MessageToString(config), encoding="utf-8")


def ensemble_config(
    fm: str,
    sockets: dict[str, tuple[int, str]],
    dims: dict[str, list[int]],
    *,
    inputs: tuple[str, ...] = ("text",),
    max_batch_size: int = 64,
    parameters: dict[str, str] | None = None,
) -> ModelConfig:
    """Build the ensemble of a vFM or bundle.

    ``sockets`` maps ensemble outputs to ``(port, socket)``, ``dims`` gives their declared dims; ``inputs`` are tensors
    of the physical FM.
    """
    config = ModelConfig(platform="ensemble", max_batch_size=max_batch_size)
    for name in inputs:
        config.input.add(name=name, data_type=TENSORS[name].data_type, dims=TENSORS[name].dims)
    step = config.ensemble_scheduling.step.add(model_name=fm, model_version=-1)
    for name in inputs:
        step.input_map[name] = name
    for tensor, (port, socket) in sockets.items():
        config.output.add(name=tensor, data_type=SOCKETS[socket].data_type, dims=dims[tensor])
        step.output_map[output_name(port, socket)] = tensor
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    return config
