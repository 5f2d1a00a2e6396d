"""Train a sentence-transformers model with DREAM's loss: a frozen language model tells which passage helps it.

    pip install -e . && python examples/sentence_transformers_loss.py    # packaged models, a minute on a laptop's processor

Judges are Llama, Qwen2, Qwen3 and Mistral models; any SentenceTransformer can be trained.
"""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from dream.assets import model_path
from dream.judge import Judge
from dream.judge.heads import detect, ranked
from dream.losses import DreamLoss, TextCollator, candidate_set

BEES = {  # passages of one article, as in the paper: hard to tell apart
    "How many eyes has a honey bee?": "A honey bee has two large compound eyes and three small simple ones on its head.",
    "What is honey made from?": "Honey is nectar that worker bees have thickened: in the hive its water evaporates.",
    "How do bees tell where flowers are?": "With a waggle dance a forager shows direction and distance to other bees.",
    "Who lays the eggs in a hive?": "A colony has one queen, which lays all its eggs, more than a thousand a day in summer.",
    "What do drones do?": "Drones are male bees: they do no work in the hive and live to mate with a young queen.",
    "Why do bees swarm?": "When a colony grows too large for its hive, the old queen leaves with half of the bees.",
    "How do bees survive winter?": "In the cold months bees cluster around the queen, shiver to keep warm and eat their stores.",
    "What do bees build with?": "From wax, which glands on its abdomen give, a worker makes cells for brood and honey.",
}
TEXTS = list(BEES.values())
ROWS = [  # one positive and three negatives for every question
    {"anchor": question, "positive": TEXTS[i], **{f"negative_{j}": TEXTS[(i + j) % len(TEXTS)] for j in (1, 2, 3)}}
    for i, question in enumerate(BEES)
]


def train(encoder="packaged/minilm", reader="packaged/smollm2-135m", out="exports/sentence-transformers", steps=4):
    model, judge = SentenceTransformer(str(model_path(encoder))), Judge.load(reader)
    heads = ranked(detect(judge, [candidate_set(*row.values()) for row in ROWS[:4]]).mean)[:16]  # those that find the answer
    loss = DreamLoss(model, judge, heads, rows="all")
    settings = SentenceTransformerTrainingArguments(
        out, max_steps=steps, per_device_train_batch_size=2, learning_rate=2e-5, learning_rate_mapping={"log_tau|gamma": 0.05},
        logging_steps=1, save_strategy="no", report_to="none",
    )  # fmt: skip
    collator = TextCollator(model.preprocess, prompts=settings.prompts)  # the judge reads texts
    SentenceTransformerTrainer(model, settings, Dataset.from_list(ROWS[4:]), loss=loss, data_collator=collator).train()
    model.save_pretrained(out)
    return loss


if __name__ == "__main__":
    print("tau and gate after training:", train(*sys.argv[1:]).objective.state())
