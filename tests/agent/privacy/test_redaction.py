"""The scrubber: secrets go, tools get them back, ordinary text stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.privacy.redaction import Scrubber, placeholders

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
SECRETS = [
    ("key", "sk-proj-abcdefghijklmnop1234567890"),
    ("key", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
    ("key", "AKIAIOSFODNN7EXAMPLE"),
    ("key", JWT),
    ("card", "4111 1111 1111 1111"),
    ("card", "5555-5555-5555-4444"),
    ("card", "378282246310005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432"),
    ("email", "jo.o'neil+x@mail.example.co.uk".replace("o'", "o")),
    ("phone", "+44 20 7946 0018"),
    ("phone", "+1 (555) 123-4567"),
    ("phone", "(555) 123-4567"),
]


@pytest.mark.parametrize(("kind", "secret"), SECRETS)
def test_a_secret_is_replaced_and_given_back(kind: str, secret: str) -> None:
    scrubber = Scrubber()
    text = f"Here it is: {secret}, thanks. Again {secret}"
    assert scrubber.mask(text) == f"Here it is: <{kind}_1>, thanks. Again <{kind}_1>"
    assert scrubber.unmask(scrubber.mask(text)) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password: hunter2", "password: <key_1>"),
        ("My password: horse.", "My password: <key_1>."),
        ("api_key=abcd1234efgh now", "api_key=<key_1> now"),
        ('{"api_key": "abcd1234efgh"}', '{"api_key": "<key_1>"}'),
        ("CLIENT_SECRET = Zx81-77!k", "CLIENT_SECRET = <key_1>"),
        ("Authorization: Bearer abcdefghijklmnop0123", "Authorization: Bearer <key_1>"),
        ("phone: 020 7946 0018", "phone: <phone_1>"),
        ("a@b.example wrote to c@d.example", "<email_1> wrote to <email_2>"),
    ],
)
def test_a_labelled_secret_is_replaced(text: str, masked: str) -> None:
    assert Scrubber().mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Order 48213 of 2024-05-09 (09.05.2024), SKU TL-20, is $1,249.00 and weighs 1.250 kg.",
        "Order 112-1234567-1234567 and tracking 1Z999AA10123456784 arrived 9 May at 10:30-12:00.",
        "Parcel 00340434292135100186, EAN 4006381333931, customer C1042, return R-2024-000123.",
        "Forgot your password: click the link we send.",
        "The card ends in 4242; I paid 1234 5678 9012 3456 points.",
        "Size 42-44, 100+20000000 = 20000100, 3 x 12345678, version 1.2.3.4, 555-1234.",
        "Tent for 2 @ 199.00 each, meet @noon; see help.md > Returns [1]",
        "DE89 3704 0044 0532 0130 01 has the wrong check digits.",
        "Call 112 or write to us; the secret of a good tent is a token of care.",
        "sk-20 and AKIA and <b>bold</b> and <email_1> stay",
    ],
)
def test_ordinary_desk_text_is_untouched(text: str) -> None:
    assert Scrubber().mask(text) == text


def test_a_value_keeps_its_placeholder_through_the_run() -> None:
    scrubber = Scrubber()
    assert scrubber.mask("a@b.example") == "<email_1>"
    assert scrubber.mask("c@d.example, a@b.example") == "<email_2>, <email_1>"


def test_a_password_is_known_again_without_its_label() -> None:
    scrubber = Scrubber()
    scrubber.mask("password: correct-horse-7")
    assert scrubber.mask("tried correct-horse-7 twice") == "tried <key_1> twice"


def test_tools_get_values_back_wherever_they_stand() -> None:
    scrubber = Scrubber()
    scrubber.mask("a@b.example")
    arguments = {"to": "<email_1>", "cc": ["x <email_1>", "<email_9>"], "n": 1, "<email_1>": None}
    assert scrubber.unmask(arguments) == {
        "to": "a@b.example",
        "cc": ["x a@b.example", "<email_9>"],
        "n": 1,
        "<email_1>": None,
    }


def test_a_placeholder_the_customer_wrote_is_not_taken_for_ours() -> None:
    scrubber = Scrubber()
    masked = scrubber.mask("<email_1> is not a@b.example")
    assert masked == "<email_1> is not <email_2>"
    assert scrubber.unmask(masked) == "<email_1> is not a@b.example"


def test_a_phone_number_is_known_again_without_its_label() -> None:
    scrubber = Scrubber()
    assert scrubber.mask("phone: 020 7946 0018") == "phone: <phone_1>"
    assert scrubber.mask("tried 020 7946 0018 twice") == "tried <phone_1> twice"


def test_reserved_placeholders_are_given_to_no_other_value() -> None:
    scrubber = Scrubber()
    scrubber.reserve('{"to": "<email_1>", "cc": "<email_3>"}')
    assert scrubber.mask("a@b.example, c@d.example, e@f.example") == "<email_2>, <email_4>, <email_5>"
    assert scrubber.unmask("<email_1>") == "<email_1>"


def test_the_texts_of_a_json_value_are_masked_wherever_they_stand_and_can_be_given_back() -> None:
    scrubber = Scrubber()
    scrubber.mask("password: abcd")
    value = {"to": "a@b.example", "cc": ["x a@b.example", ["c@d.example"]], "n": 1, "a@b.example": None, "pin": "abcd"}
    masked = scrubber.mask_values(value)
    assert masked == {
        "to": "<email_1>",
        "cc": ["x <email_1>", ["<email_2>"]],
        "n": 1,
        "a@b.example": None,
        "pin": "<key_1>",
    }
    assert scrubber.mask_values(masked) == masked
    assert scrubber.unmask(masked) == value


def test_placeholders_are_listed_once_in_the_order_of_the_text() -> None:
    assert placeholders("<email_2>, <key_1>, <email_2>, <email_0>, <b>") == ("<email_2>", "<key_1>")


def test_two_threads_give_a_value_one_placeholder() -> None:
    scrubber = Scrubber()
    texts = [f"password: secret-{number % 50}-word, a{number % 50}@b.example" for number in range(400)]
    with ThreadPoolExecutor(8) as pool:
        masked = list(pool.map(scrubber.mask, texts))
    assert len(set(masked)) == 50
    assert len(scrubber.values) == 100
    assert [scrubber.unmask(one) for one in masked] == texts


pieces = st.sampled_from(
    [
        *(secret for _, secret in SECRETS),
        *(
            "password: ",
            "api_key=",
            "phone: ",
            "<email_1>",
            "<key_2>",
            "<",
            ">",
            "@",
            "+",
            "-",
            ".",
            " ",
            "\n",
            '"',
        ),
        *("hunter22", "Order 48213", "please", "0", "42", "+49", "eyJ"),
    ]
)
anything = st.lists(pieces | st.text(max_size=6), max_size=12).map("".join)


@given(anything)
def test_masking_twice_changes_nothing_more(text: str) -> None:
    scrubber = Scrubber()
    masked = scrubber.mask(text)
    assert scrubber.mask(masked) == masked


@given(anything)
def test_what_is_masked_can_be_given_back(text: str) -> None:
    scrubber = Scrubber()
    assert scrubber.unmask(scrubber.mask(text)) == text


@given(st.text(st.sampled_from("abcXYZ äé,.'!?-\n"), max_size=60))
def test_words_are_untouched(text: str) -> None:
    assert Scrubber().mask(text) == text
