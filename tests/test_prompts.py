import pytest
import torch

from mavlite.errors import MavliteError
from mavlite.prompts import PAIRS, VOCABULARY, all_prompts, check_words, make_prompt, pair_index, parse_prompt


def test_all_400_prompts_parse_back():
    prompts = all_prompts()
    assert len(prompts) == len(set(prompts)) == 400
    for first in range(10):
        for second in range(10):
            for first_word in (False, True):
                for second_word in (False, True):
                    prompt = make_prompt(first, second, first_word, second_word)
                    assert prompt in prompts
                    assert parse_prompt(prompt) == (first, second)


def test_prompts_read_as_documented():
    assert make_prompt(2, 4, True, False) == "two and 4"
    assert make_prompt(4, 2, False, True) == "4 and two"
    assert {word for prompt in all_prompts() for word in prompt.split()} == set(VOCABULARY)
    assert len(VOCABULARY) == 21


def test_case_and_blanks_are_forgiven():
    assert parse_prompt("  Two   AND\t4 \n") == (2, 4)


def test_unordered_pairs():
    assert len(PAIRS) == len(set(PAIRS)) == 55
    for a in range(10):
        for b in range(10):
            assert PAIRS[pair_index(a, b)] == (min(a, b), max(a, b))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_pair_index_of_tensors_equals_that_of_ints(dtype):
    a, b = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
    index = pair_index(a.to(dtype), b.to(dtype))
    assert index.dtype == torch.int64
    assert index.tolist() == [[pair_index(i, j) for j in range(10)] for i in range(10)]


def test_pair_index_refuses_what_is_no_digit():
    with pytest.raises(ValueError):
        pair_index(3, 10)


def test_unknown_word_is_named_with_the_vocabulary():
    for check in (parse_prompt, check_words):
        with pytest.raises(MavliteError) as caught:
            check("2 and twelve")
        message = str(caught.value)
        assert "'twelve'" in message and "nine" in message and "and 0 1" in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "two and", "2 4", "and and 2", "2 and and", "2 and 4 and 6", "2 4 and"])
def test_wrong_shape_shows_an_example(text):
    check_words(text)  # every word is known
    with pytest.raises(MavliteError, match='"2 and 4"'):
        parse_prompt(text)
