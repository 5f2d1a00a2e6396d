"""Trained systems to take away: a PEFT adapter and a sentence-transformers folder, each with its model card.

``peft/`` loads with the lines of the released DREAM model cards: AutoTokenizer, AutoModel, PeftModel, pooling, L2.
Where the encoder is a hub model used whole, the lines name it; a packaged, local or shortened encoder travels along
in ``base/``. ``sentence-transformers/`` holds the merged weights: Transformer, Pooling, the modules that the encoder's own
folder puts behind them, Normalize, no other code.

Both follow the encoder's rules (:func:`dream.models.rules`) and carry a tokenizer that does by itself what
:class:`dream.encoder.Encoder` does: small letters, special tokens, the end-of-text token of ``append_eos`` (a
post-processor, so that truncation keeps it), right padding, ``max_length``. Two texts differ: one that itself ends in the
end-of-text token gets a second one, and an empty text has no token at all where the tokenizer adds none and ``append_eos`` is
off (the evaluation takes one end-of-text token there).

The adapter is merged in float32 and stored in the record's dtype, the precision in which the scores were measured.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dream import __version__, assets, manifest, models, objectives
from dream.assets.registry import MODELS as MODELS_IN_WHEELS
from dream.config import stages
from dream.data import sources
from dream.encoder import DTYPES, ORIGINS, Encoder, quiet, split_revision
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, write_json
from dream.models.folders import POOLING
from dream.names import hint, registered
from dream.systems.encoder import TRAINED

if TYPE_CHECKING:
    from dream.config import Config
    from dream.models import Rules

FORMATS = ("peft", "sentence-transformers")
ARXIV = "2606.24667"
LICENCES = ("apache-2.0", "mit", "llama3.1", "llama3.2")  # as the hub names them; any other is "other"
CELLS = Path("reports/results")
Scores = tuple[str | None, str, list[dict[str, Any]]]
NO_SCORES: Scores = (None, "none were asked for", [])


def export(
    config: Config,
    system: str,
    seed: int,
    out: Path | str,
    formats: tuple[str, ...] = FORMATS,
    force: bool = False,
    name: str | None = None,
    scores: Scores = NO_SCORES,
    cells: Path | str = CELLS,
    strength: float = 1.0,
    pairs: int | None = None,
) -> dict[str, Path]:
    """Write a trained system to ``out/<format>/``, each folder whole or not at all.

    Args:
        config: the resolved config; must be the one that the system was trained with.
        system: an objective.
        seed: which of its training runs.
        out: folder above the formats' folders.
        formats: some of :data:`FORMATS`.
        force: replace folders that are there.
        name: what the card's snippets load (default: the folder).
        scores: the card's table of scores as Markdown, or None, why there is none, and the hub's ``model-index``.
        cells: the folder of results, for the counts of the training data.
        strength: the share of the adapter's change (:func:`dream.encoder.adapters.scale`).
        pairs: the run after so many of its pairs (``training.snapshots``); default: after all.

    Returns:
        Format → folder.

    Raises:
        DreamError: a format is unknown, a folder is taken, the model is missing or was trained with other settings, or
            the exported tokenizer does not give the encoder's tokens.
    """
    if unknown := [f for f in formats if f not in FORMATS]:
        raise DreamError(f"format {unknown[0]!r} is unknown", f"Choose both or one of {', '.join(FORMATS)}")
    folders = {f: Path(out) / f for f in formats}
    for folder in folders.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
            raise DreamError(f"{folder} is not empty", "Choose another --out, or replace it with --force")
    source = trained(config, system, seed) / ("" if pairs is None else f"snapshots/{pairs}")
    if not source.exists():
        raise DreamError(f"{source} is missing", "Choose one of training.snapshots, or leave out --pairs")
    rules = encoder_rules(config)
    for kind, folder in folders.items():
        with replacing_folder(folder) as temporary, quiet():
            (_write_peft if kind == "peft" else _write_sentence_transformers)(temporary, rules, source, strength)
            card = model_card(kind, config, rules, system, seed, name or str(folder), scores, cells, strength, pairs)
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return folders


def encoder_rules(config: Config) -> Rules:
    """The rules of the encoder that this configuration trains."""
    return models.rules(config.roles["encoder"], f"models.{config.size.encoder}")


def trained(config: Config, system: str, seed: int) -> Path:
    """Folder of a training run.

    Raises:
        DreamError: it is not there (the line names those that are, and how to make it), or was trained with other settings
            than the configuration has now.
    """
    folder, run = TRAINED / f"{system}-{seed}", f"train@{system}-{seed}"
    if system not in config.objectives:
        there = system in registered("objectives")
        raise DreamError(
            f"{system!r} is not among the objectives that are trained ({', '.join(config.objectives) or 'none'})",
            f"Add it to objectives in params.yaml, then run `dvc repro {run}`" if there else hint(system, config.objectives),
        )
    if not (folder / "adapter" / "adapter_model.safetensors").exists():
        here = sorted(p.parent.parent.name for p in TRAINED.glob("*/adapter/adapter_model.safetensors"))
        listed = seed in config.seeds
        first = (
            ""
            if listed
            else f"Choose one of the seeds {', '.join(map(str, config.seeds))}, or add {seed} to them in params.yaml. "
        )
        raise DreamError(
            f"{folder} is missing ({'there are ' + ', '.join(here) if here else 'no model is here'})",
            f"{first}Run `dvc repro {run}`, or `dvc pull {run}` where a remote has it",
        )
    settings = read_json(folder / "made_with.json")["settings"]
    manifest.agree(settings, stages.files(config)[f"train-{system}"], str(folder))
    return folder


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the model hub (created if new); return its address.

    Raises:
        DreamError: the hub cannot be reached, or does not let us write; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload from dream-bench")
        return f"{api.endpoint}/{repository}"
    except Exception as error:  # the HTTP library and its errors differ between releases of huggingface_hub
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DreamError(
            f"{repository} could not be pushed ({reason}); {folder} is complete",
            f"Where the hub can be reached: `hf auth login`, then `hf upload {repository} {folder}`",
        ) from None


# ------------------------------------------------------------------------------------------------------ folders


def _write_peft(folder: Path, rules: Rules, source: Path, strength: float) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(source / "adapter" / name, folder / name)
    if strength != 1:
        scaled = Encoder.load(rules, adapter=source / "adapter", device="cpu", strength=strength)
        scaled.save_adapter(folder / "scaled")
        os.replace(folder / "scaled" / "adapter_model.safetensors", folder / "adapter_model.safetensors")
        shutil.rmtree(folder / "scaled")
    encoder = Encoder.load(rules, device="cpu")
    if _carried(rules):
        encoder.backbone.save_pretrained(folder / "base")
        settings = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": "base", "revision": None})
    _write_tokenizer(folder, encoder, rules)
    _write_head(folder, rules)


def _write_sentence_transformers(folder: Path, rules: Rules, source: Path, strength: float) -> None:
    exact = dataclasses.replace(rules, dtype="float32")
    encoder = Encoder.load(exact, adapter=source / "adapter", device="cpu", strength=strength)
    merged = encoder.backbone.merge_and_unload().to(DTYPES[rules.dtype])
    merged.save_pretrained(folder)
    length = _write_tokenizer(folder, encoder, rules)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *_write_head(folder, rules)]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{module}"}
            for i, (module, path) in enumerate(modules)
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    modes = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    write_json(
        folder / "1_Pooling" / "config.json",
        {f"pooling_mode_{mode}": mode == POOLING[rules.pooling] for mode in modes}
        | {"word_embedding_dimension": merged.config.hidden_size, "include_prompt": rules.folder.include_prompt},
    )
    prompts = {"query": rules.query_prompt, "document": rules.document_prompt}
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {
                name.replace("-", "_"): importlib.metadata.version(name)
                for name in ("sentence-transformers", "transformers", "torch")
            },
            "prompts": rules.folder.prompts | prompts,
            "default_prompt_name": rules.folder.default_prompt,
            "similarity_fn_name": "cosine",
        },
    )


def _write_head(folder: Path, rules: Rules) -> list[tuple[str, str]]:
    """Copy the modules that the encoder's own folder puts behind pooling; kind and path of each, Normalize the last."""
    head = [(kind, f"{i}_{kind}", rules.folder.path / path) for i, (kind, path) in enumerate(rules.folder.head, start=2)]
    for kind, path, original in head:
        if kind == "Dense":
            shutil.copytree(original, folder / path)
    modules = [(kind, path) for kind, path, _ in head]
    last = [] if modules and modules[-1][0] == "Normalize" else [("Normalize", f"{len(modules) + 2}_Normalize")]
    return [*modules, *last]


def _carried(rules: Rules) -> bool:
    """Whether the encoder's weights travel with the adapter: they are no whole model of the hub."""
    return assets.kind(rules.model) != "hub" or rules.layers is not None


def _write_tokenizer(folder: Path, encoder: Encoder, rules: Rules) -> int:
    """Write a tokenizer that gives the encoder's tokens by itself; return its longest sequence in tokens."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours, length = encoder.tokenizer, rules.max_length
    if getattr(ours, "backend_tokenizer", None) is None:
        raise DreamError(f"the tokenizer of {rules.model} has no fast version", "Choose another encoder")
    backend = Tokenizer.from_str(ours.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    eos = ours.eos_token
    if encoder.append_eos and backend.encode("").ids[-1:] == [ours.eos_token_id]:
        length -= 1  # the tokenizer adds the token itself, into the room that the encoder leaves for it
    elif encoder.append_eos:
        last = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A $B:1 {eos}:1", special_tokens=[(eos, ours.eos_token_id)]
        )
        first = [backend.post_processor] if backend.post_processor else []
        backend.post_processor = processors.Sequence([*first, last])
    tokens = {kind: getattr(ours, kind) for kind in ("bos_token", "eos_token", "unk_token") if getattr(ours, kind)}
    exported = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=ours.convert_ids_to_tokens(encoder._filler),
        padding_side="right",
        model_max_length=length,
        **tokens,
    )
    exported.save_pretrained(folder)
    texts = ["", "one", "Two words. " * length, "naïve – 東京\n\tdef f(x): return x"]
    expected = encoder.tokenize(texts, rules.max_length)
    found = AutoTokenizer.from_pretrained(folder)(texts, truncation=True)["input_ids"]
    if [s or [encoder._filler] for s in found] != expected:
        raise DreamError(
            f"the exported tokenizer of {rules.model} gives other tokens than the encoder's",
            "Use the model through dream.encoder.Encoder, and report this tokenizer",
        )
    return length


# --------------------------------------------------------------------------------------------------- model card


def model_card(
    kind: str,
    config: Config,
    rules: Rules,
    system: str,
    seed: int,
    name: str,
    scores: Scores = NO_SCORES,
    cells: Path | str = CELLS,
    strength: float = 1.0,
    pairs: int | None = None,
) -> str:
    """The README.md of an exported folder: YAML front matter, use, training data, recipe, scores, licence, citation."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dream.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    reference, revision = split_revision(rules.model)
    data, folder, (table, reason, index) = _data(config, cells), TRAINED / f"{system}-{seed}", scores
    settings = read_json(folder / "made_with.json")["settings"] | {"objective": system, "seed": seed}
    recipe = {key: value for key, value in settings.items() if key != "code"}
    judge, needs = config.roles["judge"].model, objectives.find(system).needs
    front = front_matter(kind, config, rules, system) | ({"model-index": index} if index else {})
    return environment.get_template("model_card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        title=f"{system} on {Path(reference).name}, seed {seed}" + _partly(strength, pairs),
        kind=kind, name=name, system=system, description=objective_line(system), rules=rules, seed=seed,
        base=None if _carried(rules) else reference, revision=revision, encoder=_encoder_line(rules),
        head=[(kind, f"{i}_{kind}") for i, (kind, _) in enumerate(rules.folder.head, start=2)],
        data=data, synthetic=any(row["generated"] for row in data), generator=_generator(config),
        candidates=config.candidates.count, judge=judge if needs & {"judge", "teacher"} else None,
        state=read_json(folder / "state.json"),
        recipe=yaml.safe_dump(recipe, sort_keys=True, allow_unicode=True, width=100),
        scores=table, reason=reason, licence=licence(config), version=__version__, arxiv=ARXIV,
        llama="llama" in f"{rules.model} {judge}".lower(),
    )  # fmt: skip


def _partly(strength: float, pairs: int | None) -> str:
    """What of a run is exported, where it is not all of it."""
    return (f", after {pairs} pairs" if pairs is not None else "") + (f", at strength {strength:g}" if strength != 1 else "")


def front_matter(kind: str, config: Config, rules: Rules, system: str) -> dict[str, Any]:
    """The card's metadata, in the hub's terms."""
    reference = split_revision(rules.model)[0]
    base = ORIGINS.get(reference) or (reference if assets.kind(reference) == "hub" else None)
    peft = kind == "peft"
    found: dict[str, Any] = {"license": licence(config)}
    if found["license"] == "other":
        found["license_name"] = "as-the-base-model"
    found |= {
        "language": ["en"],
        "library_name": kind,
        "pipeline_tag": "feature-extraction" if peft else "sentence-similarity",
        "tags": ["dense-retrieval", "dream-bench", system, "feature-extraction", *([] if peft else [kind])],
    }
    if base:
        found |= {"base_model": base, "base_model_relation": "adapter" if peft else "finetune"}
    if "wikipedia" in config.data.sources:
        found["datasets"] = ["Tevatron/wikipedia-nq-corpus"]
    return found


def licence(config: Config) -> str:
    """The hub's name of the encoder's licence, as its record states it; ``other`` where that is none of :data:`LICENCES`."""
    named = config.roles["encoder"].licence.lower().replace(" ", "")
    return named if named in LICENCES else "other"


def objective_line(system: str) -> str:
    """First sentence of an objective's own description."""
    import inspect
    import sys

    text = inspect.getdoc(sys.modules[objectives.find(system).__module__]) or f"{system}."
    return re.sub(r" \([^)]*\)\.", ".", " ".join(text.split("\n\n")[0].split()))


def _generator(config: Config) -> str:
    """The model that wrote questions, where some were written."""
    return (config.questions.endpoint_model or "") if config.questions.endpoint else config.roles["generator"].model


def _data(config: Config, cells: Path | str) -> list[dict[str, Any]]:
    """A row per training source; counts where ``prepare`` ran with this configuration."""
    path, run = Path(cells) / "prepare.json", Path(cells) / "runs" / "prepare.json"
    same = path.exists() and run.exists() and read_json(run)[0]["config"] == stages.files(config)["prepare"]
    counts = {row["name"]: row["instances"] for row in read_json(path) if row["kind"] == "source"} if same else {}
    rows = []
    for name in sources.of(config):
        source = sources.get(name, config)
        rows.append(
            {
                "name": name, "description": source.description, "licence": source.licence,
                "instances": counts.get(name), "generated": source.needs_questions,
            }
        )  # fmt: skip
    return rows


def _encoder_line(rules: Rules) -> str:
    origin = ORIGINS.get(rules.model)
    text = f"{origin}, as packaged" if origin else rules.model
    if origin and MODELS_IN_WHEELS[rules.model.removeprefix(assets.PACKAGED)].converted:
        text += " (4-bit GGUF, dequantised)"
    return f"{text}, first {rules.layers} layers" if rules.layers else text
