"""Many tasks at once with asyncio, over either protocol: python clients/examples/async_predict.py"""

from __future__ import annotations

import asyncio
import time

from _checks import HTTP, REVIEWS, check, parser, run

from fmplex_client import AsyncClient, Classification

ROUNDS = 25


async def ask(url: str, protocol: str) -> None:
    """Send every question at the same time; each caller still gets his own answer."""
    if protocol not in ("http", "grpc"):
        raise ValueError(protocol)
    async with AsyncClient(url, "grpc" if protocol == "grpc" else "http", timeout=60) as client:
        start = time.perf_counter()
        questions = [pair for _ in range(ROUNDS) for pair in REVIEWS]
        answers, topics, moods = await asyncio.gather(
            asyncio.gather(
                *(client.predict("review_polarity", [text], expect=Classification) for text, _ in questions)
            ),
            asyncio.gather(*(client.predict("news_topic", [text], expect=Classification) for text, _ in REVIEWS)),
            asyncio.gather(*(client.predict("tweet_sentiment", [text], expect=Classification) for text, _ in REVIEWS)),
        )
        elapsed = time.perf_counter() - start
    for (text, wanted), [answer] in zip(questions, answers, strict=True):
        check(answer.label == wanted, f"{text!r} is {wanted}, the server says {answer.label}")
    count = len(answers) + len(topics) + len(moods)
    print(f"{count} requests to 3 tasks at once in {elapsed:.2f} s, all review_polarity answers right")


def main() -> None:
    """Ask, print, check."""
    arguments = parser(__doc__, HTTP)
    arguments.add_argument("--protocol", choices=("http", "grpc"), default="http")
    chosen = arguments.parse_args()
    asyncio.run(ask(chosen.url, chosen.protocol))


if __name__ == "__main__":
    run(main)
