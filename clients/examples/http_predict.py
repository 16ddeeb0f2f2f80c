"""One question of every kind over HTTP, with the FMplex client: python clients/examples/http_predict.py"""

from __future__ import annotations

import numpy as np
from _checks import HTTP, REVIEWS, TASKS, check, options, run

from fmplex_client import Classification, Client, Embedding, MultiLabel, Regression, Result


def short(result: Result) -> str:
    """A bundle member's answer in a word."""
    if isinstance(result, Classification):
        return result.label
    return f"{result.value:.2f}" if isinstance(result, Regression) else type(result).__name__


def main() -> None:
    """Ask, print, check."""
    with Client(options(__doc__, HTTP).url) as client:
        ready = {task.name: task for task in client.tasks()}
        check(set(TASKS) <= set(ready), f"the server has not {sorted(set(TASKS) - set(ready))}; it has {sorted(ready)}")

        for (text, wanted), answer in zip(
            REVIEWS,
            client.predict("review_polarity", [text for text, _ in REVIEWS], expect=Classification),
            strict=True,
        ):
            print(f"review_polarity  {answer.label} {answer.score:.2f}  {text}")
            check(answer.label == wanted, f"{text!r} is {wanted}, the server says {answer.label}")

        headline = "Shares rise as the central bank cuts interest rates"
        [topic] = client.predict("news_topic", [headline], expect=Classification)
        print(f"news_topic       {topic.label} {topic.score:.2f}  {headline}")
        check(abs(topic.probabilities.sum() - 1) < 1e-4, f"probabilities add up to {topic.probabilities.sum()}")
        check(topic.score == topic.probabilities.max(), "the label's score is not the largest probability")

        post = "My graphics card shows strange colours since I installed the new driver."
        [tags] = client.predict("newsgroup_tags", [post], expect=MultiLabel)
        print(f"newsgroup_tags   {dict(zip(tags.labels, np.round(tags.scores, 2), strict=True))}  {post}")
        check(bool(((tags.probabilities >= 0) & (tags.probabilities <= 1)).all()), "a probability is not in [0, 1]")

        glad, furious = client.predict(
            "tweet_intensity",
            ["What a wonderful day, I am so happy!!!", "I hate this, it is the worst day ever"],
            expect=Regression,
        )
        print(f"tweet_intensity  {glad.value:.2f} (glad)  {furious.value:.2f} (furious)")
        check(glad.value > furious.value, "the glad tweet is not rated above the furious one")

        one, same, other = client.predict(
            "news_embedding", [headline, headline, "The striker scored twice in the final"], expect=Embedding
        )
        print(f"news_embedding   width {one.vector.size}, |v| {np.linalg.norm(one.vector):.4f}")
        check(bool(np.allclose(one.vector, same.vector, atol=1e-5)), "the same text twice gives two vectors")
        check(one.vector @ same.vector > one.vector @ other.vector, "another text is nearer than the same one")

        [verdicts] = client.predict("guardrail", [REVIEWS[0][0]])
        print("guardrail        " + ", ".join(f"{member}: {short(result)}" for member, result in verdicts.items()))
        check(isinstance(verdicts, dict) and len(verdicts) == len(ready["guardrail"].members), "a member is missing")


if __name__ == "__main__":
    run(main)
