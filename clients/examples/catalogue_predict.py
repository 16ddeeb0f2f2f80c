"""Ask vFMs of pictures, sound and series for held-out rows, check the answers, and draw them.

fmplex catalogue build --quick && fmplex serve -r catalogue_repository
python clients/examples/catalogue_predict.py digit_8 --plot digits.png
python clients/examples/catalogue_predict.py prompt_language --plot prompts.png
python clients/examples/catalogue_predict.py gun_point --plot hands.png
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from _checks import HTTP, check, parser, run

from fmplex_client import Classification, Client
from fmplex_tools.catalogue.specs import chosen
from fmplex_tools.tasks.prepare import prepare_data
from fmplex_tools.tasks.rows import Sound
from fmplex_tools.tasks.served import as_client_has_it

ROWS = 24
LEAST_RIGHT = 0.6
"""Of these rows; what a vFM reaches on all of them is in its vfm.json."""


def main() -> None:
    """Ask, check, draw."""
    options = parser(__doc__, HTTP)
    options.add_argument("task", nargs="?", default="digit_8", help="a classifying vFM of the catalogue")
    options.add_argument("--plot", type=Path, help="write a picture of the answers here (PNG)")
    given = options.parse_args()
    [entry] = chosen(given.task)
    held_out = prepare_data(entry.load(), entry.options).test.take(range(ROWS))
    with Client(given.url, timeout=120) as client:
        answers = client.predict(entry.name, [as_client_has_it(row) for row in held_out.rows], expect=Classification)
    labels = [str(label) for label in held_out.labels or ()]
    right = [answer.label == label for answer, label in zip(answers, labels, strict=True)]
    print(f"{entry.name}: {entry.what}; {sum(right)} of {len(right)} held-out rows are right")
    check(sum(right) >= LEAST_RIGHT * len(right), f"{sum(right)} of {len(right)} are right")
    if given.plot:
        draw(given.plot, held_out.rows, answers, labels)
        print(f"drawn in {given.plot}")


def draw(path: Path, rows: Any, answers: list[Classification], labels: list[str]) -> None:
    """Each row with its answer above, in red where that is wrong."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, (len(rows) + 3) // 4, figsize=(14, 9))
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(rows):
            show(axis, rows[place])
            answer = answers[place]
            colour = "black" if answer.label == labels[place] else "red"
            axis.set_title(f"{answer.label}  {answer.score:.2f}", color=colour, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def show(axis: Any, row: Any) -> None:
    """One row: a picture, a sound's waves, or a series' channels."""
    if isinstance(row, bytes):
        from PIL import Image

        axis.imshow(Image.open(io.BytesIO(row)), cmap="gray")
    elif isinstance(row, Sound):
        axis.plot(np.arange(len(row.samples)) / row.rate, row.samples, linewidth=0.4)
    else:
        axis.plot(np.asarray(row).T, linewidth=0.8)


if __name__ == "__main__":
    run(main)
