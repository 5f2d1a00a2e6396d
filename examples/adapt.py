"""Adapt a model to a folder of .txt files without labels: python examples/adapt.py FOLDER (the pipeline tries more: docs/adapt.md)."""

import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from dream import config
from dream.assets import model_path
from dream.candidates.bm25 import BM25Index
from dream.data.questions import Writer
from dream.losses import InfoNCELoss
from dream.report.stats import paired


def found(model, questions, texts):  # the reciprocal rank of the passage that each question was written about
    scores = model.encode(questions) @ model.encode(texts).T
    return 1 / (scores >= np.diagonal(scores)[:, None]).sum(axis=1)


def adapt(folder, encoder="packaged/minilm", writer="packaged/smollm2-135m", out="exports/adapted", steps=36):
    settings = config.load(Path(__file__).parent.parent / "params.yaml")
    texts = [" ".join(file.read_text(encoding="utf-8").split()[:100]) for file in sorted(Path(folder).glob("*.txt"))]
    write = Writer(settings.roles["generator"].model_copy(update={"model": str(writer)}), settings.questions)
    asked, near = write(texts, "question"), BM25Index(texts, settings.bm25).search(texts, 8)[0]
    others = [[j for j in dict.fromkeys([*hits, *range(len(texts))]) if texts[j] != texts[i]] for i, hits in enumerate(near)]
    columns = ["query", "passage", "negative_1", "negative_2", "negative_3"]
    rows = [dict(zip(columns, [asked[i], texts[i], *(texts[j] for j in others[i])], strict=False)) for i in range(len(texts))]
    held, model = len(texts) // 3, SentenceTransformer(str(model_path(str(encoder))))  # no run trains on the first third
    before = found(model, asked[:held], texts)
    how = SentenceTransformerTrainingArguments(
        str(out), max_steps=steps, learning_rate=1e-5, save_strategy="no", report_to="none"
    )
    SentenceTransformerTrainer(model, how, Dataset.from_list(rows[held:]), loss=InfoNCELoss(model)).train()
    change = paired([found(model, asked[:held], texts)], [before])  # one seed: the pipeline takes three
    if change.low > 0:
        model.save_pretrained(str(out))
    return f"{'use it' if change.low > 0 else 'keep your model'}: MRR {change.value:+.3f} [{change.low:.3f}, {change.high:.3f}]"


if __name__ == "__main__":
    print(adapt(*sys.argv[1:]))
