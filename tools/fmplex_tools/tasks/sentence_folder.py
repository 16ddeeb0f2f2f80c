"""A folder that sentence-transformers (or SetFit) saved, read as the parts of a vFM.

What it is made of is in ``modules.json``: Transformer, Pooling, then perhaps Dense (without activation) and Normalize.
With a classifier beside them (``model_head.safetensors``: ``weight`` [labels, numbers], ``bias`` [labels]) it
classifies, without one it embeds. The Transformer's weights and tokenizer must be those of the physical FM. A pickled
classifier, which SetFit writes, is never opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import safe_open

from fmplex_backend.backbones.facts import TextInput
from fmplex_backend.backbones.texts import fast_tokenizer
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.artifact import Artifact, HeadType
from fmplex_backend.repository.modalities import TextSpec
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks.artifact_writer import now
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.heads import Head
from fmplex_tools.tasks.tensor_files import read_safetensors

MODULES = "modules.json"
CLASSIFIER, PICKLED = "model_head.safetensors", "model_head.pkl"
SERVED = "Transformer, Pooling, perhaps Dense, perhaps Normalize"

Model = TypeVar("Model", bound=BaseModel)


class _Module(BaseModel):
    path: str
    type: str

    @property
    def kind(self) -> str:
        """Its class's name."""
        return self.type.rpartition(".")[2]


class _PoolingConfig(BaseModel):
    pooling_mode_cls_token: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False
    include_prompt: bool = True


class _DenseConfig(BaseModel):
    activation_function: str = "torch.nn.modules.activation.Tanh"


class _TransformerConfig(BaseModel):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Prompts(BaseModel):
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


class _SetFit(BaseModel):
    labels: list[str] | None = None


@dataclass(frozen=True)
class Parts:
    """Of a vFM."""

    artifact: Artifact
    head: Head | None


def is_sentence_folder(folder: Path) -> bool:
    """Whether sentence-transformers wrote it."""
    return (folder / MODULES).is_file()


def encoder_of(folder: Path) -> TextSpec:
    """How it reads a text: its length, its case and its default prompt. Raises `Refused`."""
    own = _read(folder / "sentence_bert_config.json", _TransformerConfig)
    told = _read(folder / "config_sentence_transformers.json", _Prompts)
    prefix = told.prompts.get(told.default_prompt_name, "") if told.default_prompt_name else ""
    return TextSpec(max_length=own.max_seq_length, lowercase=own.do_lower_case, prefix=prefix)


def read_parts(
    folder: Path, backbone: Backbone, encoder: TextSpec | None = None, labels: tuple[str, ...] | None = None
) -> Parts:
    """The vFM that ``folder`` is on ``backbone``. Raises `Refused` for what is not served, `InvalidInput`."""
    modules = _modules(folder)
    kinds = [module.kind for module in modules]
    rest = kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or rest not in ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"]):
        raise Refused(f"{folder / MODULES}: it is {', '.join(kinds)}; served are {SERVED}, in this order")
    encoder = encoder or encoder_of(folder)
    _check_backbone(folder / modules[0].path, backbone)
    pooling = _pooling(folder / modules[1].path / "config.json", encoder)
    head = _dense(folder / modules[2].path) if "Dense" in rest else None
    normalize = "Normalize" in rest
    common: dict[str, Any] = {
        "backbone": backbone.ref,
        "pooling": pooling,
        "encoder": encoder,
        "created": now(),
        "source": f"imported sentence-transformers folder {folder.name}",
    }
    if (folder / CLASSIFIER).is_file():
        if normalize:
            raise Refused(f"{folder}: a classifier of vectors of unit length is not served; train it without Normalize")
        names = labels or tuple(_read(folder / "config_setfit.json", _SetFit).labels or ())
        if not names:
            raise InvalidInput(f"{folder}: pass --labels A,B,…: there is no config_setfit.json with labels")
        classifier = _classifier(folder / CLASSIFIER, names, head)
        return Parts(Artifact(kind="classification", head="linear", labels=names, **common), classifier)
    if (folder / PICKLED).is_file():
        raise Refused(
            f"{folder / PICKLED}: pickled, so it is not read; where you trust it, save its coef_ as 'weight' and its "
            f"intercept_ as 'bias' of {CLASSIFIER} beside it"
        )
    if labels is not None:
        raise InvalidInput("--labels: an embedding has no labels; leave it out")
    head_type: HeadType = "identity" if head is None else "linear"
    return Parts(Artifact(kind="embedding", head=head_type, normalize=normalize, **common), head)


def _modules(folder: Path) -> list[_Module]:
    path = folder / MODULES
    try:
        modules = TypeAdapter(list[_Module]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Refused(f"{path}: not as sentence-transformers writes it ({error})") from None
    paths = [Path(module.path) for module in modules]
    if outside := next((str(own) for own in paths if own.is_absolute() or ".." in own.parts), None):
        raise Refused(f"{path}: {outside!r} is outside the folder")
    return modules


def _read(path: Path, model: type[Model]) -> Model:
    """A file of settings; all defaults where it is missing."""
    if not path.is_file():
        return model()
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Refused(f"{path}: not as sentence-transformers writes it ({error})") from None


def _check_backbone(folder: Path, backbone: Backbone) -> None:
    """Raise `Refused` unless weights and tokenizer are the backbone's own."""
    remedy = (
        "a model that was trained whole is a backbone of its own: make it a physical FM (parameter 'backbone': its "
        "folder) and import it with --fm"
    )
    own = {name: tensor.cpu() for name, tensor in backbone.model.state_dict().items()}
    told: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == CLASSIFIER:
            continue
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - safetensors has no iteration
                key = name.removeprefix(f"{backbone.facts.prefix}.")
                if key in own:
                    told.add(key)
                    found = file.get_tensor(name)
                    if found.shape != own[key].shape or not torch.equal(found.to(own[key].dtype), own[key]):
                        raise Refused(f"{path}: {name} differs from that of {backbone.facts.spec!r}; {remedy}")
    if missing := sorted(own.keys() - told):
        raise Refused(f"{folder}: its *.safetensors have no {missing[0]}, which {backbone.facts.spec!r} has; {remedy}")
    tokenizer = fast_tokenizer(folder, str(folder)).backend_tokenizer.to_str()
    own_input = backbone.facts.input
    if not isinstance(own_input, TextInput) or _rules(tokenizer) != _rules(own_input.tokenizer):
        raise Refused(f"{folder}: its tokenizer differs from that of {backbone.facts.spec!r}; {remedy}")


def _rules(tokenizer: str) -> dict[str, Any]:
    """Of a serialized tokenizer, but for lengths, which a vFM has of its own."""
    return {key: value for key, value in json.loads(tokenizer).items() if key not in ("truncation", "padding")}


def _pooling(path: Path, encoder: TextSpec) -> Pooling:
    told = _read(path, _PoolingConfig)
    if told.pooling_mode_mean_sqrt_len_tokens or told.pooling_mode_weightedmean_tokens:
        raise Refused(f"{path}: weighted means are not served; cls, max, mean and last are")
    if encoder.prefix and not told.include_prompt:
        raise Refused(f"{path}: include_prompt is false, but {encoder.prefix!r} in front of a text is read with it")
    modes = {
        "cls": told.pooling_mode_cls_token,
        "max": told.pooling_mode_max_tokens,
        "mean": told.pooling_mode_mean_tokens,
        "last": told.pooling_mode_lasttoken,
    }  # in the order in which sentence-transformers puts them end to end
    if not any(modes.values()):
        raise Refused(f"{path}: it names no pooling; cls, max, mean and last are served")
    return "+".join(name for name, chosen in modes.items() if chosen)


def _dense(folder: Path) -> Head:
    config = folder / "config.json"
    activation = _read(config, _DenseConfig).activation_function.rpartition(".")[2]
    if activation != "Identity":
        raise Refused(f"{config}: activation {activation} is not served; a Dense without one (Identity) is")
    tensors = _tensors(folder / "model.safetensors")
    return _head(folder, tensors.get("linear.weight"), tensors.get("linear.bias"))


def _classifier(path: Path, names: tuple[str, ...], dense: Head | None) -> Head:
    tensors = _tensors(path)
    head = _head(path, tensors.get("weight"), tensors.get("bias"))
    if len(head.weight) == 1 and len(names) == 2:  # of two labels scikit-learn keeps the second one's odds
        head = Head(np.pad(head.weight, ((1, 0), (0, 0))), np.pad(head.bias, (1, 0)))
    if dense is None:
        return head
    if head.weight.shape[1] != len(dense.weight):
        raise Refused(f"{path}: weight reads {head.weight.shape[1]} numbers, Dense gives {len(dense.weight)}")
    return Head(head.weight @ dense.weight, head.weight @ dense.bias + head.bias)


def _head(path: Path, weight: Any, bias: Any) -> Head:
    if weight is None or weight.ndim != 2:
        raise Refused(f"{path}: it has no weight [outputs, numbers]")
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    if bias.shape != weight.shape[:1]:
        raise Refused(f"{path}: bias has shape {list(bias.shape)}, weight {list(weight.shape)}")
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def _tensors(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Refused(f"{path.parent}: has no {path.name} (pickled weights are not read)")
    return read_safetensors(path)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise Refused(f"{path}: not readable: {error}") from None
