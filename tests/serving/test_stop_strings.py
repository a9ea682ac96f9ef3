"""Stop strings in text that comes in pieces."""

import random

import pytest

from paddlemix_vl2.serving.stop_strings import StopFilter


def feed(stops, *pieces):
    """The pieces that come out, what is held at the end, and whether a stop string was found."""
    stop = StopFilter(stops)
    return [stop.put(piece) for piece in pieces], stop.finish(), stop.found


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ([], ["a", "b"], (["a", "b"], "", False)),
        (["END"], ["go E", "N", "D on", "more"], (["go ", "", "", ""], "", True)),
        (["END"], ["E", "NE", "x"], (["", "EN", "Ex"], "", False)),
        (["END"], ["E", "N", "EN"], (["", "", "EN"], "EN", False)),
        (["\n\n"], ["a\n", "b\n", "\nc"], (["a", "\nb", ""], "", True)),
        (["。"], ["红色。蓝色"], (["红色"], "", True)),
        (["aab"], ["aaab"], (["a"], "", True)),
    ],
)
def test_cases_by_hand(stops, pieces, expected):
    assert feed(stops, *pieces) == expected


def test_the_first_to_be_complete_counts_however_the_text_is_cut():
    """ "bc" is complete before "abcd" is."""
    for pieces in (["abcd"], ["a", "b", "c", "d"], ["ab", "cd"], ["abc", "d"]):
        out, held, found = feed(["abcd", "bc"], *pieces)
        assert ("".join(out) + held, found) == ("a", True)


def test_random_cuts_give_one_result():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab", k=12))
        stops = ["".join(draw.choices("ab", k=draw.randint(2, 5))) for _ in range(3)]
        ends = [end for end in range(13) if any(text[:end].endswith(stop) for stop in stops)]
        expected = text
        if ends:
            longest = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
            expected = text[: ends[0] - len(longest)]
        cuts = sorted(draw.sample(range(13), 4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]
        out, held, found = feed(stops, *pieces)
        assert ("".join(out) + held, found) == (expected, bool(ends)), (text, stops, pieces)
