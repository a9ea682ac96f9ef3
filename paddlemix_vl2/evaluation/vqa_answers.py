"""Answers of VQA benchmarks, written one way before they are compared.

Source: the answer processor of the TextVQA challenge's evaluation, which is that of VQA v2 and, before it,
some replacements of its own. Its oddities belong to the published scores and are kept.
"""

import re

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGITS)}}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")

# The contractions that are mended where one of their apostrophes is missing: "dont", "couldn'tve". These are
# the processor's: "shell" or "were" could be words of their own; "Im" and "Ive" it lists with a capital
# letter only, which text in lower case never matches.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _mended() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # the one that loses its apostrophe
    for word in _CONTRACTIONS.split():
        for place, letter in enumerate(word):
            if letter == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table


_MENDED = _mended()


def normalize_vqa_answer(text: str) -> str:
    """An answer as it is compared.

    In this order: lower case; commas and question marks go, "'s" is set apart; a punctuation mark goes where
    it is next to a space anywhere in the answer, and becomes a space where it never does; full stops go
    unless a digit follows; zero to ten become digits, "none" 0; articles go; missing apostrophes come back;
    white space becomes single spaces.

    >>> normalize_vqa_answer("The Dogs, two of them.")
    'dogs 2 of them'
    >>> normalize_vqa_answer("coca-cola"), normalize_vqa_answer("3.5"), normalize_vqa_answer("dont")
    ('coca cola', '3.5', "don't")
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    spaced = text
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in spaced or f" {mark}" in spaced
        text = text.replace(mark, "" if touches_space else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)
