"""The dense encoder: a transformer backbone, one vector per text, unit length.

``e(x) = f(x) / ‖f(x)‖`` where ``f(x)`` is the hidden state of the last non-padding token after the final norm
(DREAM, section 1), or the mean over tokens, or the first token, as the model asks for. The same class serves
training (:meth:`Encoder.embed`, LoRA through peft, gradients) and evaluation (:meth:`Encoder.encode`), for
decoders and for BERT-like models.

Invariants, each with a test:

* An embedding does not depend on what else is in the call. Texts are sorted by length, cut into batches of a bounded
  number of padded tokens, and put back in order. In float32 batch size, order and padding side change no component
  by more than 1e-5; in bfloat16, which rounds every activation to 8 bits, a cosine moves by up to 1e-2. The same
  texts in another order are the same batches, hence the same bytes.
* Right padding needs no attention mask in a causal model: a token never looks to its right. Left padding gets a mask
  and position ids that start at the first real token.
* An empty text is encoded as the tokenizer's special tokens; if it adds none, as one EOS (else BOS, else padding)
  token.
* An adapter acts as peft itself has it act on the model around which it was saved, or it is refused by name.
* A text is never longer than the model's table of positions: a greater length is refused when the model is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dream.config import Config
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, value_hash, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POOLINGS = ("last", "mean", "cls")
LENGTH = 512  # tokens of a text where nothing is said, or what the model has positions for
# Where packaged weights come from, as the hub names it.
ORIGINS = {
    "packaged/smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "packaged/minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
# Kinds of adapters that change weights only, whatever the text: the tests compare each with peft's own vectors.
ADAPTERS = (
    "LORA", "ADALORA", "BOFT", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "RANDLORA",
    "TRAINABLE_TOKENS", "VBLORA", "VERA",
)  # fmt: skip
# Settings of a LoRA that act on some tokens only, at random, through other adapters, or in libraries that are not here.
REFUSED = ("alora_invocation_tokens", "arrow_config", "megatron_config", "monteclora_config", "use_qalora")


@dataclass(frozen=True)
class Batch:
    """Padded token ids [n, t], the mask of real tokens [n, t] and the padding side."""

    ids: Tensor
    mask: Tensor
    side: str


class Encoder(nn.Module):
    """A backbone without LM head, its tokenizer and the rules that turn a text into a vector.

    Args:
        backbone: a transformers base model, or a PeftModel around one.
        tokenizer: its tokenizer.
        pooling: ``last``, ``mean`` or ``cls``.
        max_length: tokens per text in :meth:`embed`; longer texts are cut at the end (default: :data:`LENGTH`).
        append_eos: put the EOS token behind every text (kept when a text is cut).
        token_budget: padded tokens per batch, at most (a single longer text is a batch of its own).
        padding_side: ``right`` or ``left``; changes no result.
        reference: the name under which the backbone is known; stored in adapters.
        head: modules of sentence-transformers that follow pooling, or None.

    Raises:
        DreamError: the pooling is unknown, or the model has no positions for ``max_length`` tokens.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: Any,
        *,
        pooling: str = "last",
        max_length: int | None = None,
        append_eos: bool = False,
        token_budget: int = 8192,
        padding_side: str = "right",
        reference: str = "",
        head: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise DreamError(f"pooling {pooling!r} is not known", f"Choose one of {', '.join(POOLINGS)}")
        if append_eos and tokenizer.eos_token_id is None:
            raise DreamError(
                f"{reference or 'the tokenizer'} has no end-of-text token", "Set encoder.append_eos to false"
            )
        self.backbone, self.tokenizer, self.head = backbone, tokenizer, head
        self.pooling, self.append_eos = pooling, append_eos
        self.token_budget, self.padding_side, self.reference = token_budget, padding_side, reference
        self.room = room(backbone)
        self.max_length = self.check_length(max_length or min(LENGTH, self.room or LENGTH))
        self.adapter_base = ""  # what could not be told about the adapter's base model
        self.trained_tokens = 0  # real tokens that embed() has seen
        self.tokens = 0  # real tokens that encode() has seen: the base of the FLOP count
        self._causal = is_causal(backbone)

    # ------------------------------------------------------------------------------------------------- loading

    @classmethod
    def load(
        cls,
        config: Config,
        adapter: Path | str | None = None,
        trainable: bool = False,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> Encoder:
        """Load the encoder that ``model.size`` names.

        Args:
            config: the resolved config. Weights are ``encoder.dtype`` when trainable, else ``evaluate.dtype``.
            adapter: a folder written by :meth:`save_adapter`.
            trainable: train the LoRA weights (float32, a new one where ``adapter`` is None); the rest stays frozen.
            device: default: the first GPU, else the CPU.
            seed: of a new LoRA's random half.
        """
        from dream.assets import model_path

        size, knobs = config.size, config.encoder
        encoder = cls.from_pretrained(
            model_path(size.encoder, size.encoder_layers),
            adapter=adapter,
            adapter_trainable=trainable,
            dtype=knobs.dtype if trainable else config.evaluate.dtype,
            pooling=knobs.pooling,
            max_length=knobs.max_length,
            append_eos=knobs.append_eos,
            token_budget=(knobs if trainable else config.evaluate).token_budget,
            trust_remote_code=knobs.trust_remote_code,
            reference=size.encoder,
            device=device,
        )
        encoder.check_length(config.evaluate.max_length, "evaluate.max_length")
        if trainable and adapter is None:
            encoder.add_lora(config.training.lora, seed)
        if trainable and config.training.gradient_checkpointing:
            encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
        return encoder.train(trainable)

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str,
        *,
        adapter: Path | str | None = None,
        adapter_trainable: bool = False,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        lower_case: bool = False,
        reference: str = "",
        device: torch.device | str | None = None,
        **rules: Any,
    ) -> Encoder:
        """Load any transformers checkpoint (folder, hub id, ``hub-id@revision``), with or without a PEFT adapter.

        ``rules`` are those of :class:`Encoder`; ``lower_case`` puts texts into small letters before all else. Weights are
        read as safetensors only.

        Raises:
            DreamError: model or adapter cannot be read, lacks weights, or do not belong together.
        """
        from transformers import AutoModel, AutoTokenizer

        name, revision = split_revision(str(path))
        remote = {"revision": revision, "trust_remote_code": trust_remote_code}
        with _readable(path), quiet():
            backbone, info = AutoModel.from_pretrained(
                name,
                config=_settings(name, **remote),
                dtype=DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
                **remote,
            )
            tokenizer = AutoTokenizer.from_pretrained(name, **remote)
        if lower_case:
            _lower_case(tokenizer)
        if missing := [key for key in info["missing_keys"] if not key.startswith("pooler.")]:
            raise DreamError(
                f"model {path} lacks weights, e.g. {sorted(missing)[0]}", "The checkpoint is incomplete: get it again"
            )
        backbone.requires_grad_(False)
        reference, base = reference or str(path), ""
        if adapter is not None:
            backbone, base = _with_adapter(backbone, str(adapter), adapter_trainable, reference, trust_remote_code)
        encoder = cls(backbone, tokenizer, reference=reference, **rules)
        encoder.adapter_base = base
        return encoder.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def add_lora(self, lora: Any, seed: int) -> None:
        """Wrap the backbone in a new LoRA; ``lora`` has r, alpha, dropout and targets, ``seed`` draws A (B is 0).

        Raises:
            DreamError: a target is no module of the backbone.
        """
        from peft import LoraConfig, get_peft_model

        check_targets(self.backbone, lora.targets, self.reference)
        name, revision = split_revision(self.reference)
        settings = LoraConfig(
            task_type="FEATURE_EXTRACTION",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets),
            revision=revision,
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.backbone = get_peft_model(self.backbone, settings)
        settings.base_model_name_or_path = name  # peft puts the folder of this machine there

    # ---------------------------------------------------------------------------------------------------- state

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def dimension(self) -> int:
        """Components of an embedding."""
        sizes = [m.get_embedding_dimension() for m in self.head or () if hasattr(m, "get_embedding_dimension")]
        return sizes[-1] if sizes else self.backbone.config.hidden_size

    @property
    def dtype(self) -> str:
        """Name of the frozen weights' dtype."""
        return str(self._embedding_weight.dtype).removeprefix("torch.")

    @property
    def flops_per_token(self) -> float:
        """Floating point operations of one forward pass per token: 2 × the weights outside the token embeddings.

        The head is left out: it sees a text once, not a token.
        """
        body, embedding = self.backbone, self.backbone.get_input_embeddings()
        return 2.0 * (sum(p.numel() for p in body.parameters()) - sum(p.numel() for p in embedding.parameters()))

    @property
    def _embedding_weight(self) -> Tensor:
        return self.backbone.get_input_embeddings().weight

    def fingerprint(self) -> str:
        """Content hash of what makes an embedding: weights (adapter included), configuration, tokenizer and pooling.

        Computed from the tensors in memory, so that whatever changed a weight changes it.
        """
        digest, weights = hashlib.sha256(), self.backbone.state_dict()
        if self.head is not None:
            weights |= {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        config = {k: v for k, v in self.backbone.config.to_dict().items() if k not in _INCIDENTAL}
        words = tokenizer_content(self.tokenizer)
        rules = {"config": config, "words": words, "pooling": self.pooling, "append_eos": self.append_eos}
        if self.head is not None:
            rules["head"] = [(type(module).__name__, module.get_config_dict()) for module in self.head]
        digest.update(value_hash(rules).encode())
        return digest.hexdigest()

    def check_length(self, length: int, what: str = "max_length") -> int:
        """Return ``length`` if the model has a position for that many tokens.

        Raises:
            DreamError: it has fewer; the line has both numbers.
        """
        return fits(length, self.room, what, self.reference)

    def save_adapter(self, path: Path | str) -> None:
        """Write the LoRA weights as a PEFT folder: ``PeftModel.from_pretrained(AutoModel…, path)`` reads it.

        The bytes depend on the weights alone: no date, no folder of this machine, targets sorted.
        """
        if not is_peft(self.backbone):
            raise ValueError("this encoder has no adapter")
        with replacing_folder(path) as folder:
            self.backbone.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
            settings = read_json(folder / "adapter_config.json")
            settings["target_modules"] = sorted(settings["target_modules"])
            write_json(folder / "adapter_config.json", settings)

    # ------------------------------------------------------------------------------------------------- embedding

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed for training: unit vectors [n, d], float32, with gradient, texts cut at ``max_length``."""
        sequences, where = unique(self.tokenize(texts, self.max_length))
        self.trained_tokens += sum(map(len, sequences))
        parts = [self._embed(sequences[rows]) for rows in batches(sequences, self.token_budget)]
        return torch.cat(parts)[torch.from_numpy(where).to(parts[0].device)]

    forward = embed

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        prompt: str = "",
        max_length: int | None = None,
        token_budget: int | None = None,
        progress: str | tqdm | None = None,
        ids: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Embed for search: unit vectors [n, d], float32, without gradient, in the order of ``texts``.

        Args:
            texts: any number of texts; an empty one has a defined embedding (see the module's docstring).
            prompt: put before every text.
            max_length: tokens per text, prompt included (default: that of training).
            token_budget: padded tokens per batch; bounds memory, changes no result beyond rounding.
            progress: label of a progress bar over tokens, or a bar to go on with.
            ids: names of the texts in error messages.

        Raises:
            DreamError: an embedding is not finite; the line names the text.
        """
        if not len(texts):
            return np.empty((0, self.dimension), np.float32)
        length = self.check_length(max_length or self.max_length)
        tokens = self.tokenize([prompt + text for text in texts] if prompt else texts, length)
        sequences, where = unique(tokens)
        out = np.empty((len(sequences), self.dimension), np.float32)
        total = sum(map(len, sequences))
        bar = tqdm(total=total, desc=progress, unit="tok", unit_scale=True) if isinstance(progress, str) else progress
        was_training = self.training
        self.eval()
        try:
            for rows in batches(sequences, token_budget or self.token_budget):
                out[rows] = self._embed(sequences[rows]).cpu().numpy()
                if bar is not None:
                    bar.update(sum(map(len, sequences[rows])))
        finally:
            self.train(was_training)
            if isinstance(progress, str):
                bar.close()
        self.tokens += total
        out = out[where]
        check_finite(out, ids, self.reference)
        return out

    def tokenize(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text, special tokens included, at least one and at most ``max_length`` each."""
        eos = self.tokenizer.eos_token_id
        room = max_length - 1 if self.append_eos else max_length
        sequences = self.tokenizer(list(texts), truncation=True, max_length=max(room, 1), padding=False)["input_ids"]
        if self.append_eos:
            sequences = [s if s and s[-1] == eos else [*s, eos] for s in sequences]
        return [s or [self._filler] for s in sequences]

    @property
    def _filler(self) -> int:
        """The token that stands for an empty text and for padding."""
        t = self.tokenizer
        return next((i for i in (t.eos_token_id, t.bos_token_id, t.pad_token_id) if i is not None), 0)

    def pad(self, sequences: list[list[int]], side: str | None = None) -> Batch:
        """Pad sequences to the longest on one side."""
        side, longest = side or self.padding_side, max(map(len, sequences))
        ids = np.full((len(sequences), longest), self._filler, np.int64)
        mask = np.zeros((len(sequences), longest), bool)
        for row, sequence in enumerate(sequences):
            place = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
            ids[row, place], mask[row, place] = sequence, True
        return Batch(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device), side)

    def _embed(self, sequences: list[list[int]]) -> Tensor:
        """One batch: padded, through the backbone, pooled, normalised; [n, d] float32."""
        batch = self.pad(sequences)
        inputs: dict[str, Tensor] = {"input_ids": batch.ids}
        if batch.side == "left":
            inputs["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        if batch.side == "left" or not self._causal:
            inputs["attention_mask"] = batch.mask.long()
        if self._causal:
            inputs["use_cache"] = False
        vectors = pool(self.backbone(**inputs).last_hidden_state, batch.mask, self.pooling)
        if self.head is not None:
            vectors = self.head({"sentence_embedding": vectors})["sentence_embedding"]
        return F.normalize(vectors, dim=-1)


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Reduce hidden states [n, t, d] to [n, d] in float32 over the real tokens of ``mask`` [n, t], either padding side.

    >>> hidden, mask = torch.arange(6.0).view(1, 3, 2), torch.tensor([[False, True, True]])
    >>> [pool(hidden, mask, how).tolist()[0] for how in POOLINGS]
    [[4.0, 5.0], [3.0, 4.0], [2.0, 3.0]]
    """
    if how == "mean":
        weights = mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    at = (mask * places).argmax(1) if how == "last" else mask.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at].float()


def unique(sequences: Sequence[list[int]]) -> tuple[list[list[int]], np.ndarray]:
    """The different sequences, longest first, and the place of each given one among them.

    Equal lengths are ordered by content: the same set of texts is the same list, in whatever order it comes.

    >>> unique([[7], [5, 6], [7], [3]])
    ([[5, 6], [3], [7]], array([2, 0, 2, 1]))
    """
    ordered = sorted({tuple(s) for s in sequences}, key=lambda s: (-len(s), s))
    place = {s: i for i, s in enumerate(ordered)}
    return [list(s) for s in ordered], np.array([place[tuple(s)] for s in sequences], dtype=np.int64)


def batches(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[slice]:
    """Cut sequences, longest first, into batches of at most ``budget`` padded tokens (a longer one stands alone).

    >>> list(batches([[1] * 4, [1] * 3, [1]], budget=8))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    start = 0
    while start < len(sequences):
        stop = min(start + max(1, budget // len(sequences[start])), len(sequences))
        yield slice(start, stop)
        start = stop


def check_finite(embeddings: np.ndarray, ids: Sequence[str] | None, model: str) -> None:
    """Stop at the first embedding that holds NaN or infinity.

    Raises:
        DreamError: names the text (by id, else by position) and the model.
    """
    bad = ~np.isfinite(embeddings).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        name = ids[first] if ids is not None else f"number {first}"
        raise DreamError(
            f"the embedding of text {name} by {model} is not finite ({int(bad.sum())} of {len(bad)} texts)",
            "Training diverged, or the dtype overflows: look at the loss curve, or set the dtype to float32",
        )


def is_causal(backbone: nn.Module) -> bool:
    """Whether every attention layer looks only to the left, as its own code says."""
    flags = [module.is_causal for module in backbone.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(flags) and all(flags)


def is_peft(backbone: nn.Module) -> bool:
    """Whether the backbone carries an adapter."""
    return hasattr(backbone, "peft_config")


def split_revision(reference: str) -> tuple[str, str | None]:
    """Split ``owner/name@revision``; a folder keeps its name whole.

    >>> split_revision("owner/name@v1"), split_revision("owner/name")
    (('owner/name', 'v1'), ('owner/name', None))
    """
    if "@" not in reference or Path(reference).exists():
        return reference, None
    name, _, revision = reference.rpartition("@")
    return name, revision


def tokenizer_content(tokenizer: Any) -> Any:
    """What a tokenizer does to a text, without the truncation and padding that its last call left in it."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return sorted(tokenizer.get_vocab().items())
    return {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the screen; what matters in them is checked by the caller."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_INCIDENTAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # say nothing about an embedding


def room(backbone: nn.Module) -> int | None:
    """Tokens that a model's table of positions has room for; None for a model without one (rotary, relative).

    A table with a padding row (RoBERTa, MPNet) starts behind it; OPT's says how many rows it keeps free.
    """
    for name, module in backbone.named_modules():
        table = re.search(r"(^|\.)(position_embeddings|embed_positions|wpe)(\.|$)", name)
        if table and isinstance(module, nn.Embedding):
            free = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - getattr(module, "offset", free)
    return None


def folder_room(folder: Path | str, trust_remote_code: bool = False) -> int | None:
    """:func:`room` of a model folder by its configuration alone: no weight is read."""
    from transformers import AutoModel

    with _readable(folder), torch.device("meta"), quiet():
        config = _settings(folder, trust_remote_code=trust_remote_code)
        return room(AutoModel.from_config(config, trust_remote_code=trust_remote_code))


def fits(length: int, room: int | None, what: str, reference: str) -> int:
    """Return ``length`` if a model with ``room`` positions (None: no limit) can read that many tokens.

    Raises:
        DreamError: it cannot; the line has setting, model and both numbers.
    """
    if room is not None and length > room:
        raise DreamError(
            f"{what} {length} is more than {reference or 'the model'} has positions for ({room} tokens)",
            f"Set it to at most {room}",
        )
    return length


def check_lengths(config: Config) -> None:
    """Stop if the encoder that ``model.size`` names has no positions for the lengths in params; no weight is read."""
    from dream.assets import model_path

    reference = config.size.encoder
    there = folder_room(model_path(reference), config.encoder.trust_remote_code)
    fits(config.encoder.max_length, there, "encoder.max_length", reference)
    fits(config.evaluate.max_length, there, "evaluate.max_length", reference)


@contextlib.contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """Whatever is wrong with a model's files is one line that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise DreamError(
            f"model {path} cannot be loaded ({_first_line(error)})",
            "Give a local folder with safetensors weights, or a hub id while the hub can be reached",
        ) from error


def _settings(name: Path | str, **remote: Any) -> Any:
    """A model's configuration, a copy: it is shared by every model built from it, with their choice of attention."""
    from transformers import AutoConfig

    if (Path(name) / "adapter_config.json").exists():
        raise DreamError(f"{name} is an adapter, not a model", "Name it as `adapter`, and its base as `model`")
    config = copy.deepcopy(AutoConfig.from_pretrained(name, **remote))
    if config.is_encoder_decoder:
        raise DreamError(f"{name} has an encoder and a decoder", "Choose a model with one body")
    return config


def _lower_case(tokenizer: Any) -> None:
    """Small letters before the tokenizer's own steps, as sentence-transformers does for ``do_lower_case``."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def check_targets(model: nn.Module, targets: Sequence[str], reference: str) -> None:
    """Stop unless every target of a new LoRA is a module with a weight matrix.

    Raises:
        DreamError: names the target that is none, and the modules there are.
    """
    modules = [name for name, m in model.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in modules)]
    if missing or not targets:
        there = sorted({name.rpartition(".")[2] for name in modules})
        raise DreamError(
            f"training.lora.targets {list(targets)} do not fit {reference}: "
            + (f"it has no module {missing[0]!r}" if missing else "there must be one"),
            f"Its modules are {', '.join(there)}",
        )


def _with_adapter(
    backbone: nn.Module, adapter: str, trainable: bool, reference: str, trust_remote_code: bool
) -> tuple[nn.Module, str]:
    """Put an adapter onto a backbone; return it with what could not be told about the adapter's base (empty: nothing).

    An adapter that was saved around a model with a head (the released DREAM models: a causal LM) names modules, in its
    weights and in its patterns, from that model. So peft gets that model, its head without weights, and reads both as
    they are; the body is taken out again.
    """
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, settings, base = check_adapter(adapter, reference)
    settings.task_type = "FEATURE_EXTRACTION"
    try:
        weights = load_file(folder / "adapter_model.safetensors")
        prefix, whole, outside = backbone.base_model_prefix, backbone, ()
        if any(name.startswith(f"base_model.model.{prefix}.") for name in weights):
            with torch.device("meta"), quiet():
                whole = AutoModelForCausalLM.from_config(
                    copy.deepcopy(backbone.config), trust_remote_code=trust_remote_code
                )
            setattr(whole, prefix, backbone)
            whole.tie_weights()
            outside = tuple(f"base_model.model.{name}." for name, _ in whole.named_children() if name != prefix)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(whole, folder, is_trainable=trainable, config=settings)
        lost = sorted(_not_there(model, {n: w for n, w in weights.items() if not n.startswith(outside)}))
        if lost:
            raise ValueError(f"its weight {lost[0]} has no place there")
    except Exception as error:  # files of others: whatever peft and safetensors make of them
        raise DreamError(
            f"adapter {adapter} cannot be loaded onto its encoder ({_first_line(error)})",
            "It is incomplete or was trained on another encoder: train it again",
        ) from error
    if whole is not backbone:
        if trainable:
            raise DreamError(f"adapter {adapter} was saved around another model", "It can be evaluated, not trained on")
        model.base_model.model = backbone
    return model, base


def _not_there(model: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """The weights of an adapter's file that are not, with their values, in the model that was loaded from it."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = get_peft_model_state_dict(model, save_embedding_layers=True)
    return [n for n, w in weights.items() if n not in there or not torch.equal(there[n].cpu(), w.to(there[n].dtype))]


def check_adapter(adapter: str, reference: str) -> tuple[Path, Any, str]:
    """An adapter's folder, its settings as peft reads them, and :func:`compare_base`; no weight is read.

    Raises:
        DreamError: it is none with safetensors weights, of a kind that is not supported, has a setting that peft would
            not read or that we do not support, or belongs to another model than ``reference``.
    """
    from peft import PeftConfig

    from dream.assets import model_path

    folder = Path(model_path(adapter))
    if missing := [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (folder / n).is_file()]:
        raise DreamError(f"{adapter} is not an adapter with safetensors weights (no {missing[0]})")
    raw = read_json(folder / "adapter_config.json")
    if (kind := raw.get("peft_type")) not in ADAPTERS:
        raise DreamError(f"adapter {adapter} is of kind {kind}", f"Those that are read: {', '.join(ADAPTERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft: keys that it does not know; they are refused here
        settings = PeftConfig.from_pretrained(folder)
    known = {field.name for field in dataclasses.fields(settings)} - set(REFUSED)
    if strange := sorted(key for key, value in raw.items() if value and key not in known):
        raise DreamError(
            f"adapter {adapter} has a setting that is not supported: {strange[0]} = {raw[strange[0]]!r}",
            "Its vectors would not be its own: choose another adapter",
        )
    return folder, settings, compare_base(raw, folder, adapter, reference)


def compare_base(settings: dict[str, Any], folder: Path, adapter: str, reference: str) -> str:
    """Compare the base model that an adapter's settings name with the model it is put on.

    Args:
        settings: of adapter_config.json.
        folder: the adapter's; its base may lie inside.
        adapter: its name in messages.
        reference: the model.

    Returns:
        Nothing if they are the same, else why the two cannot be compared.

    Raises:
        DreamError: they are different models, or different revisions of one.
    """
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not base:
        return "not named by the adapter"
    if (folder / base).is_dir():
        base = str(folder / base)
    ours, theirs, wanted = _names(reference), _names(base), split_revision(reference)[1]
    if ours & theirs and (not (revision and wanted) or revision == wanted):
        return ""
    both_here = Path(base).is_dir() and Path(reference).expanduser().is_dir()
    if not (ours & theirs or both_here or all(any(map(_is_hub_id, names)) for names in (ours, theirs))):
        return f"not compared: the adapter names {base}"
    raise DreamError(
        f"adapter {adapter} was trained on {f'{base}@{revision}' if revision else base}, not on {reference}",
        "Name its base as `model`; if the two are the same, correct the base's name in adapter_config.json",
    )


def _names(reference: str) -> set[str]:
    """Every name that a model goes by: its reference, its origin, a folder's place and what the folder's config says."""
    name = split_revision(reference)[0]
    names, folder = {name, ORIGINS.get(name, name)}, Path(name).expanduser()
    if folder.is_dir():
        names.add(str(folder.resolve()))
        if (folder / "config.json").is_file():
            said = read_json(folder / "config.json").get("_name_or_path") or ""
            names |= {said} if _is_hub_id(said) else set()
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)", name):  # a folder of the hub's cache, here or elsewhere
        names.add("/".join(cached.groups()))
    return {name.lower() if _is_hub_id(name) else name for name in names}


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None and not Path(name).is_dir()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
