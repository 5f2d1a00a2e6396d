"""Adapt a model to a folder of .txt files without labels: python examples/adapt.py FOLDER (docs/adapt.md tries more)."""

import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from dream import config
from dream.assets import model_path
from dream.candidates.bm25 import BM25Index
from dream.data.questions import Writer
from dream.losses import InfoNCELoss, TextCollator
from dream.report.stats import paired


def found(model, questions, texts):  # the reciprocal rank of the passage that each question was written about
    scores = model.encode(questions) @ model.encode(texts).T
    return 1 / (scores >= np.diagonal(scores)[:, None]).sum(axis=1)


def adapt(folder, encoder="packaged/minilm", writer="packaged/smollm2-135m", out="exports/adapted", steps=36):
    whole = config.load(Path(__file__).parent.parent / "params.yaml")
    texts = [" ".join(file.read_text(encoding="utf-8").split()[:100]) for file in sorted(Path(folder).glob("*.txt"))]
    ask = Writer(whole.roles["generator"].model_copy(update={"model": str(writer)}), whole.questions)
    asked, near = ask(texts, "question"), BM25Index(texts, whole.bm25).search(texts, 8)[0]
    others = [[texts[j] for j in (*hits, *range(len(texts))) if texts[j] != own] for own, hits in zip(texts, near, strict=True)]
    rows = [{"query": q, "passage": p, "negative": o[0]} for q, p, o in zip(asked, texts, others, strict=True)]
    held, model = len(texts) // 3, SentenceTransformer(str(model_path(str(encoder))))  # no run trains on the first third
    before, text = found(model, asked[:held], texts), TextCollator(model.preprocess)
    how = SentenceTransformerTrainingArguments(out, max_steps=steps, learning_rate=1e-5, save_strategy="no", report_to="none")
    SentenceTransformerTrainer(model, how, Dataset.from_list(rows[held:]), loss=InfoNCELoss(model), data_collator=text).train()
    change = paired([found(model, asked[:held], texts)], [before])  # one seed: the pipeline takes three
    model.save_pretrained(out)
    return f"{'use it' if change.low > 0 else 'keep your model'}: MRR {change.value:+.3f} [{change.low:.3f}, {change.high:.3f}]"


if __name__ == "__main__":
    print(adapt(*sys.argv[1:]))
