"""``fmplex task``: make, train, import, list, change and remove vFMs. A thin layer over `fmplex_tools.tasks`.

Its commands about pictures' patches are in `fmplex_tools.task_image_cli`, about series in
`fmplex_tools.task_series_cli`, about signatures in `fmplex_tools.task_sign_cli`.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.modalities import SPECS, EncoderSpec, Modality, SeriesSpec, TextSpec
from fmplex_tools import task_image_cli, task_series_cli, task_sign_cli
from fmplex_tools.console import DEFAULT_REPOSITORY, err, fail, out
from fmplex_tools.task_arguments import Fm, Name, Repository, SignWith, Weight, before_torch, key_in, names, policy
from fmplex_tools.tasks import (
    Columns,
    Examples,
    LoraOptions,
    TaskOptions,
    add_token,
    create_bundle,
    list_tasks,
    read_examples,
    release_task,
    remove_task,
    revoke_tokens,
    set_task,
    show_task,
)
from fmplex_tools.tasks.options import DEFAULT_MAX_LENGTH
from fmplex_tools.tasks.show import info_table, result_table, tasks_table
from fmplex_tools.tasks.split import join_test

if TYPE_CHECKING:
    from fmplex_tools.tasks import TaskResult


class Group(TyperGroup):
    """Errors that FMplex raises on purpose end in one clear line and exit code 1, Ctrl-C in 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except FMplexError as error:
            fail(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            fail("stopped; nothing was published")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Group,
    help="Make, train, import, list, change and remove vFMs.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(task_image_cli.app)
app.add_typer(task_series_cli.app)
app.add_typer(task_sign_cli.app)


class KindName(str, Enum):
    """Kinds of tasks."""

    classification = "classification"
    multi_label = "multi_label"
    regression = "regression"
    embedding = "embedding"
    token_classification = "token_classification"


class HeadName(str, Enum):
    """How a label is told."""

    linear = "linear"
    mlp = "mlp"
    prototypes = "prototypes"
    nearest = "nearest"


class AdapterName(str, Enum):
    """What is trained inside the backbone."""

    none = "none"
    lora = "lora"


Data = Annotated[Path, typer.Option("--data", "-d", help="csv, tsv, jsonl or parquet file.")]
Text = Annotated[str | None, typer.Option("--text", help="Column with the text (or lists of words).")]
Label = Annotated[str | None, typer.Option("--label", help="Column with the label; none makes an embedding.")]
Kind = Annotated[KindName | None, typer.Option("--kind", help="Kind of task; found from the labels if not given.")]
Test = Annotated[Path | None, typer.Option("--test", help="Held-out rows in a file of their own.")]
SplitBy = Annotated[str | None, typer.Option("--split", help="Column that says train or test.")]
GroupBy = Annotated[str | None, typer.Option("--group", help="Column whose values stay on one side of the split.")]
Pair = Annotated[str | None, typer.Option("--pair", help="Column with a second text.")]
Adapter = Annotated[AdapterName | None, typer.Option("--adapter", help="none: head only; lora: head and LoRA.")]
Rank = Annotated[int | None, typer.Option("--rank", help="LoRA rank (default 8).")]
Alpha = Annotated[float | None, typer.Option("--alpha", help="LoRA alpha (default 2 × rank).")]
Targets = Annotated[
    str | None, typer.Option("--target-modules", help="Linear layers, e.g. query,value (default), or all-linear.")
]
Layers = Annotated[str | None, typer.Option("--layers", help="Blocks that get an adapter, e.g. 3,4,5 or 3-5.")]
RsLora = Annotated[bool, typer.Option("--rslora", help="Rank-stabilized scaling.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the rows with LoRA (default 2).")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="Of LoRA (default 0.003).")]
Pooling = Annotated[
    str | None, typer.Option("--pooling", help="What the head reads: mean, cls, last, max, std, joined by +; or none.")
]
Head = Annotated[
    HeadName | None,
    typer.Option("--head", help="linear or mlp: trained; prototypes: means of rows; nearest: the rows themselves."),
]
Image = Annotated[str | None, typer.Option("--image", help="Column with paths of images, in place of --text.")]
Audio = Annotated[str | None, typer.Option("--audio", help="Column with paths of WAV files, in place of --text.")]
Series = Annotated[str | None, typer.Option("--series", help="Column with series, in place of --text.")]
Mix = Annotated[int | None, typer.Option("--mix", help="Series: mix their channels into so many, by PCA.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help=f"Tokens a row (default {DEFAULT_MAX_LENGTH}).")]
Prefix = Annotated[str | None, typer.Option("--prefix", help="Put before every text.")]
Lowercase = Annotated[bool | None, typer.Option("--lowercase/--no-lowercase", help="Lower-case every text.")]
MaxRows = Annotated[int | None, typer.Option("--max-rows", help="Most training rows.")]
MaxTestRows = Annotated[int | None, typer.Option("--max-test-rows", help="Most held-out rows.")]
MinLabelRows = Annotated[int | None, typer.Option("--min-label-rows", help="Leave labels with fewer rows out.")]
Dimensions = Annotated[int | None, typer.Option("--dimensions", help="Embedding: width (default 128 with labels).")]
Threshold = Annotated[float, typer.Option("--threshold", help="Multi-label: probability that gives a label.")]
Separator = Annotated[str, typer.Option("--separator", help="Multi-label: between labels.")]
Seed = Annotated[int, typer.Option("--seed", help="Of split and training.")]


@app.command("create")
def create(
    name: Name,
    data: Data,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    series: Series = None,
    label: Label = None,
    fm: Fm = "minilm",
    repository: Repository = DEFAULT_REPOSITORY,
    kind: Kind = None,
    head: Head = None,
    adapter: Adapter = None,
    rank: Rank = None,
    alpha: Alpha = None,
    target_modules: Targets = None,
    layers: Layers = None,
    rslora: RsLora = False,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    test: Test = None,
    split: SplitBy = None,
    group: GroupBy = None,
    pair: Pair = None,
    pooling: Pooling = None,
    mix: Mix = None,
    max_length: MaxLength = None,
    prefix: Prefix = None,
    lowercase: Lowercase = None,
    max_rows: MaxRows = None,
    max_test_rows: MaxTestRows = None,
    min_label_rows: MinLabelRows = None,
    dimensions: Dimensions = None,
    threshold: Threshold = 0.5,
    separator: Separator = "|",
    seed: Seed = 0,
    weight: Weight = None,
    sign_with: SignWith = None,
) -> None:
    """Train a new vFM from data and put it into the repository, on the lowest free port.

    Examples:

      fmplex task create mail_folder --data mails.csv --text body --label folder

      fmplex task create polarity -d reviews.jsonl --text text --label stars --kind regression --weight 4

      fmplex task create product -d pictures.csv --image file --label product --fm dinov2 --head prototypes

      fmplex task create machine -d runs.jsonl --series values --label state --fm fracast

      fmplex task create topic -d news.parquet --text text --label topic --adapter lora --rank 16 \\
          --target-modules all-linear --layers 3-5 --epochs 2
    """
    row, modality = _row_column(text, image, audio, series)
    examples = _read(data, test, Columns(row, label, pair, group, split, modality))
    chosen = TaskOptions(
        kind=None if kind is None else kind.value,
        head=(head or HeadName.linear).value,
        lora=_lora(adapter, rank, alpha, target_modules, layers, rslora, epochs, learning_rate),
        pooling=pooling,
        encoder=_encoder(_default_encoder(examples, modality), max_length, prefix, lowercase, pair),
        mix=mix,
        dimensions=dimensions,
        separator=separator,
        threshold=threshold,
        min_label_rows=min_label_rows,
        max_rows=max_rows,
        max_test_rows=max_test_rows,
        seed=seed,
    )
    parameters = policy(weight)
    key = key_in(sign_with)
    _run("create_task", repository, name, examples, chosen, fm=fm, parameters=parameters, sign_with=key)


@app.command("zero-shot")
def zero_shot(
    name: Name,
    labels: Annotated[str, typer.Option("--labels", help="Comma-separated.")],
    fm: Fm = "clip",
    repository: Repository = DEFAULT_REPOSITORY,
    template: Annotated[
        list[str] | None, typer.Option(help="Text with {} for the label; may be given several times.")
    ] = None,
    weight: Weight = None,
    sign_with: SignWith = None,
) -> None:
    """Put a vFM that tells which of some labels an image is into the repository; nothing is trained.

    The physical FM's backbone compares images to texts (CLIP).

    Examples:

      fmplex task zero-shot animal --labels cat,dog,horse

      fmplex task zero-shot scene --labels beach,city --template "a photo of a {}" --template "a drawing of a {}"
    """
    from fmplex_tools.tasks.zero_shot import TEMPLATE, create_zero_shot

    result = create_zero_shot(
        repository,
        name,
        names(labels),
        fm=fm,
        templates=template or [TEMPLATE],
        parameters=policy(weight),
        sign_with=key_in(sign_with),
    )
    out.print(result_table(result))


@app.command("train")
def train(
    name: Name,
    data: Data,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    series: Series = None,
    label: Label = None,
    repository: Repository = DEFAULT_REPOSITORY,
    head: Head = None,
    adapter: Adapter = None,
    rank: Rank = None,
    alpha: Alpha = None,
    target_modules: Targets = None,
    layers: Layers = None,
    rslora: RsLora = False,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    test: Test = None,
    split: SplitBy = None,
    group: GroupBy = None,
    pair: Pair = None,
    max_length: MaxLength = None,
    prefix: Prefix = None,
    lowercase: Lowercase = None,
    max_rows: MaxRows = None,
    max_test_rows: MaxTestRows = None,
    min_label_rows: MinLabelRows = None,
    separator: Separator = "|",
    seed: Seed = 0,
    sign_with: SignWith = None,
) -> None:
    """Train a new version of a vFM. Kind, labels, inputs and encoder stay; older versions stay to go back to.

    Examples:

      fmplex task train mail_folder --data mails-may.csv --text body --label folder

      fmplex task train mail_folder -d mails.csv --text body --label folder --adapter lora --rank 8

      fmplex task set mail_folder --version 1     # back to the version before
    """
    info = show_task(repository, name)
    if info.artifact is None:
        raise InvalidInput(info.problem or f"{name!r} is a bundle; train one of its vFMs")
    old = info.artifact
    kept = HeadName(old.head) if old.head in ("prototypes", "mlp") else HeadName.linear
    chosen = TaskOptions(
        kind=old.kind,
        head=(head or kept).value,
        lora=_lora(adapter, rank, alpha, target_modules, layers, rslora, epochs, learning_rate),
        pooling=old.pooling if old.head in ("linear", "mlp", "prototypes") else None,
        encoder=_encoder(old.encoder, max_length, prefix, lowercase, pair),
        dimensions=info.width if old.kind == "embedding" and old.head == "linear" else None,
        normalize=old.normalize or old.kind != "embedding",
        separator=separator,
        threshold=old.threshold,
        min_label_rows=min_label_rows,
        max_rows=max_rows,
        max_test_rows=max_test_rows,
        seed=seed,
    )
    row, modality = _row_column(text, image, audio, series)
    examples = _read(data, test, Columns(row, label, pair, group, split, modality))
    _run("train_task", repository, name, examples, chosen, sign_with=key_in(sign_with))
    if info.pinned:
        out.print(
            f"version {info.version} is pinned and goes on being served; `fmplex task set {name} --version latest`"
        )


@app.command("import")
def import_(
    name: Name,
    checkpoint: Annotated[Path, typer.Argument(help="Folder that PEFT or sentence-transformers saved, or of parts.")],
    fm: Fm = "minilm",
    repository: Repository = DEFAULT_REPOSITORY,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Names of its outputs in order, e.g. ham,spam.")
    ] = None,
    kind: Kind = None,
    pooling: Pooling = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Embedding: scale to unit length.")] = False,
    max_length: MaxLength = None,
    prefix: Prefix = None,
    lowercase: Lowercase = None,
    pair: Annotated[bool, typer.Option("--pair", help="Takes two texts.")] = False,
    weight: Weight = None,
    sign_with: SignWith = None,
) -> None:
    """Serve an existing PEFT checkpoint, unchanged: task types SEQ_CLS, TOKEN_CLS and FEATURE_EXTRACTION.

    A folder that sentence-transformers saved is served too where its backbone is the physical FM's: its pooling, its
    Dense without activation, its Normalize; a classifier in model_head.safetensors (weight, bias). And a folder of
    parts: decoder.safetensors (an MLP's net.0 and net.2, or coef_ and intercept_), perhaps encoder.safetensors (a
    linear map of a series' channels) and adapter/ (PEFT). No pickles are read.

    Examples:

      fmplex task import spam ./checkpoint --labels ham,spam

      fmplex task import mail_vector ./checkpoint --pooling mean --normalize

      fmplex task import sentence_vector ./all-MiniLM-L6-v2

      fmplex task import heartbeat ./parts --fm fracast --labels normal,arrhythmia
    """
    from fmplex_tools.tasks.importing import ImportOptions, base_model_of, import_task
    from fmplex_tools.tasks.part_files import is_part_folder
    from fmplex_tools.tasks.sentence_folder import encoder_of, is_sentence_folder

    encoder: EncoderSpec | None = None  # what the backbone reads
    if not is_part_folder(checkpoint) or any((max_length, prefix, lowercase, pair)):
        own = encoder_of(checkpoint) if is_sentence_folder(checkpoint) else TextSpec(max_length=DEFAULT_MAX_LENGTH)
        encoder = _encoder(own, max_length, prefix, lowercase, "yes" if pair else None)
    options = ImportOptions(
        labels=None if labels is None else tuple(part.strip() for part in labels.split(",")),
        kind=None if kind is None else kind.value,
        pooling=pooling,
        normalize=normalize,
        encoder=encoder,
    )
    parameters = policy(weight)
    key = key_in(sign_with)
    result = import_task(repository, name, checkpoint, options, fm=fm, parameters=parameters, sign_with=key)
    _tell(repository, result, signed=key is not None)
    if (trained_on := base_model_of(checkpoint)) not in (None, result.artifact.backbone.name):
        out.print(
            f"[yellow]note:[/] the checkpoint says it was trained on {trained_on!r}; make sure that physical FM {fm!r} "
            f"({result.artifact.backbone.name}) has the same weights: that its layers fit does not tell",
            soft_wrap=True,
        )


@app.command("list")
def list_(repository: Repository = DEFAULT_REPOSITORY) -> None:
    """List the vFMs and bundles of a repository: port, kind, version, policy and measured quality.

    Examples:

      fmplex task list

      fmplex task list -r /srv/models
    """
    out.print(tasks_table(list_tasks(repository)))


@app.command("show")
def show(name: Name, repository: Repository = DEFAULT_REPOSITORY) -> None:
    """Show everything about one vFM or bundle.

    Examples:

      fmplex task show mail_folder
    """
    out.print(info_table(show_task(repository, name)))


@app.command("set")
def set_(
    name: Name,
    assignments: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, e.g. weight=4.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Serve this version; latest unpins.")] = None,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Change a vFM's policy, or the version that is served. A running server acts on it within 2 s.

    Examples:

      fmplex task set mail_folder weight=4 max_queue_size=1024

      fmplex task set mail_folder timeout_ms=200

      fmplex task set mail_folder --version 1
    """
    values: dict[str, str] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise InvalidInput(f"{assignment!r} is not KEY=VALUE, e.g. weight=4")
        values[key.strip()] = value.strip()
    out.print(info_table(set_task(repository, name, values, version)))


@app.command("token")
def token(
    name: Name,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take all its tokens away: anybody may ask it.")] = False,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Give a vFM a token, and print it, once: from then on it answers only to its tokens.

    Clients send it as the request parameter, or the header, x-fmplex-token. The repository keeps its SHA-256 alone. Use
    TLS where others can read the network.

    Examples:

      fmplex task token mail_folder

      fmplex task token mail_folder --revoke
    """
    if revoke:
        out.print(f"{name}: {revoke_tokens(repository, name)} tokens revoked; anybody may ask it within 2 s")
        return
    made = add_token(repository, name)
    err.print(f"{name} answers only to its tokens within 2 s; this one is shown once:")
    out.print(made, highlight=False, soft_wrap=True)


@app.command("release")
def release(name: Name, repository: Repository = DEFAULT_REPOSITORY) -> None:
    """Have a running server try a vFM again that is in quarantine, since one of its rows killed engines.

    Examples:

      fmplex task release mail_folder
    """
    release_task(repository, name)
    out.print(f"released {name}: a running server takes its rows again within 2 s")


@app.command("remove")
def remove(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Even where a bundle uses it.")] = False,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Remove a vFM or bundle from the repository, with all its versions.

    Examples:

      fmplex task remove mail_folder
    """
    remove_task(repository, name, force=force)
    out.print(f"removed {name}")


@app.command("bundle")
def bundle(
    name: Name,
    members: Annotated[list[str], typer.Argument(help="Two or more vFMs of one physical FM.")],
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Put several vFMs behind one endpoint: one text in, the answers of all of them out.

    Examples:

      fmplex task bundle guardrail toxicity topic sentiment
    """
    out.print(info_table(create_bundle(repository, name, members)))


def _lora(
    adapter: AdapterName | None,
    rank: int | None,
    alpha: float | None,
    target_modules: str | None,
    layers: str | None,
    rslora: bool,
    epochs: int | None,
    learning_rate: float | None,
) -> LoraOptions | None:
    given: dict[str, Any] = {
        "rank": rank,
        "alpha": alpha,
        "target_modules": None if target_modules is None else names(target_modules),
        "layers": None if layers is None else _numbers(layers),
        "rslora": rslora or None,
        "epochs": epochs,
        "learning_rate": learning_rate,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if adapter is not AdapterName.lora:
        if given:
            option = next(iter(given)).replace("_", "-")
            raise InvalidInput(f"--{option} is about LoRA, but no adapter is trained; pass --adapter lora")
        return None
    return LoraOptions(**given)


def _row_column(text: str | None, image: str | None, audio: str | None, series: str | None) -> tuple[str, Modality]:
    """The column that goes in, and what it holds. Raises `InvalidInput` unless one is named."""
    columns: dict[Modality, str | None] = {"text": text, "image": image, "audio": audio, "series": series}
    named = [(name, modality) for modality, name in columns.items() if name is not None]
    if len(named) != 1:
        raise InvalidInput("name the column that goes in, by one of --text, --image, --audio, --series")
    return named[0]


def _default_encoder(examples: Examples, modality: Modality) -> EncoderSpec:
    """Of a new vFM: a series' channels are those that its data has."""
    if modality == "text":
        return TextSpec(max_length=DEFAULT_MAX_LENGTH)
    if modality != "series":
        return SPECS[modality]()
    channels = {len(row) for row in examples.rows}
    return SeriesSpec(channels=channels.pop() if len(channels) == 1 else None, observed=examples.gaps)


def _encoder(
    base: EncoderSpec, max_length: int | None, prefix: str | None, lowercase: bool | None, pair: str | None
) -> EncoderSpec:
    if max_length is not None and max_length < 4:
        raise InvalidInput(f"--max-length {max_length}: at least 4, special tokens included")
    given = {"max_length": max_length, "prefix": prefix, "lowercase": lowercase, "pair": None if pair is None else True}
    if base.modality != "text" and any(value is not None for value in given.values()):
        raise InvalidInput(
            f"--max-length, --prefix, --lowercase and --pair are about text; the vFM reads {base.modality}"
        )
    return base.model_copy(update={key: value for key, value in given.items() if value is not None})


def _numbers(text: str) -> tuple[int, ...]:
    """``3,4,5`` or ``3-5``."""
    numbers: set[int] = set()
    for part in names(text):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InvalidInput(f"--layers {text!r}: write numbers, e.g. 3,4,5 or 3-5")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def _read(data: Path, test: Path | None, columns: Columns) -> Examples:
    examples = read_examples(data, columns)
    if test is None:
        return examples
    if columns.split is not None or columns.group is not None:
        raise InvalidInput("--test gives the held-out rows itself; leave out --split and --group")
    return join_test(examples, read_examples(test, columns))


def _run(verb: str, repository: Path, name: str, examples: Examples, options: TaskOptions, **more: Any) -> None:
    before_torch()
    with out.status("loading PyTorch and the backbone"):
        from fmplex_tools.tasks import api
    from fmplex_tools.tasks.progress import Reporter, progress_bars

    with progress_bars(out) as progress:
        result = getattr(api, verb)(repository, name, examples, options, reporter=Reporter(progress, name), **more)
    _tell(repository, result, signed=more["sign_with"] is not None)


def _tell(repository: Path, result: TaskResult, *, signed: bool) -> None:
    out.print(result_table(result))
    fm = str(show_task(repository, result.name).fm)
    if not signed and fm_settings(repository / fm).trusted:
        out.print(
            f"[yellow]note:[/] physical FM {fm!r} has trusted_keys, and serves this version when one of them has "
            f"signed it: `fmplex task sign {result.name} --version {result.version} --key FILE`",
            soft_wrap=True,
        )
