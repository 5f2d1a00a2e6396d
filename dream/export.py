"""Trained systems to take away: a PEFT adapter and a sentence-transformers folder, each with its model card.

``peft/`` loads with the lines of the released DREAM model cards: AutoTokenizer, AutoModel, PeftModel, pooling, L2.
Where the encoder is a hub model used whole, the lines name it; a packaged, local or shortened encoder travels along
in ``base/``. ``sentence-transformers/`` holds the merged weights: Transformer, Pooling, Normalize, no other code.

Both carry a tokenizer that does by itself what :class:`dream.encoder.Encoder` does: special tokens, the end-of-text
token of ``encoder.append_eos`` (a post-processor, so that truncation keeps it), right padding,
``evaluate.max_length``. Two texts differ: one that itself ends in the end-of-text token gets a second one, and an
empty text has no token at all where the tokenizer adds none and ``append_eos`` is off (the evaluation takes one
end-of-text token there).

The adapter is merged in float32 and stored in ``evaluate.dtype``, the precision in which the scores were measured.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from dream import __version__, assets, manifest, models, objectives
from dream.assets.registry import MODELS as MODELS_IN_WHEELS
from dream.config import Config, stages
from dream.data import sources
from dream.encoder import DTYPES, ORIGINS, Encoder, quiet, split_revision
from dream.errors import DreamError
from dream.files import read_json, replacing_folder, write_json
from dream.models.folders import POOLING
from dream.report.results import cells as reading
from dream.systems.encoder import TRAINED as MODELS

FORMATS = ("peft", "sentence-transformers")
ARXIV = "2606.24667"
# The licences of the paper's encoders, as the hub names them.
LICENCES = {
    "packaged/smollm2-135m": "apache-2.0",
    "Qwen/Qwen2.5-0.5B": "apache-2.0",
    "meta-llama/Llama-3.2-1B": "llama3.2",
    "meta-llama/Llama-3.2-3B": "llama3.2",
    "meta-llama/Llama-3.1-8B": "llama3.1",
}


def export(
    config: Config,
    system: str,
    seed: int,
    out: Path | str,
    formats: tuple[str, ...] = FORMATS,
    force: bool = False,
    name: str | None = None,
    cells: Path | str = reading.CELLS,
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
        cells: the folder of results, for the card's scores.

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
    source = trained(system, seed)
    manifest.check(f"train-{system}-{seed}", source)
    manifest.agree(read_json(source / "made_with.json")["settings"], stages.files(config)[f"train-{system}"], str(source))
    made_with = read_json(source / "made_with.json")
    for kind, folder in folders.items():
        with replacing_folder(folder) as temporary, quiet():
            (_write_peft if kind == "peft" else _write_sentence_transformers)(temporary, config, source)
            card = model_card(kind, config, system, seed, made_with, name or str(folder), cells)
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return folders


def trained(system: str, seed: int) -> Path:
    """Folder of a training run.

    Raises:
        DreamError: it is not there; the line names those that are.
    """
    folder = MODELS / f"{system}-{seed}"
    if not (folder / "adapter" / "adapter_model.safetensors").exists():
        here = sorted(p.parent.parent.name for p in MODELS.glob("*/adapter/adapter_model.safetensors"))
        raise DreamError(
            f"{folder} is missing ({'there are ' + ', '.join(here) if here else 'no model is here'})",
            f"Run `dvc repro train@{system}-{seed}`, or `dvc pull train@{system}-{seed}` where a remote has it",
        )
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


def _load(config: Config, adapter: Path | None, dtype: str) -> Encoder:
    return Encoder.load(dataclasses.replace(_rules(config), dtype=dtype), adapter=adapter, device="cpu")


def _rules(config: Config) -> models.Rules:
    return models.rules(config.roles["encoder"], "models.encoder")


def _write_peft(folder: Path, config: Config, source: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(source / "adapter" / name, folder / name)
    encoder = _load(config, None, config.roles["encoder"].dtype)
    if _carried(config):
        encoder.backbone.save_pretrained(folder / "base")
        settings = read_json(folder / "adapter_config.json")
        write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": "base", "revision": None})
    _write_tokenizer(folder, encoder, config)


def _write_sentence_transformers(folder: Path, config: Config, source: Path) -> None:
    encoder = _load(config, source / "adapter", "float32")
    merged = encoder.backbone.merge_and_unload().to(DTYPES[config.roles["encoder"].dtype])
    merged.save_pretrained(folder)
    length = _write_tokenizer(folder, encoder, config)
    rules, kinds = _rules(config), ["Transformer", "Pooling"]
    for module in list[Any](encoder.head or ()):
        kinds.append(type(module).__name__)
        place = folder / f"{len(kinds) - 1}_{kinds[-1]}"
        place.mkdir()
        module.save(str(place))
    kinds += ["Normalize"] if kinds[-1] != "Normalize" else []
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": rules.folder.lower_case})
    modes = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    write_json(
        folder / "1_Pooling" / "config.json",
        {f"pooling_mode_{mode}": mode == POOLING[rules.pooling] for mode in modes}
        | {"word_embedding_dimension": encoder.backbone.config.hidden_size, "include_prompt": True},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {
                name.replace("-", "_"): importlib.metadata.version(name)
                for name in ("sentence-transformers", "transformers", "torch")
            },
            "prompts": {"query": rules.query_prompt, "document": rules.document_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _carried(config: Config) -> bool:
    """Whether the encoder's weights travel with the adapter: they are no whole model of the hub."""
    record = config.roles["encoder"]
    return assets.kind(record.model) != "hub" or record.layers is not None


def _write_tokenizer(folder: Path, encoder: Encoder, config: Config) -> int:
    """Write a tokenizer that gives the encoder's tokens by itself; return its longest sequence in tokens."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours, length = encoder.tokenizer, _rules(config).max_length
    if getattr(ours, "backend_tokenizer", None) is None:
        raise DreamError(f"the tokenizer of {config.roles['encoder'].model} has no fast version", "Choose another encoder")
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
    expected = encoder.tokenize(texts, _rules(config).max_length)
    found = AutoTokenizer.from_pretrained(folder)(texts, truncation=True)["input_ids"]
    if [s or [encoder._filler] for s in found] != expected:
        raise DreamError(
            f"the exported tokenizer of {config.roles['encoder'].model} gives other tokens than the encoder's",
            "Use the model through dream.encoder.Encoder, and report this tokenizer",
        )
    return length


# --------------------------------------------------------------------------------------------------- model card


def model_card(
    kind: str, config: Config, system: str, seed: int, made_with: dict[str, Any], name: str, cells: Path | str = reading.CELLS
) -> str:
    """The README.md of an exported folder: YAML front matter, use, training data, recipe, scores, licence, citation."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dream.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    encoder, judge = config.roles["encoder"], config.roles["judge"]
    reference, revision = split_revision(encoder.model)
    data = _data(config, cells)
    table, reason = scores(config, system, seed, cells)
    recipe = {**made_with["settings"], "objective": system, "seed": seed}
    return environment.get_template("model_card.md.j2").render(
        front=yaml.safe_dump(front_matter(kind, config, system), sort_keys=False, allow_unicode=True),
        title=f"{system} on {Path(reference).name}, seed {seed}",
        kind=kind, name=name, system=system, description=objective_line(system), config=config, seed=seed,
        base=None if _carried(config) else reference, revision=revision, encoder=_encoder_line(config),
        data=data, synthetic=any(row["generated"] for row in data), generator=config.roles["generator"].model,
        judged=bool(objectives.find(system).needs), rules=_rules(config), judge=judge.model,
        state=read_json(MODELS / f"{system}-{seed}" / "state.json"),
        recipe=yaml.safe_dump(recipe, sort_keys=True, allow_unicode=True, width=100),
        scores=table, reason=reason, licence=licence(config), version=__version__, arxiv=ARXIV,
        llama="llama" in f"{encoder.model} {judge.model}".lower(),
    )  # fmt: skip


def front_matter(kind: str, config: Config, system: str) -> dict[str, Any]:
    """The card's metadata, in the hub's terms."""
    reference = split_revision(config.roles["encoder"].model)[0]
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
    """The hub's name of the base model's licence; ``other`` where it is not known here."""
    return LICENCES.get(split_revision(config.roles["encoder"].model)[0], "other")


def objective_line(system: str) -> str:
    """First sentence of an objective's own description."""
    import inspect
    import sys

    text = inspect.getdoc(sys.modules[objectives.find(system).__module__]) or f"{system}."
    return re.sub(r" \([^)]*\)\.", ".", " ".join(text.split("\n\n")[0].split()))


def scores(config: Config, system: str, seed: int, cells: Path | str = reading.CELLS) -> tuple[str | None, str]:
    """The report's main table for this training run alone, beside the references, as Markdown.

    Returns:
        The table, or None with the reason: no scores are here, or they belong to another configuration or model.
    """
    from dream.report.tables import registry, render

    alone = config.model_copy(update={"objectives": [system], "seeds": [seed]})
    try:
        results = reading.load(alone, cells)
        _check_model(results.runs, system, seed)
    except DreamError as error:
        return None, error.what
    lines = render.markdown(registry.main(results)).splitlines()
    return "\n".join(lines[2:]), ""


def _check_model(runs: dict[str, dict[str, Any]], system: str, seed: int) -> None:
    """The evaluated model is the one that is exported, byte by byte."""
    folder = MODELS / f"{system}-{seed}"
    here = manifest.content_hash(folder)
    for name, record in runs.items():
        if (record.get("inputs") or {}).get(str(folder), here) != here:
            raise DreamError(f"{name} evaluated another {folder}", "Run `dvc repro`")


def _data(config: Config, cells: Path | str) -> list[dict[str, Any]]:
    """A row per training source; counts where ``prepare`` ran with this configuration."""
    path, counts = Path(cells) / "prepare.json", {}
    run = Path(cells) / "runs" / "prepare.json"
    if path.exists() and run.exists() and read_json(run)[0]["config"] == stages.files(config)["prepare"]:
        counts = {row["name"]: row["instances"] for row in read_json(path) if row["kind"] == "source"}
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


def _encoder_line(config: Config) -> str:
    record = config.roles["encoder"]
    origin = ORIGINS.get(record.model)
    text = f"{origin}, as packaged" if origin else record.model
    if origin and MODELS_IN_WHEELS[record.model.removeprefix(assets.PACKAGED)].converted:
        text += " (4-bit GGUF, dequantised)"
    return f"{text}, first {record.layers} layers" if record.layers else text
