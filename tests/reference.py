"""Slow readings of the definitions, short and obviously right: the fast code is held against these.

The injection runs the whole prompt of one question as one sequence, builds every attention matrix, and edits the rows
that equations 7 to 9 name, element by element. Nothing of ``dream.judge.attention`` is used. The tiny random models and
candidate sets of the judge's tests stand here too.
"""

import copy

import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from dream.instances import CandidateSet, Question
from dream.judge import Judge
from dream.judge.prompt import DEFAULT_LIMITS

VOCABULARY = 97
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig}


def counted(counter, *endings):
    """Operations that torch's ``FlopCounterMode`` counted in products whose names end so: ``.mm``, ``.addmm`` have weights."""
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op).endswith(endings))


class Letters:
    """A tokenizer with one token per character: the length of a text is its number of tokens."""

    def __init__(self, bos=1):
        self.bos_token_id = bos

    def __call__(self, text, **_):
        return {"input_ids": [2 + ord(c) % (VOCABULARY - 2) for c in text]}


def random_model(kind="llama", layers=4, dtype=torch.float64, seed=0, **more):
    """A random model with grouped queries; weights are large enough for sharp attention, biases are not zero."""
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "tie_word_embeddings": kind == "llama",
    }  # fmt: skip
    if kind == "mistral":
        values["sliding_window"] = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**{**values, **more}), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.3)
            assert parameter.abs().max() > 0, name
    return model.eval()


def copying_judge(letters=26):
    """A judge that expects the tokens which its heads attend to, and nothing else: so it prefers p on the gold passage.

    One layer. Queries and keys are 0 (attention is even), values and outputs the identity, tied orthogonal embeddings.
    """
    model = random_model(layers=1, num_key_value_heads=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if parameter.ndim > 1 else parameter.fill_(1.0)
            if name.endswith(("v_proj.weight", "o_proj.weight")):
                parameter.copy_(torch.eye(32))
        embeddings = model.get_input_embeddings().weight
        for letter in range(letters):
            embeddings[Letters()(chr(97 + letter))["input_ids"][0], letter] = 3.0
    return Judge(model, Letters())


def distinct_set(gold=1, passages=("aabb", "ccdd", "eeff"), id="set"):
    """Passages without a common letter; one question."""
    return CandidateSet(id, "test", tuple(map(str, range(len(passages)))), passages, (Question("q", "xyz", gold),))


def candidate_set(lengths=(5, 1, 9, 3), questions=2, seed=0):
    """Ragged passages of random letters; questions and targets of different lengths too."""
    generator = torch.Generator().manual_seed(seed)

    def text(n):
        return "".join(chr(97 + i) for i in torch.randint(0, 26, (n,), generator=generator))

    passages = tuple(text(n) for n in lengths)
    gold = [2, 0, 3, 1]
    asked = tuple(Question(f"q{i}", text(2 + 3 * i), gold[i] % len(passages)) for i in range(questions))
    return CandidateSet("set", "test", tuple(map(str, range(len(passages)))), passages, asked)


def both(kind="llama", limits=DEFAULT_LIMITS, **more):
    """A judge, and a second copy of its model for the reference."""
    model = random_model(kind, **more)
    return Judge(copy.deepcopy(model), Letters(), limits), model


def exact_norms(model):
    """Norms in float64: the library's compute in float32.

    That is the same error on both sides, until the gradients of two questions meet in one document on one side only.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: m.weight * x * (x.square().mean(-1, keepdim=True) + m.variance_epsilon).rsqrt()


# what most tests inject into: two heads of one layer and one of the last
HEADS = ((1, 0), (1, 3), (3, 2))


def _weights(module, query, key, scaling):
    """Causal attention matrices ``[H, T, T]`` of a full sequence."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    logits = (query @ key.transpose(-1, -2))[0] * scaling
    length = logits.shape[-1]
    return logits.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)


def _edited(alpha, documents, p, g, budget):
    """Equations 7 to 9 for one row ``alpha [T]``."""
    retriever = torch.zeros_like(alpha)
    outside = alpha.clone()
    for start, end in documents:
        outside = torch.cat([outside[:start], torch.zeros(end - start, dtype=alpha.dtype), outside[end:]])
    total = sum(alpha[start:end].sum() for start, end in documents)
    for p_j, (start, end) in zip(p, documents, strict=True):
        alphahat = alpha[start:end] / alpha[start:end].sum()  # equation 7
        piece = p_j * alphahat  # equation 8
        if budget == "preserve":
            piece = piece * total
        retriever = torch.cat([retriever[:start], piece, retriever[end:]])
    if budget == "preserve":
        retriever = retriever + outside
    return ((1 - g) * alpha + g * retriever).to(alpha.dtype)  # equation 9


def _attention(module, query, key, value, attention_mask, scaling=None, edit=None, **kwargs):
    alpha = _weights(module, query, key, scaling)
    if edit is not None:
        edit["sums"] = []
        matrices = list(alpha)
        for layer, head in edit["heads"]:
            if layer == module.layer_idx:
                rows = list(matrices[head])
                for a in edit["rows"]:
                    rows[a] = _edited(rows[a], edit["documents"], edit["p"], edit["gate"], edit["budget"])
                    edit["sums"].append(rows[a].sum().item())
                matrices[head] = torch.stack(rows)
        alpha = torch.stack(matrices)
        edit["all_sums"] = edit.get("all_sums", []) + edit["sums"]
    output = alpha @ value[0].repeat_interleave(module.num_key_value_groups, dim=0)
    return output.transpose(0, 1)[None], alpha[None]


AttentionInterface.register("slow_reference", _attention)


def target_loss(model, layout, p=None, gate=None, heads=(), rows="query", budget="paper"):
    """Mean cross-entropy of the target of one prompt (a ``Layout``), every logit computed, one sequence."""
    model.set_attn_implementation("slow_reference")
    first, last = layout.query[0], {"query": layout.query, "query+label": layout.label, "all": layout.target}[rows][1]
    edit = None
    if p is not None:
        edit = {"heads": heads, "rows": range(first, last), "documents": layout.documents.spans}
        edit |= {"p": p, "gate": gate, "budget": budget}
    ids = torch.tensor([layout.ids])
    log_p = model(input_ids=ids, use_cache=False, edit=edit).logits[0].log_softmax(-1)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}[log_p.dtype]
    for total in (edit or {}).get("all_sums", []):
        assert abs(total - 1) < tolerance, "rows of the edited matrix must sum to 1"
    return -sum(log_p[t - 1, ids[0, t]] for t in range(*layout.target)) / (layout.target[1] - layout.target[0])


def _hiding(module, query, key, value, attention_mask, scaling=None, first=None, hidden=None, **kwargs):
    """Attention in which rows from ``first`` on cannot see the keys in ``hidden``, matrix by matrix."""
    key, value = (x[0].repeat_interleave(module.num_key_value_groups, dim=0) for x in (key, value))
    matrices = []
    for q, k in zip(query[0], key, strict=True):
        logits = q @ k.T * scaling
        for a in range(len(logits)):
            for b in range(len(logits)):
                if b > a or (a >= first and b in hidden):
                    logits[a, b] = float("-inf")
        matrices.append(logits.softmax(-1))
    return (torch.stack(matrices) @ value).transpose(0, 1)[None], None


AttentionInterface.register("slow_hiding", _hiding)


@torch.no_grad()
def loss_without(model, layout, document):
    """Mean cross-entropy of the target where the suffix sees every document but one: one sequence, every logit computed."""
    model.set_attn_implementation("slow_hiding")
    ids, hidden = torch.tensor([layout.ids]), range(*layout.documents.spans[document])
    log_p = model(input_ids=ids, use_cache=False, first=len(layout.documents.ids), hidden=hidden).logits[0].log_softmax(-1)
    return -sum(log_p[t - 1, ids[0, t]] for t in range(*layout.target)) / (layout.target[1] - layout.target[0])


def head_masses(model, ids, query, documents):
    """Definition of r_h before calibration, from full attention matrices: ``[layers, H, K]``."""
    model.set_attn_implementation("slow_reference")
    with torch.no_grad():
        layers = model(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    found = []
    for matrix in layers:  # [1, H, T, T]
        rows = [[sum(matrix[0, h, a, b] for a in range(*query) for b in range(*d)) for d in documents]
                for h in range(matrix.shape[1])]  # fmt: skip
        found.append(torch.tensor(rows) / (query[1] - query[0]))
    return torch.stack(found)
