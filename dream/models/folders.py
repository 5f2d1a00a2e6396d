"""What a sentence-transformers folder asks for: read whole, and what we do not do is refused by name.

Honoured, with the library's own vectors (tests/test_models_of_others.py): pooling ``mean``, ``cls`` or ``last``; Dense
and Normalize behind it; the prompts named ``query`` and ``document``; its length, whether ``max_seq_length`` or the
tokenizer says it; ``do_lower_case``; cosine similarity, and the dot product or Euclidean distance of unit vectors, which
give the same order. Everything else that such a folder can hold is one line: another module or pooling, two poolings, code
or activations that are not the library's, a setting of the Transformer module, vectors cut by ``truncate_dim``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dream.errors import DreamError
from dream.files import read_json as read_any

# Our name of a pooling → that of a sentence-transformers folder.
POOLING = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
# Every file name that the library has given to the settings of its Transformer module.
TRANSFORMER = [
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
ARGUMENTS = tuple(f"{of}_{name}" for of in ("model", "tokenizer", "processor", "config") for name in ("args", "kwargs"))
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
OTHER = "Choose another model, or give its transformers folder without modules.json, with prompts, pooling and length"


@dataclass(frozen=True)
class Folder:
    """A model's folder and what it asks for; a folder that is not of sentence-transformers asks for nothing.

    Attributes:
        path: the folder.
        pooling: ours: ``mean``, ``cls`` or ``last``; None where nothing is said.
        include_prompt: whether the tokens of a prompt are pooled too.
        prompts: name → text put before.
        default_prompt: name of the prompt where none is named.
        max_length: tokens of a text, or None where nothing is said.
        lower_case: texts are put into small letters first.
        head: path of each module behind pooling, with its kind; empty where only Normalize follows.
    """

    path: Path
    pooling: str | None = None
    include_prompt: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    head: tuple[tuple[str, str], ...] = ()

    def prompt(self, kind: str, key: str) -> str:
        """The folder's prompt for ``query`` or ``document``.

        Raises:
            DreamError: it has prompts, but none of that name, so that only its user can say which it means.
        """
        if kind in self.prompts:
            return self.prompts[kind]
        others = {"query": [name for name, text in self.prompts.items() if text], "document": ["passage", "corpus"]}[kind]
        named = [name for name in (*others, self.default_prompt or "") if self.prompts.get(name)]
        if named:
            raise DreamError(
                f"{self.path} has prompts ({', '.join(sorted(set(named)))}) but none named {kind}",
                f'Set {key}.{kind}_prompt ("" for none)',
            )
        return ""

    def load_head(self) -> nn.Sequential | None:
        """The library's own modules behind pooling, without gradient; None where vectors are only normalised."""
        if not self.head:
            return None
        from sentence_transformers.base.modules import Dense, Normalize

        kinds: dict[str, Any] = {"Dense": Dense, "Normalize": Normalize}
        modules = [kinds[kind].load(str(self.path), subfolder=path) for kind, path in self.head]
        return nn.Sequential(*modules).requires_grad_(False)


def read(folder: Path) -> Folder:
    """Read what a model's folder asks for. One of sentence-transformers holds modules.json.

    Raises:
        DreamError: it asks for something that we do not do; the line names it.
    """
    if not (folder / "modules.json").is_file():
        return Folder(folder)
    modules = [(_kind(folder, module), module["path"]) for module in read_json(folder / "modules.json")]
    kinds = [kind for kind, _ in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise DreamError(f"{folder} has a module that is not supported: {kind}", OTHER)
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]) or modules[0][1]:
        raise DreamError(f"{folder} chains its modules in a way that is not supported: {', '.join(kinds)}", OTHER)
    head = tuple(modules[2:]) if "Dense" in kinds else ()
    for kind, path in head:
        if kind == "Dense":
            _check_dense(folder, path)
    pooling, include_prompt = _pooling(folder, modules[1][1])
    prompts, default_prompt = _whole(folder, normalised=kinds[-1] == "Normalize")
    max_length, lower_case = _transformer(folder)
    return Folder(folder, pooling, include_prompt, prompts, default_prompt, max_length, lower_case, head)


def read_json(file: Path) -> Any:
    """A file of the folder; a missing or broken one is no fault of ours."""
    try:
        return read_any(file)
    except DreamError as error:
        raise DreamError(error.what, "The model's folder is damaged: get it again") from None


def _kind(folder: Path, module: dict[str, Any]) -> str:
    """The kind of a module of the library, or the full name of somebody's own."""
    kind = module["type"]
    if module.get("kwargs"):
        raise DreamError(f"{folder} passes {', '.join(module['kwargs'])} to its module {kind}", OTHER)
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _pooling(folder: Path, path: str) -> tuple[str, bool]:
    file = folder / path / "config.json"
    settings = read_json(file)
    modes = settings.get("pooling_mode") or [
        key.removeprefix("pooling_mode_") for key, on in settings.items() if key.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]  # the library's default
    ours = {name: mode for mode, theirs in POOLING.items() for name in (theirs, theirs.split("_")[0])}
    if len(modes) != 1 or modes[0] not in ours:
        raise DreamError(f"{folder} pools in a way that is not supported: {' and '.join(modes)}", OTHER)
    sizes = ("embedding_dimension", "word_embedding_dimension", "include_prompt")
    _only(file, settings, (*sizes, *(key for key in settings if key.startswith("pooling_mode"))))
    return ours[modes[0]], settings.get("include_prompt", True)


def _check_dense(folder: Path, path: str) -> None:
    file = folder / path / "config.json"
    settings = read_json(file)
    names = ("in_features", "out_features", "bias", "activation_function", "use_residual")
    places = [settings.pop(f"module_{side}_name", None) or "sentence_embedding" for side in ("input", "output")]
    _only(file, settings, names)
    activation = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    if places != ["sentence_embedding"] * 2 or not activation.startswith("torch."):
        raise DreamError(f"{file} asks for what is not supported: {activation} of {places[0]}", OTHER)
    if not (folder / path / "model.safetensors").is_file():
        raise DreamError(f"{folder / path} holds no safetensors weights; pickled weights are not read", OTHER)


def _whole(folder: Path, normalised: bool) -> tuple[dict[str, str], str | None]:
    """Prompts and the default one's name; the model's similarity must be ours."""
    file = folder / "config_sentence_transformers.json"
    settings = read_json(file) if file.is_file() else {}
    names = ("__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "requirements")
    _only(file, settings, names)
    kind, similarity = (
        settings.get("model_type") or "SentenceTransformer",
        settings.get("similarity_fn_name") or "cosine",
    )
    if kind != "SentenceTransformer":
        raise DreamError(f"{folder} is a {kind}, not a model of one vector per text", "Choose another model")
    if similarity != "cosine" and not (normalised and similarity in ("dot", "euclidean")):
        raise DreamError(f"{folder} compares vectors by {similarity}; here it is their cosine", "Choose another model")
    prompts = {name: text or "" for name, text in (settings.get("prompts") or {}).items()}
    return prompts, settings.get("default_prompt_name")


def _transformer(folder: Path) -> tuple[int | None, bool]:
    """Length in tokens, as the library finds it, and whether texts are put into small letters."""
    file = next((folder / name for name in TRANSFORMER if (folder / name).is_file()), folder / TRANSFORMER[0])
    settings = read_json(file) if file.is_file() else {}
    for key in ARGUMENTS:  # the library lets no folder decide about trust either
        settings[key] = {k: v for k, v in (settings.get(key) or {}).items() if k != "trust_remote_code"}
    plain = {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "modality_config": settings.get("modality_config"),
    }
    _only(file, {k: v for k, v in settings.items() if plain.get(k) != v}, ("max_seq_length", "do_lower_case"))
    if (settings.get("modality_config") or {"text": TEXT}).get("text") != TEXT:
        raise DreamError(f"{file} has a setting that is not supported: modality_config", OTHER)
    length = settings.get("max_seq_length") or min(_lengths(folder), default=None)
    return length, bool(settings.get("do_lower_case"))


def _lengths(folder: Path) -> Iterable[int]:
    """What the library takes where nothing is set: the least that tokenizer and model say."""
    from transformers import PretrainedConfig

    tokenizer = folder / "tokenizer_config.json"
    said = [read_json(tokenizer).get("model_max_length")] if tokenizer.is_file() else []
    said.append(PretrainedConfig.get_config_dict(folder)[0].get("max_position_embeddings"))
    return [int(length) for length in said if length and 0 < length < 1e9]


def _only(file: Path, settings: dict[str, Any], known: tuple[str, ...]) -> None:
    if strange := sorted(key for key, value in settings.items() if value and key not in known):
        raise DreamError(f"{file} has a setting that is not supported: {strange[0]} = {settings[strange[0]]!r}", OTHER)
