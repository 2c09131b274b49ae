"""Encoding against a slow reference, and what must hold of every mask, on examples that hypothesis makes up."""

import hashlib, itertools, json, re, string, subprocess, sys
from dataclasses import replace
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from conftest import ROOT, cells
from mcft.core import check_row, read_rows
from mcft.encode import MASKABLE, OPENERS, control_text, encode, encode_rows, example_text
from mcft.mask import (CHOICES, IGNORE, PRESETS, UNITS, MaskPlan, MaskSpec, draw_mask, find_units, labels, mask_id,
                       rate_sweep, model_inputs, preset, show_example)
from mcft.masking import EncodeConfig, encode_all, run_encode
from mcft.models import load_tokenizer, render_prompt
from mcft.scores import SCORES, score_rows, target_spans
from mcft.segment import sentence_starts, spaced, word_starts

TAGS = ("<critique>", "</critique>", "<reasoning>", "</reasoning>", "<ans>", "</ans>", "<think>", "</think>")
TEXT = [
    "The sum is right: 3 + 4 = 7. But 7 * 2 is 14, not 15!\r\nÉtape 2: naïve; e\u0301 wrong?",
    "What is (3 + 4) * 2? 𝟕 × 2 = 14 👍🏽 一二三",
    "<critique>\n</critique>\n<reasoning>\n</reasoning>\n<ans>\\boxed{14}</ans> <think>\n</think>",
] * 4
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def row(i='1', **parts) -> dict:
    "One critique."
    return (
        dict(
            id=i,
            problem_id='p' + i,
            question='What is (3 + 4) * 2?',
            rollout='3 + 4 = 7. 7 * 2 = 15.',
            critique='The sum is right. But 7 * 2 is 14, not 15.',
            reasoning='3 + 4 = 7.\n7 * 2 = 14.',
            answer='14',
        )
        | parts
    )


def tokenizer(kind: str, tags: bool):
    "A tokenizer trained on the spot: byte-level BPE, Unigram as SentencePiece writes it, or WordPiece."
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ['<pad>', '<s>', '</s>', '[UNK]', '<|user|>', '<|assistant|>', *(TAGS if tags else ())]
    letters = list(string.printable)
    byte_level = dict(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    if kind in ('bpe', 'qwen'):
        t, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=420, **byte_level)
        t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        if kind == 'qwen':
            t.normalizer = normalizers.NFC()
            pattern = Regex(r'\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+')
            t.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(pattern, 'isolated'),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
    elif kind == 'unigram':
        t, trainer = (
            Tokenizer(models.Unigram()),
            trainers.UnigramTrainer(vocab_size=220, special_tokens=special, initial_alphabet=letters, unk_token='[UNK]',
                                    show_progress=False),
        )
        t.normalizer, t.pre_tokenizer, t.decoder = normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        t, trainer = (
            Tokenizer(models.WordPiece(unk_token='[UNK]')),
            trainers.WordPieceTrainer(vocab_size=360, special_tokens=special, initial_alphabet=letters,
                                      show_progress=False),
        )
        t.normalizer, t.pre_tokenizer, t.decoder = (
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
            decoders.WordPiece(),
        )
    t.train_from_iterator([*TEXT, string.ascii_lowercase * 2 + ' ' + string.digits * 2], trainer)
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', pad_token='<pad>',
                                  unk_token='[UNK]')
    tok.chat_template = TEMPLATE
    return tok


TOKENIZERS = {
    f'{kind}{", tags special" if tags else ""}': tokenizer(kind, tags)
    for kind in ('bpe', 'qwen', 'unigram')
    for tags in (False, True)
}


# --- encoding against a reference that goes character by character


def reference(r: dict, tok, layout: str):
    "Ids, kind of each token, number of its sentence, and of its word: by loops over characters."
    user, target = example_text(r, layout)
    x, y = render_prompt(tok, user), target + tok.eos_token
    kind, sentence, word, cut = ['prompt'] * len(x) + ['tag'] * len(y), [0] * len(x + y), [], set()
    for k, opener in dict(
        critique='<critique>', reasoning='<reasoning>' if layout == 'critique' else '<think>', answer='\\boxed{'
    ).items():
        if k == 'critique' and layout == 'question':
            continue
        text = r[k].strip()
        a = y.index(opener) + len(opener)
        a = len(x) + y.index(text, a)
        kind[a : a + len(text)] = [k] * len(text)
        cut |= {a + i for i in word_starts(text)}  # besides white space: Unicode's, tried below
        for j in range(1, len(text)):
            run = re.match(r'\s*', text[j:]).group()
            ends = text[j].isspace() and not text[j - 1].isspace() and (text[j - 1] in '.!?' or '\n' in run)
            if ends or j in sentence_starts(text):
                for i in range(a + j, a + len(text)):
                    sentence[i] += 1
        if k == 'answer':
            kind[a - len('\\boxed{') - (len(r[k]) - len(r[k].lstrip())) : a] = ['box'] * (
                len('\\boxed{') + len(r[k]) - len(r[k].lstrip())
            )
            close = (x + y).index('}', a + len(text)) + 1
            kind[a + len(text) : close] = ['box'] * (close - a - len(text))
    kind[len(x + y) - len(tok.eos_token) :] = ['eos'] * len(tok.eos_token)
    for i, c in enumerate(x + y):
        new = i > 0 and not c.isspace() and (x + y)[i - 1].isspace()
        word.append((word[-1] if word else 0) + (new or i in cut))
    enc, out = tok(x + y, add_special_tokens=False, return_offsets_mapping=True), []
    for a, b in enc['offset_mapping']:
        b = max(b, a + 1)
        k = 'box' if 'box' in kind[a:b] else 'tag' if 'tag' in kind[a:b] else kind[b - 1]
        out.append((k, sentence[b - 1], word[b - 1]))
    return enc['input_ids'], out


def check_against_reference(r: dict, tok, layout: str):
    "Spans partition the sequence, carry the right names, and words and sentences end where they should."
    e = encode(r, tok, layout)
    check_row(e, 'encoded')
    ids, want = reference(r, tok, layout)
    assert e['input_ids'] == ids
    assert [s[0] for s in e['spans']] == [0, *(s[1] for s in e['spans'][:-1])] and e['spans'][-1][1] == len(ids)
    kinds = [k for a, b, k in e['spans'] for _ in range(b - a)]
    assert kinds == ['answer' if k == 'box' else k for k, *_ in want]
    plan = MaskPlan([e], MaskSpec(0.0, mask_target='+'.join(MASKABLE)))
    assert plan.may_mask()[0].tolist() == [k in MASKABLE for k, *_ in want]
    at = plan.units.at
    for unit, j in (('sentence', 1), ('word', 2)):
        got = find_units([e], MaskSpec(mask_unit=unit, mask_target='+'.join(MASKABLE))).unit
        names = [(want[i][0], want[i][j]) for i in at]
        assert [a == b for a, b in zip(got, got[1:])] == [a == b for a, b in zip(names, names[1:])], unit


@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('layout', ['critique', 'question'])
def test_encoding(name, layout):
    "Astral text, Windows line ends, combining marks, words without white space; box and tags stay whole."
    tok = TOKENIZERS[name]
    for r in (
        row(),
        row(
            critique='𝟑 + 𝟒 is fine 👍🏽. Étape 2:\r\nnaïve e\u0301é, wrong!  Yes.',
            reasoning='𝟕 × 2 = 14\r\n\r\n一二三 = 14',
        ),
        row(critique='a\u00a0b\u3000c.  \t\n\n d', reasoning='x', answer='\\frac{1}{2}'),
        row(critique='critique', reasoning='reasoning', answer=' 7 '),
    ):
        check_against_reference(r, tok, layout)
        e = encode(r, tok, layout)
        x = render_prompt(tok, example_text(r, layout)[0])
        n = e['spans'][0][1]
        assert e['input_ids'][:n] == tok(x, add_special_tokens=False).input_ids, (
            'X is not what the model sees at inference'
        )


anything = st.text(
    st.one_of(st.sampled_from('ab 12.,!?\n\r\t"}{\\'), st.characters(exclude_categories=['Cs'])), max_size=30
).filter(lambda text: not re.search(r'</?\w+>', text)) # tags inside a part are an error, which test_format holds


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(['critique', 'question']), anything, anything)
def test_encoding_of_anything(name, layout, a, b):
    "Whatever the critique and the chain say."
    check_against_reference(row(critique='ab ' + a, reasoning='12 ' + b), TOKENIZERS[name], layout)


def test_together_or_alone():
    "Encoding many rows gives what encoding one gives."
    for tok in TOKENIZERS.values():
        rows = [row(str(i), critique=f'{TEXT[i % 2]} {i}') for i in range(7)]
        assert encode_rows(rows, tok, 'critique') == [encode(r, tok, 'critique') for r in rows]


def test_length():
    "Too long is an error with a name, or left out with a reason; nothing is ever cut."
    tok, rows = (
        TOKENIZERS['bpe'],
        [dict(row('a'), status='kept', reason=''), dict(row('b', critique='long. ' * 200), status='kept', reason='')],
    )
    with pytest.raises(ValueError, match='b:critique has .* tokens, more than max_length=300'):
        encode_all(rows, tok, 300)
    out, dropped = encode_all(rows, tok, 300, 'drop')
    assert [e['id'] for e in out] == ['a:critique', 'a:question'] and dropped == {'b': 'longer than 300 tokens'}
    assert all(e['input_ids'][-1] == tok.eos_token_id and e['spans'][-1][2] == 'eos' for e in out)


def test_nothing_left_of_a_part():
    "A critique that the tokenizer drops altogether is an error that names the row."
    from tokenizers import Regex, normalizers

    dropping = tokenizer('bpe', False)
    dropping.backend_tokenizer.normalizer = normalizers.Replace(Regex('[\\x00\\x01]'), '')
    with pytest.raises(ValueError, match="7:critique: spans hold .* no token is left for a part"):
        encode(row('7', critique='\x00\x01'), dropping, 'critique')
    assert encode_rows([], TOKENIZERS['bpe'], 'critique') == []
    with pytest.raises(ValueError, match='no rows to mask'):
        MaskPlan([], MaskSpec())


def test_template_that_opens_a_thought():
    "DeepSeek-R1's generation prompt ends in <think>: not twice in the question layout, not at all before a critique."
    tok = tokenizer('bpe', True)
    tok.chat_template = TEMPLATE.replace('<|assistant|>', '<|assistant|><think>\n')
    e, c = encode(row(), tok, 'question'), encode(row(), tok, 'critique')
    assert tok.decode(e['input_ids']).count('<think>') == 1 and tok.decode(c['input_ids']).endswith(
        '<ans>\\boxed{14}</ans></s>'
    )
    n = e['spans'][0][1]
    assert tok.decode(e['input_ids'][:n]).endswith('<|assistant|><think>\n') and e['spans'][1][2] == 'reasoning'
    assert '<think>' not in tok.decode(c['input_ids'])


# --- masks on made-up examples

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@st.composite
def examples(draw, n=st.integers(1, 5)):
    "Encoded rows with sentences and words of any size; some without a critique."
    out = []
    for i in range(draw(n)):
        spans, words, at = [], [], 0
        for kind, parts in (
            ('prompt', [draw(st.integers(1, 6))]),
            ('tag', [2]),
            ('critique', draw(st.one_of(sizes, st.just([])))),
            ('tag', [1]),
            ('reasoning', draw(sizes)),
            ('tag', [1]),
            ('answer', [2, draw(st.integers(1, 3)), 1]),
            ('eos', [1]),
        ):
            for j, k in enumerate(parts):
                spans.append([at, at + k, kind])
                at += k
                if kind in ('critique', 'reasoning') or (kind == 'answer' and j == 1):
                    words += _cut(draw, k)
        out.append(
            dict(
                id=f'e{i}:critique',
                layout='critique',
                problem_id=f'p{i}',
                input_ids=[10 + (i * 7 + j) % 80 for j in range(at)],
                spans=spans,
                words=words,
            )
        )
    return out


def _cut(draw, n: int) -> list:
    "n tokens as words of random sizes."
    out = []
    while n:
        out.append(k := draw(st.integers(1, n)))
        n -= k
    return out


targets = st.sampled_from(['critique', 'reasoning', 'answer', 'critique+answer', 'critique+reasoning+answer'])
specs = st.builds(
    MaskSpec,
    mask_rate=st.one_of(st.sampled_from([0.0, 0.2, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 9),
    mask_target=targets,
    mask_unit=st.sampled_from(list(UNITS)),
    **{name: st.sampled_from(values) for name, values in CHOICES.items()},
)
many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def made_scores(rows: list, spec: MaskSpec) -> dict:
    "Scores with ties, by a rule that depends on the example alone."
    return {
        r['id']: [
            (sum(map(ord, r['id'])) + 7 * i) % 5
            for i in range(sum(b - a for a, b in target_spans(r, spec.mask_target)))
        ]
        for r in rows
    }


@many
@given(examples(), specs, st.integers(0, 3))
def test_mask(rows, spec, epoch):
    "Only the target is masked, in whole units, exactly if asked for, whatever the rows around."
    scores = made_scores(rows, spec)
    plan = MaskPlan(rows, spec, scores, blank=3)
    masks, units = plan.masks(epoch), plan.units
    for r, m, may in zip(rows, masks, plan.may_mask()):
        kinds = np.concatenate([[k] * (b - a) for a, b, k in r['spans']])
        assert not (m & ~may).any() and set(kinds[may]) <= set(spec.targets)
        assert np.flatnonzero(may).tolist() == [
            i for a, b in target_spans(r, spec.mask_target) for i in range(a, b)
        ]  # what mcft.scores takes for the target
        assert (draw_mask(r, spec, epoch, scores) == m).all()
    hit = np.concatenate(masks)[units.at]
    per_unit = np.bincount(units.unit, hit, len(units.example))
    assert ((per_unit == 0) | (per_unit == np.bincount(units.unit, minlength=len(units.example)))).all()
    if spec.mask_draw == 'exact':
        n = np.bincount(units.example, minlength=len(rows))
        assert (np.bincount(units.example, per_unit > 0, len(rows)) == (spec.mask_rate * n + 0.5).astype(int)).all()
    back = MaskPlan(rows[::-1], spec, scores, blank=3).masks(epoch)[::-1]
    assert all((a == b).all() for a, b in zip(masks, back))


@many
@given(examples(), specs)
def test_inputs(rows, spec):
    "What each mode does to ids and labels; prompt never, tags and end token always."
    scores = made_scores(rows, spec)
    for r, got, m in zip(
        rows, MaskPlan(rows, spec, scores, blank=3).inputs(), MaskPlan(rows, spec, scores, blank=3).masks()
    ):
        ids, kinds = np.array(r['input_ids']), np.concatenate([[k] * (b - a) for a, b, k in r['spans']])
        assert (got['input_ids'] == np.where(m & (spec.mask_mode != 'loss'), 3, ids)).all()
        assert (got['labels'] == np.where((kinds == 'prompt') | (m & (spec.mask_mode != 'input')), IGNORE, ids)).all()
        assert (got['labels'][np.isin(kinds, ['tag', 'eos'])] != IGNORE).all()
        if spec.mask_mode == 'loss':
            assert (got['labels'] == labels(r, m, spec.mask_target)).all()
        alone = model_inputs(r, spec, 0, 3, scores)
        assert all((alone[k] == got[k]).all() for k in got)


@many
@given(examples(), specs, st.floats(0, 1))
def test_nested_rates(rows, spec, other):
    "The mask of the lower rate is part of the mask of the higher one."
    low, high = sorted([spec.mask_rate, other])
    scores = made_scores(rows, spec)
    a, b = (MaskPlan(rows, replace(spec, mask_rate=r), scores, blank=3).masks() for r in (low, high))
    assert all((x <= y).all() for x, y in zip(a, b))


def long_examples(n: int, size: int) -> list:
    "n examples with one long critique each."
    spans = [[0, 1, 'prompt'], [1, 2, 'tag'], [2, 2 + size, 'critique'], [2 + size, 3 + size, 'eos']]
    return [
        dict(id=f'r{i}:critique', layout='critique', problem_id='p', input_ids=[5] * (size + 3), spans=spans, words=[])
        for i in range(n)
    ]


@pytest.mark.parametrize('draw', CHOICES['mask_draw'])
def test_independence(draw):
    "Fraction, spread, and correlation between examples, epochs, seeds and neighbours lie within five deviations."
    rows, p = long_examples(500, 300), 0.2
    x = np.array([m[2:302] for m in MaskPlan(rows, MaskSpec(p, mask_draw=draw, mask_schedule='per_epoch')).masks(0)])
    if draw == 'bernoulli':
        assert abs(x.mean() - p) < 5 * (p * (1 - p) / x.size) ** 0.5
        assert abs(x.sum(1).var(ddof=1) / (300 * p * (1 - p)) - 1) < 5 * (2 / 499) ** 0.5
    else:
        assert (x.sum(1) == 60).all()
    assert abs(x.mean(0).var(ddof=1) / (p * (1 - p) / 500) - 1) < 5 * (2 / 299) ** 0.5  # no place is preferred
    others = [
        MaskPlan(rows, MaskSpec(p, mask_draw=draw, mask_schedule='per_epoch', seed=s)).masks(e)
        for s, e in ((0, 1), (1, 0))
    ]
    pairs = [(x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), *((x, np.array([m[2:302] for m in o])) for o in others)]
    for a, b in pairs:
        z = ((a - p) * (b - p)).sum() / (p * (1 - p) * a.size**0.5)
        assert abs(z) < 5 + (300 / 299 if draw == 'exact' else 0) * a.shape[0] ** 0.5 / 300**0.5, (
            z
        )  # neighbours of an exact share repel each other slightly


def test_presets():
    "All of them draw, keep prompt, tags and end token, and differ from each other."
    rows = [encode(row(str(i)), TOKENIZERS['bpe'], 'critique') for i in range(40)]
    seen = set()
    for name in PRESETS:
        spec = preset(name, seed=1)
        ids, y = MaskPlan(rows, spec, made_scores(rows, spec), mask_id(TOKENIZERS['bpe'])).flat()
        seen.add((ids.tobytes(), y.tobytes()))
    assert len(seen) == len(PRESETS)


def test_scores_belong_to_their_rows():
    "Every score of every kind fits the mask that goes by it."
    import torch
    from types import SimpleNamespace

    def model(input_ids):
        return SimpleNamespace(logits=torch.nn.functional.one_hot((input_ids * 3 + 1) % 500, 500).float())

    rows = encode_rows([row(), row('2', critique=TEXT[0])], TOKENIZERS['bpe'], 'critique')
    for score in SCORES:
        for target in ('critique', 'critique+reasoning') if score != 'loss' else ('critique+reasoning+answer',):
            got = {r['id']: r['values'] for r in score_rows(_Device(model), rows, score, target)}
            for order in ('high', 'low'):
                spec = MaskSpec(0.3, mask_unit='sentence', mask_draw='exact', mask_by=f'{score}_{order}',
                                mask_target=target)
                assert MaskPlan(rows, spec, got).masks()[0].any()


class _Device:
    "A function as a model."

    device = 'cpu'

    def __init__(self, f):
        self.f = f

    def __call__(self, input_ids):
        return self.f(input_ids)


# --- the reader's view, somebody else's script, speed


def test_view_escapes_and_marks():
    "Text of the rows cannot become HTML; every character is shown, for tokenizers of every kind."
    from html import unescape

    for name, tok in TOKENIZERS.items():
        e = encode(row(critique='<script>alert(1)</script> & "so" 👍🏽 on.'), tok, 'critique')
        got = model_inputs(e, MaskSpec(0.5, mask_mode='both'), blank=tok.pad_token_id)
        html = show_example(e, got['labels'], tok, got['input_ids']).data
        assert '<script' not in html and 'dashed' in html
        body = re.sub(r'<[^>]+>', '', html.split('overflow-wrap:anywhere">')[1])
        assert unescape(body).replace('⏎', '') == tok.decode(e['input_ids'], clean_up_tokenization_spaces=False), name


def snippet() -> str:
    "The ten lines of the notebook."
    text = next(
        c.source
        for c in cells('03_masking.ipynb')
        if c.cell_type == 'markdown' and 'In your own script' in c.source
    )
    return re.search(r'```python\n(.*?)```', text, re.S)[1]


def test_in_somebody_elses_script(tmp_path):
    "The snippet trains a model that is not ours, with its own tokenizer, and the mask reaches TRL's batches."
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tok = TOKENIZERS['qwen']
    tok.save_pretrained(tmp_path / 'model')
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tok), hidden_size=16, num_hidden_layers=1, intermediate_size=32,
                    num_attention_heads=2, num_key_value_heads=2)
    ).save_pretrained(tmp_path / 'model')
    code = snippet()
    assert code in (ROOT / 'docs' / 'pages' / 'howto_model.md').read_text(encoding='utf-8'), (
        'the page shows another snippet than the notebook'
    )
    assert (
        len([line for line in code.splitlines() if line.strip() and not line.startswith(('from', 'import', ' '))]) <= 10
    )
    code = code.replace('"your/model"', repr(str(tmp_path / 'model'))).replace(
        'SFTConfig("out"', 'SFTConfig("out", use_cpu=True, report_to="none"'
    )
    code += """
import json
args = SFTConfig("o", max_length=None, use_cpu=True, report_to="none")
t = SFTTrainer(model, args, train_dataset=data, processing_class=tok)
batch = [b["labels"].tolist() for b in t.get_train_dataloader()][0][0]
print("LABELS", json.dumps(batch), json.dumps(data[0]["labels"]))
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**__import__('os').environ, 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    batch, ready = (json.loads(x) for x in re.search(r'LABELS (\[.*?\]) (\[.*?\])', done.stdout).groups())
    e = encode(dict(row(), rollout='3 + 4 = 7. 7 * 2 = 15.'), tok, 'critique')
    assert batch == ready and len(ready) == len(e['input_ids'])
    kinds = [k for a, b, k in e['spans'] for _ in range(b - a)]
    assert {k for k, y in zip(kinds, ready) if y == IGNORE} == {'prompt', 'critique'}


def test_no_torch():
    "Encoding and masking are importable without torch and transformers."
    code = 'import sys, mcft.masking, mcft.scores; sys.exit(bool({"torch", "transformers", "trl"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_committed_rows():
    "The committed file is what this version encodes: every id, span and word of it."
    rows = read_rows('data/pocket/encoded.jsonl', 'encoded')
    kept = [r for r in read_rows('data/pocket/critiques.jsonl', 'critiques') if r['status'] == 'kept']
    assert encode_all(kept, load_tokenizer('data/pocket/base'), 1024) == (rows, {})


def test_bench_small():
    "The measurement runs and gives its rows."
    from measure.bench_encoding import measure

    assert {r['name'] for r in measure(True)} >= {'tokens per second, encode + draw', 'speed, one new draw'}


# --- languages without spaces (UAX #29), a unit of one's own, and what is committed

LANGUAGES = dict(
    chinese='学生在第二步犯了错误。3+4等于7，但是7*2等于14，而不是15！因此答案是错的。真的吗？是的，应该重新计算。',
    japanese='2行目に誤りがあります。3+4は7です。しかし7*2は14で、15ではありません！コンピューターの答えは間違いです。もう一度計算しましょう。',
    thai='ผลรวมถูกต้อง คำตอบผิด ดังนั้นต้องคำนวณใหม่ 7*2 คือ 14 ไม่ใช่ 15 นักเรียนเขียนผิดในขั้นที่สอง ลองอีกครั้ง\nขั้นแรกถูกต้อง ขั้นต่อไปผิด',
    arabic='المجموع صحيح. لكن 7*2 يساوي 14 وليس 15. هل هذا واضح؟ الجواب خطأ. يجب إعادة الحساب!',
    emoji='👍🏽👍🏽 3+4=7! 👨‍👩‍👧‍👦❌🇩🇪🇫🇷 7*2≠15! ❤️🔥✅ 14! 👎🏿🙈😀! 1️⃣2️⃣ 🏴‍☠️!',
    mixed='Step 2 错了: 7*2 is 14。 Also 答案不是15! しかし the chain はOKです。 คำตอบผิด แต่ 3+4=7 ถูก. Yes؟ Done.',
    tibetan='སློབ་མས་ནོར་འཁྲུལ་བཟོས་འདུག ། 3+4 ནི་ 7 ཡིན། འོན་ཀྱང་ 7*2 ནི་ 14 རེད། དེ་ 15 མ་རེད། ལན་འདེབས་ནོར་བ་རེད། ཡང་བསྐྱར་རྩིས་རྒྱག་དགོས།',
    khmer='ផលបូកត្រឹមត្រូវ។ ប៉ុន្តែ 7*2 គឺ 14 មិនមែន 15 ទេ។ ចម្លើយខុស។ តើច្បាស់ទេ? ត្រូវគណនាម្តងទៀត។ សូមព្យាយាម។',
    burmese='ပေါင်းလဒ် မှန်သည်။ သို့သော် 7*2 သည် 14 ဖြစ်သည်။ 15 မဟုတ်ပါ။ အဖြေ မှားသည်။ ထပ်တွက်ရမည်။ စစ်ဆေးပါ။',
    hindi='योग सही है। लेकिन 7*2 बराबर 14 है। यह 15 नहीं है। उत्तर गलत है। क्या यह साफ है? फिर से गणना करनी होगी।',
    korean='합은 맞습니다. 그러나 7*2는 14이고 15가 아닙니다. 답이 틀렸습니다. 분명합니까? 다시 계산해야 합니다! 끝.',
    hebrew='הסכום נכון. אבל 7*2 הוא 14 ולא 15. התשובה שגויה. האם זה ברור? יש לחשב שוב! סוף.',
)


@pytest.mark.parametrize('language', LANGUAGES)
def test_languages(language):
    "An exact fifth of the units masks about a fifth of the tokens, and no unit cuts through a grapheme."
    import regex

    tok = TOKENIZERS['bpe']
    (e,) = encode_rows([row(critique=LANGUAGES[language])], tok, 'critique')
    many = [{**e, 'id': f'{i}'} for i in range(60)]
    for unit in ('word', 'sentence', 'span'):
        spec = MaskSpec(0.2, mask_unit=unit, mask_draw='exact')
        plan = MaskPlan(many, spec)
        n = plan.units.n_unit[0]
        assert n >= 5 and abs(spec.count(n) / n - 0.2) <= 0.5 / n, (unit, n)
        assert abs(len(plan.masked_tokens()) / len(plan.units.at) - spec.count(n) / n) < 0.05, unit
        plan.check()
    text = LANGUAGES[language]
    clusters = {0, *itertools.accumulate(map(len, regex.findall(r'\X', text)))}
    assert set(word_starts(text)) <= clusters and set(sentence_starts(text)) <= clusters


def test_english_is_as_before():
    "Text that writes spaces is cut at white space, whatever stands between."
    for text in (TEXT[0], 'naïve; 5!=120, e.g. 1.5 \t x\r\n\u00a0y', 'Привет, мир! Καλά. 3+4=7'):
        assert spaced(text) == text
        assert word_starts(text) == [m.end() for m in re.finditer(r'\s+', text)]


def test_words_are_those_of_uax_29():
    "Beside characters that are written without spaces, the boundaries of the standard."
    assert spaced('但是7*2等于14。').split() == ['但', '是', '7*2', '等', '于', '14。']
    assert spaced('コンピューターの答え').split() == ['コンピューター', 'の', '答', 'え']
    assert spaced('👨‍👩‍👧‍👦🇩🇪🇫🇷❤️ good👍🏽').split() == ['👨‍👩‍👧‍👦', '🇩🇪', '🇫🇷', '❤️', 'good', '👍🏽']


def test_a_line_ends_however_a_system_ends_it():
    "Carriage returns and the separators of Unicode begin a sentence as a line feed does."
    for end in ('\n', '\r', '\r\n', '\x85', '\u2028', '\u2029', '\f'):
        assert sentence_starts(f'one{end}two') == [3], repr(end)


def test_tibetan_is_cut_behind_its_syllables():
    assert spaced('ང་ལ་ཀུ་ཤུ་ལྔ་ཡོད།').split() == ['ང་', 'ལ་', 'ཀུ་', 'ཤུ་', 'ལྔ་', 'ཡོད།']


def test_no_unit_is_an_error():
    "An exact fraction that rounds to no unit in every row is refused; one row with enough units is enough."
    (short,) = encode_rows([row(critique='一句话')], TOKENIZERS['bpe'], 'critique')
    spec = MaskSpec(0.2, mask_unit='sentence', mask_draw='exact')
    with pytest.raises(ValueError, match="masks nothing: an example has at most 1 of these units"):
        MaskPlan([short], spec).check()
    (long,) = encode_rows([row('2', critique=LANGUAGES['chinese'])], TOKENIZERS['bpe'], 'critique')
    MaskPlan([short, long], spec).check()
    MaskPlan([short], replace(spec, mask_rate=0.0)).check()


def test_a_unit_of_ones_own():
    "One function adds a unit: the page's own example, drawn, and refused again when it is gone."
    page = (ROOT / 'docs' / 'pages' / 'howto_mask_unit.md').read_text(encoding='utf-8')
    scope = {}
    exec(re.search(r'```python\n(.*?)```', page, re.S)[1], scope)
    (name,) = set(UNITS) - {'token', 'word', 'span', 'sentence', 'part'}
    try:
        rows = [encode(row(str(i)), TOKENIZERS['bpe'], 'critique') for i in range(40)]
        plan = MaskPlan(rows, MaskSpec(0.3, mask_unit=name))
        hit = np.concatenate(plan.masks())[plan.units.at]
        per_unit = np.bincount(plan.units.unit, hit)
        assert per_unit.any() and ((per_unit == 0) | (per_unit == np.bincount(plan.units.unit))).all()
    finally:
        del UNITS[name]
    with pytest.raises(ValueError, match='mask_unit is .* expected one of token, word, span, sentence, part'):
        MaskSpec(mask_unit=name)


def test_left_out():
    "A stray think tag in Y leaves the row out with its reason; in X a student's output gets its opener back."
    tok = TOKENIZERS['bpe, tags special']
    rows = [dict(row(i), status='kept', reason='') for i in '123']
    rows[1]['reasoning'], rows[2]['rollout'] = '7</think>', '3 + 4 = 7.\n</think>\n\\boxed{7}'
    out, dropped = encode_all(rows, tok, 400)
    assert dropped == {'2': 'the reasoning holds a </think> that closes nothing'}
    text = tok.decode(next(e for e in out if e['id'] == '3:critique')['input_ids'])
    assert text.count('<think>') == text.count('</think>') == 1 and text.index('<think>') < text.index('</think>')


def test_a_tokenizer_that_loses_text_is_refused():
    "WordPiece does not give white space back, so nothing is encoded with it."
    with pytest.raises(ValueError, match='loses text'):
        encode(row(), tokenizer('wordpiece', False), 'critique')


def digest(arrays) -> str:
    "16 hex digits of many arrays."
    return hashlib.sha256(b''.join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()[:16]


# Of every mask of the committed critiques, over two rates, schedules, seeds and epochs, as the first version drew them.
DRAWS = {
    ('token', 'bernoulli'): '8de963e751366316',
    ('word', 'bernoulli'): '83c0f0ff18536009',
    ('span', 'bernoulli'): 'a837410e829e35f9',
    ('sentence', 'bernoulli'): '81123643a3d87ed9',
    ('part', 'bernoulli'): 'ed1329d98b792f44',
    ('token', 'exact'): '883293243ce4e3be',
    ('word', 'exact'): '4632b523df366e58',
    ('span', 'exact'): '300945c33c7593d0',
    ('sentence', 'exact'): '11ddabcfd823e70d',
    ('part', 'exact'): 'd638edfb32b532fc',
}


@pytest.mark.parametrize('unit', ['token', 'word', 'span', 'sentence', 'part'])
@pytest.mark.parametrize('draw', CHOICES['mask_draw'])
def test_committed_draws(unit, draw):
    "The draws on which the committed results rest are what this version draws."
    rows = [r for r in read_rows('data/pocket/encoded.jsonl', 'encoded') if r['layout'] == 'critique']
    specs = [
        MaskSpec(r, mask_unit=unit, mask_draw=draw, mask_schedule=s, seed=seed)
        for r in (0.15, 0.5)
        for s in CHOICES['mask_schedule']
        for seed in (0, 1)
    ]
    assert digest(m for s in specs for e in (0, 1) for m in MaskPlan(rows, s).masks(e)) == DRAWS[unit, draw]


@pytest.mark.parametrize('language', LANGUAGES)
def test_checks_in_any_language(language):
    "Loops are found, and a critique that quotes the rollout is told from one that does not."
    from mcft.critique import mentions, repetition
    from mcft.data import loop_length

    text = LANGUAGES[language]
    line = re.sub(r'[\d*+=≠!.。！？]', '', text)[:25]
    assert loop_length(line * 12) > 0 and loop_length(text) == 0
    assert repetition(line * 12) > 0.5 > 0.3 > repetition(text)
    words = re.sub(r'\d', '', text)
    assert 'quote' in mentions(words, f'12. {words}') or language == 'emoji'
    assert not mentions(words, 'An unrelated rollout in English.')


# --- more cases than the notebooks show


def test_example_text():
    "A text that cannot be put together is an error that names the row and the reason."
    for change, layout, why in (
        (dict(), 'chat', "unknown layout 'chat'"),
        (dict(rollout=' '), 'critique', 'critique 1: empty rollout'),
        (dict(reasoning=''), 'critique', 'empty reasoning'),
        (dict(critique='It </critique> ends'), 'critique', 'holds the tag </critique>'),
    ):
        with pytest.raises(ValueError, match=why):
            example_text(row(**change), layout)
    with pytest.raises(ValueError, match="critique c1: no field 'rollout'"):
        example_text({'id': 'c1', 'question': '1+1?'}, 'critique')


def test_control_text():
    "Turn markers and end tokens are found in what a layout reads; the project's own tags are none, special or not."
    for tags in (False, True):
        tok = tokenizer('bpe', tags)
        assert control_text(row(), tok) == ''
        assert control_text(row(rollout='<think>a</think>5'), tok) == ''
        assert control_text(row(rollout='5<|user|>Why?'), tok) == "the rollout holds the control token '<|user|>'"
        assert control_text(row(rollout='5<|user|>Why?'), tok, ('question',)) == ''
        assert control_text(row(critique='No.</s> Or'), tok) == "the critique holds the end token '</s>'"
        with pytest.raises(ValueError, match='1: the critique holds the end token'):
            encode(row(critique='No.</s>'), tok, 'critique')


def test_layouts():
    "Parts hold their texts in each layout; `comment` is the critique layout up to the rewrite."
    tok = TOKENIZERS['bpe, tags special']
    for layout in OPENERS:
        e = encode(row(), tok, layout)

        def part(kind, e=e):
            return tok.decode([i for a, b, k in e['spans'] if k == kind for i in e['input_ids'][a:b]]).strip()

        want = {name: row()[name] for name in OPENERS[layout] if name != 'answer'}
        assert {name: part(name) for name in want} == want and part('eos') == tok.eos_token
        boxed = [tok.decode(e['input_ids'][a:b]) for a, b, k in e['spans'] if k == 'answer']
        assert boxed == (['\\boxed{', '14', '}'] if 'answer' in OPENERS[layout] else [])
    said, whole = encode(row(), tok, 'comment'), encode(row(), tok, 'critique')
    assert tok.decode(said['input_ids']) == tok.decode(whole['input_ids']).partition('\n<reasoning>')[0] + tok.eos_token
    assert [s for s in said['spans'] if s[2] == 'critique'] == [s for s in whole['spans'] if s[2] == 'critique']


@pytest.mark.parametrize('end', [' ', '\t\t', '\n\n ', 'go: '])
def test_templates_whose_end_merges_with_y(end):
    "X keeps the ids that it has at inference, whatever its last characters."
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ['<pad>', '<s>', '</s>', '<|user|>', '<|assistant|>']
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    t.train_from_iterator([' <critique> <think>'] * 9, trainer)
    t.decoder = __import__('tokenizers').decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', pad_token='<pad>')
    tok.chat_template = TEMPLATE.replace('<|assistant|>', '<|assistant|>' + end)
    e = encode(row(), tok, 'critique')
    n = e['spans'][0][1]
    x = render_prompt(tok, example_text(row(), 'critique')[0])
    assert e['input_ids'][:n] == tok(x, add_special_tokens=False).input_ids
    assert tok.decode(e['input_ids'][n:]).startswith('<critique>')


@pytest.mark.parametrize(
    'change, why',
    [
        (dict(mask_rate=1.2), 'mask_rate is 1.2, expected a number from 0 to 1'),
        (dict(mask_rate=20), 'mask_rate is 20'),
        (dict(mask_rate=float('nan')), 'mask_rate is nan'),
        (dict(mask_rate=True), 'mask_rate is True'),
        (dict(mask_mode='labels'), 'mask_mode is .labels., expected one of loss, input, both'),
        (dict(mask_unit='line'), 'mask_unit is .line., expected one of token, word, span, sentence, part'),
        (dict(mask_schedule='epoch'), 'mask_schedule is .epoch., expected one of static, per_epoch'),
        (
            dict(mask_target='critique+tag'),
            'mask_target is .critique.tag., expected one or more of critique, reasoning, answer',
        ),
        (dict(mask_by='loss'), 'mask_by is .loss., expected one of random, loss_high'),
        (dict(seed='a'), 'seed is .a.'),
    ],
)
def test_spec_names_what_is_wrong(change, why):
    "A malformed spec is refused with the parameter, its value and what is expected."
    with pytest.raises(ValueError, match=why):
        MaskSpec(**change)


def test_ends_of_the_scale():
    "Rate 0 masks nothing, rate 1 all; a question has no critique; without words there is no mask by word."
    tok = TOKENIZERS['bpe']
    e, q = encode(row(), tok, 'critique'), encode(row(), tok, 'question')
    n = sum(b - a for a, b, k in e['spans'] if k == 'critique')
    assert draw_mask(e, MaskSpec(0.0)).sum() == 0 and draw_mask(e, MaskSpec(1.0)).sum() == n
    assert draw_mask(q, MaskSpec(1.0)).sum() == 0
    with pytest.raises(ValueError, match='needs the words of every row'):
        draw_mask({**e, 'words': []}, MaskSpec(mask_unit='word'))


def test_scores_are_checked():
    "The top or the bottom fraction is masked; scores that are missing, too few or not finite are refused."
    e = encode(row(), TOKENIZERS['bpe'], 'critique')
    at = np.array([i for a, b in target_spans(e) for i in range(a, b)])
    k = len(at)
    scores = {e['id']: list(range(k))}
    n = int(0.25 * k + 0.5)
    for by, want in (('loss_high', np.arange(k) >= k - n), ('loss_low', np.arange(k) < n)):
        assert (draw_mask(e, MaskSpec(0.25, mask_draw='exact', mask_by=by), 0, scores)[at] == want).all()
    assert draw_mask(e, MaskSpec(1.0, mask_by='loss_low'), 0, scores).sum() == k
    for given_, why in (
        (None, 'needs scores'),
        ({}, f'no scores for its {k} tokens'),
        ({e['id']: [1.0]}, f'1 scores for its {k} tokens'),
        ({e['id']: [float('nan')] * k}, 'are no finite numbers'),
    ):
        with pytest.raises(ValueError, match=why):
            draw_mask(e, MaskSpec(0.2, mask_by='loss_high'), 0, given_)


@pytest.mark.parametrize('unit', ['token', 'word', 'span', 'sentence', 'part'])
def test_expected_fraction(unit):
    "Over many epochs the number of masked tokens is the expected one, with and without scores that tie."
    e = encode(row(critique=TEXT[0] * 3), TOKENIZERS['bpe'], 'critique')
    ties = {e['id']: [i // 7 for i in range(sum(b - a for a, b in target_spans(e)))]}
    for draw in CHOICES['mask_draw']:
        spec = MaskSpec(0.3, mask_unit=unit, mask_draw=draw, mask_schedule='per_epoch')
        plan = MaskPlan([e], spec)
        got = np.array([len(plan.masked_tokens(epoch)) for epoch in range(1500)])
        expected = rate_sweep([e], (0.3,), spec).expected[0] * len(plan.units.at)
        assert abs(got.mean() - expected) < 5 * (got.var() / 1500) ** 0.5 + 1e-9, draw
    weighted = MaskPlan([e], replace(spec, mask_draw='bernoulli', mask_by='loss_high'), ties)
    got = np.array([weighted.masked_units(epoch) for epoch in range(1500)])
    assert (abs(got.mean(0) - weighted.mask_rate) < 5 * (0.25 / 1500) ** 0.5).all()


def test_the_stage(tmp_path):
    "A complete run is not made again; inputs, parameters and the template decide; controls reach the rows."
    import shutil

    from mcft.core import write_rows

    shutil.copytree(ROOT / 'data' / 'pocket' / 'base', tmp_path / 'model')
    kept = [r for r in read_rows('data/pocket/critiques.jsonl', 'critiques') if r['status'] == 'kept'][:12]
    write_rows(tmp_path / 'critiques.jsonl', kept, 'critiques')
    cfg = EncodeConfig(tmp_path / 'critiques.jsonl', tmp_path / 'model', tmp_path / 'out')
    run_encode(cfg)
    first = (tmp_path / 'out' / 'encoded.jsonl').stat().st_mtime_ns
    run_encode(cfg)
    assert (tmp_path / 'out' / 'encoded.jsonl').stat().st_mtime_ns == first
    assert (
        read_rows(tmp_path / 'out' / 'encoded.jsonl', 'encoded')
        == encode_all(kept, load_tokenizer(tmp_path / 'model'), 1024)[0]
    )
    told = replace(cfg, control='wrong_answer', layouts=('comment', 'question'), out_dir=tmp_path / 'told')
    run_encode(told)
    tok = load_tokenizer(tmp_path / 'model')
    for e in read_rows(tmp_path / 'told' / 'encoded.jsonl', 'encoded'):
        text, answer = tok.decode(e['input_ids']), next(r['answer'] for r in kept if e['id'].startswith(r['id'] + ':'))
        assert '<reasoning>' not in text if e['layout'] == 'comment' else f'\\boxed{{{answer}}}' not in text
    with pytest.raises(ValueError, match='other parameters or inputs'):
        run_encode(replace(cfg, max_length=999))
    with pytest.raises(FileNotFoundError, match='missing input'):
        run_encode(replace(cfg, critiques=tmp_path / 'nope.jsonl'))
    template = tmp_path / 'model' / 'chat_template.jinja'
    template.write_text(template.read_text() + ' ')
    with pytest.raises(ValueError, match='other parameters or inputs'):
        run_encode(cfg)


@pytest.mark.parametrize(
    'change, why',
    [
        (dict(too_long='cut'), 'too_long is .cut., expected one of error, drop'),
        (dict(layouts=('critique', 'chat')), 'layouts is .*expected one or more of critique, question, comment'),
        (dict(layouts=()), 'layouts is'),
        (dict(control='shuffle'), 'control is .shuffle., expected one of'),
        (dict(control='reference'), 'needs a file of solutions'),
        (dict(solutions='a.jsonl'), 'nothing else takes one'),
        (dict(scores=('entropy',)), 'scores is .*expected some of loss, step, critical'),
        (dict(max_length=8), 'max_length is 8, expected at least 16'),
        (dict(max_length='1024'), 'max_length is .1024.'),
        (dict(revision='main'), 'revision is .main., but model_dir='),
        (dict(out_dir=''), 'out_dir is'),
    ],
)
def test_stage_parameters(change, why):
    "A malformed parameter of the stage is refused by name before anything is read."
    with pytest.raises(ValueError, match=why):
        EncodeConfig(**change)


def test_ids_name_the_draws():
    "An id that stands twice is an error."
    rows = [dict(row('1'), status='kept', reason='')] * 2
    with pytest.raises(ValueError, match="critique id '1' stands 2 times"):
        encode_all(rows, TOKENIZERS['bpe'], 400)


def test_rates_are_nested_unless_each_has_a_draw_of_its_own():
    rows = read_rows('data/pocket/encoded.jsonl', 'encoded')[::12]
    def drawn(**spec): return np.concatenate(MaskPlan(rows, MaskSpec(**spec)).masks())
    low, high = drawn(mask_rate=.15), drawn(mask_rate=.20)
    assert high[low].all() and high.sum() > low.sum()
    own, may = drawn(mask_rate=.20, mask_nested=False), np.concatenate(MaskPlan(rows, MaskSpec(.2)).may_mask())
    other = drawn(mask_rate=.15, mask_nested=False)
    assert own[may].mean() == pytest.approx(.2, abs=.02)
    assert other[own].mean() == pytest.approx(.15, abs=.03), 'what one rate masks says nothing about the other'
    assert drawn(mask_rate=1., mask_nested=False).sum() == may.sum()
