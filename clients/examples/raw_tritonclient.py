"""The same without FMplex's client: plain tritonclient is enough. python clients/examples/raw_tritonclient.py"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton

TEXTS = ["Great phone, excellent sound and the battery lasts for days. I love it.", "Terrible. It broke after one day."]
WANTED = ["positive", "negative"]


def main() -> int:
    """Ask, print, check."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--url", default="127.0.0.1:8000")
    client = triton.InferenceServerClient(arguments.parse_args().url)

    text = triton.InferInput("text", [len(TEXTS), 1], "BYTES")
    text.set_data_from_numpy(np.array([[t.encode()] for t in TEXTS], dtype=np.object_))
    result = client.infer("review_polarity", [text])

    labels = [row[0].decode() for row in result.as_numpy("label")]
    print("label        ", labels)
    print("probabilities", result.as_numpy("probabilities").round(3).tolist())
    client.close()
    if labels != WANTED:
        print(f"WRONG: the labels should be {WANTED}", file=sys.stderr)
        return 1
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
