from __future__ import annotations

import json
import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from itmkit.data.vocabulary import RESERVED, Vocabulary, split_words

CAPTIONS = ["A dog runs.", "The dog sleeps!", "a CAT sleeps", "Bees & Zebras; zebras"]


def test_smoke_words_have_no_punctuation_and_any_script() -> None:
    assert split_words("  Zwei Hünde — rot/blau, «3»_x  ") == "zwei hünde rot blau 3 x".split()
    assert split_words("собака на траве. 犬") == ["собака", "на", "траве", "犬"]
    assert split_words("the dog's toy isn't Sam’s 'own'") == (
        ["the", "dog", "'s", "toy", "isn't", "sam", "'s", "own"]
    )
    assert split_words("... !") == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("cafe\u0301 noir, caf\u00e9", ["caf\u00e9", "noir", "caf\u00e9"]),
        ("q\u0323\u0307x u\u0308ber", ["q\u0323\u0307x", "\u00fcber"]),  # NFC has no such q
        ("\u0130stanbul'da", ["i\u0307stanbul'da"]),  # the lower case has a mark
        ("हिन्दी में कुत्ता।", ["हिन्दी", "में", "कुत्ता"]),
        ("शर्मा का क्\u200dष", ["शर्मा", "का", "क्\u200dष"]),  # with a joiner
        ("কুকুর দৌড়ায়; நாய் ஓடுகிறது", ["কুকুর", "দৌড়ায়", "நாய்", "ஓடுகிறது"]),
        ("כֶּלֶב רָץ! كَلْبٌ يَجْرِي", ["כֶּלֶב", "רָץ", "كَلْبٌ", "يَجْرِي"]),
        ("می\u200cدود", ["می\u200cدود"]),
        ("❤\ufe0f \u0301 -\u0301x", ["x"]),  # no word begins with a mark
    ],
)
def test_marks_belong_to_their_word(caption: str, words: list[str]) -> None:
    assert split_words(caption) == [unicodedata.normalize("NFC", word) for word in words]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("一只dog在跑。", ["一", "只", "dog", "在", "跑"]),
        ("12只狗３匹, dog's在", ["12", "只", "狗", "３", "匹", "dog", "'s", "在"]),
        ("犬が走るボール", ["犬", "が", "走", "る", "ボ", "ー", "ル"]),
        ("か\u3099 ﾊﾞｽ", ["が", "ﾊﾞ", "ｽ"]),
        ("ที่นี่น้ำ ๑๒ตัว", ["ที่", "นี่", "น้ำ", "๑๒", "ตั", "ว"]),
        ("ນ້ຳໝາ", ["ນ້ຳ", "ໝ", "າ"]),
        ("ស្រុកខ្មែរ", ["ស្រុ", "ក", "ខ្មែ", "រ"]),  # a sign stacks the next letter below
        ("မြန်မာ တက္က", ["မြ", "န်", "မာ", "တ", "က္က"]),
        ("ᥖᥭᥰ ᦺᦑ ᩅᩢᩃ", ["ᥖ", "ᥭ", "ᥰ", "ᦺ", "ᦑ", "ᩅᩢ", "ᩃ"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("café在가나다 हिन्दी में", ["café", "在", "가나다", "हिन्दी", "में"]),  # Hangul has spaces
    ],
)
def test_scripts_without_spaces_are_split_by_letters(caption: str, words: list[str]) -> None:
    found = split_words(caption)
    assert found == [unicodedata.normalize("NFC", word) for word in words]


def test_most_words_of_new_chinese_captions_are_known() -> None:
    """As one word each, captions had next to no word in common."""
    things = ["狗", "猫", "男人", "女孩", "红球", "山羊", "老虎", "白马"]
    places = ["草地", "海边", "街道", "桌子", "山坡", "河流", "屋顶", "雪地"]
    captions = [f"一只{thing}在{place}上跑。" for thing in things for place in places]
    vocabulary = Vocabulary.build(captions[::3] + captions[1::3], min_count=2)
    words = [word for caption in captions[2::3] for word in split_words(caption)]
    assert sum(word in vocabulary for word in words) > 0.9 * len(words)


def test_time_for_a_heap_of_marks_is_short() -> None:
    """Normalising all of them would take seconds."""
    start = time.process_time()
    (word,) = split_words("a" + "\u0301\u0323" * 50_000)
    assert len(word) < 40
    assert time.process_time() - start < 1


@given(
    st.text(
        st.characters(max_codepoint=0xDFF, exclude_categories=["M"])
        | st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)  # Hangul
    )
)
def test_words_of_text_without_marks_are_runs_of_letters_and_digits(text: str) -> None:
    """As :func:`split_words` was, so that vocabularies keep their words; in scripts with spaces."""
    assume(unicodedata.is_normalized("NFC", text.lower()))
    assume(not any(unicodedata.category(c)[0] == "M" for c in text.lower()))
    runs = re.findall(r"[^\W_]+(?:['’](?!s\b)[^\W_]+)*|['’]s\b", text.lower())
    assert split_words(text) == [run.replace("’", "'") for run in runs]


def test_build_orders_by_count_then_alphabet() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.words == (*RESERVED, "a", "dog", "sleeps", "zebras")
    assert Vocabulary.build(reversed(CAPTIONS), min_count=2) == vocabulary
    assert Vocabulary.build(CAPTIONS, min_count=1, max_size=5).words[-1] == "bees"
    assert len(Vocabulary.build(CAPTIONS, min_count=1, max_size=5)) == 10


def test_reserved_ids_and_unknown_words() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    ids = [vocabulary.pad_id, vocabulary.start_id, vocabulary.end_id]
    assert [*ids, vocabulary.unk_id, vocabulary.mask_id] == [0, 1, 2, 3, 4]
    assert vocabulary.special_ids == {0, 1, 2, 3, 4}
    assert vocabulary["dog"] == 6
    assert vocabulary["unicorn"] == vocabulary.unk_id
    assert "dog" in vocabulary
    assert "unicorn" not in vocabulary


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["café 犬 dog's"], min_count=1)
    vocabulary.save(tmp_path / "words.json")
    assert Vocabulary.load(tmp_path / "words.json") == vocabulary
    assert [path.name for path in tmp_path.iterdir()] == ["words.json"]


def test_load_reads_the_form_of_scan(tmp_path: Path) -> None:
    words = ["<pad>", "<start>", "<end>", "<unk>", "dog", "red"]
    content = {
        "word2idx": {word: i for i, word in reversed(list(enumerate(words)))},
        "idx2word": {str(i): word for i, word in enumerate(words)},
        "idx": len(words),
    }
    path = tmp_path / "scan.json"
    path.write_text(json.dumps(content))
    vocabulary = Vocabulary.load(path)
    assert vocabulary.words == tuple(words)
    assert vocabulary.mask_id == vocabulary.unk_id == 3
    assert vocabulary.special_ids == {0, 1, 2, 3}


def test_load_reads_ids_that_are_strings(tmp_path: Path) -> None:
    words = ["<pad>", "<start>", "<end>", "<unk>", *"abcdefgh"]
    path = tmp_path / "scan.json"
    path.write_text(json.dumps({"word2idx": {word: str(i) for i, word in enumerate(words)}}))
    assert Vocabulary.load(path).words == tuple(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a vocabulary"),
        ('{"words": ["<pad>", "<start>", "<end>"]}', "lacks the reserved <unk>"),
        ('{"words": ["<start>", "<pad>", "<end>", "<unk>"]}', "words[0] is '<start>'"),
        ('{"words": ["<pad>", "<start>", "<end>", "<unk>", "x", "x"]}', "'x' more than once"),
        ('{"words": ["<pad>", "<start>", "<end>", "<unk>", 7]}', "not all strings"),
        ('{"word2idx": {"<pad>": 0, "<start>": 2}}', "are not 0 … 1, each once"),
    ],
)
def test_error_of_a_bad_file_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)


def test_error_where_no_word_is_frequent_enough() -> None:
    told = (
        r"min_count is 4 and .* appears 2 times; expected a lower min_count .*vocabulary_min_count"
    )
    with pytest.raises(ValueError, match=told):
        Vocabulary.build(CAPTIONS)
