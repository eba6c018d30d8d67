"""Languages are detected by names, letters and common words."""

from __future__ import annotations

from tuner.tasks.data.languages import detect_language, language_from_name


def test_languages_are_detected_by_name_letters_and_words() -> None:
    assert [language_from_name(one) for one in ("zh", ".zh-CN", "German", "target")] == [
        "Chinese",
        "Chinese",
        "German",
        "",
    ]
    assert detect_language(["今天天气很好"]) == "Chinese"
    assert detect_language(["これは猫です", "東京"]) == "Japanese"
    assert detect_language(["Ich habe das nicht gesehen und er ist mit mir zu den Bergen gegangen"]) == "German"
    assert detect_language(["Where is the cat that you have?"]) == "English"
    assert detect_language(["xyzzy plugh"]) == ""
