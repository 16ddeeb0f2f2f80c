"""Training, evaluating, importing: on a tiny random BERT, through the same code as the real one.

The definition of correct is plain transformers + PEFT: what a written version computes is compared with it.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.repository.config import CONFIG_FILE, read_config, write_config
from fmplex_backend.repository.golden import read_golden
from fmplex_backend.repository.modalities import TextSpec
from fmplex_tools.task_cli import app
from fmplex_tools.tasks import (
    Examples,
    LoraOptions,
    TaskOptions,
    TaskResult,
    create_task,
    import_task,
    make_key,
    show_task,
    train_task,
    verify_task,
)
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.evaluate import micro_f1, nearest_neighbour
from fmplex_tools.tasks.heads import fit_head
from fmplex_tools.tasks.importing import ImportOptions
from fmplex_tools.tasks.kinds import Targets
from fmplex_tools.tasks.publish import staging_root
from fmplex_tools.tasks.signing import public_key

GOOD, BAD, FILLER = ("good", "great", "fine"), ("bad", "poor", "awful"), ("film", "food", "day", "book", "game", "song")
SHORT = TaskOptions(encoder=TextSpec(max_length=12))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A random BERT of two layers with a word-piece vocabulary of the test's own words."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER, *map(str, range(60)), "a", "the", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=32, model_input_names=names, **special
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertModel(config).eval().save_pretrained(folder)
    return Backbone(str(folder))


@pytest.fixture
def repository(tmp_path: Path, backbone: Backbone) -> Path:
    folder = tmp_path / "models"
    (folder / "toy" / "1").mkdir(parents=True)
    parameters = f'parameters {{ key: "backbone" value {{ string_value: "{backbone.facts.spec}" }} }}'
    (folder / "toy" / CONFIG_FILE).write_text(f'backend: "fmplex"\nmax_batch_size: 32\n{parameters}\n')
    return folder


def _rows(count: int = 120, seed: int = 0) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = "good" if number % 2 else "bad"
        words = [*chance.sample(FILLER, 2), chance.choice(GOOD if label == "good" else BAD), str(number % 60)]
        chance.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def _polarity(count: int = 120) -> Examples:
    rows = _rows(count)
    return Examples(tuple(text for text, _ in rows), tuple(label for _, label in rows), source="toy rows")


def _plain(backbone: Backbone, version: Path, texts: list[str], length: int) -> np.ndarray:
    """Outputs by plain transformers and PEFT, one row at a time, from the files alone."""
    model = AutoModel.from_pretrained(backbone.facts.spec)
    if (version / "adapter").is_dir():
        model = PeftModel.from_pretrained(model, str(version / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained(backbone.facts.spec)
    head = load_file(version / "head.safetensors")
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
            pooled = model.eval()(**inputs).last_hidden_state.mean(1)[0].numpy()
            rows.append(head["weight"] @ pooled + head["bias"])
    return np.stack(rows)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, target_modules=("all-linear",), layers=(1,), epochs=3)])
def test_a_classifier_beats_the_majority_and_equals_plain_peft(
    repository: Path, backbone: Backbone, lora: LoraOptions | None
) -> None:
    options = TaskOptions(lora=lora, encoder=TextSpec(max_length=12))
    result = create_task(repository, "polarity", _polarity(), options, fm="toy", backbone=backbone)
    quality = result.artifact.quality
    assert quality is not None
    assert result.artifact.kind == "classification"
    assert result.port == 0
    assert quality.value >= quality.baseline + 0.2
    texts = [text for text, _ in _rows(seed=1)]
    plain = _plain(backbone, repository / "polarity" / "1", texts, 12)
    golden = read_golden(version := repository / "polarity" / "1", version, result.artifact, 2)
    assert golden is not None
    np.testing.assert_allclose(
        golden.arrays, _plain(backbone, version, [row.text for row in golden.inputs], 12), atol=1e-5
    )
    labels = np.array(result.artifact.labels)[plain.argmax(1)]
    truth = np.array([label for _, label in _rows(seed=1)])
    assert (labels == truth).mean() >= quality.baseline + 0.2
    keys = load_file(repository / "polarity" / "1" / "adapter" / "adapter_model.safetensors") if lora else {}
    assert all(key.startswith("base_model.model.encoder.layer.1.") for key in keys)
    if lora:
        config = json.loads((repository / "polarity" / "1" / "adapter" / "adapter_config.json").read_text())
        assert config["task_type"] == "FEATURE_EXTRACTION"


def test_training_leaves_the_backbone_as_it_was_and_repeats_exactly(repository: Path, backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    options = TaskOptions(lora=LoraOptions(rank=2, epochs=1), encoder=TextSpec(max_length=12))
    for name in ("first", "second"):
        create_task(repository, name, _polarity(), options, fm="toy", backbone=backbone)
    after = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (load_file(repository / name / "1" / "head.safetensors") for name in ("first", "second"))
    assert np.array_equal(first["weight"], second["weight"])


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["multi_label", "regression", "embedding", "token_classification"])
def test_every_other_kind_beats_its_baseline(repository: Path, backbone: Backbone, kind: str, adapted: bool) -> None:
    rows = _rows(160)
    texts = tuple(text for text, _ in rows)
    words = tuple(tuple(text.split()) for text in texts)
    labels: dict[str, tuple[object, ...]] = {
        "multi_label": tuple(
            "|".join(word for word in ("film", "food", label) if word in f"{text} {label}") for text, label in rows
        ),
        "regression": tuple((1.0 if label == "good" else -1.0) + 0.01 * (len(text) % 7) for text, label in rows),
        "embedding": tuple(label for _, label in rows),
        "token_classification": tuple(
            tuple("POL" if word in GOOD + BAD else "NUM" if word.isdigit() else "O" for word in row) for row in words
        ),
    }
    tokens = words if kind == "token_classification" else None
    options = TaskOptions(
        kind="embedding" if kind == "embedding" else None,
        lora=LoraOptions(rank=4, epochs=2) if adapted else None,
        dimensions=8 if kind == "embedding" else None,
        encoder=TextSpec(max_length=16),
    )
    examples = Examples(texts, labels[kind], words=tokens, label_name="score")
    result = create_task(repository, "task", examples, options, fm="toy", backbone=backbone)
    quality = result.artifact.quality
    assert quality is not None
    assert result.artifact.kind == kind
    assert quality.value > quality.baseline + 0.1
    info = show_task(repository, "task")
    assert info.problem is None
    assert info.width == {"multi_label": 4, "regression": 1, "embedding": 8, "token_classification": 3}[kind]


def test_an_embedding_without_labels_is_the_backbone_itself(repository: Path, backbone: Backbone) -> None:
    examples = Examples(_polarity().rows)
    artifact = create_task(repository, "vector", examples, SHORT, fm="toy", backbone=backbone).artifact
    assert (artifact.kind, artifact.head, artifact.normalize, artifact.quality) == ("embedding", "identity", True, None)
    assert not (repository / "vector" / "1" / "head.safetensors").exists()


def test_a_new_version_keeps_the_interface_or_is_refused(repository: Path, backbone: Backbone) -> None:
    create_task(repository, "polarity", _polarity(), SHORT, fm="toy", backbone=backbone)
    config = (repository / "polarity" / CONFIG_FILE).read_text()
    assert train_task(repository, "polarity", _polarity(200), backbone=backbone).version == 2
    assert (repository / "polarity" / CONFIG_FILE).read_text() == config
    other = Examples(_polarity().rows, tuple(f"{label}!" for label in _polarity().labels or ()))
    with pytest.raises(InvalidInput, match=r"answers with labels bad, good.*make a new vFM"):
        train_task(repository, "polarity", other, backbone=backbone)
    assert show_task(repository, "polarity").versions == (1, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (TaskOptions(lora=LoraOptions(target_modules=("qurey",))), "'qurey': no such linear layer"),
        (TaskOptions(lora=LoraOptions(layers=(0, 5))), "--layers 5: the backbone has layers 0 to 1"),
        (TaskOptions(lora=LoraOptions(rank=128, epochs=1)), "rank 128 of layer"),
        (TaskOptions(encoder=TextSpec(max_length=64)), "--max-length 64 exceeds the backbone's 32"),
    ],
)
def test_what_the_backbone_cannot_do_is_named_and_leaves_nothing(
    repository: Path, backbone: Backbone, options: TaskOptions, says: str
) -> None:
    if options.encoder.max_length == 128:
        options = TaskOptions(lora=options.lora, encoder=TextSpec(max_length=12))
    with pytest.raises((InvalidInput, Refused)) as caught:
        create_task(repository, "task", _polarity(), options, fm="toy", backbone=backbone)
    assert says in str(caught.value)
    assert [path.name for path in repository.iterdir()] == ["toy"]
    if staging_root(repository).exists():
        assert list(staging_root(repository).glob("*/")) == []


def test_a_physical_fm_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(NotFound, match=r"no physical FM 'maxilm' in .*; there is toy"):
        create_task(repository, "task", _polarity(), fm="maxilm")


def _checkpoint(backbone: Backbone, folder: Path, task_type: TaskType) -> Path:
    torch.manual_seed(1)
    if task_type is TaskType.SEQ_CLS:
        model = BertForSequenceClassification.from_pretrained(backbone.facts.spec, num_labels=3)
    else:
        model = AutoModel.from_pretrained(backbone.facts.spec)
    config = LoraConfig(task_type=task_type, r=2, target_modules=["query"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_a_checkpoint_is_imported_unchanged(repository: Path, backbone: Backbone, tmp_path: Path) -> None:
    checkpoint = _checkpoint(backbone, tmp_path / "seq", TaskType.SEQ_CLS)
    options = ImportOptions(labels=("a", "b", "c"))
    artifact = import_task(repository, "three", checkpoint, options, fm="toy", backbone=backbone).artifact
    assert (artifact.kind, artifact.head, artifact.labels) == ("classification", "transformers", ("a", "b", "c"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (repository / "three" / "1" / "adapter" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert show_task(repository, "three").width == 3
    (checkpoint / "config.json").write_text('{"id2label": {"1": "y", "0": "x", "2": "z"}}')
    key = Ed25519PrivateKey.generate()
    named = import_task(repository, "named", checkpoint, fm="toy", backbone=backbone, sign_with=key)
    assert verify_task(repository, "named", frozenset([public_key(key)]))
    assert (named.artifact.labels, named.port) == (("x", "y", "z"), 1)
    vector = _checkpoint(backbone, tmp_path / "vec", TaskType.FEATURE_EXTRACTION)
    made = import_task(repository, "vector", vector, ImportOptions(pooling="cls"), fm="toy", backbone=backbone)
    assert (made.artifact.kind, made.artifact.head, made.artifact.pooling) == ("embedding", "identity", "cls")


def test_checkpoints_that_cannot_be_served_are_refused(repository: Path, backbone: Backbone, tmp_path: Path) -> None:
    checkpoint = _checkpoint(backbone, tmp_path / "seq", TaskType.SEQ_CLS)
    with pytest.raises(InvalidInput, match="pass --labels"):
        import_task(repository, "x", checkpoint, fm="toy", backbone=backbone)
    with pytest.raises(Refused, match=r"would refuse this version: .*shape"):
        import_task(repository, "x", checkpoint, ImportOptions(labels=("a", "b")), fm="toy", backbone=backbone)
    with pytest.raises(InvalidInput, match="are for embeddings"):
        import_task(repository, "x", checkpoint, ImportOptions(normalize=True), fm="toy", backbone=backbone)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    (checkpoint / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    with pytest.raises(Refused, match="task_type is 'CAUSAL_LM'; served are SEQ_CLS, TOKEN_CLS, FEATURE_EXTRACTION"):
        import_task(repository, "x", checkpoint, fm="toy", backbone=backbone)
    (checkpoint / "adapter_model.safetensors").unlink()
    with pytest.raises(Refused, match="no pickle"):
        import_task(repository, "x", checkpoint, fm="toy", backbone=backbone)
    with pytest.raises(NotFound, match="no such folder"):
        import_task(repository, "x", tmp_path / "none", fm="toy", backbone=backbone)
    assert [path.name for path in repository.iterdir()] == ["toy"]


WEIGHTS = "model.safetensors"


def _sentence_folder(backbone: Backbone, folder: Path, *modules: str, pooling: str = "mean") -> Path:
    """As sentence-transformers saves it: the tiny BERT and what is put on it."""
    shutil.copytree(backbone.facts.spec, folder)
    written = [("Transformer", ""), *((name, f"{place}_{name}") for place, name in enumerate(modules, start=1))]
    types = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in written]
    (folder / "modules.json").write_text(json.dumps(types))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10, "do_lower_case": true}')
    for name, path in written[1:]:
        (folder / path).mkdir()
        if name == "Pooling":
            (folder / path / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}_tokens": True}))
        elif name == "Dense":
            activation = "torch.nn.modules.linear.Identity"
            (folder / path / "config.json").write_text(json.dumps({"activation_function": activation}))
            chance = np.random.default_rng(2)
            tensors = {"linear.weight": chance.normal(size=(6, 32)), "linear.bias": chance.normal(size=6)}
            save_file({key: value.astype(np.float32) for key, value in tensors.items()}, folder / path / WEIGHTS)
    return folder


def _plain_sentences(backbone: Backbone, texts: list[str], pooling: str) -> np.ndarray:
    """What is pooled by plain transformers, cut and in small letters as `_sentence_folder` says."""
    model, tokenizer = (
        AutoModel.from_pretrained(backbone.facts.spec),
        AutoTokenizer.from_pretrained(backbone.facts.spec),
    )
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text.lower(), truncation=True, max_length=10, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0]
            rows.append((hidden.mean(0) if pooling == "mean" else hidden.amax(0)).numpy())
    return np.stack(rows)


def _answers(repository: Path, made: TaskResult) -> tuple[list[str], np.ndarray]:
    """Texts and outputs of a version's golden rows."""
    version = repository / made.name / "1"
    golden = read_golden(version, version, made.artifact, show_task(repository, made.name).width or 0)
    assert golden is not None
    return [row.text or "" for row in golden.inputs], np.stack(golden.arrays)


def test_a_sentence_transformer_on_the_same_backbone_is_imported(
    repository: Path, backbone: Backbone, tmp_path: Path
) -> None:
    plain = _sentence_folder(backbone, tmp_path / "plain", "Pooling", "Normalize", pooling="max")
    made = import_task(repository, "plain", plain, fm="toy", backbone=backbone)
    assert (made.artifact.kind, made.artifact.head, made.artifact.pooling) == ("embedding", "identity", "max")
    assert made.artifact.encoder == TextSpec(max_length=10, lowercase=True)
    texts, outputs = _answers(repository, made)
    pooled = _plain_sentences(backbone, texts, "max")
    np.testing.assert_allclose(outputs, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-5)
    dense = _sentence_folder(backbone, tmp_path / "dense", "Pooling", "Dense")
    made = import_task(repository, "dense", dense, fm="toy", backbone=backbone)
    texts, outputs = _answers(repository, made)
    own = load_file(dense / "2_Dense" / WEIGHTS)
    reduced = _plain_sentences(backbone, texts, "mean") @ own["linear.weight"].T + own["linear.bias"]
    np.testing.assert_allclose(outputs, reduced, atol=1e-5)
    classifier = {"weight": np.ones((1, 6), np.float32), "bias": np.full(1, 0.5, np.float32)}
    save_file(classifier, dense / "model_head.safetensors")
    (dense / "config_setfit.json").write_text('{"labels": ["ham", "spam"]}')
    made = import_task(repository, "spam", dense, fm="toy", backbone=backbone)
    assert (made.artifact.kind, made.artifact.labels) == ("classification", ("ham", "spam"))
    texts, outputs = _answers(repository, made)
    assert texts
    np.testing.assert_allclose(outputs[:, 1] - outputs[:, 0], reduced.sum(1) + 0.5, atol=1e-5)


def test_sentence_transformers_that_cannot_be_served_are_refused(
    repository: Path, backbone: Backbone, tmp_path: Path
) -> None:
    def refused(folder: Path, says: str, options: ImportOptions | None = None) -> None:
        with pytest.raises((InvalidInput, Refused), match=says):
            import_task(repository, "x", folder, options, fm="toy", backbone=backbone)
        assert [path.name for path in repository.iterdir()] == ["toy"]

    folder = _sentence_folder(backbone, tmp_path / "odd", "Pooling", "WordWeights")
    refused(folder, "it is Transformer, Pooling, WordWeights; served are Transformer, Pooling, perhaps Dense")
    folder = _sentence_folder(backbone, tmp_path / "weighted", "Pooling", pooling="weightedmean")
    refused(folder, "weighted means are not served")
    folder = _sentence_folder(backbone, tmp_path / "tanh", "Pooling", "Dense")
    (folder / "2_Dense" / "config.json").write_text("{}")
    refused(folder, "activation Tanh is not served")
    (folder / "2_Dense" / "config.json").write_text('{"activation_function": "torch.nn.modules.linear.Identity"}')
    (folder / "2_Dense" / WEIGHTS).write_bytes(b"\0" * 40)
    refused(folder, "not readable")
    (folder / "2_Dense" / WEIGHTS).unlink()
    refused(folder, "pickled weights are not read")
    folder = _sentence_folder(backbone, tmp_path / "setfit", "Pooling")
    refused(folder, "an embedding has no labels", ImportOptions(labels=("a", "b")))
    refused(folder, "tells them itself", ImportOptions(pooling="cls"))
    (folder / "model_head.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(folder, "model_head.pkl: pickled, so it is not read")
    save_file({"weight": np.ones((2, 32), np.float32)}, folder / "model_head.safetensors")
    refused(folder, "pass --labels")
    unit = _sentence_folder(backbone, tmp_path / "unit", "Pooling", "Normalize")
    save_file({"weight": np.ones((2, 32), np.float32)}, unit / "model_head.safetensors")
    refused(unit, "of unit length is not served")
    trained = _sentence_folder(backbone, tmp_path / "trained", "Pooling")
    tensors = load_file(trained / WEIGHTS)
    tensors["encoder.layer.1.output.dense.bias"] = tensors["encoder.layer.1.output.dense.bias"] + 1
    save_file(tensors, trained / WEIGHTS, {"format": "pt"})
    refused(trained, "encoder.layer.1.output.dense.bias differs from that of .*a backbone of its own")
    other = _sentence_folder(backbone, tmp_path / "other", "Pooling")
    words = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(words.replace('"lowercase": false', '"lowercase": true'))
    refused(other, "its tokenizer differs")
    (other / "modules.json").write_text('[{"path": "../x", "type": "Transformer"}]')
    refused(other, "is outside the folder")


def test_the_command_makes_a_task_from_a_file(repository: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in _rows()))
    run = CliRunner(env={"COLUMNS": "200"})
    common = ["polarity", "-d", str(data), "--text", "text", "--label", "label", "-r", str(repository)]
    trusted = frozenset([make_key(tmp_path / "key.pem")])
    sign = ["--sign-with", str(tmp_path / "key.pem")]
    made = run.invoke(app, ["create", *common, "--fm", "toy", "--max-length", "12", "--weight", "4", *sign])
    assert made.exit_code == 0, made.output
    assert verify_task(repository, "polarity", trusted)
    assert "accuracy" in made.output
    assert "majority label" in made.output
    config = read_config(repository / "toy" / CONFIG_FILE)
    config.parameters["trusted_keys"].string_value = min(trusted)
    write_config(repository / "toy" / CONFIG_FILE, config)
    trained = run.invoke(app, ["train", *common, "--adapter", "lora", "--epochs", "1"])
    assert trained.exit_code == 0
    assert "serves this version when one of them has signed it" in trained.output
    info = show_task(repository, "polarity")
    assert info.version == 2
    assert info.policy is not None
    assert info.policy.weight == 4
    wrong = run.invoke(app, ["create", "other", *common[1:], "--fm", "toy", "--rank", "8"])
    assert wrong.exit_code == 1
    assert "--rank is about LoRA" in wrong.stderr


def test_a_label_that_every_row_has_is_always_given() -> None:
    features = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    values = np.stack([features[:, 0] > 0, np.ones(40)], axis=1).astype(np.float32)
    head = fit_head(features, Targets("multi_label", ("varies", "always"), values), seed=0)
    outputs = head.apply(features)
    assert (outputs[:, 1] > 3).all()
    assert ((outputs[:, 0] > 0) == (values[:, 0] > 0)).mean() > 0.8


def test_scores_by_hand() -> None:
    assert micro_f1(np.array([[1, 0], [1, 1]]), np.array([[1, 1], [0, 1]])) == pytest.approx(2 / 3)
    index, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    assert nearest_neighbour(index, labels, np.array([[3, 1], [1, 9]], np.float32), np.array([0, 0])) == 0.5
