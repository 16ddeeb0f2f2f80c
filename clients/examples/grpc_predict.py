"""The same over gRPC, more texts than one request holds, and what errors look like.

python clients/examples/grpc_predict.py
"""

from __future__ import annotations

from _checks import GRPC, REVIEWS, check, options, run, wrong

from fmplex_client import Classification, Client, UnknownTask


def main() -> None:
    """Ask, print, check."""
    with Client(options(__doc__, GRPC).url, "grpc") as client:
        limit = client.task("review_polarity").max_batch_size
        asked = [REVIEWS[i % len(REVIEWS)] for i in range(3 * limit + 1)]
        answers = client.predict(
            "review_polarity", [text for text, _ in asked], expect=Classification, request_id="example"
        )
        check(len(answers) == len(asked), f"{len(answers)} answers to {len(asked)} texts")
        for (text, wanted), answer in zip(asked, answers, strict=True):
            check(answer.label == wanted, f"{text!r} is {wanted}, the server says {answer.label}")
        print(f"review_polarity  {len(answers)} right answers, sent in requests of at most {limit} texts")
        print(f"                 provenance of the last: {answers[-1].info}")

        try:
            client.predict("no_such_task", ["text"])
        except UnknownTask as error:
            print(f"no_such_task     {type(error).__name__}: {error}")
        else:
            wrong("a task that does not exist gave an answer")


if __name__ == "__main__":
    run(main)
