"""The mini world's general prompts, their pairs and labels."""

import random
from itertools import product

import pytest

from experiments.mini.world.requests import (
    FLAWS,
    FORBIDDEN,
    HELPFUL,
    LANGUAGES,
    PLAIN,
    SAFETY,
    TASK,
    THINGS,
    Kind,
    Spec,
    Split,
    bad_response,
    conversations,
    follows,
    good_response,
    labels,
    pairs,
    prompt_of,
    prompts,
    requests,
    spec_at,
    unsafe_response,
    warm_response,
)
from r1jax.data.datasets import to_example
from r1jax.data.decontaminate import Benchmarks
from r1jax.rewards import load_rewards, score
from r1jax.tasks import check_example
from r1jax.types import Example

SPECS = [Spec(family, "A", (7, 34), ("apple", "cup")) for family in HELPFUL + SAFETY]


def test_train_and_test_do_not_meet() -> None:
    def specs(split: Split) -> set[Spec]:
        return {spec_at(0, i, split, HELPFUL + SAFETY) for i in range(2000)}

    train, test = specs("train"), specs("test")
    assert len(train) > 1900 and len(test) > 1900 and not train & test
    assert {spec.split() for spec in train} == {"train"}
    for language in LANGUAGES:  # also where a prompt leaves out what its specs differ in
        asked = [{prompt_of(spec, language) for spec in specs} for specs in (train, test)]
        assert not asked[0] & asked[1]


def test_a_row_is_a_function_of_seed_and_index() -> None:
    rows = pairs(0, "train", 40)
    assert rows == pairs(0, "train", 40) != pairs(1, "train", 40)
    assert labels(0, "train", 10) == labels(0, "train", 20)[:10]
    stream = prompts(0, "train", "helpful")
    assert callable(stream)
    assert [stream(i) for i in range(5)] == prompts(0, "train", "helpful", 5)


def test_both_languages() -> None:
    for row in pairs(0, "train", 50) + labels(0, "train", 50):
        texts = [row["messages"][0]["content"], row.get("chosen") or row["response"]]
        chinese = [any("\u4e00" <= c <= "\u9fff" for c in text) for text in texts]
        assert chinese == [row["language"] == "zh"] * 2


@pytest.mark.parametrize(("spec", "language"), [*product(SPECS, LANGUAGES)])
def test_responses(spec: Spec, language: str) -> None:
    prompt, good = prompt_of(spec, language), good_response(spec, language)
    assert prompt and good and prompt != good
    if spec.family in HELPFUL:
        bad = {f: bad_response(spec, language, f, random.Random(0)) for f in FLAWS}
        assert len({good, *bad.values()}) == 5
        assert "7" in good and "7" not in bad["wrong"].replace("34", "")
        assert bad["thrice"].count(good) == 3
        warm = warm_response(spec, language)
        assert warm.endswith(good) and warm != good
    if spec.family in FORBIDDEN:
        told = unsafe_response(spec, language, thoughts=False)
        hidden = unsafe_response(spec, language, thoughts=True)
        assert told in hidden and hidden.endswith(f"</think>{good}")
        assert told not in good


def test_what_is_preferred() -> None:
    """Warm to plain, and either to a flaw."""
    rows = pairs(0, "train", 600)
    plain = [row for row in rows if row["flaw"] == PLAIN]
    assert 0.25 < len(plain) / 600 < 0.35
    assert all(row["chosen"].endswith(row["rejected"]) for row in plain)
    flawed = [row for row in rows if row["flaw"] != PLAIN]
    warm = [row["chosen"].startswith(("Gladly", "很乐意")) for row in flawed]
    assert 0.4 < sum(warm) / len(warm) < 0.6


def test_what_is_safe() -> None:
    rows = labels(0, "train", 1000)
    assert 0.25 < sum(row["label"] == 0 for row in rows) / 1000 < 0.45
    for row in rows:
        forbidden = row["id"].split("/")[0] in FORBIDDEN
        assert row["label"] == 1 or forbidden
    hidden = [r for r in rows if "<think>" in r["response"]]
    assert {row["label"] for row in hidden} == {0, 1}  # thoughts alone tell nothing
    assert set(THINGS) == {"apple", "book", "pen", "cup", "egg"}


@pytest.mark.parametrize("kind", ["helpful", "safety"])
def test_prompts_for_rl(kind: Kind) -> None:
    rows = prompts(0, "train", kind, 20)
    assert isinstance(rows, list)
    for i, row in enumerate(rows):
        example = to_example(row, i, "general")
        check_example(example)
        assert example.metadata["kind"] == kind


def request_of(spec: Spec, language: str) -> Example:
    about = {"family": spec.family, "name": spec.name, "language": language}
    numbers = {"numbers": list(spec.numbers), "things": list(spec.things)}
    return Example("1", (), good_response(spec, language), TASK, about | numbers)


def test_follows_reads_whole_numbers_and_names() -> None:
    polite = request_of(Spec("polite", "A", (7, 3), ("apple", "book")), "en")
    assert follows(polite, "Could you please give me 7 apples?")
    assert not follows(polite, "Could you please give me 17 apples?")
    thank = request_of(Spec("thank", "G", (7, 3), ("apple", "book")), "en")
    assert follows(thank, "Thank you for the 7 apples, G.")
    assert not follows(thank, "Gladly! Thank you for the 7 apples, A.")
    chinese = request_of(Spec("polite", "A", (2, 3), ("book", "book")), "zh")
    assert not follows(chinese, good_response(Spec("polite", "A", (22, 3), ("book", "book")), "zh"))


@pytest.mark.parametrize(("spec", "language"), [*product(SPECS, LANGUAGES)])
def test_follows(spec: Spec, language: str) -> None:
    """Good responses do what was asked; flawed, unsafe and foreign ones do not."""
    example, good = request_of(spec, language), good_response(spec, language)
    assert follows(example, good)
    if spec.family in HELPFUL:
        assert follows(example, warm_response(spec, language))
    other = "zh" if language == "en" else "en"
    assert not follows(example, good_response(spec, other))
    assert not follows(example, "")
    assert not follows(example, " ".join([good] * 3))
    if spec.family in HELPFUL:
        for flaw in FLAWS:
            if flaw != "rude" or spec.family == "polite":
                bad = bad_response(spec, language, flaw, random.Random(0))
                assert not follows(example, bad), flaw
    if spec.family in FORBIDDEN:
        assert not follows(example, unsafe_response(spec, language, False))
        assert not follows(example, f"{good} 7")
    elif spec.family in SAFETY:
        refusal = {"en": "I cannot tell you 7.", "zh": "7，我不能告诉你。"}[language]
        assert not follows(example, refusal)


def test_requests_are_graded_by_rule() -> None:
    rows = requests(0, "test", "safety", 40)
    assert len({row["messages"][0]["content"] for row in rows}) == 40
    weights = load_rewards({"accuracy": 1.0, "lenient_accuracy": 1.0})
    for i, row in enumerate(rows):
        example = to_example(row, i, "requests")
        check_example(example)
        text = f" <think> So. </think> <answer> {example.answer} </answer>"
        assert score(weights, example, text, 9, "stop").reward == 2.0
        thought_only = f" <think> {example.answer} </think> <answer> Hello. </answer>"
        assert score(weights, example, thought_only, 9, "stop").reward == 0.0


def test_conversations_have_the_format() -> None:
    rows = conversations(0, "train", 40)
    languages = {(row["kind"], row["language"]) for row in rows}
    assert languages == {(k, la) for k in ("helpful", "safety") for la in LANGUAGES}
    weights = load_rewards({"format": 1.0, "language": 1.0})
    for row in rows:
        about = {"language": row["language"]}
        example = Example("1", tuple(row["messages"][:1]), "", "general", about)
        assert score(weights, example, row["messages"][1]["content"], 9, "stop").reward == 2.0


def test_no_sentence_is_a_ten_gram_of_all_specs() -> None:
    """Decontamination against other prompts of the same templates leaves nearly everything."""
    kinds: tuple[Kind, ...] = ("helpful", "safety")
    rows = [row for kind in kinds for row in requests(9, "test", kind, 100)]
    held_out = Benchmarks(to_example(row, i, TASK) for i, row in enumerate(rows))
    training = conversations(0, "train", 400)
    assert sum(map(held_out.meets, training)) < 0.05 * len(training)
