"""The frozen judge: documents read once per candidate set, then the loss of every question's target on top of that.

What is shared, and why it is exact (each point is proved by a test against a slow reference):

* The prompt is causal and the documents come first, so their keys and values depend on nothing else. :meth:`Judge.read`
  computes them, stops once the last layer's keys and values are there, and all questions of the set, and all conditions
  of a diagnostic, use them.
* All suffixes of a set are *packed* into one sequence without padding: each starts at the position after the
  documents, and the mask lets a row see all documents and the earlier rows of its own suffix only.
* The last target token predicts nothing and is left out; logits are computed for rows that predict target tokens only.
* The judge's weights need no gradient, and scores enter at the lowest selected layer: autograd itself records nothing
  below it, and nothing of the documents.

With :meth:`Judge.add_lora` (the paper's ablation) the same calls have a graph from the adapter's weights on, through the
documents' keys and values too: sharing stays exact, only the graph is longer.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from dream.errors import DreamError
from dream.instances import CandidateSet
from dream.judge import definition
from dream.judge.attention import NAME, Injection, Masses, Scores, Spans, folded
from dream.judge.loss import target_losses
from dream.judge.prompt import DEFAULT_LIMITS, EMPTY_QUERY, Documents, Limits, Prompt, Suffix

if TYPE_CHECKING:
    from peft import PeftModel

    from dream.config import Config
    from dream.judge.store import Store


CHUNK = 512  # document tokens read at a time on a CPU in float32; in bfloat16 one piece is a third faster (AMX)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def pick_dtype(name: str, device: torch.device | str = "cpu") -> torch.dtype:
    """``auto`` is bfloat16 where it is faster than float32, else float32: with CUDA, AMX, or AVX-512 BF16 of another maker than
    Intel, whose AVX-512 BF16 has half of float32's rate (``dream-report doctor`` measures both)."""
    if name != "auto":
        return DTYPES[name]
    if torch.device(device).type == "cuda":
        gains = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        gains = able.get("amx_bf16") or (able.get("avx512_bf16") and "Intel" not in str(able.get("cpu_name")))
    return torch.bfloat16 if gains else torch.float32


Layers = tuple[tuple[Tensor, Tensor], ...]  # of every layer read: keys and values, [1, H_kv, P, d] each


@dataclass(frozen=True)
class Reading:
    """What the judge keeps of a set's documents: per layer keys and values ``[1, H_kv, P, d]``.

    They have no graph, except to the weights of a judge's LoRA. A reading may end below the judge's last layer: enough
    for the attention of the layers that it has, not for a loss. Of K passages read side by side there are K rows,
    ``[K, H_kv, P, d]``, and ``documents`` is the longest; what lies behind a shorter one is for the mask to hide.
    """

    documents: Documents
    layers: Layers

    @property
    def length(self) -> int:
        return len(self.documents.ids)


class _Stop(Exception):
    """Raised when the last layer that is asked for has given its keys and values: the rest would be computed for nothing."""


class _Recorder(DynamicCache):
    """A cache that ends the forward call when it is complete."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.expected = layers

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        found = super().update(key, value, layer_idx, *args, **kwargs)
        if layer_idx == self.expected - 1:
            raise _Stop
        return found


class _Shared:
    """A read-only cache: gives the documents' keys and values before the caller's own, and keeps nothing.

    It ends the forward call at the first layer that was not read.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if layer_idx == len(self.reading.layers):
            raise _Stop
        before_k, before_v = (x.expand(len(key), -1, -1, -1) for x in self.reading.layers[layer_idx])
        return torch.cat([before_k, key], dim=2), torch.cat([before_v, value], dim=2)


@dataclass(frozen=True)
class _Packed:
    """Suffixes packed into one sequence of S tokens behind P document tokens, B times with different documents in sight."""

    ids: Tensor  # [B, S]
    positions: Tensor  # [B, S]
    mask: Tensor  # additive [B, 1, G·S, P + S], see :func:`dream.judge.attention.folded`
    starts: tuple[int, ...]  # first row of every suffix
    question: Tensor  # [S] which question a row belongs to


class Judge:
    """A frozen causal language model that tells how well the scores point at the target.

    Attributes:
        model: the transformers model; its parameters need no gradient.
        prompt: builds token ids and spans.
        reference: what was loaded, as params names it.
        weights: content hash of what was loaded.
        chunk: document tokens read in one piece (None: all).
        store: where readings of documents are kept; None: nowhere.
    """

    store: Store | None = None

    def __init__(
        self, model: Any, tokenizer: Any, limits: Limits = DEFAULT_LIMITS, reference: str = "", weights: str = ""
    ) -> None:
        definition.refuse(model.config)
        self.model = own_attention(model)
        self.prompt, self.reference, self.weights = Prompt(tokenizer, limits), reference, weights
        self.chunk = CHUNK if model.device.type == "cpu" and model.dtype == torch.float32 else None
        self.layers, self.heads = model.config.num_hidden_layers, model.config.num_attention_heads
        self.logit_scale = definition.logit_scale(model.config)

    @classmethod
    def load(
        cls,
        reference: str,
        dtype: str = "auto",
        device: torch.device | str | None = None,
        limits=DEFAULT_LIMITS,
        quantization: str = "none",
    ) -> Judge:
        """Load a judge from a packaged name, a hub id or a local folder; safetensors weights only.

        Each weight goes from its file to the device by itself, so that the host need not hold the whole model.

        Args:
            reference: see :func:`dream.assets.model_path`.
            dtype: float32, bfloat16, or auto (see :func:`pick_dtype`).
            device: by default CUDA if there is one, else CPU.
            limits: longest passage, question and target in tokens.
            quantization: none, or 8bit or 4bit weights (bitsandbytes) that compute in ``dtype``.

        Raises:
            DreamError: its attention is not the method's (see :mod:`dream.judge.definition`), or quantization is asked for
                without bitsandbytes.
        """
        from dream import assets

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = assets.model_path(reference)
        definition.refuse(AutoConfig.from_pretrained(folder))
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=pick_dtype(dtype, device),
            use_safetensors=True,
            attn_implementation="sdpa",
            device_map={"": device},
            **_quantized(quantization, pick_dtype(dtype, device)),
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        judge = cls(model, tokenizer, limits, reference, assets.content_hash(reference))
        definition.check(judge)
        return judge

    @classmethod
    def build(cls, config: Config, device: torch.device | str | None = None, store: Store | None = None) -> Judge:
        """The judge of a configuration: the record ``roles.judge`` with the lengths of the section ``judge``.

        Args:
            config: the settings.
            device: see :meth:`load`.
            store: keeps what it reads, unless it is quantized.
        """
        record, knobs = config.roles["judge"], config.judge
        limits = Limits(knobs.passage_tokens, knobs.query_tokens, knobs.target_tokens)
        judge = cls.load(record.model, record.dtype, device, limits, record.quantization)
        judge.store = store
        if store and record.quantization != "none":
            store.close(f"a judge in {record.quantization} promises no stable bytes")
        return judge

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def add_lora(self, r: int, alpha: int, targets: Sequence[str] | None = None) -> PeftModel:
        """Put a LoRA into the judge's body, in place; its weights (float32 at least) are the only ones that are trained.

        The output matrix never gets one: :mod:`dream.judge.loss` takes it as frozen. B starts at 0, so the judge is
        unchanged at first; A is drawn from torch's generator.

        Returns:
            The peft model around ``self.model``, for its parameters and for :meth:`PeftModel.save_pretrained`.

        Raises:
            DreamError: the judge already has one, or the targets do not fit it.
        """
        from peft import LoraConfig, get_peft_model

        from dream.lora import attention_projections, check_targets

        if hasattr(self.model, "peft_config"):
            raise DreamError(f"judge {self.reference} already has a LoRA", "Load the judge anew")
        if self.store:
            self.store.close("the judge is trained")
        targets = targets or attention_projections(self.model)
        check_targets(self.model, targets, self.reference)
        settings = LoraConfig(
            task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=list(targets), exclude_modules=["lm_head"]
        )
        return get_peft_model(self.model, settings).eval()

    def read(self, candidates: CandidateSet | Documents, depth: int | None = None) -> Reading:
        """Keys and values of a set's documents in every layer, or in the lowest ``depth``, once. See :class:`Reading`.

        They come from the store, where there is one, or are computed now: the bytes are the same.
        """
        documents = candidates if isinstance(candidates, Documents) else self.prompt.documents(candidates)
        depth = depth or self.layers

        def make() -> Layers:
            return self._read(torch.tensor([documents.ids]), depth)

        return Reading(documents, self.store.layers(self, documents.ids, depth, make) if self.store else make())

    def _read(self, ids: Tensor, depth: int) -> Layers:
        """Keys and values of token ids ``[B, P]`` in the lowest ``depth`` layers."""
        self._assert_ours()
        recorder = _Recorder(depth)
        for piece in ids.to(self.device).split(self.chunk or ids.shape[1], dim=1):
            with contextlib.suppress(_Stop):
                self.model.base_model(input_ids=piece, past_key_values=recorder)
        layers: list[Any] = list(recorder.layers)
        return tuple((layer.keys, layer.values) for layer in layers)

    def target_losses(
        self,
        candidates: CandidateSet,
        p: Tensor | None = None,
        gate: Tensor | None = None,
        injection: Injection | None = None,
        *,
        reading: Reading | None = None,
        per_token: bool = False,
    ) -> Any:
        """Mean cross-entropy of every question's target, with the retriever's scores injected (paper, equation 10).

        Args:
            candidates: K passages and Q questions.
            p: ``[Q, K]`` the retriever's distribution over the candidates; rows sum to 1. None: the plain judge.
            gate: scalar g. None: the plain judge.
            injection: which heads and rows, and the budget.
            reading: what :meth:`read` gave for these candidates; by default they are read here.
            per_token: return the losses of the single target tokens instead, one tensor per question.

        Returns:
            ``[Q]``, float32 at least, with a graph to ``p`` and ``gate``.
        """
        reading = reading or self.read(candidates)
        if len(reading.layers) < self.layers:
            raise ValueError(f"the reading ends at layer {len(reading.layers)} of {self.layers}: it gives no loss")
        suffixes = self.prompt.suffixes(candidates)
        packed = self._pack(reading, [s.ids[:-1] for s in suffixes])
        hidden = self._forward(reading, packed, self._scores(reading, packed, suffixes, p, gate, injection))
        losses = [tokens[0] for tokens in self._token_losses(hidden, packed.starts, suffixes)]
        return losses if per_token else torch.stack([tokens.mean() for tokens in losses])

    def _token_losses(self, hidden: Tensor, starts: Sequence[int], suffixes: Sequence[Suffix]) -> list[Tensor]:
        """Cross-entropy of every question's target tokens, ``[B, tokens]`` each, from hidden states ``[B, S, hidden]``.

        ``starts`` are the first rows of the suffixes.
        """
        spans = [(start + s.target[0], start + s.target[1]) for start, s in zip(starts, suffixes, strict=True)]
        rows = [t - 1 for span in spans for t in range(*span)]  # the row before a token predicts it
        labels = [token for s in suffixes for token in s.ids[slice(*s.target)]]
        losses = target_losses(
            self._scaled(hidden.index_select(1, torch.tensor(rows, device=self.device)).flatten(0, 1)),
            self.model.get_output_embeddings().weight,
            torch.tensor(labels, device=self.device).repeat(len(hidden)),
        )
        return list(losses.view(len(hidden), -1).split([end - first for first, end in spans], dim=1))

    def _scaled(self, hidden: Tensor) -> Tensor:
        """Hidden states whose product with the output matrix are the model's logits."""
        return hidden if self.logit_scale == 1 else hidden * self.logit_scale

    @torch.no_grad()
    def passage_log_likelihood(self, candidates: CandidateSet) -> Tensor:
        """REPLUG's teacher: mean log-likelihood of y given q and one passage at a time, ``[Q, K]``.

        The passages are read side by side, the shorter ones padded behind; a suffix follows each where it ends. Several
        questions share what was read; with one, passage and suffix are one causal pass, which needs no mask.
        """
        alone, suffixes = self.prompt.documents(candidates).alone(), self.prompt.suffixes(candidates)
        if len(suffixes) == 1:
            return -self.behind_each(alone, suffixes[0])[None]
        lengths = torch.tensor([len(one.ids) for one in alone])
        longest = max(alone, key=lambda one: len(one.ids))
        ids = torch.tensor([[*one.ids, *longest.ids[len(one.ids) :]] for one in alone])
        seen = torch.arange(len(longest.ids)) < lengths[:, None]
        return -self._in_sight(candidates, Reading(longest, self._read(ids, self.layers)), seen, lengths)

    def behind_each(self, alone: Sequence[Documents], suffix: Suffix) -> Tensor:
        """Mean cross-entropy of the target with a suffix behind each of K passages, ``[K]``. No row sees what pads its end."""
        self._assert_ours()
        lines = [(*one.ids, *suffix.ids[:-1]) for one in alone]
        ids = pad_sequence([torch.tensor(line) for line in lines], batch_first=True)
        hidden = self.model.base_model(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
        rows = torch.stack([h[len(one.ids) : len(line)] for h, one, line in zip(hidden, alone, lines, strict=True)])
        return self._token_losses(rows, [0], [suffix])[0].mean(1)

    @torch.no_grad()
    def leave_one_out(self, candidates: CandidateSet, reading: Reading | None = None) -> Tensor:
        """Mean cross-entropy of y given q with one document hidden from them and all others in sight, ``[Q, K]``.

        The documents are read once, with one another in sight; places stay as they are. Atlas' LOOP (Izacard et al. 2022)
        reads the others anew without the hidden one.
        """
        reading = reading or self.read(candidates)
        seen = torch.ones(len(reading.documents.spans), reading.length, dtype=torch.bool)
        for row, span in zip(seen, reading.documents.spans, strict=True):
            row[slice(*span)] = False
        return self._in_sight(candidates, reading, seen)

    def _in_sight(self, candidates: CandidateSet, reading: Reading, seen: Tensor, ends: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of every question's target with some of the document tokens in sight, ``[Q, B]``.

        Args:
            candidates: whose questions are asked.
            reading: of all documents, or B rows of them.
            seen: ``[B, P]`` the document tokens that a suffix sees.
            ends: ``[B]`` the position of a suffix's first token; default: behind all documents.
        """
        suffixes = self.prompt.suffixes(candidates)
        packed = self._pack(reading, [s.ids[:-1] for s in suffixes], seen, ends)
        hidden = self._forward(reading, packed, None)
        return torch.stack([tokens.mean(1) for tokens in self._token_losses(hidden, packed.starts, suffixes)])

    @torch.no_grad()
    def document_masses(self, candidates: CandidateSet, reading: Reading | None = None) -> tuple[Tensor, Tensor]:
        """Attention on every document token, mean over the rows of the question, in every head of every layer read.

        Returns:
            The masses of the set's questions ``[Q, layers, H, P]`` and of the empty query ``N/A`` ``[layers, H, P]``,
            both on the same keys and values; P counts all document tokens, in order.
        """
        reading = reading or self.read(candidates)
        suffixes = [self.prompt.suffix(text) for text in (*(q.text for q in candidates.questions), EMPTY_QUERY)]
        packed = self._pack(reading, [s.ids for s in suffixes])
        groups = [
            torch.tensor(s.rows("query"), device=self.device) + start for start, s in zip(packed.starts, suffixes, strict=True)
        ]
        places = [b for span in reading.documents.spans for b in range(*span)]
        masses = Masses(groups, torch.tensor(places, device=self.device))
        with contextlib.suppress(_Stop):
            self._forward(reading, packed, masses)
        found = torch.stack(masses.found, dim=1)  # [Q + 1, layers, H, P]
        return found[:-1], found[-1]

    def _scores(
        self, reading: Reading, packed: _Packed, suffixes: Sequence[Suffix], p, gate, injection: Injection | None
    ) -> Scores | None:
        """Tensors of one call's injection; None for the plain judge."""
        if p is None or gate is None:
            return None
        if injection is None:
            raise ValueError("p and gate are given without an injection")
        injection.validate(self.layers, self.heads)
        expected = (len(suffixes), len(reading.documents.spans))
        if tuple(p.shape) != expected:
            raise ValueError(f"p has shape {tuple(p.shape)}, the set has {expected} questions and candidates")
        rows = torch.tensor(
            [
                start + r
                for start, s in zip(packed.starts, suffixes, strict=True)
                for r in s.rows(injection.rows)
                if r < len(s.ids) - 1
            ],
            device=self.device,
        )
        return Scores(
            heads=injection.by_layer(),
            rows=rows,
            spans=Spans.of(reading.documents.spans, self.device),
            p=p.to(self.device)[packed.question[rows]],
            gate=gate.to(self.device),
            budget=injection.budget,
        )

    def _pack(
        self, reading: Reading, suffixes: Sequence[tuple[int, ...]], seen: Tensor | None = None, ends: Tensor | None = None
    ) -> _Packed:
        """Pack suffixes behind the documents; without ``seen`` and ``ends``, behind all of them. See :meth:`_in_sight`."""
        lengths = [len(ids) for ids in suffixes]
        starts = tuple(accumulate(lengths[:-1], initial=0))
        question = torch.repeat_interleave(torch.tensor(lengths))
        offset = torch.arange(sum(lengths)) - torch.tensor(starts)[question]
        own = (question[:, None] == question) & (offset[:, None] >= offset)
        seen = torch.ones(1, reading.length, dtype=torch.bool) if seen is None else seen
        ends = torch.tensor([reading.length]) if ends is None else ends
        sight = torch.cat([seen[:, None].expand(-1, len(own), -1), own.expand(len(seen), -1, -1)], dim=2)
        mask = torch.zeros(sight.shape, dtype=self.dtype).masked_fill(~sight, float("-inf"))[:, None]
        ids = torch.tensor([token for ids in suffixes for token in ids]).expand(len(seen), -1)
        device, positions, (keys, _) = self.device, ends[:, None] + offset, reading.layers[0]
        mask = folded(mask.to(device), self.heads // keys.shape[1])
        return _Packed(ids.to(device), positions.to(device), mask, starts, question.to(device))

    def _forward(self, reading: Reading, packed: _Packed, dream: Scores | Masses | None) -> Tensor:
        """Final hidden states ``[B, S, hidden]`` of packed suffixes."""
        self._assert_ours()
        return self.model.base_model(
            input_ids=packed.ids,
            position_ids=packed.positions,
            attention_mask=packed.mask,
            past_key_values=_Shared(reading),
            dream=dream,
        ).last_hidden_state

    def _assert_ours(self) -> None:
        """Another model that shares the config could have switched the implementation: scores would be ignored."""
        if any(module.config._attn_implementation != NAME for module in attention_layers(self.model)):
            raise RuntimeError(f"the judge's attention was switched from {NAME}: scores would be ignored")


def attention_layers(model: Any) -> list[Any]:
    """The attention modules of a model, in layer order."""
    found = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "o_proj") and hasattr(m, "config")]
    return sorted(found, key=lambda module: module.layer_idx)


def own_attention(model: Any) -> Any:
    """Freeze a model and give it the judge's attention, on a config of its own.

    transformers reads the attention implementation from the config object, and models built from one config share it:
    a later ``set_attn_implementation`` on the other model would silently switch the judge back. Every module of the
    judge that holds the config therefore gets one private copy.
    """
    private = copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is not None:
            module.config = private
    model.set_attn_implementation(NAME)
    layers = attention_layers(model)
    if len(layers) != private.num_hidden_layers or any(m.config._attn_implementation != NAME for m in layers):
        raise DreamError(
            f"the attention of {private.model_type} cannot be exchanged: {len(layers)} of its {private.num_hidden_layers} layers "
            "are of transformers' kind",
            definition.REMEDY,
        )
    return model.eval().requires_grad_(False)


def _quantized(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` needs for 8-bit or 4-bit weights; nothing for none."""
    if quantization == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DreamError(
            f"the judge's quantization is {quantization}, which needs bitsandbytes",
            "Run `pip install bitsandbytes`, or set it to none (models in params.yaml)",
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": settings}
