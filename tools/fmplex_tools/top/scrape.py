"""A server's metrics as FMplex publishes them, by physical FM and vFM."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from fmplex_backend.errors import InvalidInput, Unavailable

PREFIX = "fmplex_"
TOLD_AT = "fmplex_snapshot_timestamp_seconds"
"""When a host read its values, in seconds since 1970."""
Key = tuple[str, str]
"""Name and, for what has one, the value of its third label (outcome, reason, result, le); otherwise empty."""


@dataclass
class Values:
    """Series of one physical FM or one vFM."""

    of: dict[Key, float] = field(default_factory=dict)

    def get(self, name: str, label: str = "") -> float:
        """0 where there is no such series: it begins to exist with its first event."""
        return self.of.get((name, label), 0.0)

    def sum(self, name: str, labels: Iterable[str]) -> float:
        """Over several values of the third label."""
        return sum(self.get(name, label) for label in labels)

    def buckets(self, name: str) -> dict[float, float]:
        """Upper edge → how many values are within it."""
        return {float(label): value for (key, label), value in self.of.items() if key == f"{name}_bucket"}


@dataclass
class FmScrape:
    """One physical FM."""

    own: Values = field(default_factory=Values)
    vfms: dict[str, Values] = field(default_factory=dict)

    @property
    def at(self) -> float:
        """When the host read its values, in seconds since 1970."""
        return self.own.get(TOLD_AT)

    def value(self, name: str, *, vfm: str | None = None, label: str | None = None) -> float:
        """The sum over the physical FM and its vFMs, or of one vFM; of one value of the third label, or of all."""
        places = [self.own, *self.vfms.values()] if vfm is None else [self.vfms.get(vfm, Values())]
        return sum(
            value
            for place in places
            for (found, third), value in place.of.items()
            if found == name and label in (None, third)
        )


def scrape(url: str, timeout: float = 10.0, prefix: str = PREFIX) -> dict[str, FmScrape]:
    """Physical FM → its metrics, those whose names begin with ``prefix``.

    Raises `Unavailable`, and `InvalidInput` where it is no FMplex server.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"no metrics at {url}: {error}; is the server up? (fmplex serve --metrics-port)") from None
    except ValueError as error:
        raise InvalidInput(f"{url!r} is no address of metrics ({error}); e.g. http://127.0.0.1:8002/metrics") from None
    found = parse(text, prefix)
    if not found:
        raise InvalidInput(
            f"{url} has no metrics of FMplex: it is another server, or no physical FM is loaded there yet"
        )
    return found


def parse(text: str, prefix: str = PREFIX) -> dict[str, FmScrape]:
    """Physical FM → its metrics, of an exposition in Prometheus' text format. Raises `InvalidInput`."""
    # Only our lines: Triton's own are as many again for every vFM.
    lines = (line for line in text.splitlines() if line.startswith((prefix, f"# HELP {prefix}", f"# TYPE {prefix}")))
    found: dict[str, FmScrape] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                _put(found, _name(sample.name), sample.labels, sample.value)
    except ValueError as error:
        raise InvalidInput(f"these are no Prometheus metrics: {error}") from None
    return found


def _name(name: str) -> str:
    """As it was published: the parser adds ``_total`` to counters that lack it, as those of a histogram do."""
    short = name.removesuffix("_total")
    return short if short.endswith(("_sum", "_count", "_bucket")) else name


def _put(found: dict[str, FmScrape], name: str, labels: Mapping[str, str], value: float) -> None:
    fm = found.setdefault(labels.get("fm", ""), FmScrape())
    values = fm.vfms.setdefault(labels["vfm"], Values()) if "vfm" in labels else fm.own
    third = next((text for label, text in labels.items() if label not in ("fm", "vfm")), "")
    values.of[name, third] = value
