"""The host's log: who a line is about, in both formats, and that a flood of bad requests has few lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.site import Site

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import (
    AccessDenied,
    DeadlineExceeded,
    EngineFailure,
    FMplexError,
    InvalidInput,
    NotFound,
    Unavailable,
)
from fmplex_backend.host.intake import Intake
from fmplex_backend.host.log import (
    LONGEST_ID,
    LONGEST_REASON,
    MOST_LINES,
    MOST_NAMED,
    QUIET_SECONDS,
    Concerned,
    HostLog,
    event_of,
    naming,
)
from fmplex_backend.host.requests import Ask
from fmplex_tools.server.log_lines import host_message, json_line


def of(request_id: str, vfm: str | None = "a") -> list[Concerned]:
    return [Concerned(request_id, vfm, 1 if vfm else None)]


def test_the_first_is_told_and_then_how_many_were_left_out() -> None:
    lines: list[str] = []
    log = HostLog(lines.append)
    for second in (0.0, 1.0, 2.0, QUIET_SECONDS, QUIET_SECONDS + 1):
        log.ended(of("r1"), AccessDenied("no"), second)
    log.ended(of("r2", "b"), AccessDenied("no"), 3.0)
    log.ended(of("r3"), EngineFailure("its head failed"), 4.0)
    assert lines == [
        "denied: request 'r1' of vFM 'a' version 1: no",
        "denied: request 'r1' of vFM 'a' version 1: no; 2 more since the last such line",
        "denied: request 'r2' of vFM 'b' version 1: no",
        "failed: request 'r3' of vFM 'a' version 1: its head failed",
    ]


def test_a_flood_over_all_vfms_cannot_fill_a_disk() -> None:
    lines: list[str] = []
    log = HostLog(lines.append)
    for number in range(3000):
        log.ended(of(f"r{number}", f"v{number % 1000}"), InvalidInput("no"), 0.0)
    assert len(lines) == MOST_LINES
    log.ended(of("last", "v999"), InvalidInput("no"), QUIET_SECONDS)
    assert lines[MOST_LINES:] == [
        "invalid: request 'last' of vFM 'v999' version 1: no; 3 more since the last such line"
    ]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (AccessDenied("x"), "denied"),
        (InvalidInput("x"), "invalid"),
        (Unavailable("x"), "rejected"),
        (DeadlineExceeded("x"), "expired"),
        (EngineFailure("x"), "failed"),
        (NotFound("x"), "failed"),
    ],
)
def test_a_line_begins_with_what_happened(error: FMplexError, event: str) -> None:
    lines: list[str] = []
    HostLog(lines.append).ended(of("r"), error, 0.0)
    assert [event_of(line) for line in lines] == [event]
    assert event_of("vFM 'a': removed") == "note"


def test_a_line_is_one_line_of_bounded_length_whatever_is_sent() -> None:
    lines: list[str] = []
    evil = 'x"\n{"event": "refused"}' + "y" * 10_000
    log = HostLog(lines.append)
    log.ended(of(evil), InvalidInput(evil), 0.0)
    HostLog(lines.append, "m", as_json=True).ended(of(evil), InvalidInput(evil), 0.0)
    text, as_json = lines
    assert not any("\n" in line for line in lines)
    assert len(text) < 2 * LONGEST_ID + LONGEST_REASON + 100
    told = json.loads(as_json)
    assert len(told["requests"][0]["request_id"]) == LONGEST_ID
    assert (told["event"], told["fm"], told["message"]) == ("invalid", "m", text)


def test_requests_of_one_batch_are_named_once_each_and_not_all() -> None:
    assert naming([*of("r"), *of("r"), *of("s", None)]) == "request 'r' of vFM 'a' version 1, request 's'"
    many = naming([each for number in range(MOST_NAMED + 3) for each in of(f"r{number}")])
    assert many.endswith("request 'r7' of vFM 'a' version 1 and 3 more")


def test_what_cannot_be_queued_is_told_with_vfm_and_version(tmp_path: Path, tiny_backbone: Path) -> None:
    site = Site(tmp_path, tiny_backbone)
    try:
        site.add("a", 0)
        site.registry.scan(settled=True)
        assert site.engine.facts is not None
        lines: list[str] = []
        intake = Intake("m", TextEncoder(site.engine.facts), site.registry, site.dispatcher, HostLog(lines.append))
        for port in (0, 7):
            with pytest.raises(FMplexError):
                intake.take(Ask(frozenset({f"port{port}.vector"}), {}, lambda _: None, request_id="mine"))
        assert lines == [
            "invalid: request 'mine' of vFM 'a' version 1: vFM 'a': input 'text' is missing",
            "failed: request 'mine': port 7 of physical FM 'm' has no vFM",
        ]
    finally:
        site.dispatcher.stop()


HOSTS = HostLog(print, "m", as_json=True)._json("refused: vFM 'a'", ())


@pytest.mark.parametrize(
    ("line", "message", "level", "source"),
    [
        ('I1122 16:03:02.18 15990 server.cc:345] "it \\"is\\" up"', 'it "is" up', "info", "server.cc:345"),
        ('W1122 16:03:02.18 15990 model.py:84] "fmplex: failed: x"', "fmplex: failed: x", "warning", "model.py:84"),
        ("| Model | Version |", "| Model | Version |", "info", None),
        ('{"time"', '{"time"', "info", None),
        (HOSTS, "refused: vFM 'a'", "warning", None),
    ],
)
def test_every_line_of_the_server_becomes_an_object(line: str, message: str, level: str, source: str | None) -> None:
    told = json.loads(json_line(line))
    assert told["time"]
    assert (told["message"], told["level"], told.get("source")) == (message, level, source)


def test_a_hosts_lines_are_known_in_both_formats() -> None:
    assert host_message('W1122 16:03:02.18 15990 model.py:84] "fmplex: failed: \\"x\\""') == 'failed: "x"'
    assert host_message(HOSTS) == "refused: vFM 'a'"
    assert host_message('I1122 16:03:02.18 15990 server.cc:345] "up"') is None
    assert host_message(json_line('I1122 16:03:02.18 15990 server.cc:345] "up"')) is None
