"""What every training shares: parameters that are refused, the order of rows, the guard on the labels, the loss
where there are labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from killing import tiny_model
from mcft.mask import IGNORE
from mcft.trainer import (EpochConfig, EpochOrder, LabelGuard, check_ids, key_params, last_state, split_validation,
                          state_step, trainer_arguments, use_label_head)


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(lr=5.0), 'lr is 5.0'),
        (dict(lr='1e-4'), 'lr is .1e-4., .* in YAML write 1.0e-4'),
        (dict(epochs=0), 'epochs is 0'),
        (dict(epochs=2.5), 'epochs is 2.5'),
        (dict(max_steps=0), 'max_steps is 0'),
        (dict(max_steps=-2), 'max_steps is -2'),
        (dict(batch_size=-1), 'batch_size is -1'),
        (dict(warmup=-0.1), 'warmup is -0.1'),
        (dict(warmup=2.5), 'warmup is 2.5'),
        (dict(warmup=True), 'warmup is True'),
        (dict(scheduler='cosin'), 'scheduler is .cosin.'),
        (dict(device='gpu'), 'device is .gpu.'),
        (dict(bf16='false'), 'bf16 is .false.'),
        (dict(threads=-1), 'threads is -1'),
        (dict(seed='a'), 'seed is .a.'),
        (dict(max_grad_norm=float('inf')), 'max_grad_norm is inf'),
        (dict(weight_decay=float('nan')), 'weight_decay is nan'),
        (dict(resume='old'), 'resume is .old.'),
        (dict(out_dir=''), 'out_dir is ..'),
        (dict(log_steps=0), 'log_steps is 0'),
        (dict(save_steps=3, log_steps=2), 'no multiple of log_steps'),
        (dict(model_dir='runs/x', revision='main'), 'is a folder'),
        (dict(learning_rate=0.1), "'learning_rate' is no parameter"),
    ],
)
def test_a_bad_parameter_is_named(bad, says):
    with pytest.raises(ValueError, match=says):
        EpochConfig(**{'out_dir': 'toy/out', **bad})


def test_warmup_is_a_fraction_or_a_number_of_updates():
    "An integer stays one, so that TRL reads it as updates and run keys stay what they were."
    for given in (0, 1, 20, 0.0, 0.05):
        cfg = EpochConfig('toy/out', warmup=given)
        assert cfg.warmup == given and type(cfg.warmup) is type(given)
        assert trainer_arguments(cfg, Path('x'), True)['warmup_steps'] == given


def test_where_files_lie_is_no_part_of_the_key():
    cfg = EpochConfig('toy/out')
    same = replace(cfg, out_dir='other', save_steps=5, resume='fresh')
    assert key_params(cfg) == key_params(same) != key_params(replace(cfg, seed=1))


LENGTHS = np.random.default_rng(0).integers(20, 90, 403).tolist()


@pytest.mark.parametrize('group', [False, True])
@pytest.mark.parametrize('n, update', [(403, 8), (403, 32), (48, 1)])
def test_every_example_once_in_an_order_of_its_own(group, n, update):
    order = EpochOrder(LENGTHS[:n], update, 0, group)
    seen = []
    for epoch in range(3):
        order.set_epoch(epoch)
        seen.append(list(order))
        assert sorted(seen[-1]) == list(range(n)) and seen[-1] == list(order)
    assert len(set(map(tuple, seen))) == 3
    assert list(EpochOrder(LENGTHS[:n], update, 1, group)) != seen[0]


def test_draws_lie_one_after_the_other_and_dummies_behind_them():
    order = EpochOrder([5] * 10, 8, 0, draws=3, even=8)
    order.set_epoch(2)
    assert len(order) == 16 and sorted(order)[:10] == list(range(20, 30)) and list(order)[10:] == [30] * 6
    order.set_epoch(3)
    assert sorted(order)[:10] == list(range(10))  # more epochs than draws: from the first again


def test_held_out_questions_are_the_same_for_every_order():
    rows = [dict(problem_id=f'p{i // 2}', id=i) for i in range(56)]
    left, held = split_validation(rows, 0.25)
    assert len(held) == 14 and {r['id'] for r in split_validation(rows[::-1], 0.25)[1]} == {r['id'] for r in held}
    assert split_validation(rows, 0) == (rows, []) and len(split_validation(rows, 1e-9)[1]) == 2


# The guard.

IDS = [[5, 6, 7, 8], [9, 10, 11], [5, 6, 7, 8]]
FIRST = [[-100, 6, 7, 8], [-100, 10, 11], [-100, -100, 7, 8]]  # rows 0 and 2 differ in their labels alone
SECOND = [[-100, 6, -100, 8], [-100, -100, 11], [-100, 6, 7, -100]]
ENDS = [1, 1]


def guard() -> LabelGuard:
    "Two epochs of three rows, and a dummy example."
    ready = Dataset.from_dict(dict(input_ids=[*IDS, *IDS, ENDS], labels=[*FIRST, *SECOND, [-100, -100]]))
    return LabelGuard(ready, 3, 2, np.array([[i, 1] for i in range(6)] + [[0, 0]]))


def check(g, ids, labels, epoch=0, attention=None):
    "One batch of one sequence."
    ids, labels = np.array([ids]), np.array([labels])
    g.check(ids, labels, np.ones_like(ids) if attention is None else np.array([attention]), epoch)


def test_the_guard_adds_up_what_each_row_counts_for():
    g = guard()
    for epoch, labels in enumerate((FIRST, SECOND)):
        for ids, y in zip(IDS, labels):
            check(g, ids, y, epoch)
    check(g, ENDS, [-100, -100])
    assert g.logged.tolist() == [15, 6] and g.seconds > 0
    check(g, IDS[0] + [0, 0], FIRST[0] + [-100, -100], 2, [1, 1, 1, 1, 0, 0])  # a third epoch has the first draw
    assert g.logged.tolist() == [15, 7]


@pytest.mark.parametrize(
    'ids, labels, epoch, attention, says',
    [
        (IDS[0], IDS[0], 0, None, 'the data collator rebuilt the labels from input_ids'),
        (
            IDS[0],
            [-100, 6, 7, -100],
            0,
            None,
            '1 of 4 labels differ from the ready column, the first at token 3: -100 in place of 8',
        ),
        (IDS[0], SECOND[0], 0, None, 'labels differ from the ready column'),  # the draw of another epoch
        (IDS[1], [-100] * 3, 0, None, '2 of 3 labels differ'),
        (
            IDS[1][:2],
            FIRST[1][:2],
            0,
            None,
            'a sequence of 2 tokens that the training set does not hold: the collator cuts',
        ),
        (IDS[0] + IDS[1], FIRST[0] + FIRST[1], 0, None, 'that the training set does not hold'),  # packed
        (IDS[1] + [0], FIRST[1] + [0], 0, [1, 1, 1, 0], 'padding is trained on'),
        (ENDS, ENDS, 0, None, 'all 2 tokens are trained on, expected 0'),
    ],
)
def test_the_guard_lets_nothing_else_pass(ids, labels, epoch, attention, says):
    with pytest.raises(ValueError, match=says):
        check(guard(), ids, labels, epoch, attention)


def test_a_replaced_input_belongs_to_its_epoch():
    ready = Dataset.from_dict(dict(input_ids=[[5, 0, 7], [0, 6, 7]], labels=[[5, 6, 7], [5, 6, 7]]))
    g = LabelGuard(ready, 1, 2, np.zeros((2, 1), int))
    check(g, [5, 0, 7], [5, 6, 7], 0)
    with pytest.raises(ValueError, match='that is of another epoch'):
        check(g, [5, 0, 7], [5, 6, 7], 1)


# The loss.


def test_the_label_head_is_the_models_own_loss():
    "Loss, gradient, loss of each token, no label at all, no labels given."
    plain, ours = (tiny_model(40, tie_word_embeddings=False) for _ in range(2))
    use_label_head(ours)
    use_label_head(ours)  # a second time changes nothing
    rows = [dict(input_ids=x, labels=y) for x, y in zip(IDS, FIRST)]
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    losses = [m(**batch).loss for m in (plain, ours)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=2e-5)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in zip(plain.parameters(), ours.parameters()))
    each = ours(**batch, per_token=True).loss
    assert len(each) == (batch['labels'][:, 1:] != IGNORE).sum() and each.mean().item() == pytest.approx(
        losses[1].item(), abs=1e-5
    )
    ids = batch['input_ids']
    assert ours(ids).logits.shape == (*ids.shape, 40)
    nothing = ours(ids, labels=torch.full_like(ids, IGNORE)).loss
    nothing.backward()
    assert nothing.item() == 0


def test_ids_beyond_the_vocabulary_are_named():
    check_ids([], 10, 'm', 'f')
    with pytest.raises(ValueError, match='rows.jsonl holds token id 11, but toy has a vocabulary of 11'):
        check_ids([dict(input_ids=[3, 11])], 11, 'toy', 'rows.jsonl')


def test_states_of_another_run_are_removed(tmp_path):
    assert last_state(tmp_path, 'mine') is None and state_step(None) == 0
    (tmp_path / 'steps/checkpoint-4').mkdir()
    (tmp_path / 'steps/checkpoint-4/trainer_state.json').write_text('{"global_step": 4}')
    assert state_step(last_state(tmp_path, 'mine')) == 4
    assert last_state(tmp_path, 'another') is None and not (tmp_path / 'steps/checkpoint-4').exists()
