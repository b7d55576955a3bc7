"""Digits to text and back: "2 and 4", "two and 4", "2 and four", "two and four".

A prompt names two digits in either order, each as a numeral or as a word: 10 · 10 · 2 · 2 = 400 prompts.
A clip shows two digits without an order, so there are 55 unordered pairs to tell apart.
"""

import torch

from mavlite.errors import MavliteError

NUMERALS = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VOCABULARY = ["and", *NUMERALS, *WORDS]  # 21 words

# The unordered pairs, (0, 0), (0, 1), ..., (0, 9), (1, 1), ..., (9, 9): 55 in all.
PAIRS = [(a, b) for a in range(10) for b in range(a, 10)]

_DIGIT_OF = {**{word: digit for digit, word in enumerate(NUMERALS)},
             **{word: digit for digit, word in enumerate(WORDS)}}


def make_prompt(first: int, second: int, first_word: bool, second_word: bool) -> str:
    """The prompt for two digits 0..9; each is written as a word if its flag is set, else as a numeral."""
    first_text = (WORDS if first_word else NUMERALS)[first]
    second_text = (WORDS if second_word else NUMERALS)[second]
    return f"{first_text} and {second_text}"


def all_prompts() -> list[str]:
    """All 400 prompts, ordered by first digit, second digit, and then how each is written."""
    return [make_prompt(first, second, first_word, second_word)
            for first in range(10) for second in range(10)
            for first_word in (False, True) for second_word in (False, True)]


def pair_index(a, b):
    """Where the unordered pair of digits a, b stands in PAIRS; pair_index(a, b) == pair_index(b, a).

    Two ints give an int 0..54. Integer tensors (of shapes that broadcast) give an int64 tensor, unchecked.
    """
    if torch.is_tensor(a) or torch.is_tensor(b):
        a, b = torch.as_tensor(a).long(), torch.as_tensor(b).long()  # uint8 would wrap around in a - b
    elif not (0 <= a <= 9 and 0 <= b <= 9):
        raise ValueError(f"digits are 0..9, got {a} and {b}")
    low = (a + b - abs(a - b)) // 2
    high = a + b - low
    # The rows of PAIRS for 0, 1, ..., low - 1 hold 10, 9, ..., 11 - low pairs.
    return 10 * low - low * (low - 1) // 2 + (high - low)


def check_words(text: str) -> None:
    """Raise MavliteError if a word of `text` is not in VOCABULARY. Case and extra blanks do not matter."""
    for word in text.lower().split():
        if word not in VOCABULARY:
            raise MavliteError(f"unknown word {word!r} in the prompt {text!r}; "
                               f"the vocabulary is: {' '.join(VOCABULARY)}")


def parse_prompt(text: str) -> tuple[int, int]:
    """The two digits that a prompt names, in its order: "Two and 4" -> (2, 4).

    Case and extra blanks are forgiven. An unknown word, or known words that are not
    "<digit> and <digit>", raise MavliteError.
    """
    check_words(text)
    words = text.lower().split()
    if len(words) != 3 or words[1] != "and" or words[0] == "and" or words[2] == "and":
        raise MavliteError(f'the prompt {text!r} does not read "<digit> and <digit>"; '
                           f'write it like "2 and 4" or "two and four"')
    return _DIGIT_OF[words[0]], _DIGIT_OF[words[2]]
