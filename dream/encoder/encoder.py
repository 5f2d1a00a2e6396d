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

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dream.encoder.adapters import scale, with_adapter
from dream.encoder.reading import fits, is_causal, is_peft, quiet, readable, room, settings, split_revision
from dream.encoder.reading import lower_case as put_into_small_letters
from dream.encoder.texts import POOLINGS, batches, check_finite, pool, tokenizer_content, unique
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, value_hash, write_json
from dream.lora import attention_projections, check_targets

if TYPE_CHECKING:
    from dream.config.sections import Lora
    from dream.models import Rules

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LENGTH = 512  # tokens of a text where nothing is said, or what the model has positions for
_INCIDENTAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # say nothing about an embedding


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
        query_prompt, document_prompt: what belongs before every query and document; the caller of :meth:`embed` and
            :meth:`encode` puts it there.

    Raises:
        DreamError: the pooling is unknown, or the model has no positions for ``max_length`` tokens.
    """

    def __init__(
        self,
        backbone: Any,
        tokenizer: Any,
        *,
        pooling: str = "last",
        max_length: int | None = None,
        append_eos: bool = False,
        token_budget: int = 8192,
        padding_side: str = "right",
        reference: str = "",
        head: nn.Sequential | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise DreamError(f"pooling {pooling!r} is not known", f"Choose one of {', '.join(POOLINGS)}")
        if append_eos and tokenizer.eos_token_id is None:
            raise DreamError(f"{reference or 'the tokenizer'} has no end-of-text token", "Set append_eos to false in its record")
        self.backbone: Any = backbone
        self.tokenizer: Any = tokenizer
        self.head: nn.Sequential | None = head
        self.pooling, self.append_eos = pooling, append_eos
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
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
        rules: Rules,
        *,
        adapter: Path | str | None = None,
        trainable: bool = False,
        lora: Lora | None = None,
        seed: int = 0,
        max_length: int | None = None,
        token_budget: int = 8192,
        gradient_checkpointing: bool = False,
        device: torch.device | str | None = None,
        strength: float = 1.0,
    ) -> Encoder:
        """Load the model of a record as its rules say.

        Args:
            rules: what :func:`dream.models.rules` gives.
            adapter: a folder written by :meth:`save_adapter`, in place of the record's own.
            trainable: train the LoRA weights (float32, a new one where ``adapter`` is None); the rest stays frozen.
            lora: r, alpha and dropout of a new LoRA.
            seed: of a new LoRA's random half.
            max_length: tokens per text in :meth:`embed` (default: the record's).
            token_budget: padded tokens per batch.
            gradient_checkpointing: recompute activations in the backward pass.
            device: default: the first GPU, else the CPU.
            strength: see :func:`dream.encoder.adapters.scale`.

        Raises:
            DreamError: the record has an adapter of its own and is to be trained; see also :meth:`from_pretrained`.
        """
        if trainable:
            rules.require_trainable()
        encoder = cls.from_pretrained(
            rules.path,
            adapter=adapter or rules.adapter,
            adapter_trainable=trainable,
            dtype=rules.dtype,
            trust_remote_code=rules.trust_remote_code,
            lower_case=rules.folder.lower_case,
            reference=rules.model,
            device=device,
            pooling=rules.pooling,
            max_length=max_length or rules.max_length,
            append_eos=rules.append_eos,
            token_budget=token_budget,
            head=rules.folder.load_head(),
            query_prompt=rules.query_prompt,
            document_prompt=rules.document_prompt,
        )
        encoder.check_length(rules.max_length, f"{rules.key}.max_length")
        if strength != 1:
            scale(encoder.backbone, strength)
        if trainable and adapter is None and lora is not None:
            encoder.add_lora(lora, seed, rules.lora_targets)
        if trainable and gradient_checkpointing:
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
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with readable(path), quiet():
            backbone, info = AutoModel.from_pretrained(
                name,
                config=settings(name, **remote),
                dtype=DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
                device_map={"": device},
                **remote,
            )
            tokenizer = AutoTokenizer.from_pretrained(name, **remote)
        if lower_case:
            put_into_small_letters(tokenizer)
        if missing := [key for key in info["missing_keys"] if not key.startswith("pooler.")]:
            raise DreamError(
                f"model {path} lacks weights, e.g. {sorted(missing)[0]}", "The checkpoint is incomplete: get it again"
            )
        backbone.requires_grad_(False)
        reference, base = reference or str(path), ""
        if adapter is not None:
            backbone, base = with_adapter(backbone, str(adapter), adapter_trainable, reference, trust_remote_code)
        encoder = cls(backbone, tokenizer, reference=reference, **rules)
        encoder.adapter_base = base
        return encoder.to(device).eval()

    def add_lora(self, lora: Lora, seed: int, targets: Sequence[str] | None = None) -> None:
        """Wrap the backbone in a new LoRA.

        Args:
            lora: r, alpha and dropout.
            seed: draws A (B is 0).
            targets: names of modules; None: the attention projections of the architecture.

        Raises:
            DreamError: a target is no module of the backbone.
        """
        from peft import LoraConfig, get_peft_model

        chosen = attention_projections(self.backbone, self.reference) if targets is None else list(targets)
        check_targets(self.backbone, chosen, self.reference)
        name, revision = split_revision(self.reference)
        settings = LoraConfig(
            task_type="FEATURE_EXTRACTION",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=chosen,
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
        sizes = [m.get_embedding_dimension() for m in list[Any](self.head or ()) if hasattr(m, "get_embedding_dimension")]
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
            rules["head"] = [(type(module).__name__, module.get_config_dict()) for module in list[Any](self.head)]
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
            if isinstance(progress, str) and bar is not None:
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
        inputs: dict[str, Any] = {"input_ids": batch.ids}
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
