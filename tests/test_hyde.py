"""``hyde``: a query's vector is the mean of its own and of those of written passages; what was written is kept."""

import numpy as np
import pytest
from test_evaluation_cells import evaluate, llama, load_system, part, project  # noqa: F401

from dream import cells, models
from dream.data.instruct import Instruct
from dream.data.tasks import load
from dream.encoder import Encoder
from dream.files import read_json
from dream.systems.hyde import Author, HyDEKnobs

KNOBS = {"passages": 3, "max_new_tokens": 6, "batch": 5}


@pytest.fixture
def here(project, tmp_path, monkeypatch):  # noqa: F811
    """The project of the evaluation tests with one model as encoder and judge; gives a function for its config."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    tiny = {"encoder": "mine", "judge": "mine", "recipe": "packaged"}
    return lambda **more: project(sizes__tiny=tiny, references=["hyde", "untrained"], hyde={**KNOBS, **more})


def author(config, **more):
    knobs = config.knobs["hyde"].model_copy(update=more)
    return Author(config.roles["judge"], knobs, "cpu")


def test_a_querys_vector_is_the_mean_of_its_own_and_of_its_passages(here, monkeypatch):
    """Each of unit length, passages with the prompt and length of documents; a passage without a visible character counts not."""
    config = here()
    written = {"the": ["one two", "three"], "cat": ["three", " \n"], "sat": ["", ""]}
    system, task = load_system("hyde"), load("tiny", config)
    task.queries.drop(task.queries.index[3:], inplace=True)
    task.queries["text"] = list(written)
    monkeypatch.setattr(system.author, "_write", lambda batch, seed: {"flops": 1.0, "passages": [written[q] for q in batch]})
    rules = models.rules(config.roles["encoder"], "models.mine")
    plain = Encoder.load(rules, device="cpu")
    encode = lambda texts, prompt: plain.encode(texts, prompt, max_length=rules.max_length)  # noqa: E731
    for row, (query, texts) in zip(system.queries(task), written.items(), strict=True):
        shown = [text for text in texts if text.strip()]
        parts = [*encode([query], rules.query_prompt), *(encode(shown, rules.document_prompt) if shown else [])]
        mean = np.mean(parts, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_passages_are_drawn_and_the_same_every_time(here, tmp_path):
    config, asked = here(), ["the cat sat on a mat", "dogs", "dogs", "a bird"]
    first = author(config).passages(asked)
    assert [len(found) for found in first] == [3] * 4 and first[1] == first[2] and len(set(first[0])) > 1
    (kept,) = tmp_path.glob(".dream/hyde-*/journal.jsonl")
    content = kept.read_bytes()
    kept.unlink()
    assert author(config).passages(list(reversed(asked))) == first[::-1] and kept.read_bytes() == content
    for changed in ({"seed": 1}, {"temperature": 1.5}, {"max_new_tokens": 2}, {"prompt": "About {query}:"}):
        assert author(config, **changed).passages(asked) != first, changed
    assert len(list(tmp_path.glob(".dream/hyde-*"))) == 5


def test_what_was_written_is_asked_for_once_and_counted_always(here, monkeypatch):
    """Stopped after the first batch, it goes on with the second; the operations are those of all passages."""
    config, asked = here(batch=2), ["a", "bb", "ccc", "dddd"]
    whole = author(config, seed=9)
    expected, real, calls = whole.passages(asked), Instruct.write, []

    def write(model, said, *more):
        calls.append(said)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, said, *more)

    monkeypatch.setattr(Instruct, "write", write)
    stopped = author(config)
    with pytest.raises(KeyboardInterrupt):
        stopped.passages(asked)
    again = author(config)
    found = again.passages(asked)
    assert len(calls) == 3 and calls[1] == calls[2] != calls[0] and calls[0][0] == [config.knobs["hyde"].prompt.format(query="a")]
    monkeypatch.setattr(Instruct, "write", None)
    after = author(config)
    assert after.passages(asked) == found != expected and after.flops == again.flops
    weights = sum(p.numel() for p in whole.model.model.parameters())
    assert whole.flops == 2 * weights * whole.model.tokens


def test_the_judge_answers_in_order_with_its_tokens_counted(here):
    config = here()
    model = Instruct(config.roles["judge"], "cpu")
    greedy = model.write([["the cat"], ["a much longer request than the first"]], 4, several=2)
    assert [len(found) for found in greedy] == [2, 2] and greedy[0][0] == greedy[0][1] != greedy[1][0]
    alone = Instruct(config.roles["judge"], "cpu")
    assert alone.write([["the cat"]], 4)[0][0] == greedy[0][0], "padding changes nothing"
    ids = alone.tokenizer(["the cat"], add_special_tokens=False)["input_ids"]
    assert len(ids[0]) + 1 < alone.tokens <= len(ids[0]) + len(alone.tokenizer.tokenize(alone.tokenizer.bos_token or "")) + 4
    drawn = model.write([["the cat"], ["dogs"]], 6, several=3, temperature=1.0, seed=4)
    assert [len(found) for found in drawn] == [3, 3] and len(set(drawn[0])) > 1
    assert drawn == model.write([["the cat"], ["dogs"]], 6, several=3, temperature=1.0, seed=4)


def test_the_cell_says_who_wrote_and_costs_more_than_the_encoder_alone(here):
    here()
    table, (record,) = evaluate("hyde")
    assert record["settings"]["passages"] == HyDEKnobs(**KNOBS).model_dump(mode="json") and len(table) == 12
    assert record["settings"]["author"][0] == record["settings"]["model"] and 0 <= record["alignment"] <= 4
    evaluate("untrained")
    runs = {name: read_json(cells.CELLS.parent / f"runs/evaluate-{name}-tiny.json")[0] for name in ("hyde", "untrained")}
    assert runs["hyde"]["flops"] > runs["untrained"]["flops"]
    first = (cells.CELLS / "hyde-tiny.csv").read_bytes()
    evaluate("hyde")
    assert (cells.CELLS / "hyde-tiny.csv").read_bytes() == first
    (again,) = read_json(cells.CELLS.parent / "runs/evaluate-hyde-tiny.json")
    assert again["flops"] == runs["hyde"]["flops"], "a cached passage costs what it cost"
    assert set(part("hyde").roles) == {"encoder", "judge"}
