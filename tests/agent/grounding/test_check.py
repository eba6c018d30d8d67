"""Sentences that the observations support pass the check; changed and invented ones do not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.encoders.encoder import Encoder, HashEncoder
from agent.grounding.check import FITTED, check_answer, check_sentences, collect_evidence, no_answer_reply
from agent.records.run import Evidence, Step, ToolCall, step_from_dict, step_to_dict
from tools.context import Passage

RETURNS = Evidence("Unworn boots can be returned within 30 days of delivery.", 1, "returns.md", "Returns > Boots")
PARCELS = Evidence("Parcels to Norway leave Bergen every Tuesday.", 2, "parcels.md", "Parcels")
REPAIRS = Evidence("Members do not pay for repairs of stoves, and the workshop answers within 5 days.", 3, "care.md")
ORDER = Evidence("Order A-17 holds two lamps.")
TENTS = Evidence("会员租用帐篷可享受八折优惠。", 4, "租赁.md", "帐篷")
DEPOSIT = Evidence("押金为200元\uff0c归还后三天内退回。", 4, "租赁.md", "帐篷")
SHOWN = (RETURNS, PARCELS, REPAIRS, ORDER, TENTS, DEPOSIT)
WORDS = HashEncoder()


def supported(answer: str) -> list[bool]:
    return [one.supported for one in check_sentences(answer, SHOWN, WORDS).sentences]


@pytest.mark.parametrize("one", SHOWN, ids=lambda one: one.text[:12])
def test_a_sentence_of_the_evidence_is_supported_by_itself(one: Evidence) -> None:
    (found,) = check_sentences(f" {one.text} ", SHOWN, WORDS).sentences
    assert (found.supported, found.score, found.evidence) == (True, 1.0, (one,))


@pytest.mark.parametrize(
    ("answer", "by"),
    [
        ("You can return unworn boots within 30 days of delivery.", RETURNS),
        ("Parcels leave Bergen on every Tuesday.", PARCELS),
        ("Order A-17 holds 2 lamps.", ORDER),
        ("会员租用帐篷\uff0c可享受八折优惠。", TENTS),
        ("押金为200元。", DEPOSIT),
    ],
)
def test_a_paraphrase_is_supported(answer: str, by: Evidence) -> None:
    (found,) = check_sentences(answer, SHOWN, WORDS).sentences
    assert found.supported
    assert found.evidence == (by,)
    assert FITTED.rule(answer).threshold <= found.score < 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "Unworn boots can be returned within 60 days of delivery.",
        "Unworn boots can be returned within sixty days of delivery.",
        "Unworn boots cannot be returned within 30 days of delivery.",
        "Unworn boots can be returned within 5 days of delivery.",
        "Parcels to Norway leave Bergen every Friday.",
        "Parcels to Sweden leave Malmo every Tuesday.",
        "Order A-18 holds two lamps.",
        "Order A-17 holds three lamps.",
        "The shop is closed on public holidays.",
        "会员租用帐篷可享受七折优惠。",
        "押金为300元\uff0c归还后三天内退回。",
        "押金为200元\uff0c归还后五天内退回。",
        "会员租用帐篷不可享受八折优惠。",
        "本店周末不营业。",
        "Yes.",
    ],
)
def test_a_changed_or_invented_sentence_is_not_supported(answer: str) -> None:
    (found,) = check_sentences(answer, SHOWN, WORDS).sentences
    assert not found.supported
    assert found.evidence == ()


def test_two_sentences_support_one_with_a_clause_of_each() -> None:
    one = Evidence("Lamps are repaired in the workshop.", 1)
    two = Evidence("Lost poles are replaced for 9 euros.", 2)
    (found,) = check_sentences(
        "Lamps are repaired in the workshop, and lost poles are replaced for 9 euros.", (one, two), WORDS
    ).sentences
    assert (found.supported, found.evidence) == (True, (one, two))
    swapped = "Lamps are repaired for 9 euros, and lost poles are replaced in the workshop."
    assert check_sentences(swapped, (one, two), WORDS).unsupported == (swapped,)


def test_without_evidence_no_sentence_is_supported() -> None:
    assert check_sentences("Boots are fine.", (), WORDS).unsupported == ("Boots are fine.",)
    assert check_sentences("", SHOWN, WORDS).sentences == ()


nouns = st.sampled_from(["boots", "tents", "lamps", "stoves", "ropes", "maps"])
numbers = st.integers(2, 5000)
facts = st.lists(st.tuples(nouns, numbers), min_size=1, max_size=5, unique_by=lambda one: one[0])


def said(noun: str, number: int, chinese: bool) -> str:
    return f"商品{noun}的价格是{number}元。" if chinese else f"The price of {noun} in the shop is {number} euros."


@given(facts, st.booleans())
def test_a_copy_is_always_supported_and_one_with_a_changed_number_never(
    known: list[tuple[str, int]], chinese: bool
) -> None:
    shown = tuple(Evidence(said(noun, number, chinese), 1) for noun, number in known)
    taken = {number for _, number in known}
    for noun, number in known:
        assert check_sentences(said(noun, number, chinese), shown, WORDS).unsupported == ()
        other = next(one for one in range(number + 1, 10_000) if one not in taken)
        wrong = said(noun, other, chinese)
        assert check_sentences(wrong, shown, WORDS).unsupported == (wrong,)
        assert check_sentences(f"{said(noun, number, chinese)} {wrong}", shown, WORDS).unsupported == (wrong,)


STEPS = (
    Step(
        ToolCall("search_knowledge", {}),
        "[1] returns.md > Boots\n...",
        passages=(Passage(1, "a", "returns.md", "Boots", "Boots come back in 30 days.\n\n- Socks never do"),),
    ),
    Step(ToolCall("get_order", {}), "Order A-17 holds boots."),
    Step(ToolCall("cancel", {}), error="Order A-17 has shipped."),
    Step(None, said="{", error="not JSON"),
)


def test_evidence_is_the_sentences_of_passages_and_observations() -> None:
    assert collect_evidence(STEPS) == (
        Evidence("Boots come back in 30 days.", 1, "returns.md", "Boots"),
        Evidence("Socks never do", 1, "returns.md", "Boots"),
        Evidence("Order A-17 holds boots."),
        Evidence("Order A-17 has shipped."),
    )


def no_encoder() -> Encoder:
    raise AssertionError("nothing is to be embedded")


def test_quotes_are_returned_unchanged_and_need_no_encoder() -> None:
    answer = "Socks never do Order A-17 has shipped."
    made = check_answer("Socks?", answer, STEPS, no_encoder, "withhold")
    assert made.reply == answer
    assert [one.text for one in made.sentences] == ["Socks never do", "Order A-17 has shipped."]
    assert made.withheld == ()


def test_chinese_needs_no_encoder() -> None:
    assert check_sentences("押金为200元。本店周末不营业。", SHOWN, no_encoder).unsupported == ("本店周末不营业。",)


def test_unsupported_sentences_are_withheld_or_marked() -> None:
    answer = "Boots come back in 30 days. Hats come back in 90 days."
    held = check_answer("Boots?", answer, STEPS, lambda: WORDS, "withhold")
    assert held.reply == "Boots come back in 30 days."
    assert held.withheld == ("Hats come back in 90 days.",)
    marked = check_answer("Boots?", answer, STEPS, lambda: WORDS, "mark")
    assert marked.reply == f"{answer} [not in the documents]"
    assert marked.withheld == ()


@pytest.mark.parametrize(
    ("question", "reply"),
    [
        ("May I bring my dog?", "The documents do not say. Shall I hand this over to a person?"),
        ("可以带狗吗\uff1f", "文档中没有相关说明。需要为您转接人工吗\uff1f"),
    ],
)
def test_if_every_sentence_is_withheld_the_reply_offers_to_escalate(question: str, reply: str) -> None:
    assert check_answer(question, "Yes, dogs love it.", STEPS, lambda: WORDS, "withhold").reply == reply
    assert no_answer_reply(question) == reply


def test_a_checked_answer_survives_a_round_trip_through_json() -> None:
    made = check_answer("?", "Boots come back in 30 days. Hats too.", STEPS, lambda: WORDS, "withhold")
    step = replace(STEPS[1], grounding=made)
    assert step_from_dict(json.loads(json.dumps(step_to_dict(step)))) == step
    assert step.withheld == ("Hats too.",)
