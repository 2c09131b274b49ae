"The rules of the layouts, case by case."

import re

import pytest

from mcft.format import (TAGS, critique_prompt, parse_target, solution_text, target_text, unmatched_think,
                         whole_response)

Y = target_text('Step 1 is wrong: 7 + 5 is 12.', '7 + 5 = 12', '12')
BOX = r'\boxed{12}'


@pytest.mark.parametrize(
    'box', [r'\boxed{\frac{1}{2}}', r'\boxed{\{1, 2\}}', r'\boxed{\left\{x\right.}', r'\boxed{}', r'\boxed{2 \\ 3}']
)
def test_one_box_is_read(box):
    assert parse_target(Y.replace(BOX, box))['answer'] == box[7:-1]


@pytest.mark.parametrize(
    'box',
    [r'\boxed{1} or \boxed{2}', r'\boxed{1}}', r'\boxed{\frac{1}{2}', r'\boxed{1} }', r'\boxed{1\}', '\\boxed{', '12'],
)
def test_anything_but_one_box_is_refused(box):
    with pytest.raises(ValueError, match=re.escape(r'expected one \boxed')):
        parse_target(Y.replace(BOX, box))


@pytest.mark.parametrize('tag', TAGS)
def test_a_tag_stands_once(tag):
    for n, text in ((0, Y.replace(tag, '')), (2, Y + tag)):
        with pytest.raises(ValueError, match=f'{tag} stands {n} times'):
            parse_target(text)


def test_tags_in_order():
    nested = Y.replace('<reasoning>\n', '').replace('<critique>', '<critique>\n<reasoning>')
    with pytest.raises(ValueError, match='nested or out of order'):
        parse_target(nested)


@pytest.mark.parametrize('part', range(3))
def test_a_part_that_breaks_the_layout_is_refused(part):
    for bad, said in (
        ('', 'empty'),
        (' \n', 'empty'),
        ('so <ans> it is', 'may not be nested'),
        ('a </think> b', 'closes nothing'),
    ):
        with pytest.raises(ValueError, match=said):
            target_text(*(bad if i == part else '1' for i in range(3)))


@pytest.mark.parametrize(
    'text, opener, whole',
    [
        ('a\n</think>\nb', '', '<think>\na\n</think>\nb'),
        ('a</think>b', '<think>', '<think>a</think>b'),
        ('\na</think>b', '<think>\n', '<think>\na</think>b'),
        ('<think>a</think>b', '<think>\n', '<think>a</think>b'),
        ('cut', '<think>\n', '<think>\ncut'),
        ('no thought', '', 'no thought'),
        ('a</think> <think>b</think>', '', '<think>\na</think> <think>b</think>'),
        ('', '<think>\n', '<think>\n'),
    ],
)
def test_a_response_gets_its_opener_back_once(text, opener, whole):
    assert whole_response(text, opener) == whole == whole_response(whole, opener)
    assert not unmatched_think(whole)


def test_no_stray_end_of_a_thought_reaches_training():
    assert not unmatched_think(critique_prompt('7 + 5 = ?', '7 + 5 = 13\n</think>\n\\boxed{13}'))
    with pytest.raises(ValueError, match='closes nothing'):
        solution_text('a</think>b', '12')
