"""``fmplex task forecast | impute | anomaly``: vFMs on series. A thin layer over `fmplex_tools.tasks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import SeriesSpec
from fmplex_tools.console import DEFAULT_REPOSITORY, out
from fmplex_tools.task_arguments import Fm, Name, Repository, SignWith, Weight, before_torch, key_in, names, policy
from fmplex_tools.tasks import Columns, Examples, read_examples
from fmplex_tools.tasks.show import result_table

if TYPE_CHECKING:
    from fmplex_tools.tasks import TaskResult

app = typer.Typer()

Data = Annotated[Path, typer.Option("--data", "-d", help="csv, tsv, jsonl or parquet file; a row is a series.")]
Column = Annotated[str, typer.Option("--series", help="Column with the series: numbers, or a list for each channel.")]
Window = Annotated[int, typer.Option(min=16, help="Steps of the pieces of a series that are learnt from.")]
OneWay = Annotated[bool, typer.Option("--one-way", help="Look back only: half the work, and less is known of a step.")]
Seed = Annotated[int, typer.Option("--seed", help="Of what is hidden, moved and held out.")]


@app.command("forecast")
def forecast(
    name: Name,
    fm: Fm = "fracast",
    repository: Repository = DEFAULT_REPOSITORY,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Learn a head from these series; else the backbone's own.")
    ] = None,
    series: Column = "series",
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps to forecast; all that the backbone does.")] = None,
    quantiles: Annotated[
        str, typer.Option(help="E.g. 0.1,0.5,0.9; of the backbone's own head, some that it has; all unless told.")
    ] = "",
    channels: Annotated[int | None, typer.Option(min=1, help="Of every series; any number unless told.")] = None,
    gaps: Annotated[bool, typer.Option("--gaps", help="Series may lack values: it takes 'observed' too.")] = False,
    weight: Weight = None,
    sign_with: SignWith = None,
) -> None:
    """Put a vFM that forecasts into the repository: by its backbone's own head, or with --data by one that is learnt.

    Examples:

      fmplex task forecast demand --horizon 24

      fmplex task forecast load -r /srv/models --quantiles 0.1,0.5,0.9 --gaps

      fmplex task forecast sales --data sales.jsonl --series values --horizon 12
    """
    from fmplex_tools.tasks.forecasting import QUANTILES

    try:
        wanted = [float(part) for part in names(quantiles)]
    except ValueError:
        raise InvalidInput(f"--quantiles {quantiles!r}: write numbers between 0 and 1, e.g. 0.1,0.5,0.9") from None
    encoder = SeriesSpec(channels=channels, observed=gaps)
    key, parameters = key_in(sign_with), policy(weight)
    before_torch()
    if data is None:
        from fmplex_tools.tasks.forecasting import create_forecast

        result = create_forecast(
            repository, name, fm=fm, horizon=horizon, quantiles=wanted, encoder=encoder, parameters=parameters,
            sign_with=key,
        )  # fmt: skip
    else:
        from fmplex_tools.tasks.forecasting import train_forecast

        if horizon is None:
            raise InvalidInput("--data needs --horizon: how many steps to learn to forecast")
        examples = read_examples(data, Columns(series, modality="series"))
        with out.status("learning from the series"):
            result = train_forecast(
                repository, name, examples, fm=fm, horizon=horizon, quantiles=wanted or QUANTILES,
                encoder=_with_gaps(encoder, examples), parameters=parameters, sign_with=key,
            )  # fmt: skip
    out.print(result_table(result))


def _stepwise(kind: Literal["imputation", "anomaly"], told: str) -> Callable[..., None]:
    """The command that learns a vFM of ``kind``; ``told`` is its help."""

    def command(
        name: Name,
        data: Data,
        series: Column = "series",
        fm: Fm = "fracast",
        repository: Repository = DEFAULT_REPOSITORY,
        window: Window = 256,
        one_way: OneWay = False,
        seed: Seed = 0,
        weight: Weight = None,
        sign_with: SignWith = None,
    ) -> None:
        before_torch()
        examples = read_examples(data, Columns(series, modality="series"))
        key = key_in(sign_with)
        with out.status("loading PyTorch and the backbone"):
            from fmplex_tools.tasks.stepwise import train_stepwise
        from fmplex_tools.tasks.progress import Reporter, progress_bars

        with progress_bars(out) as progress:
            result: TaskResult = train_stepwise(
                repository, name, examples, fm=fm, kind=kind, window=window, backwards=not one_way,
                encoder=_with_gaps(SeriesSpec(), examples), parameters=policy(weight), sign_with=key, seed=seed,
                reporter=Reporter(progress, name),
            )  # fmt: skip
        out.print(result_table(result))

    command.__doc__ = told
    return command


app.command("impute")(
    _stepwise(
        "imputation",
        """Put a vFM that fills the gaps of series into the repository, learnt from series of which steps are hidden.

    Examples:

      fmplex task impute sensor --data sensors.jsonl --series values
    """,
    )
)
app.command("anomaly")(
    _stepwise(
        "anomaly",
        """Put a vFM that tells how odd each step of a series is into the repository, learnt from usual series.

    A score of 1 is more than 99 % of the steps have that it learnt from.

    Examples:

      fmplex task anomaly pump --data pumps.jsonl --series pressure
    """,
    )
)


def _with_gaps(encoder: SeriesSpec, examples: Examples) -> SeriesSpec:
    """It takes ``observed`` where its data has gaps."""
    return encoder.model_copy(update={"observed": encoder.observed or examples.gaps})
