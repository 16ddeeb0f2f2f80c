"""Tokens: who is let in, what is told of it, and what the repository and the status keep of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.site import Site

from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import AccessDenied, FMplexError, InvalidInput, Refused
from fmplex_backend.host.access import check_token
from fmplex_backend.host.intake import Intake
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.requests import Ask
from fmplex_backend.repository.config import CONFIG_FILE, Policy, parameters_of, read_config
from fmplex_tools.tasks import add_token, revoke_tokens, set_task


def hashed(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


BOTH = f"{hashed('one')},{hashed('two')}"


@pytest.mark.parametrize("token", ["one", "two"])
def test_each_token_is_good(token: str) -> None:
    check_token("a", BOTH, token)


def test_without_tokens_anybody_may_ask() -> None:
    check_token("a", "", None)
    check_token("a", "", "anything")


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "the request has none"),
        ("", "the request has none"),
        ("One", "its token is not one of them"),
        (hashed("one"), "its token is not one of them"),
        ("\ud800", "its token is not one of them"),
    ],
)
def test_everything_else_is_denied(token: str | None, says: str) -> None:
    with pytest.raises(AccessDenied, match=f"vFM 'a' answers only to its tokens, and {says}"):
        check_token("a", BOTH, token)


@pytest.mark.parametrize("value", ["one", "sha256:12", hashed("one").upper(), hashed("one") + ",", "," + hashed("one")])
def test_what_is_no_hash_is_refused(value: str) -> None:
    with pytest.raises(Refused, match="parameter 'access_tokens'"):
        Policy.parse({"access_tokens": value}, "vFM 'a'")


def test_a_policy_does_not_tell_its_hashes() -> None:
    policy = Policy.parse({"access_tokens": BOTH}, "vFM 'a'")
    assert policy.access_tokens == BOTH
    assert "sha256" not in f"{policy} {policy.model_dump()}"


def test_a_request_needs_the_token_of_every_vfm_it_asks(tmp_path: Path, tiny_backbone: Path) -> None:
    site = Site(tmp_path, tiny_backbone)
    try:
        site.add("a", 0, parameters={"access_tokens": BOTH})
        site.add("b", 1)
        site.registry.scan(settled=True)
        assert [site.record(name)["access"] for name in "ab"] == ["tokens", "anybody"]
        assert "sha256" not in str(site.registry.status())
        assert site.engine.facts is not None
        intake = Intake(
            "minilm", TextEncoder(site.engine.facts), site.registry, site.dispatcher, HostLog(site.log.append)
        )

        def ask(*ports: int, token: str | None = None) -> FMplexError | None:
            asked = Ask(frozenset(f"port{port}.vector" for port in ports), {}, lambda _: None, token=token)
            try:
                intake.take(asked)
            except FMplexError as error:
                return error
            return None

        assert isinstance(ask(0), AccessDenied)
        assert isinstance(ask(0, 1, token="three"), AccessDenied)
        for good in (ask(0, token="one"), ask(0, 1, token="two"), ask(1)):  # let in, and then found to have no text
            assert isinstance(good, InvalidInput)
            assert not isinstance(good, AccessDenied)
        assert sum(line.startswith("denied: ") for line in site.log) == 1
    finally:
        site.dispatcher.stop()


def test_tokens_are_made_and_revoked(tmp_path: Path, tiny_backbone: Path) -> None:
    site = Site(tmp_path, tiny_backbone)
    try:
        config = site.add("a", 0, parameters={"weight": "2"}) / CONFIG_FILE
        tokens = [add_token(site.repository, "a") for _ in range(2)]
        assert len(set(tokens)) == 2
        known = parameters_of(read_config(config))
        assert known == {"weight": "2", "access_tokens": ",".join(map(hashed, tokens))}
        assert not any(token in config.read_text() for token in tokens)
        set_task(site.repository, "a", {"weight": "3"})
        assert parameters_of(read_config(config))["access_tokens"] == known["access_tokens"], "kept"
        assert revoke_tokens(site.repository, "a") == 2
        assert Policy.parse(parameters_of(read_config(config)), "vFM 'a'").access_tokens == ""
    finally:
        site.dispatcher.stop()
