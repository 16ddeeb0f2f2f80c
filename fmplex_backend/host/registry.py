"""Follows the model repository: reads, checks, loads and retires generations of vFMs.

A scan compares the repository with what is served. New or changed versions are read, checked and loaded to one side,
all of them; then their golden rows are asked, all together (`fmplex_backend.host.golden`); what answers them as it must
is swapped in whole. What is broken is refused by name and leaves everything else, its own older generation included, as
it was. Where the answers go is `fmplex_backend.host.routes`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.encoders.base import Encoder
from fmplex_backend.errors import FMplexError, Refused
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.entries import Entry, Key, queue_policy, record
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.golden import GoldenChecks, Verdict
from fmplex_backend.host.routes import Claim, Route, RouteTable, Serving
from fmplex_backend.messages import GenerationLoaded
from fmplex_backend.repository.config import CONFIG_FILE, FMSettings, VfmConfig, read_config, vfm_config
from fmplex_backend.repository.golden import Golden, read_golden
from fmplex_backend.repository.interface import check_interface
from fmplex_backend.repository.layout import ports_of
from fmplex_backend.repository.packed import pack, read_version
from fmplex_backend.repository.signed import verified
from fmplex_backend.repository.watch import Stamp, models

THOROUGH_PART, THOROUGH_LEAST = 4, 64
"""A scan looks at every file of a fourth of the vFMs, and of so many at least; of the others at the folder."""


class Registry:
    """See the module. `scan` is called from one thread; `routes` may be read from any."""

    def __init__(
        self,
        repository: Path,
        fm: str,
        settings: FMSettings,
        facts: BackboneFacts,
        encoder: Encoder,
        dispatcher: Dispatcher,
        work_dir: Path,
        log: Callable[[str], None],
    ) -> None:
        self._repository, self._fm, self._settings, self._facts = repository, fm, settings, facts
        self._dispatcher, self._work_dir, self._log = dispatcher, work_dir, log
        self._fm_max_batch_size = read_config(repository / fm / CONFIG_FILE).max_batch_size
        self._checks = GoldenChecks(encoder, dispatcher, settings.dtype)
        self._entries: Mapping[str, Entry] = {}
        """In the order of names; replaced and never changed, for who looks at the status meanwhile."""
        self._table = RouteTable()
        self._generations = 0
        self._turn = 0
        """The place, in the order of names, where the next scan's thorough looks begin."""
        self._at_rest = True
        self.routes: Mapping[int, Route] = {}

    def scan(self, *, settled: bool = False) -> bool:
        """Bring what is served in line with the repository; whether it is, or a version waits for the next scan.

        A version whose files changed since the last scan is left for the next one, since somebody may still be
        writing it; ``settled`` takes it at once. Golden rows that are not answered yet are left for the next one too;
        ``settled`` waits for them.
        """
        self._at_rest = True
        found = models(self._repository)
        before = self._entries
        self._entries = {name: before.get(name) or Entry(name, self._repository / name) for name in found}
        for name in before.keys() - found.keys():
            self._remove(before[name])
        share = max(THOROUGH_LEAST, math.ceil(len(found) / THOROUGH_PART))
        ready = []
        for place, (name, config_seen) in enumerate(found.items()):
            entry = self._entries[name]
            self._read_config(entry, config_seen)
            if entry.config is not None and entry.is_vfm:
                thorough = settled or (place - self._turn) % len(found) < share
                if (key := self._follow(entry, entry.config, settled, thorough)) is not None:
                    ready.append((entry, entry.config, key))
        self._turn += share
        self._load(ready)
        self._swap(self._checks.run(to_the_end=settled))
        return self._at_rest and not self._checks

    def _reroute(self) -> None:
        self.routes = self._table.build(self._claims(), time.monotonic())

    def _claims(self) -> Iterator[Claim]:
        for entry in self._entries.values():
            serving = None
            if entry.generation is not None and entry.config is not None:
                serving = Serving(entry.generation, entry.config.policy)
            if len(entry.ports) == 1:
                yield Claim(entry.name, min(entry.ports), serving, entry.config_refusal or entry.refusal)

    # ---- configurations ----

    def _read_config(self, entry: Entry, seen: Stamp) -> None:
        if seen == entry.config_seen:
            return
        try:
            ports, config = self._parse_config(entry)
        except Refused as error:
            entry.config_seen, entry.config_refusal = seen, error
            self._log_refusal(entry, error)
            return
        if entry.generation is not None and (config is None or config.is_bundle) and entry.config_doubt != seen:
            entry.config_doubt = seen  # an editor may have emptied the file and be writing it: look once more
            self._at_rest = False
            return
        entry.config_seen, entry.ports = seen, ports
        entry.config_refusal = None
        entry.is_vfm = config is not None and not config.is_bundle
        if config is None or not entry.is_vfm:
            self._remove(entry)
        elif entry.generation is not None:
            if self._dispatcher.lift_quarantine(entry.generation):
                self._log(f"vFM {entry.name!r}: its config was written, its quarantine is over")
            self._dispatcher.set_policy(entry.name, queue_policy(config), new=False)
            if entry.config is not None and entry.config.policy != config.policy:
                self._log(f"vFM {entry.name!r}: policy is now {config.policy.model_dump()}")
        entry.config = config
        self._pin(entry)

    def _pin(self, entry: Entry) -> None:
        """Let the adapter of what is served keep its slot, or not any more, as the policy says."""
        generation = entry.generation
        wanted = entry.config is not None and entry.config.policy.pin_adapter
        if generation is None or not generation.artifact.adapter or generation.pinned == wanted:
            return
        if (error := self._dispatcher.pin(generation, wanted)) is not None:
            self._log(f"vFM {entry.name!r}: its adapter is not pinned: {error}")

    def _parse_config(self, entry: Entry) -> tuple[frozenset[int], VfmConfig | None]:
        """The ports that its config maps, and what it says. Raises `Refused`; then it has those ports all the same."""
        config = read_config(entry.folder / CONFIG_FILE)
        ports = ports_of(config, self._fm)
        try:
            if ports and max(ports) >= self._settings.ports:
                raise Refused(
                    f"vFM {entry.name!r}: port {max(ports)} is out of range; physical FM {self._fm!r} has ports 0 to "
                    f"{self._settings.ports - 1} (its parameter 'ports')"
                )
            return ports, vfm_config(entry.name, config, {self._fm})
        except Refused:
            entry.ports = ports
            raise

    # ---- generations ----

    def _follow(self, entry: Entry, config: VfmConfig, settled: bool, thorough: bool) -> Key | None:
        """The key of the version to load now: where it changed and its files have come to rest."""
        # What is on its way is looked at whole: a quick look does not see that a file is still being written.
        key = entry.look(config, thorough=thorough or entry.seen != entry.tried)
        at_rest, entry.seen = settled or key == entry.seen, key
        if entry.generation is not None and entry.generation.key == key:
            self._abandon(entry)
            entry.tried, entry.refusal = key, None
            return None
        if key == entry.tried:
            return None
        if not at_rest:
            self._at_rest = False
            return None
        return key

    def _load(self, ready: Iterable[tuple[Entry, VfmConfig, Key]]) -> None:
        """Load the versions that these keys are of, to one side, and have their golden rows asked."""
        packed: list[tuple[Entry, Generation, Golden | None]] = []
        for entry, config, key in ready:
            self._abandon(entry)
            entry.tried = key
            try:
                packed.append((entry, *self._packed(config, entry.folder, key)))
            except FMplexError as error:
                self._not_served(entry, key, error)
        for (entry, generation, golden), loaded in zip(packed, self._loaded(packed), strict=True):
            if isinstance(loaded, FMplexError):
                generation.path.unlink(missing_ok=True)
                self._not_served(entry, generation.key, loaded)
            else:
                generation.n_bytes = loaded.n_bytes
                self._checks.add(generation, golden)

    def _loaded(self, packed: list[tuple[Entry, Generation, Golden | None]]) -> list[GenerationLoaded | FMplexError]:
        try:
            answers = self._dispatcher.load_all([generation for _, generation, _ in packed])
        except FMplexError as error:  # the host stops
            return [error for _ in packed]
        return [answer if answer.error is None else Refused(answer.error) for answer in answers]

    def _packed(self, config: VfmConfig, folder: Path, key: Key) -> tuple[Generation, Golden | None]:
        """Read, check and pack one version. Raises `Refused`."""
        version = key[0]
        if not isinstance(version, int):
            raise Refused("it has no version folder (1/, 2/ …) with a vfm.json")
        path = folder / str(version)
        if not path.is_dir():
            raise Refused(f"version_policy names it, but there is no folder {version}/")
        with verified(path, config.name, self._settings.trusted, self._work_dir) as (readable, signer):
            content = read_version(readable, readable.parent, self._facts, self._settings.max_adapter_rank)
            check_interface(config, content, self._fm_max_batch_size)
            golden = read_golden(readable, readable.parent, content.artifact, content.width)
        self._generations += 1
        packed = self._work_dir / f"{self._generations}.safetensors"
        generation = Generation(
            self._generations, config.name, version, content.artifact, content.width, packed, key, signed_by=signer
        )
        if content.adapter is not None:
            generation.virtual_tokens = content.adapter.virtual_tokens
        pack(content, packed)
        return generation, golden

    def _swap(self, verdicts: list[Verdict]) -> None:
        """Serve what has passed, give back what has not; rows go to the new generations before the old ones retire."""
        retired = []
        for verdict in verdicts:
            generation, entry = verdict.generation, self._entries[verdict.generation.vfm]
            if verdict.error is not None:
                self._not_served(entry, generation.key, verdict.error)
                retired.append(generation)
                continue
            assert entry.config is not None
            if entry.generation is None:
                self._dispatcher.set_policy(entry.name, queue_policy(entry.config), new=True)
            else:
                retired.append(entry.generation)
                if entry.generation.pinned:
                    self._dispatcher.pin(entry.generation, False)
            entry.generation, entry.refusal, entry.golden = generation, None, verdict.checked
            self._dispatcher.lift_quarantine(generation)
            self._pin(entry)
            self._log(
                f"vFM {entry.name!r}: version {generation.version} is served on port {entry.config.ports[0]} "
                f"(generation {generation.number}, {generation.n_bytes} bytes, golden rows "
                f"{'answered as they must be' if verdict.checked else 'none'})"
            )
        self._reroute()
        for generation in retired:
            self._dispatcher.retire(generation)

    def _not_served(self, entry: Entry, key: Key, error: FMplexError) -> None:
        if isinstance(error, Refused):
            entry.refusal = Refused(f"vFM {entry.name!r}: version {key[0]}: {error}")
            self._log_refusal(entry, entry.refusal)
        else:
            entry.tried = None  # not the vFM's fault: try again at the next scan
            self._log(f"vFM {entry.name!r}: {error}")

    def _abandon(self, entry: Entry) -> None:
        """What was loaded and not served yet is not wanted any more."""
        if (generation := self._checks.forget(entry.name)) is not None:
            self._dispatcher.retire(generation)

    def _remove(self, entry: Entry) -> None:
        """Its folder is gone, or it is no vFM any more: take no more rows; those that wait are answered."""
        self._abandon(entry)
        generation, entry.generation, entry.tried = entry.generation, None, None
        if generation is None:
            return
        self._reroute()
        self._dispatcher.retire(generation)  # first: from here on no row of it is submitted
        self._dispatcher.remove_vfm(entry.name)
        self._log(f"vFM {entry.name!r}: removed")

    def _log_refusal(self, entry: Entry, error: Refused) -> None:
        kept = f"; generation {entry.generation.number} goes on serving" if entry.generation else ""
        self._log(f"refused: {error}{kept}")

    # ---- status ----

    def status(self) -> list[dict[str, Any]]:
        """One plain record a vFM or bundle, in name order."""
        return [
            record(entry, self.routes, self._dispatcher.waiting(entry.name))
            for entry in self._entries.values()
            if entry.concerns
        ]
