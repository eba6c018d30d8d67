"""What a sentence claims: its words, names, figures and negations."""

from __future__ import annotations

import pytest

from agent.grounding.claims import Claim, contradicts, is_chinese, weighted_share, word_weights


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("It costs 1,250.50 euros.", {"1250.5": 1}),
        ("Between 07:30 and 9.00 on 2024-03-05", {"7": 1, "30": 1, "9": 1, "2024": 1, "3": 1, "5": 1}),
        ("Version 2.10.0 came on 3 May and on Monday.", {"2.10.0": 1, "3": 1, "may": 1, "monday": 1}),
        ("Parts A-17 and QX2041 cost twenty-five euros.", {"a17": 1, "qx2041": 1, "25": 1}),
        ("No one may march in here.", {}),
        ("Three of three", {"3": 2}),
        ("营业额为3.5万元", {"35000": 1}),
        ("三十天内可退货", {"30": 1}),
        ("二〇二四年五月", {"2024": 1, "5": 1}),
        ("一起去万一饭店", {}),
        ("\uff11\uff12元", {"12": 1}),
    ],
)
def test_figures_are_numbers_dates_and_identifiers_in_a_normal_form(text: str, figures: dict[str, int]) -> None:
    assert dict(Claim(text).figures) == figures


@pytest.mark.parametrize("text", ["一人", "There is one.", "三", "十五", "2 two 二"])
def test_certain_figures_are_among_the_possible_ones(text: str) -> None:
    claim = Claim(text)
    assert claim.figures <= claim.possible_figures
    assert claim.possible_figures


def test_figures_and_words_of_the_heading_count() -> None:
    claim = Claim("The fee is five euros.", "Prices 2024")
    assert claim.possible_figures["2024"] == 1
    assert "pric" in claim.all_words - claim.words
    assert "2024" not in claim.figures


@pytest.mark.parametrize(
    ("one", "other"),
    [("Returns are packed", "return pack"), ("copies", "copy"), ("stopped", "stopping"), ("takes", "taking")],
)
def test_inflected_forms_have_the_same_stem(one: str, other: str) -> None:
    assert Claim(one).words == Claim(other).words


def test_chinese_is_split_into_pairs_without_function_words() -> None:
    assert Claim("会员的折扣").words == {"会员", "折扣"}
    assert is_chinese("会员可用 VIP 卡")
    assert not is_chinese("The word 会 is one")


def test_a_capital_that_only_begins_the_sentence_makes_no_name() -> None:
    assert Claim("Parcels go to Anna Berg in Oslo.").names == {"anna", "berg", "oslo"}
    assert Claim("Anna Berg signs.").names == {"anna", "berg"}
    assert Claim("会员使用 Visa 付款").names == {"visa"}


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("Dogs are not allowed.", "Dogs are allowed on the terrace.", True),
        ("Dogs aren't allowed.", "Dogs are never allowed.", False),
        ("Dogs are allowed.", "Dogs are allowed, cats are not welcome.", False),
        ("You cannot cancel.", "You can cancel.", True),
        ("可以退货。", "不可以退货。", True),
        ("本店不接受现金。", "本店不接受现金支付。", False),
        ("不仅可以退货。", "可以退货。", False),
    ],
)
def test_a_negation_contradicts_a_sentence_that_states_what_it_negates(one: str, other: str, wanted: bool) -> None:
    assert contradicts(Claim(one), Claim(other)) is wanted
    assert contradicts(Claim(other), Claim(one)) is wanted


def test_a_rare_word_has_more_weight_than_a_common_one() -> None:
    claims = [Claim("tents weigh little"), Claim("tents cost much"), Claim("tents leak")]
    weights = word_weights(claims)
    assert weights["leak"] > weights["tent"]
    asked = Claim("tents leak").words
    leak, tent = (weighted_share(asked, frozenset([word]), weights, 9.0) for word in ("leak", "tent"))
    assert leak > 0.5 > tent
    assert weighted_share(frozenset(), asked, weights, 9.0) == 0.0
