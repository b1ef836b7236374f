"""Shared by the data tests."""

from __future__ import annotations

import random

import pytest

SENTENCES = (
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
    "人人生而自由,在尊嚴和權利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ｶﾀｶﾅ　と　ﾊﾝｶｸ、１２３！",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق، ١٢٣٫٤",
    "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ ٱلرَّحِيمِ",
    "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। १२३",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்",
    "ყველა ადამიანი იბადება თავისუფალი",
    "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "Cafe\u0301, A\u030angstro\u0308m, q\u0307\u0323 Z\u0351\u036b\u0343a\u0334\u0363l\u0335",
    "\u1112\u1161\u11ab\u1100\u1173\u11af, \U00020000\U0002a6d6\U0001d49c\U0001d538",
    "👩🏽‍🚀👨‍👩‍👧‍👦🏳️‍🌈🏴󠁧󠁢󠁳󠁣󠁴󠁿👍🏿1️⃣🇯🇵🇧🇷❤️‍🔥☺︎☺️",
)  # fmt: skip
"""Of many scripts: with and without spaces, right to left, in conjuncts, composed and decomposed, joined."""


def corpus(count: int, seed: int = 3) -> list[str]:
    """Texts that tokenizers disagree about: scripts, digits, white space, punctuation, emoji, code, marks
    that look like special tokens; whole sentences, and such that are cut anywhere."""
    r = random.Random(seed)
    pools = (
        "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "0123456789.,-+/ ",
        " \t\n\r\u00a0\u3000",
        "äöüßéèñçåøłžœ ÄÖÜ",
        "абвгдежз ыьэюя",
        "日本語の文章です漢字かな混じり",
        "한국어 문장입니다",
        "العربية نص بسيط",
        "ภาษาไทยเป็นภาษาที่มีวรรณยุกต์่้๊๋",
        "עברית פשוטה",
        "हिन्दी में एक वाक्य",
        "😀👍🏽👨‍👩‍👧🇳🇴❤️",
        "(){}[]<>=!&|;:'\"`~^%$#@_\\",
        "\u200b\u200d\u0301\ufeff\u2028",
    )
    words = (
        "don't",
        "I'LL",
        "<|endoftext|>",
        "<|im_start|>",
        "def f(x):\n    return x",
        "https://a.example/?q=1",
        "…",
    )
    texts: list[str] = ["", " ", "\n\n\n", "a" * 300, "1" * 50, *SENTENCES, "\n".join(SENTENCES)]
    while len(texts) < count:
        pieces: list[str] = []
        for _ in range(r.randint(1, 12)):
            if r.random() < 0.2:
                sentence = r.choice(SENTENCES)
                start = r.randrange(len(sentence))
                pieces.append(sentence[start : r.randint(start, len(sentence))])
                continue
            pool = r.choice(pools)
            pieces.append(
                "".join(r.choices(pool, k=r.randint(1, 20))) if r.random() < 0.85 else r.choice(words)
            )
        texts.append("".join(pieces))
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return corpus(4000)
