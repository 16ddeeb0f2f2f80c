"""What the examples share: their options, and how they say that an answer is not as it should be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fmplex_client import FMplexClientError

REVIEWS = [
    ("Great phone, excellent sound and the battery lasts for days. I love it.", "positive"),
    ("Terrible. It broke after one day, the support is awful and I want my money back.", "negative"),
    ("The best camera that I have ever owned: wonderful pictures and very easy to use.", "positive"),
    ("Very disappointed: bad quality, poor screen, and it keeps crashing.", "negative"),
]
"""Texts for ``review_polarity`` whose label leaves no doubt."""

TASKS = (
    "review_polarity",
    "news_topic",
    "tweet_sentiment",
    "newsgroup_tags",
    "tweet_intensity",
    "news_embedding",
    "guardrail",
)
"""The demo repository's tasks that the examples ask."""

HTTP = "127.0.0.1:8000"
GRPC = "127.0.0.1:8001"


def options(doc: str | None, url: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse ``--url``; ``doc`` is the example's own docstring."""
    return parser(doc, url).parse_args(argv)


def parser(doc: str | None, url: str) -> argparse.ArgumentParser:
    """A parser with ``--url``, for examples with more options."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--url", default=url, help=f"HOST:PORT of the server (default {url})")
    return made


def wrong(message: str) -> NoReturn:
    """End the example with exit code 1 and the reason."""
    print(f"WRONG: {message}", file=sys.stderr)
    sys.exit(1)


def check(right: bool, message: str) -> None:
    """End the example with exit code 1 unless ``right``."""
    if not right:
        wrong(message)


def run(main: Callable[[], None]) -> None:
    """Run an example; an error of the client ends it with exit code 1 and its message."""
    try:
        main()
    except FMplexClientError as error:
        wrong(f"{type(error).__name__}: {error}")
    print("ok")
